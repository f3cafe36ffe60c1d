"""What the rows so far say of each cell's optimum, for a search that goes where it is least sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.adaptive_grid import CellEstimate

_MIN_DROPOUTS = 3  # fewer give no curve
N_BOOTSTRAP = 2000  # as the report's, whose intervals are the ones that were decided by


def estimate_cells(rows: Sequence[Mapping[str, Any]], n_bootstrap: int = N_BOOTSTRAP) -> list[CellEstimate]:
    """One estimate per cell of a metrics table, in the order of their keys: the fits of ``analysis.optimum``.

    Raises:
        UserError: there is no static trial among the rows.
    """
    import pandas as pd  # takes half a second, which other searches need not spend
    from threadpoolctl import threadpool_limits

    from analysis.cells import make_cells, pool_noise
    from analysis.optimum import fit_cell

    # One thread, as in the report: the last digits of a sum depend on how many there are.
    with threadpool_limits(limits=1, user_api="blas"):
        cells = [cell for cell in make_cells(pd.DataFrame.from_records(rows)) if len(cell.dropouts) >= _MIN_DROPOUTS]
        noise = pool_noise(cells)
        fits = [fit_cell(cell, noise[cell.key], None, n_bootstrap, 0) for cell in cells]
    return [
        CellEstimate(
            fit.model,
            fit.unique_tokens,
            fit.sampled_tokens,
            fit.grid_optimum,
            fit.fitted_low,
            fit.fitted_high,
            fit.status,
        )
        for fit in fits
    ]

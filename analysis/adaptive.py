"""Where the cells of an adaptive calibration stand: which are decided, what each took, why it was left as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tune_dd.artifacts import SUGGESTIONS, read_json
from tune_dd.errors import UserError

REASONS = {
    "narrow": "its interval is narrow enough",
    "edge": "its best dropout is the lowest or highest",
    "flat": "dropouts differ by no more than noise",
    "out_of_reach": "all seeds would still leave it too wide",
    "all_seeds": "all seeds of its best dropout are used",
    "budget": "the budget was spent",
    "open": "it wants further trials",
}
KEYS: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "unique_tokens": int,
    "sampled_tokens": int,
    "decided": bool,
    "reason": str,
    "width": (float, int, type(None)),
    "n_trials": int,
    "n_seeds": int,
}


@dataclass(frozen=True)
class Adaptive:
    """What an adaptive calibration has come to.

    Attributes:
        cells: one row per cell with the columns ``KEYS``: ``width`` of its interval in dropout, NaN without one,
            ``n_trials`` that it was read out of, ``n_seeds`` of its best dropout.
        trained, full_grid: trials chosen, and those of the full grid.
        target_width, budget: what was asked for: in dropout, and as a share of the full grid.
    """

    cells: pd.DataFrame
    trained: int
    full_grid: int
    target_width: float
    budget: float

    @property
    def sentence(self) -> str:
        decided, cells = int(self.cells["decided"].sum()), len(self.cells)
        return (
            f"Adaptive: {decided} of {cells} cells are decided (interval within {self.target_width:g}, or an "
            f"optimum at the grid's edge) after {self.trained} of the full grid's {self.full_grid} trials "
            f"({self.trained / self.full_grid:.0%}; at most {self.budget:.0%} allowed)."
        )


def read_adaptive(folders: Sequence[Path]) -> list[Adaptive]:
    """Of every folder whose run is adaptive and has finished its first round.

    Raises:
        UserError: a suggestions.json is damaged.
    """
    found = []
    for path in (folder / SUGGESTIONS for folder in folders):
        data = read_json(path) if path.is_file() else None
        if isinstance(data, dict) and "full_grid" in data and data.get("cells"):
            try:
                found.append(_adaptive(data))
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{path} is damaged: make it again with --resume") from None
    return found


def _adaptive(data: dict[str, Any]) -> Adaptive:
    """Raises KeyError, TypeError or ValueError for what is not such a record."""
    for cell in data["cells"]:
        wrong = [name for name, kind in KEYS.items() if not isinstance(cell[name], kind)]
        if wrong or cell["reason"] not in REASONS:
            raise ValueError(wrong)
    return Adaptive(
        cells=pd.DataFrame(data["cells"], columns=list(KEYS)).astype({"width": "float64"}),
        trained=len(data["points"]),
        full_grid=int(data["full_grid"]),
        target_width=float(data["grid"]["target_width"]),
        budget=float(data["grid"]["budget"]),
    )

"""From the tidy table to cells: what is a cell's row, and its additive decomposition into seeds and dropouts.

A *cell* is one (regime, model, U, C). Its rows are the static, single-stage trials of the screen, confirm
and calibrate phases that were read out there. A static condition inside a stream is not a calibration
cell: most of what it drew came from other prefixes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from tune_dd.errors import UserError
from tune_dd.law import Array

# (regime, phase, model, n_params, unique_tokens, sampled_tokens)
Key = tuple[str, str, str, int, int, int]
CELL_PHASES = ("screen", "confirm", "calibrate")
# Below this many residual degrees of freedom a cell borrows the noise of its model's other cells.
MIN_DF = 6
CELL_KEYS = ["regime", "phase", "model", "n_params", "unique_tokens", "sampled_tokens"]
ROW_KEYS = ["regime", "phase", "model", "condition", "seed", "stage", "unique_tokens", "sampled_tokens"]


def check_table(table: pd.DataFrame, losses: Sequence[str] = ("val_loss",)) -> None:
    """Refuse what no statistic can be computed from.

    Raises:
        UserError: the table is empty, lacks a column, holds a NaN or infinite loss, or has a row twice.
    """
    if table.empty:
        raise UserError("the table has no rows: name a run that has finished at least one read-out")
    for name in [*ROW_KEYS, "n_params", "kind", "readout", "dropout", *losses]:
        if name not in table.columns:
            raise UserError(f"the table lacks the column {name!r}: give the rows of a metrics.jsonl")
    for name in losses:
        bad = ~np.isfinite(table[name].to_numpy(dtype=np.float64))
        if bad.any():
            raise UserError(
                f"{_label(table[bad].iloc[0])}: {name} is {table.loc[bad, name].iloc[0]}: leave that trial out or "
                "run it again"
            )
    twice = table.duplicated(ROW_KEYS)
    if twice.any():
        raise UserError(f"{_label(table[twice].iloc[0])} is in the table twice: drop one of the two rows")


def _label(row: pd.Series) -> str:
    return (
        f"{row['regime']} {row['phase']} {row['model']} U={row['unique_tokens']} {row['condition']} "
        f"seed {row['seed']} at C={row['sampled_tokens']}"
    )


def cell_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that calibration cells are made of (see the module's docstring)."""
    rows = table[table["phase"].isin(CELL_PHASES) & (table["kind"] == "static")]
    if "trial_id" in rows.columns:
        streams = rows.loc[rows["stage"] > 0, "trial_id"].unique()
        rows = rows[~rows["trial_id"].isin(streams)]
    return rows[rows["stage"] == 0]


@dataclass(frozen=True)
class Cell:
    """One cell's losses, and their least-squares decomposition ``loss[s, p] = seed_s + level_p + error``.

    The dropouts' levels are estimated from differences within seeds, so that a seed with missing
    dropouts shifts nothing (for a complete table: the plain means over seeds).

    Attributes:
        key: (regime, phase, model, n_params, unique_tokens, sampled_tokens).
        dropouts: (P,) increasing.
        seeds: (S,).
        losses: (S, P) nats per token, NaN where a trial is missing.
        levels: (P,) nats per token, at the mean seed.
        counts: (P,) seeds behind each level.
        information: (P, P), N: the levels' covariance is the noise variance times pinv(N).
        residuals: (S, P), NaN where missing.
        df: degrees of freedom of the residuals, (S-1)(P-1) for a complete table.
        dropped: dropouts left out because they share no seed, even indirectly, with the others.
    """

    key: Key
    dropouts: Array
    seeds: tuple[int, ...]
    losses: Array
    levels: Array
    counts: Array
    information: Array
    residuals: Array
    df: int
    dropped: tuple[float, ...]

    @property
    def rss(self) -> float:
        """Residual sum of squares, nats^2."""
        return float(np.nansum(self.residuals**2))

    @property
    def root(self) -> Array:
        """(P, P) symmetric square root of the levels' covariance over the noise variance."""
        if not np.isnan(self.losses).any():
            size = len(self.dropouts)
            return np.asarray((np.eye(size) - 1.0 / size) / np.sqrt(len(self.seeds)), dtype=np.float64)
        values, vectors = np.linalg.eigh(self.information)
        keep = values > 1e-9 * values[-1]
        scale = np.where(keep, 1.0 / np.sqrt(np.where(keep, values, 1.0)), 0.0)
        return np.asarray((vectors * scale) @ vectors.T, dtype=np.float64)


def make_cell(rows: pd.DataFrame) -> Cell:
    """Decompose the rows of one cell.

    Raises:
        UserError: the rows are of several cells.
    """
    cells = _split(rows)
    if len(cells) != 1:
        raise UserError(f"a cell is one regime, phase, model, U and C, but the rows are of {len(cells)} cells")
    return cells[0]


def _split(rows: pd.DataFrame) -> list[Cell]:
    """One cell per distinct key, in their order; arrays, since a data frame per cell costs more than its fit."""
    number = rows.groupby(CELL_KEYS, sort=True).ngroup().to_numpy()
    order = np.argsort(number, kind="stable")
    starts = np.flatnonzero(np.diff(number[order], prepend=-1))
    keys = rows[CELL_KEYS].iloc[order[starts]].itertuples(index=False, name=None)
    columns = (rows[name].to_numpy()[order] for name in ("seed", "dropout", "val_loss"))
    parts = zip(*(np.split(column, starts[1:]) for column in columns), strict=True)
    return [
        decompose((regime, phase, model, int(n_params), int(unique), int(sampled)), *part)
        for (regime, phase, model, n_params, unique, sampled), part in zip(keys, parts, strict=True)
    ]


def decompose(key: Key, seed: ArrayLike, dropout: ArrayLike, loss: ArrayLike) -> Cell:
    """Build a cell from three arrays of one length: seed, dropout and loss of each trial."""
    seeds, s = np.unique(np.asarray(seed), return_inverse=True)
    dropouts, p = np.unique(np.asarray(dropout, dtype=np.float64), return_inverse=True)
    losses = np.full((len(seeds), len(dropouts)), np.nan)
    losses[s, p] = np.asarray(loss, dtype=np.float64)
    dropped: tuple[float, ...] = ()
    if np.isnan(losses).any():
        from scipy.sparse.csgraph import connected_components

        present = ~np.isnan(losses)
        n_parts, part = connected_components(present.T.astype(int) @ present.astype(int), directed=False)
        if n_parts > 1:
            keep = part == np.bincount(part).argmax()
            dropped = tuple(float(value) for value in dropouts[~keep])
            rows = present[:, keep].any(axis=1)
            losses, dropouts, seeds = losses[rows][:, keep], dropouts[keep], seeds[rows]
    levels, counts, information, residuals = additive(losses)
    return Cell(
        key=key,
        dropouts=dropouts,
        seeds=tuple(int(value) for value in seeds),
        losses=losses,
        levels=levels,
        counts=counts,
        information=information,
        residuals=residuals,
        df=int(counts.sum()) - len(losses) - len(dropouts) + 1,
        dropped=dropped,
    )


def additive(losses: Array) -> tuple[Array, Array, Array, Array]:
    """Levels, counts, information and residuals (see ``Cell``) of the additive model of losses (S, P).

    By the normal equations of the columns with the rows (seeds) projected out.
    """
    present = ~np.isnan(losses)
    filled = np.where(present, losses, 0.0)
    per_seed = present.sum(axis=1)
    counts = present.sum(axis=0).astype(np.float64)
    seed_mean = filled.sum(axis=1) / per_seed
    weights = present / per_seed[:, None]
    information = np.diag(counts) - present.astype(np.float64).T @ weights
    if present.all():
        levels = filled.mean(axis=0)
        residuals = losses - levels - seed_mean[:, None] + filled.mean()
    else:
        right = np.where(present, losses - seed_mean[:, None], 0.0).sum(axis=0)
        contrast = np.linalg.pinv(information, hermitian=True) @ right
        seed_effect = seed_mean - weights @ contrast
        levels = contrast + seed_effect.mean()
        residuals = losses - seed_effect[:, None] - contrast
    return levels, counts, information, residuals


def make_cells(table: pd.DataFrame) -> list[Cell]:
    """Every cell of a table, in the order of their keys.

    Raises:
        UserError: there is no row that a cell could be made of.
    """
    rows = cell_rows(table)
    if rows.empty:
        raise UserError(
            "the table has no static trial of the screen, confirm or calibrate phase: run a calibration first"
        )
    return _split(rows)


@dataclass(frozen=True)
class Noise:
    """The noise of one trial's loss after seed and dropout effects.

    Attributes:
        sd: nats per token; NaN where nothing gives it.
        df: degrees of freedom behind it.
        borrowed: whether other cells of the model (or regime) supplied it.
    """

    sd: float
    df: int
    borrowed: bool = False

    @property
    def known(self) -> bool:
        return self.df > 0 and np.isfinite(self.sd)


def pool_noise(cells: Iterable[Cell]) -> dict[Key, Noise]:
    """Each cell's noise: its own where it has at least six degrees of freedom, else that pooled over the
    cells of its model, else over those of its regime.
    """
    cells = list(cells)
    pools: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0, 0])
    for cell in cells:
        for pool in (cell.key[:1], (cell.key[0], cell.key[2])):
            pools[pool][0] += cell.rss
            pools[pool][1] += cell.df
    result = {}
    for cell in cells:
        rss, df, borrowed = cell.rss, cell.df, False
        for pool in ((cell.key[0], cell.key[2]), cell.key[:1]):
            if df >= MIN_DF or pools[pool][1] <= df:
                continue
            rss, df, borrowed = pools[pool][0], int(pools[pool][1]), True
        result[cell.key] = Noise(float(np.sqrt(rss / df)) if df else float("nan"), df, borrowed)
    return result

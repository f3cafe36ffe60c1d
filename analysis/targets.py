"""What a law is fitted to: each cell's optimum, how sharply its loss tells dropouts apart, and its noise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.cells import CELL_KEYS, Cell, Key, Noise, check_table, make_cells, pool_noise
from analysis.curves import can_fit, coordinate, fit_curve
from analysis.optimum import CellFit, cell_rng, fit_cell, level_draws, optimum_draws
from tune_dd.errors import UserError
from tune_dd.law import P_MAX, Array, Law, design_rank
from tune_dd.laws import get_law

# The paired standard deviation measured at pocket scale. It only scales the robust loss where a table has neither
# replicates nor five dropouts to estimate noise from; the coefficients then have no intervals and say so.
NOMINAL_STANDARD_ERROR = 0.03
# Draws behind a target's standard deviation, whose relative error is 1 / sqrt(2 * 400) = 3.5 %, and behind a floor.
TARGET_DRAWS = 400
# Cells are left out one at a time up to so many cells, beyond that in so many folds.
MAX_FOLDS = 200


@dataclass(frozen=True)
class Targets:
    """The cells of one regime as arrays of length n, in the order of ``fits``.

    Attributes:
        fits, cells: the cells' statistics and decompositions.
        n_params, unique_tokens, sampled_tokens: P, U, C.
        dropout: target optimum; of a censored cell too, where it bounds the optimum on one side.
        sd: standard deviation of the target by the bootstrap; 0 where there is no noise estimate.
        width: distance in z = sqrt(p + 0.1) at which the fitted loss is one paired standard error above its
            minimum: flat cells are wide and so weigh little.
        start_weight: 1 / (w^2 + sd^2), w the plateau's half-width floored at a third of a grid step; only the
            cells of ``point`` have one, the others 0. ``draw_weight`` is the same without that last clause, for
            bootstrap draws in which ``point`` holds of other cells.
        side: 0 for a target, -1 for a censored-low cell (only dropouts above its target cost), +1 for a
            censored-high one (only those below).
        point: whether the cell's optimum is a target: its status is interior, and a law asks for it (``bounded``).
        block: index of the cell's (phase, model, U): its read-outs are of the same trials.
        replicated: whether the noise comes from replicates; if not, from ``curve_noise``, or it is unknown.
    """

    fits: tuple[CellFit, ...]
    cells: tuple[Cell, ...]
    n_params: Array
    unique_tokens: Array
    sampled_tokens: Array
    dropout: Array
    sd: Array
    width: Array
    start_weight: Array
    draw_weight: Array
    side: NDArray[np.int64]
    point: NDArray[np.bool_]
    block: NDArray[np.int64]
    replicated: bool

    def __len__(self) -> int:
        return len(self.fits)

    @property
    def z(self) -> Array:
        return coordinate(self.dropout)

    def bounded(self, most: float) -> Targets:
        """The targets as a form of that ``fit_max`` is fitted to them: optima above it as bounds there."""
        dropout, side = bounded(self.dropout, self.side, most)
        target = side == 0
        return replace(
            self,
            dropout=dropout,
            side=side,
            point=self.point & target,
            start_weight=np.where(target, self.start_weight, 0.0),
        )


def make_targets(selection: pd.DataFrame | None, table: pd.DataFrame, *, seed: int = 0) -> Targets:
    """The targets of a table's cells.

    Args:
        selection: rows of ``select_models``: only those cells are used; None for all cells of the table.
            A cell that several phases measured is taken from the phase with the most seeds.
        table: the tidy table.

    Raises:
        UserError: several regimes, an empty selection, or what ``check_table`` refuses.
    """
    check_table(table)
    cells = make_cells(table)
    noise = pool_noise(cells)
    replicated = all(value.known for value in noise.values())
    if not replicated:
        noise = curve_noise(cells)
    if selection is not None:
        wanted = set(selection[CELL_KEYS].itertuples(index=False, name=None))
        cells = [cell for cell in cells if cell.key in wanted]
    if not cells:
        raise UserError("no cell is left to fit a law to: give a selection of cells that the table holds")
    regimes = sorted({cell.key[0] for cell in cells})
    if len(regimes) > 1:
        raise UserError(f"coefficients belong to one regime, but the cells are of {', '.join(regimes)}: fit each alone")
    best: dict[tuple[object, ...], Cell] = {}
    for cell in cells:
        place = cell.key[2:]
        if place not in best or len(cell.seeds) > len(best[place].seeds):
            best[place] = cell
    kept = sorted(best.values(), key=lambda cell: cell.key)
    fits = [fit_cell(cell, noise[cell.key], None, TARGET_DRAWS, seed) for cell in kept]
    return _assemble(kept, fits, replicated)


def curve_noise(cells: Sequence[Cell]) -> dict[Key, Noise]:
    """Noise where no cell has a replicate: the scatter of the levels about each cell's cubic, pooled per regime.

    A law's intervals need it even so: that another set of cells would be censored on other noise is most of
    what they must hold. It counts the cubic's lack of fit as noise. Unknown where no cell has five dropouts.
    """
    rss: dict[str, float] = defaultdict(float)
    df: dict[str, int] = defaultdict(int)
    for cell in cells:
        if not can_fit(len(cell.dropouts), 4):
            continue
        cubic = fit_curve(cell.levels, cell.dropouts, cell.counts, 3)
        inside = cubic.covers(cell.dropouts)
        rss[cell.key[0]] += float((cell.counts * (cell.levels - cubic.loss(cell.dropouts)) ** 2)[inside].sum())
        df[cell.key[0]] += int(inside.sum()) - 4
    noise = {regime: Noise(float(np.sqrt(rss[regime] / df[regime])), df[regime], borrowed=True) for regime in df}
    return {cell.key: noise.get(cell.key[0], Noise(float("nan"), 0)) for cell in cells}


def _assemble(cells: list[Cell], fits: list[CellFit], replicated: bool) -> Targets:
    dropout, side = _optima(fits)
    width, weight = np.zeros(len(fits)), np.zeros(len(fits))
    for i, fit in enumerate(fits):
        width[i] = _width(fit)
        half = (fit.plateau[-1] - fit.plateau[0]) / 2 if fit.plateau else 0.0
        sd = fit.target_sd if np.isfinite(fit.target_sd) else 0.0
        weight[i] = 1.0 / (max(half, _grid_step(fit) / 3) ** 2 + sd**2)
    blocks = {key: number for number, key in enumerate(dict.fromkeys(cell.key[1:5] for cell in cells))}
    return Targets(
        fits=tuple(fits),
        cells=tuple(cells),
        n_params=np.array([fit.n_params for fit in fits], dtype=np.float64),
        unique_tokens=np.array([fit.unique_tokens for fit in fits], dtype=np.float64),
        sampled_tokens=np.array([fit.sampled_tokens for fit in fits], dtype=np.float64),
        dropout=dropout,
        sd=np.nan_to_num(np.array([fit.target_sd for fit in fits])),
        width=width,
        start_weight=np.where([fit.status == "interior" for fit in fits], weight, 0.0),
        draw_weight=weight,
        side=side,
        point=np.array([fit.status == "interior" for fit in fits]),
        block=np.array([blocks[cell.key[1:5]] for cell in cells], dtype=np.int64),
        replicated=replicated,
    )


def _optima(fits: Sequence[CellFit]) -> tuple[Array, NDArray[np.int64]]:
    """(n,) each cell's fitted optimum, and on which side its grid bounds it."""
    sides = {"censored_low": -1, "censored_high": 1}
    return np.array([fit.target for fit in fits]), np.array([sides.get(fit.status, 0) for fit in fits], dtype=np.int64)


def bounded(dropout: Array, side: NDArray[np.int64], most: float) -> tuple[Array, NDArray[np.int64]]:
    """Dropout and side, of any shape, with the optima above ``most`` as bounds there."""
    over = (dropout > most) & (side >= 0)
    return np.where(over, most, dropout), np.where(over, 1, side)


def _grid_step(fit: CellFit) -> float:
    """Mean distance of the best grid dropout to its neighbours."""
    best = int(np.searchsorted(fit.dropouts, fit.grid_optimum))
    return float(np.diff(fit.dropouts[max(best - 1, 0) : best + 2]).mean())


def _width(fit: CellFit) -> float:
    z = coordinate(fit.dropouts)
    whole = float(z[-1] - z[0])
    if fit.status == "no_signal" or fit.quadratic is None:
        return whole
    error = fit.standard_error if fit.noise.known else NOMINAL_STANDARD_ERROR
    step = _grid_step(fit) / (2 * float(coordinate(fit.grid_optimum)))  # dz = dp / (2 z)
    slope, half_second = fit.quadratic.slope_and_curvature(fit.target)
    # regret(d) = |slope| d + half_second d^2 = error: at an inner minimum the slope is 0, at a censored
    # edge it is what makes leaving the edge dear.
    slope = abs(slope) if fit.status != "interior" else 0.0
    if half_second <= 0:
        distance = error / slope if slope > 0 else whole
    else:
        distance = (np.sqrt(slope**2 + 4 * half_second * error) - slope) / (2 * half_second)
    return float(np.clip(distance, step / 3, whole))


def noise_correlation(targets: Targets) -> float:
    """Correlation, in [0, 1], of the residuals of one trial between its read-outs, pooled over blocks.

    0 where no trial was read out twice.
    """
    groups: dict[int, list[Cell]] = defaultdict(list)
    for cell, block in zip(targets.cells, targets.block, strict=True):
        if cell.df:
            groups[int(block)].append(cell)
    products = squares = 0.0
    for cells in groups.values():
        seeds = sorted({seed for cell in cells for seed in cell.seeds})
        dropouts = np.unique(np.concatenate([cell.dropouts for cell in cells]))
        scaled = np.full((len(cells), len(seeds), len(dropouts)), np.nan)
        for i, cell in enumerate(cells):
            place = np.ix_(np.array([i]), np.searchsorted(seeds, cell.seeds), np.searchsorted(dropouts, cell.dropouts))
            scaled[place] = cell.residuals / max(float(np.sqrt(cell.rss / cell.df)), 1e-12)
        shared = scaled[:, np.isfinite(scaled).all(axis=0)]
        products += float((shared.sum(axis=0) ** 2).sum() - (shared**2).sum())
        squares += float((shared**2).sum()) * (len(cells) - 1)
    return float(np.clip(products / squares, 0.0, 1.0)) if squares else 0.0


def target_draws(targets: Targets, n_bootstrap: int, rng: np.random.Generator) -> tuple[Array, NDArray[np.int64]]:
    """Parametric bootstrap of all targets together: optima in dropout rate and sides, both (B, n).

    Read-outs of one block share a part of their noise, as large as ``noise_correlation``. Even draws take
    every cell's quadratic optimum, odd ones the cubic's, about the targets, so that the joint spread holds
    what the choice of curve does to all cells at once. A cell is censored in the draws whose best level
    lies at that edge. Cells without a noise estimate do not move.
    """
    correlation = noise_correlation(targets)
    common: dict[tuple[int, float], Array] = {}
    optimum, bound = _optima(targets.fits)
    result, side = np.tile(optimum, (n_bootstrap, 1)), np.tile(bound, (n_bootstrap, 1))
    for i, (cell, fit, block) in enumerate(zip(targets.cells, targets.fits, targets.block, strict=True)):
        own = rng.standard_normal((n_bootstrap, len(cell.dropouts)))
        if not fit.noise.known or not can_fit(len(cell.dropouts), 2):
            continue
        for j, p in enumerate(cell.dropouts):
            key = (int(block), float(p))
            if correlation and key not in common:
                common[key] = rng.standard_normal(n_bootstrap)
            if correlation:
                own[:, j] = np.sqrt(correlation) * common[key] + np.sqrt(1 - correlation) * own[:, j]
        sd = fit.noise.sd * np.sqrt(fit.noise.df / rng.chisquare(fit.noise.df, n_bootstrap))
        levels = cell.levels + sd[:, None] * (own @ cell.root)
        if fit.status != "no_signal":
            best = levels.argmin(axis=1)
            side[:, i] = (best == len(cell.dropouts) - 1).astype(np.int64) - (best == 0)
        for first, degree in enumerate((2, 3) if can_fit(len(cell.dropouts), 3) else (2, 2)):
            result[first::2, i] = optimum_draws(levels[first::2], cell, degree)
    return result, side


def regret_floors(targets: Targets) -> Array:
    """(n,) mean regret of each cell's own optimum, drawn anew; 0 where nothing tells the noise. Nats per token.

    A regret is over the cell's *fitted* optimum. That one is as far from the true optimum as its noise takes it, so
    a law that knew the truth would be charged about this much. Drawn is the quadratic's optimum alone, since regrets
    are read off that curve: how far the cubic's lies from it is no noise. No law asks for more than ``P_MAX``.
    """
    floors = np.zeros(len(targets))
    for i, (cell, fit) in enumerate(zip(targets.cells, targets.fits, strict=True)):
        if fit.noise.known and fit.quadratic is not None:
            levels = level_draws(cell, fit.noise, TARGET_DRAWS, cell_rng(cell, 0))
            floors[i] = fit.regret(np.clip(optimum_draws(levels, cell, 2), 0.0, P_MAX)).mean()
    return floors


def folds(targets: Targets) -> NDArray[np.int64]:
    """(n,) the fold that each cell is left out with: its own, or one of ``MAX_FOLDS`` that mix sizes and prefixes."""
    return np.arange(len(targets), dtype=np.int64) % MAX_FOLDS


def design_of(targets: Targets, law: Law) -> Array:
    """(n, k) design over all cells of the targets."""
    return law.design(targets.n_params, targets.unique_tokens, targets.sampled_tokens)


def check_rank(targets: Targets, law: Law) -> tuple[int, float]:
    """Rank and condition number over the interior cells.

    Raises:
        UserError: the rank is short of the law's coefficients; the message says why, and what would help.
    """
    needed = len(law.coefficients)
    n = int(targets.point.sum())
    if n == 0 and any(fit.status == "interior" for fit in targets.fits):
        raise UserError(
            f"every interior optimum lies above {law.fit_max:g}, where the {law.name} law bends: add larger prefixes "
            "or earlier read-outs"
        )
    if n == 0:
        raise UserError(f"none of the {len(targets)} cells has an interior optimum: {_inwards(targets)}")
    rank, condition = design_rank(design_of(targets, law)[targets.point])
    if rank < needed:
        ratios = np.unique(np.round(np.log10(targets.n_params / targets.sampled_tokens)[targets.point], 6))
        cells = counted(n, "interior cell")
        if n < needed:
            why = f"there {'is' if n == 1 else 'are'} only {cells} among {len(targets)}"
        elif len(ratios) == 1:
            why = "they all share one P/C ratio"
        elif len(np.unique(targets.n_params[targets.point])) == 1:
            why = "one model size and these prefixes and read-outs do not tell its coefficients apart"
        else:
            why = "their sizes, prefixes and read-outs do not tell its coefficients apart"
        # More cells of the same kind would be as censored.
        lacking = n < needed and 2 * sum(fit.status != "interior" for fit in targets.fits) > len(targets)
        remedy = _inwards(targets) if lacking else "add prefixes, read-outs or a second model size"
        simpler = get_law("first_order")
        fewer = design_rank(design_of(targets, simpler)[targets.point])[0] == len(simpler.coefficients)
        others = ", or fit --law first_order" if fewer and law.name != simpler.name else ""
        raise UserError(
            f"the design of the {law.name} law has rank {rank} of {needed} over {cells}, since {why}: {remedy}{others}"
        )
    return rank, condition


def counted(n: int, what: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def _inwards(targets: Targets) -> str:
    """What would bring optima inside the grid, by the end of it at which most of the other cells have theirs."""
    ends = ("censored_low", "censored_high", "no_signal")
    counts = {end: sum(fit.status == end for fit in targets.fits) for end in ends}
    end = max(ends, key=lambda name: counts[name])
    if end == "no_signal":
        return (
            f"in {counted(counts[end], 'cell')} no dropout stands out from the noise: add --seeds, or smaller prefixes"
        )
    where, rates = ("highest", "higher") if end == "censored_high" else ("lowest", "lower")
    text = f"in {counted(counts[end], 'cell')} the {where} dropout tried did best: "
    if end == "censored_high":
        return f"{text}add {rates} --dropouts, or larger prefixes"
    zero = all(fit.dropouts[0] == 0 for fit in targets.fits if fit.status == end)
    return f"{text}{'add' if zero else f'add {rates} --dropouts down to 0, or'} smaller prefixes or later read-outs"

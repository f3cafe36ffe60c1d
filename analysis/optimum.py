"""Where a cell's optimum lies, how sure we are, and how much it gains over no dropout.

Statistics per cell (regime, model, U, C), from static trials paired by seed; methods and the simulations
that chose them are in docs/methodology.md. In short: seeds and dropouts are additive effects, their
residuals pooled over the grid give the noise, and a parametric bootstrap of the levels, with the window and
the fit redone on every draw, gives the intervals.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.special import fdtrc

from analysis.cells import Cell, Noise, check_table, make_cell, make_cells, pool_noise
from analysis.curves import Curve, can_fit, fit_curve, from_coordinate, minimisers
from tune_dd.errors import UserError
from tune_dd.law import Array

LEVEL = 0.95
# Fixed beforehand: a cell whose F test of the dropout effect is not significant at this level has no signal.
SIGNAL_LEVEL = 0.05
# Likewise: at this level of the F test of lack of fit a cell's parabola is said to miss its levels.
LACK_OF_FIT_LEVEL = 0.001
STATUSES = ("interior", "censored_low", "censored_high", "no_signal")

SUMMARY_KEYS = [
    "regime",
    "phase",
    "model",
    "n_params",
    "condition",
    "kind",
    "dropout",
    "stage",
    "readout",
    "unique_tokens",
    "sampled_tokens",
]
SUMMARY_VALUES = ("train_loss", "val_loss", "val_bpb", "gap")


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds of every condition and read-out: the columns of summary.csv.

    The standard deviation has n - 1 in its denominator and is NaN for one seed.

    Raises:
        UserError: the table is empty, lacks a column, or holds a bad loss or a row twice.
    """
    check_table(table, SUMMARY_VALUES)
    groups = table.groupby(SUMMARY_KEYS, sort=True)
    result = groups.agg(n_seeds=("seed", "nunique"))
    for name in SUMMARY_VALUES:
        result[f"{name}_mean"] = groups[name].mean()
        result[f"{name}_std"] = groups[name].std(ddof=1)
    return result.reset_index()


@dataclass(frozen=True)
class CellFit:
    """Everything that one cell says. Losses in nats per token, optima in dropout rate.

    Attributes:
        levels: (P,) mean validation loss of each of ``dropouts`` at the mean seed.
        losses: (S, P) each seed's loss, NaN where missing.
        noise: pooled noise of a single trial; ``standard_error`` is that of a paired difference of two levels.
        quadratic, cubic: fitted curves, None where the grid is too small.
        fitted_low, fitted_high: 95 % interval of the optimum, from draws of both curves in equal parts.
        target, target_sd: mean of the quadratic and cubic optimum, which laws are fitted to, and the standard
            deviation of its draws.
        plateau: the dropouts not shown worse than the best: within ``plateau_margin`` nats of it. Empty where
            there is no noise estimate and no margin was given.
        p_value: F test of the dropout effect with seeds as blocks.
        rough: whether the quadratic misses the levels of its window by more than noise does (F test of lack of fit at
            ``LACK_OF_FIT_LEVEL``): the optimum, its interval and regrets are then read off a curve that is not there.
        improvement: loss at p = 0 less loss at the best other dropout (negative where 0 is best), with a
            95 % interval that holds whichever dropout was selected as the best.
        disagreement: cubic less quadratic optimum.
        notes: what this cell cannot say, and why.
    """

    regime: str
    phase: str
    model: str
    n_params: int
    unique_tokens: int
    sampled_tokens: int
    dropouts: Array
    counts: Array
    seeds: tuple[int, ...]
    losses: Array
    levels: Array
    noise: Noise
    standard_error: float
    quadratic: Curve | None
    cubic: Curve | None
    grid_optimum: float
    fitted_optimum: float
    cubic_optimum: float
    fitted_low: float
    fitted_high: float
    target: float
    target_sd: float
    plateau: tuple[float, ...]
    plateau_margin: float
    status: str
    p_value: float
    rough: bool
    improvement: float
    improvement_low: float
    improvement_high: float
    notes: tuple[str, ...] = field(default=())

    @property
    def n_seeds(self) -> int:
        return len(self.seeds)

    @property
    def disagreement(self) -> float:
        return self.cubic_optimum - self.fitted_optimum

    def regret(self, dropout: Array) -> Array:
        """Loss at a dropout over the fitted optimum's, nats, at least 0.

        Within the quadratic's window the fitted curve; beyond it the measured levels, joined by lines that
        run on past the ends of the grid.
        """
        p = np.asarray(dropout, dtype=np.float64)
        measured = np.interp(p, self.dropouts, self.levels)
        for end, neighbour in ((0, 1), (-1, -2)):
            slope = (self.levels[end] - self.levels[neighbour]) / (self.dropouts[end] - self.dropouts[neighbour])
            beyond = p < self.dropouts[0] if end == 0 else p > self.dropouts[-1]
            measured = np.where(beyond, self.levels[end] + slope * (p - self.dropouts[end]), measured)
        if self.quadratic is None:
            return np.asarray(np.maximum(measured - self.levels.min(), 0.0))
        curve = self.quadratic
        return np.asarray(np.maximum(np.where(curve.covers(p), curve.loss(p), measured) - curve.minimum, 0.0))


def cell_fit(
    cell_table: pd.DataFrame,
    *,
    noise: Noise | None = None,
    margin: float | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> CellFit:
    """Fit one cell.

    Args:
        cell_table: the rows of one (regime, phase, model, U, C).
        noise: the noise to use, as from ``pool_noise`` over a whole table; by default the cell's own.
        margin: plateau margin in nats per token; by default one pooled paired standard error.
        n_bootstrap, seed: draws of the parametric bootstrap, and what seeds them (with the cell's key, so
            that a cell's figures do not depend on which other cells are in the table).

    Raises:
        UserError: as ``check_table``; rows of several cells; a single dropout.
    """
    check_table(cell_table)
    cell = make_cell(cell_table)
    return fit_cell(cell, noise or pool_noise([cell])[cell.key], margin, n_bootstrap, seed)


def cell_fits(
    table: pd.DataFrame, *, margin: float | None = None, n_bootstrap: int = 2000, seed: int = 0
) -> list[CellFit]:
    """Fit every cell of a table, the noise pooled as ``pool_noise`` does. Raises as ``cell_fit``."""
    check_table(table)
    if margin is not None and not 0 <= margin < np.inf:
        raise UserError(f"plateau margin {margin} must be finite and not negative: give nats per token, such as 0.01")
    cells = make_cells(table)
    noise = pool_noise(cells)
    return [fit_cell(cell, noise[cell.key], margin, n_bootstrap, seed) for cell in cells]


def level_draws(cell: Cell, noise: Noise, n_bootstrap: int, rng: np.random.Generator) -> Array:
    """(B, P) parametric bootstrap of a cell's levels: fitted levels plus noise of their covariance.

    The noise's own variance is drawn too, from its chi-square, so that the draws are as wide as a t
    distribution with the residuals' degrees of freedom.
    """
    sd = noise.sd * np.sqrt(noise.df / rng.chisquare(noise.df, n_bootstrap))
    return np.asarray(cell.levels + sd[:, None] * (rng.standard_normal((n_bootstrap, len(cell.levels))) @ cell.root))


def cell_rng(cell: Cell, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(repr(cell.key).encode())])


def fit_cell(cell: Cell, noise: Noise, margin: float | None, n_bootstrap: int, seed: int) -> CellFit:
    dropouts, levels, counts = cell.dropouts, cell.levels, cell.counts
    if len(dropouts) < 2:
        raise UserError(
            f"{cell.key[0]} {cell.key[2]} U={cell.key[4]} C={cell.key[5]} has one dropout only "
            f"({dropouts[0]:g}): an optimum needs at least two, better seven"
        )
    notes = [f"dropout {value:g} shares no seed with the others and is left out" for value in cell.dropped]
    if noise.borrowed:
        notes.append(f"noise borrowed from other cells ({noise.df} degrees of freedom)")
    if not noise.known:
        notes.append("one seed, and no cell to borrow noise from: no interval, no plateau, no test of an effect")
    best = int(levels.argmin())
    quadratic = fit_curve(levels, dropouts, counts, 2) if can_fit(len(dropouts), 2) else None
    cubic = fit_curve(levels, dropouts, counts, 3) if can_fit(len(dropouts), 3) else None
    missed = 0.0
    if quadratic is None:
        notes.append("two dropouts: no curve can be fitted")
    elif noise.known and (missed := _missed(cell, noise, quadratic)):
        notes.append(
            f"the parabola misses a level by {missed:.3f} nats, more than noise does: the optimum and what is read "
            f"off that curve are rough; add dropouts between {quadratic.low:g} and {quadratic.high:g}"
        )
    fitted = quadratic.optimum if quadratic else float(dropouts[best])
    optima = [curve.optimum for curve in (quadratic, cubic) if curve]
    draws = level_draws(cell, noise, n_bootstrap, cell_rng(cell, seed)) if noise.known else None
    low, high, target_sd = _optimum_interval(cell, draws)
    standard_error, margin = _margin(cell, noise, margin)
    improvement, improvement_low, improvement_high = _improvement(cell, draws, noise, notes)
    p_value = _dropout_effect(cell, noise)
    status = "interior"
    if p_value >= SIGNAL_LEVEL:
        status = "no_signal"
    elif best == 0:
        status = "censored_low"
    elif best == len(dropouts) - 1:
        status = "censored_high"
    regime, phase, model, n_params, unique_tokens, sampled_tokens = cell.key
    return CellFit(
        regime=regime,
        phase=phase,
        model=model,
        n_params=n_params,
        unique_tokens=unique_tokens,
        sampled_tokens=sampled_tokens,
        dropouts=dropouts,
        counts=counts,
        seeds=cell.seeds,
        losses=cell.losses,
        levels=levels,
        noise=noise,
        standard_error=standard_error,
        quadratic=quadratic,
        cubic=cubic,
        grid_optimum=float(dropouts[best]),
        fitted_optimum=fitted,
        cubic_optimum=cubic.optimum if cubic else float("nan"),
        fitted_low=low,
        fitted_high=high,
        target=float(np.mean(optima)) if optima else float(dropouts[best]),
        target_sd=target_sd,
        plateau=tuple(float(p) for p in dropouts[levels - levels[best] <= margin]),  # none where margin is NaN
        plateau_margin=margin,
        status=status,
        p_value=p_value,
        rough=missed > 0,
        improvement=improvement,
        improvement_low=improvement_low,
        improvement_high=improvement_high,
        notes=tuple(notes),
    )


def optimum_draws(levels: Array, cell: Cell, degree: int) -> Array:
    """(B,) optima in dropout rate of levels (B, P), by the curve of that degree."""
    return from_coordinate(minimisers(levels, cell.dropouts, cell.counts, degree))


def _optimum_interval(cell: Cell, draws: Array | None) -> tuple[float, float, float]:
    nan = float("nan")
    if draws is None:
        return nan, nan, nan
    optima = [optimum_draws(draws, cell, degree) for degree in (2, 3) if can_fit(len(cell.dropouts), degree)]
    if not optima:
        return nan, nan, nan
    # Both curves in equal parts: neither form is true, and an interval of one alone covers 85 % on the
    # curves that suit it least.
    low, high = np.quantile(np.concatenate(optima), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high), float(np.std(np.mean(optima, axis=0), ddof=1))


def _margin(cell: Cell, noise: Noise, margin: float | None) -> tuple[float, float]:
    """The pooled paired standard error, and the plateau's margin: NaN where there is no noise estimate."""
    typical = float(len(cell.counts) / np.sum(1.0 / cell.counts))  # harmonic mean of the seeds behind a level
    standard_error = noise.sd * np.sqrt(2.0 / typical) if noise.known else float("nan")
    return standard_error, standard_error if margin is None else margin


def _missed(cell: Cell, noise: Noise, curve: Curve) -> float:
    """The farthest that a level of the window lies from its curve, nats; 0 where noise may be why (F test)."""
    inside = curve.covers(cell.dropouts)
    df = int(inside.sum()) - len(curve.coefficients)
    if df < 1 or noise.sd == 0:
        return 0.0
    misses = cell.levels[inside] - curve.loss(cell.dropouts[inside])
    p = float(fdtrc(df, noise.df, float(cell.counts[inside] @ misses**2) / df / noise.sd**2))
    return float(np.abs(misses).max()) if p < LACK_OF_FIT_LEVEL else 0.0


def _dropout_effect(cell: Cell, noise: Noise) -> float:
    """p of the F test that all dropouts are equal, seeds as blocks; 0 < p <= 1, NaN without noise."""
    if not noise.known or noise.sd == 0:
        return float("nan")
    df = len(cell.levels) - 1
    f = float(cell.levels @ cell.information @ cell.levels) / df / noise.sd**2
    return float(fdtrc(df, noise.df, f))


def _improvement(cell: Cell, draws: Array | None, noise: Noise, notes: list[str]) -> tuple[float, float, float]:
    """Improvement of the best non-zero dropout over 0, with a simultaneous (Dunnett) interval.

    The largest of several differences is too large on average. The interval is charged for that: the
    critical value is the 95 % quantile of the largest absolute studentised difference, so all differences
    lie in their intervals together, and so does the largest.
    """
    nan = float("nan")
    if cell.dropouts[0] != 0.0:
        notes.append("p = 0 was not tried: no improvement over it")
        return nan, nan, nan
    gains = cell.levels[0] - cell.levels[1:]
    if draws is None or noise.sd == 0:
        return float(gains.max()), nan, nan
    covariance = cell.root @ cell.root
    scale = np.sqrt(covariance[0, 0] + np.diag(covariance)[1:] - 2 * covariance[0, 1:]) * noise.sd
    by_level = np.ascontiguousarray(draws.T)  # the largest of a few is found faster down long columns
    errors = np.abs(by_level[0] - by_level[1:] - gains[:, None]) / scale[:, None]
    critical = float(np.quantile(errors.max(axis=0), LEVEL))
    return float(gains.max()), float((gains - critical * scale).max()), float((gains + critical * scale).max())


def selection_row(fit: CellFit) -> Mapping[str, object]:
    """One row of model_selection.csv, its contract's columns first."""
    return {
        "regime": fit.regime,
        "phase": fit.phase,
        "model": fit.model,
        "n_params": fit.n_params,
        "unique_tokens": fit.unique_tokens,
        "sampled_tokens": fit.sampled_tokens,
        "n_seeds": fit.n_seeds,
        "grid_optimum": fit.grid_optimum,
        "fitted_optimum": fit.fitted_optimum,
        "cubic_optimum": fit.cubic_optimum,
        "fitted_low": fit.fitted_low,
        "fitted_high": fit.fitted_high,
        "plateau_low": fit.plateau[0] if fit.plateau else float("nan"),
        "plateau_high": fit.plateau[-1] if fit.plateau else float("nan"),
        "status": fit.status,
        "improvement": fit.improvement,
        "improvement_low": fit.improvement_low,
        "improvement_high": fit.improvement_high,
        "target": fit.target,
        "target_sd": fit.target_sd,
        "disagreement": fit.disagreement,
        "p_value": fit.p_value,
        "noise_sd": fit.noise.sd,
        "noise_df": fit.noise.df,
        "plateau_margin": fit.plateau_margin,
        "notes": "; ".join(fit.notes),
    }


def select_models(
    table: pd.DataFrame, *, margin: float | None = None, n_bootstrap: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """One row per cell: the columns of model_selection.csv in order, then what else is known of the fit.

    Stream and search rows are no calibration cells and are left out (see ``analysis.cells``).

    Raises:
        UserError: as ``check_table``; no static trial of a calibration phase; a cell with one dropout only.
    """
    return selection_table(cell_fits(table, margin=margin, n_bootstrap=n_bootstrap, seed=seed))


def selection_table(fits: Sequence[CellFit]) -> pd.DataFrame:
    return pd.DataFrame([selection_row(fit) for fit in fits])

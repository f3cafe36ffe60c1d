"""A law's coefficients: fitted to cells, with intervals, joint spread, and what they were calibrated on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis import robust
from analysis.coefficients_check import check_coefficients
from analysis.curves import coordinate
from analysis.misfit import discrepancy, freedom, problem_of
from analysis.targets import Targets, bounded, check_rank, counted, folds, make_targets, target_draws
from tune_dd.errors import UserError
from tune_dd.law import Array, Law, design_rank
from tune_dd.laws import REFERENCE_LAW, get_law

SCHEMA = 1
LEVEL = 0.95
# Bootstrap draws kept in coefficients.json for joint spread and predictions: 95 % limits from 500 draws.
KEPT_DRAWS = 500
# Webb's six-point distribution: mean 0, variance 1, enough distinct values for a handful of clusters.
WEBB = np.array([-np.sqrt(1.5), -1.0, -np.sqrt(0.5), np.sqrt(0.5), 1.0, np.sqrt(1.5)])


@dataclass(frozen=True)
class Coefficients:
    """A fitted law: what coefficients.json holds.

    Attributes:
        coefficients: name -> value, unrounded, in the law's order.
        intervals: name -> 95 % interval; NaN (null in JSON) where nothing tells the noise, as in ``notes``.
        rank, condition_number: of the design over the interior cells (``tune_dd.law.design_rank``).
        n_cells: cells whose optimum the law is fitted to; ``cells`` lists those too that bound it, and flat ones.
        rmse: root mean square of law less target over the interior cells, dropout.
        loo_rmse, loo_regret: the same for cells left out of the fit, and their mean regret in nats; None
            where leaving a cell out leaves the law undetermined.
        discrepancy: standard deviation, in dropout, of what noise does not explain of the cells' distance
            from the law; 0 where it explains all.
        draws: bootstrap refits, (at most 500, k): the joint spread, and predictions' intervals; empty where
            the intervals are NaN.
        cells: one dictionary per cell used: what it is, its target, weight and the law's value.
        notes: what a reader must know, such as a fall from one law to another.
        held_out: every law on every hold-out that the cells allow (rows of ``analysis.holdout.rivals``): what
            speaks for this form or another.
        carried_from: the regime that they were fitted on, where that is another one (``analysis.carry``).
        expected: name -> what the fit expected of that coefficient, mean and standard deviation (``Law.expected``).
    """

    regime: str
    law: str
    coefficients: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    p_min: float
    p_max: float
    rank: int
    condition_number: float
    n_cells: int
    rmse: float
    loo_rmse: float | None
    loo_regret: float | None
    cells: tuple[dict[str, Any], ...]
    tokenizer_hash: str
    corpus_hash: str
    discrepancy: float = 0.0
    draws: tuple[tuple[float, ...], ...] = ()
    n_bootstrap: int = 0
    seed: int = 0
    notes: tuple[str, ...] = ()
    held_out: tuple[dict[str, Any], ...] = ()
    carried_from: str = ""
    expected: dict[str, tuple[float, float]] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def form(self) -> Law:
        return get_law(self.law)

    @property
    def fitted_cells(self) -> tuple[dict[str, Any], ...]:
        """The cells whose optimum the law is fitted to; all of ``cells`` where these do not say."""
        fitted = tuple(cell for cell in self.cells if cell.get("start_weight", 1.0) > 0)
        return fitted or self.cells

    @property
    def sizes(self) -> frozenset[int]:
        """The parameters of the models that it is fitted to: with one, nothing tests how it extends to others."""
        return frozenset(int(cell["n_params"]) for cell in self.fitted_cells)

    @property
    def scatter_told(self) -> bool:
        """Whether a ``discrepancy`` of 0 says anything: not with as few sets of trials as there are coefficients."""
        sets = {(cell["n_params"], cell["unique_tokens"]) for cell in self.fitted_cells}
        return len(sets) > len(self.coefficients)

    def predict(self, n_params: ArrayLike, unique_tokens: ArrayLike, sampled_tokens: ArrayLike) -> Array:
        """The law's clamped dropout; shape: the broadcast shape of the arguments."""
        return self.form.dropout(
            self.coefficients, n_params, unique_tokens, sampled_tokens, p_min=self.p_min, p_max=self.p_max
        )

    def interval(
        self, n_params: ArrayLike, unique_tokens: ArrayLike, sampled_tokens: ArrayLike, *, level: float = LEVEL
    ) -> tuple[Array, Array]:
        """Low and high of the law's dropout by the coefficients' joint bootstrap spread, clamped.

        It is the interval of the law's value, not of a new cell's optimum: that one scatters about the law
        by ``discrepancy`` besides. NaN where there are no draws.
        """
        design = self.form.design(n_params, unique_tokens, sampled_tokens)
        if not self.draws:
            unknown = np.full(design.shape[:-1], math.nan)
            return unknown, unknown.copy()
        values = np.clip(self.form.link.rate(design @ np.array(self.draws).T), self.p_min, self.p_max)
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=-1)
        return np.asarray(low), np.asarray(high)

    def along(
        self, n_params: float, unique_tokens: Sequence[float], sampled_tokens: Sequence[float]
    ) -> tuple[Array, Array, Array]:
        """Dropout, and low and high of its interval, at each stage of a stream: C and the clamp are the form's there.

        Args:
            unique_tokens: U_t of each stage.
            sampled_tokens: C_t by the end of each stage, cumulative.
        """
        counted = self.form.along(unique_tokens, sampled_tokens)
        held = replace(self, p_max=self.form.at_most(len(counted), self.p_max))
        return (held.predict(n_params, unique_tokens, counted), *held.interval(n_params, unique_tokens, counted))

    @property
    def covariance(self) -> Array:
        """(k, k) of the coefficients, from the draws, in the law's order; NaN where there are none."""
        if not self.draws:
            return np.full((len(self.coefficients),) * 2, math.nan)
        return np.atleast_2d(np.cov(np.array(self.draws), rowvar=False))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``from_dict`` of it, through JSON text too, is equal to the last bit."""
        data = asdict(self)
        data["intervals"] = {
            name: [None if math.isnan(end) else end for end in ends] for name, ends in self.intervals.items()
        }
        data["cells"] = [dict(cell) for cell in self.cells]
        data["draws"] = [list(draw) for draw in self.draws]
        data["notes"] = list(self.notes)
        data["expected"] = {name: list(each) for name, each in self.expected.items()}
        data["held_out"] = [
            {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
            for row in self.held_out
        ]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Coefficients:
        """Raises UserError if a key is missing or damaged, the schema or law unknown, or a coefficient not the law's.

        What only ``tune_dd`` writes may be missing: without draws, predictions have no interval.
        """
        missable = {each.name for each in fields(cls) if (each.default, each.default_factory) != (MISSING, MISSING)}
        names = [each.name for each in fields(cls) if each.name in data or each.name not in missable]
        missing = [name for name in names if name not in data]
        if missing:
            raise UserError(f"coefficients lack {', '.join(missing)}: give a coefficients.json written by tune_dd")
        if data.get("schema") != SCHEMA:
            raise UserError(f"coefficients of schema {data.get('schema')}, not {SCHEMA}: fit them again")
        check_coefficients(data)
        values = {name: data[name] for name in names}
        order = get_law(data["law"]).coefficients  # JSON written with sorted keys has lost it
        values["coefficients"] = {name: data["coefficients"][name] for name in order}
        # math.nan itself, not any NaN: tuples that hold the same object are equal.
        ends = ((name, data["intervals"][name]) for name in order)
        values["intervals"] = {
            name: (math.nan if low is None else low, math.nan if high is None else high) for name, (low, high) in ends
        }
        values["cells"] = tuple(data["cells"])
        values["draws"] = tuple(tuple(draw) for draw in data.get("draws", ()))
        values["notes"] = tuple(data.get("notes", ()))
        values["held_out"] = tuple(data.get("held_out", ()))
        values["expected"] = {name: tuple(each) for name, each in data.get("expected", {}).items()}
        return cls(**values)


def fit_law(
    selection: pd.DataFrame | None,
    table: pd.DataFrame,
    *,
    law: str = REFERENCE_LAW,
    fallback: str | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
    targets: Targets | None = None,
) -> Coefficients:
    """Fit a law to the cells of one regime.

    Args:
        selection: rows of ``select_models``, the cells to use; None for all of the table's.
        table: the tidy table that they come from.
        law: name in the registry.
        fallback: law to fit instead where the design's rank is short of ``law`` (``first_order``); the
            result names it and says so. By default such a design is refused.
        n_bootstrap, seed, targets: draws, what seeds them, and what ``make_targets`` gives, if that is done already.

    Raises:
        UserError: no interior cell, a rank-deficient design, several regimes, tokenizers or corpora, an
            unknown law, or a table that ``check_table`` refuses.
    """
    form = get_law(law)
    every = targets or make_targets(selection, table, seed=seed)
    targets = every.bounded(form.fit_max)
    notes = []
    try:
        rank, condition = check_rank(targets, form)
    except UserError as error:
        if fallback is None or not every.point.any():
            raise
        form = get_law(fallback)
        targets = every.bounded(form.fit_max)
        try:
            rank, condition = check_rank(targets, form)
        except UserError:
            raise error from None  # of the law that was asked for; nobody asked for the other
        notes.append(f"fitted {form.name} instead of {law}: {str(error).split(':')[0]}")
    known = all(fit.noise.known for fit in targets.fits)
    if not known:
        notes.append("no replicates and fewer than five dropouts a cell: nothing tells the noise, so no intervals")
    elif not targets.replicated:
        notes.append("no replicates: the noise behind the intervals is the losses' scatter about each cell's curve")
    notes += _weaknesses(targets, form, condition, known)
    problem = problem_of(targets, form, seed=seed)
    rng = np.random.default_rng([seed, 1])
    beta, _ = robust.fit(problem, targets.dropout, targets.side, targets.start_weight, rng)
    predicted = problem.predict(problem.design @ beta)
    errors = (predicted - targets.dropout)[targets.point]
    missed_by = discrepancy(targets, errors, len(beta))
    draws = np.empty((0, len(beta)))
    intervals = dict.fromkeys(form.coefficients, (math.nan, math.nan))
    if known:
        draws = _bootstrap(targets, problem, form.fit_max, beta, predicted, missed_by, n_bootstrap, rng)
        ends = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T
        intervals = {name: (low, high) for name, (low, high) in zip(form.coefficients, ends.tolist(), strict=True)}
    left_out = _leave_out(targets, problem, beta, folds(targets))
    loo_rmse = loo_regret = None
    if left_out is not None:
        loo_rmse = float(np.sqrt(np.mean((left_out - targets.dropout)[targets.point] ** 2)))
        loo_regret = float(np.mean([fit.regret(p) for fit, p in zip(targets.fits, left_out, strict=True)]))
    return Coefficients(
        regime=targets.fits[0].regime,
        law=form.name,
        coefficients=dict(zip(form.coefficients, beta.tolist(), strict=True)),
        intervals=intervals,
        p_min=problem.p_min,
        p_max=problem.p_max,
        rank=rank,
        condition_number=condition,
        n_cells=int(targets.point.sum()),
        rmse=float(np.sqrt(np.mean(errors**2))),
        loo_rmse=loo_rmse,
        loo_regret=loo_regret,
        cells=tuple(_cell_records(targets, problem.width, predicted, left_out)),
        tokenizer_hash=_only(table, "tokenizer_hash", targets),
        corpus_hash=_only(table, "corpus_hash", targets),
        discrepancy=missed_by,
        draws=tuple(tuple(draw) for draw in draws[:KEPT_DRAWS].tolist()),
        n_bootstrap=n_bootstrap,
        seed=seed,
        notes=tuple(notes),
        expected=dict(form.expected),
    )


def _weaknesses(targets: Targets, form: Law, condition: float, known: bool) -> list[str]:
    """What full rank does not guard against, in words; ``known``: whether there are intervals to read."""
    notes = []
    points, k = int(targets.point.sum()), len(form.coefficients)
    if points < 2 * k or condition > 30:
        rely = "read the intervals, not the coefficients" if known else "do not rely on the coefficients"
        notes.append(
            f"weakly determined: {counted(points, 'interior cell')} for {counted(k, 'coefficient')}, condition number "
            f"{condition:.0f}; {rely}"
        )
    if (blocks := len(np.unique(targets.block[targets.point]))) <= k:
        little = ", and the intervals hold little but noise" if known else ""
        notes.append(
            f"{counted(blocks, 'set')} of trials (one per model and prefix) for {counted(k, 'coefficient')}: how far "
            f"the law misses cannot be told from {'it' if blocks == 1 else 'them'}{little}"
        )
    if len(np.unique(targets.n_params[targets.point])) == 1 and k > 1:
        notes.append("one model size: what depends on P is inferred from U and C alone; do not use it for another size")
    return notes


def _only(table: pd.DataFrame, column: str, targets: Targets) -> str:
    """The one value of a column among the regime's rows, empty where the table has no such column."""
    if column not in table.columns:
        return ""
    values = sorted(table.loc[table["regime"] == targets.fits[0].regime, column].unique())
    if len(values) > 1:
        raise UserError(f"the rows differ in {column} ({', '.join(map(str, values))}): fit each kind alone")
    return str(values[0])


def _bootstrap(
    targets: Targets,
    problem: robust.Problem,
    fit_max: float,
    beta: Array,
    predicted: Array,
    missed_by: float,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> Array:
    """(B, k) refits. Two levels: within cells the parametric noise of ``target_draws``; between blocks
    (cells of one model and prefix), where the law misses by more than noise, a wild cluster bootstrap of
    the misses, shrunk to the part that noise does not explain.
    """
    dropout, side = target_draws(targets, n_bootstrap, rng)
    n, k = problem.design.shape
    if missed_by > 0:
        share = missed_by / np.sqrt(missed_by**2 + targets.sd**2)
        left_out = _leave_out(targets, problem, beta, targets.block)
        if left_out is None:
            miss = (targets.dropout - predicted) * np.sqrt(freedom(targets, k))
        else:
            # A block pulls the law to itself: its miss is judged by the law fitted without it (as in CR3).
            miss = targets.dropout - left_out
        miss = np.where(targets.point, miss * share, 0.0)
        signs = rng.choice(WEBB, size=(n_bootstrap, int(targets.block.max()) + 1))
        dropout = dropout + miss * signs[:, targets.block]
    dropout, side = bounded(dropout, side, fit_max)
    z = coordinate(np.clip(dropout, 0.0, 1.0))
    mask = np.ones((n_bootstrap, n))
    # The clamp leaves several basins: each draw starts from the estimate and from its own linear fit.
    linear = robust.weighted_starts(
        problem.design, problem.link.predictor(dropout), np.where(side == 0, targets.draw_weight, 0.0)
    )
    expected = _expected_draws(problem, n_bootstrap, rng)
    results = [
        robust.minimise(problem, start, z, side, mask, expected) for start in (np.tile(beta, (n_bootstrap, 1)), linear)
    ]
    return np.where((results[0][1] <= results[1][1])[:, None], results[0][0], results[1][0])


def _expected_draws(problem: robust.Problem, n_bootstrap: int, rng: np.random.Generator) -> Array | None:
    """(B, k) what is expected of each draw's coefficients: it is no more certain than texts are alike."""
    if problem.expected is None or problem.firmness is None or not problem.firmness.any():
        return None
    spread = np.divide(1.0, problem.firmness, out=np.zeros_like(problem.firmness), where=problem.firmness > 0)
    return np.asarray(problem.expected + spread * rng.standard_normal((n_bootstrap, len(spread))))


def _leave_out(targets: Targets, problem: robust.Problem, beta: Array, group: NDArray[np.int64]) -> Array | None:
    """(n,) each cell's dropout by the law fitted without its group (its fold, or its block), or None
    where some group's absence leaves the law undetermined.
    """
    groups, member = np.unique(group, return_inverse=True)
    mask = 1.0 - (member[None, :] == np.arange(len(groups))[:, None])
    for row in mask:
        design = problem.design[(row > 0) & targets.point]
        if len(design) < design.shape[1] or design_rank(design)[0] < design.shape[1]:
            return None
    shape = (len(groups), 1)
    refits, _ = robust.minimise(
        problem, np.tile(beta, shape), np.tile(targets.z, shape), np.tile(targets.side, shape), mask
    )
    return problem.predict((problem.design * refits[member]).sum(axis=1))


def _cell_records(targets: Targets, width: Array, predicted: Array, left_out: Array | None) -> list[dict[str, Any]]:
    # The weight of the robust fit near its solution, 1 / (width in dropout)^2, as a share of the whole.
    slope = 2.0 * targets.z
    weight = 1.0 / (width * slope) ** 2
    return [
        {
            "phase": fit.phase,
            "model": fit.model,
            "n_params": fit.n_params,
            "unique_tokens": fit.unique_tokens,
            "sampled_tokens": fit.sampled_tokens,
            "n_seeds": fit.n_seeds,
            "status": fit.status,
            "target": fit.target,
            "target_sd": float(sd),
            "start_weight": float(start),
            "weight": float(share),
            "law": float(p),
            "left_out": None if left_out is None else float(left_out[i]),
            "regret": float(fit.regret(p)),
        }
        for i, (fit, sd, start, share, p) in enumerate(
            zip(
                targets.fits,
                targets.sd,
                targets.start_weight / max(targets.start_weight.sum(), 1e-300),
                weight / weight.sum(),
                predicted,
                strict=True,
            )
        )
    ]

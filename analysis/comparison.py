"""Streams compared: every condition against the best static dropout, paired by seed, the primary contrast first.

The best static is chosen without peeking: for each seed, the static condition that is best on the *other*
seeds. Methods are in docs/methodology.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.cells import additive, check_table
from tune_dd.errors import UserError
from tune_dd.law import Array

LEVEL = 0.95
METRICS = ("final_val_loss", "trajectory_val_loss")
BEST_STATIC = "best_static"
COLUMNS = [
    "metric",
    "condition",
    "baseline",
    "primary",
    "n_pairs",
    "difference",
    "low",
    "high",
    "p_paired_t",
    "p_sign_flip",
    "p_holm",
]


@dataclass(frozen=True)
class Outcomes:
    """Finished streams of one (regime, model).

    Attributes:
        conditions: names, and ``static`` which of them are static.
        seeds: all seeds.
        loss, bpb: metric -> (conditions, seeds) nats per token and bits per byte, NaN where not finished.
        ends: (stages,) sampled tokens at each stage's end.
        path: (conditions, seeds, stages) val_loss at those, nats per token, NaN where not finished.
        unfinished: names of trials left out because they did not reach the stream's end.
    """

    conditions: tuple[str, ...]
    static: NDArray[np.bool_]
    seeds: tuple[int, ...]
    loss: dict[str, Array]
    bpb: dict[str, Array]
    ends: Array
    path: Array
    unfinished: tuple[str, ...]


def outcomes(table: pd.DataFrame, metrics: Sequence[str] = METRICS, *, phase: str = "stream") -> Outcomes:
    """Final and trajectory-mean losses of every finished stream of a phase.

    The final loss is the last stage's last read-out; the trajectory mean is that of the last read-out of
    each stage. A trial that lacks a stage's end is left out and named.

    Raises:
        UserError: no stream rows, several regimes or models, streams of several designs under one name (a
            condition with two dropouts in a stage, a stage of two prefixes or lengths), an unknown metric.
    """
    check_table(table, ("val_loss", "val_bpb"))
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise UserError(f"metric {unknown[0]!r} is not one of {', '.join(METRICS)}")
    rows = table[table["phase"] == phase]
    if rows.empty:
        raise UserError(f"the table has no rows of the {phase} phase: run --phase {phase} first")
    for name in ("regime", "model"):
        if rows[name].nunique() > 1:
            raise UserError(f"the {phase} rows differ in {name} ({', '.join(map(str, rows[name].unique()))})")
    ends = rows.loc[rows.groupby(["condition", "seed", "stage"])["sampled_tokens"].idxmax()]
    _check_design(rows, ends)
    # What a whole stream is: the stage ends of the conditions that went furthest.
    last = ends.groupby("stage")["sampled_tokens"].max()
    frames = {
        name: ends.pivot(index=["condition", "seed"], columns="stage", values=name)
        for name in ("sampled_tokens", "val_loss", "val_bpb")
    }
    done = (frames["sampled_tokens"].reindex(columns=last.index) == last).all(axis=1)
    unfinished = tuple(f"{condition} seed {seed}" for condition, seed in done.index[~done])
    if not done.any():
        raise UserError("no stream has finished: resume the run")
    loss: dict[str, pd.DataFrame] = {}
    bpb: dict[str, pd.DataFrame] = {}
    for column, out in (("val_loss", loss), ("val_bpb", bpb)):
        frame = frames[column][done]
        for metric in metrics:
            value = frame[last.index[-1]] if metric == "final_val_loss" else frame[list(last.index)].mean(axis=1)
            out[metric] = value.unstack("seed")
    first = loss[metrics[0]]
    kinds = rows.groupby("condition")["kind"].first()
    whole = pd.MultiIndex.from_product([first.index, first.columns])
    path = frames["val_loss"][done].reindex(index=whole, columns=last.index)
    return Outcomes(
        conditions=tuple(first.index),
        static=np.asarray(kinds.reindex(first.index) == "static", dtype=np.bool_),
        seeds=tuple(int(seed) for seed in first.columns),
        loss={name: frame.to_numpy() for name, frame in loss.items()},
        bpb={name: frame.to_numpy() for name, frame in bpb.items()},
        ends=last.to_numpy(dtype=np.float64),
        path=path.to_numpy().reshape(*first.shape, len(last)),
        unfinished=unfinished,
    )


def _check_design(rows: pd.DataFrame, ends: pd.DataFrame) -> None:
    """Refuse streams that share names and nothing else: they would be pooled as seeds of one condition."""
    going_on = ends.groupby(["condition", "seed"])["stage"].transform("max") > ends["stage"]  # so this stage has ended
    designs = ((["condition", "stage"], "dropout", rows), (["stage"], "unique_tokens", rows))
    for keys, name, frame in (*designs, (["stage"], "sampled_tokens", ends[going_on])):
        values = frame.groupby(keys)[name].unique().map(list)
        mixed = values[values.map(len) > 1]
        if len(mixed):
            where = " ".join(map(str, np.atleast_1d(mixed.index[0])))
            raise UserError(
                f"column {name!r} is both {mixed.iloc[0][0]} and {mixed.iloc[0][1]} in {' and '.join(keys)} {where} of "
                "the stream rows: these are streams of different designs, so analyse the runs one by one"
            )


def best_static_elsewhere(loss: Array, static: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(seeds,) index of the static condition that is best on all other seeds; -1 where none can be named.

    Only statics finished on every seed that any static finished on are candidates, else an easy seed could
    make one look good.

    Args:
        loss: (..., conditions, seeds); the result has the leading axes too.
    """
    candidates = np.where(static[:, None], loss, np.nan)
    present = np.isfinite(candidates)
    whole = (present | ~present.any(axis=-2, keepdims=True)).all(axis=-1) & static
    filled = np.where(present, candidates, 0.0)
    total = np.where(whole[..., None], filled.sum(axis=-1)[..., None] - filled, np.inf)
    choice = total.argmin(axis=-2)
    return np.asarray(np.where(np.isfinite(total.min(axis=-2)), choice, -1))


@dataclass(frozen=True)
class _Contrast:
    condition: int
    baseline: int | None  # None: the best static on the other seeds
    primary: bool


def compare(
    table: pd.DataFrame,
    *,
    primary: str = "law",
    baseline: str | None = None,
    metrics: Sequence[str] = METRICS,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Contrasts between the stream phase's conditions.

    For each metric: the primary condition against the baseline, the primary condition against every other
    path that is not static, and every other condition against the baseline. The first of these in
    ``metrics[0]`` is the one primary contrast, named beforehand; in the other metrics it is a secondary one.

    Args:
        primary: condition named beforehand.
        baseline: a condition; by default the best static, chosen for each seed on the other seeds.
        n_bootstrap, seed: parametric bootstrap draws, and what seeds them.

    Returns:
        The columns of comparison.csv in order, then t_low, t_high, p_welch, p_floor (the smallest sign-flip
        p that n allows), difference_bpb, tokens_saved, method (paired, welch), notes. Differences are
        condition less baseline: negative is better. ``low`` and ``high`` bound the difference from the truly
        best static at 95 %, by a parametric bootstrap that redoes the choice. The p-values take the baseline
        as it was chosen and so do not charge for the choice (docs/methodology.md says how much that is).
        ``p_holm`` is adjusted over a metric's secondary contrasts; the primary one's is its own p.

    Raises:
        UserError: no stream rows, an unknown condition or metric, no static condition finished, or what
            ``check_table`` refuses.
    """
    data = outcomes(table, metrics)
    for name in (primary, *([baseline] if baseline else [])):
        if name not in data.conditions:
            raise UserError(f"no finished stream of condition {name!r}: the table has {', '.join(data.conditions)}")
    if baseline is None and not data.static.any():
        raise UserError("no static condition has finished: run one, or name another --baseline")
    first = data.conditions.index(primary)
    against = data.conditions.index(baseline) if baseline else None
    contrasts = [_Contrast(first, against, False)]
    for i in range(len(data.conditions)):
        if i in (first, against):
            continue
        if not data.static[i]:
            contrasts.append(_Contrast(first, i, False))
        contrasts.append(_Contrast(i, against, False))
    rows = []
    for number, metric in enumerate(metrics):
        rng = np.random.default_rng([seed, number])
        named = [replace(contrasts[0], primary=number == 0), *contrasts[1:]]
        block = [_contrast(data, metric, contrast, rng, n_bootstrap) for contrast in named]
        _holm(block)
        rows += block
    result = pd.DataFrame(rows)
    return result[COLUMNS + [name for name in result.columns if name not in COLUMNS]]


def _contrast(
    data: Outcomes, metric: str, contrast: _Contrast, rng: np.random.Generator, n_bootstrap: int
) -> dict[str, object]:
    loss = data.loss[metric]
    treated = loss[contrast.condition]
    notes = [f"left out, unfinished: {', '.join(data.unfinished)}"] if data.unfinished else []
    baseline = _reference(data, metric, contrast, notes)
    reference, reference_bpb = baseline.loss, baseline.bpb
    from scipy import stats  # as long to load as all else of an analysis

    pairs = np.isfinite(treated) & np.isfinite(reference)
    n = int(pairs.sum())
    unpaired = n < 2 and np.isfinite(treated).sum() > 1 and np.isfinite(reference).sum() > 1
    row: dict[str, object] = {
        "metric": metric,
        "condition": data.conditions[contrast.condition],
        "baseline": baseline.name,
        "primary": contrast.primary,
        "n_pairs": 0 if unpaired else n,
        **dict.fromkeys(("low", "high", "p_paired_t", "p_sign_flip", "p_holm"), float("nan")),
        **dict.fromkeys(("t_low", "t_high", "p_welch", "p_floor"), float("nan")),
        "method": "welch" if unpaired else "paired",
    }
    bpb = data.bpb[metric][contrast.condition]
    if unpaired:
        a, b = treated[np.isfinite(treated)], reference[np.isfinite(reference)]
        test = stats.ttest_ind(a, b, equal_var=False)
        interval = test.confidence_interval(LEVEL)
        row |= {"difference": a.mean() - b.mean(), "p_welch": float(test.pvalue)}
        row |= {key: value for end in ("", "t_") for key, value in _ends(end, interval.low, interval.high)}
        row["difference_bpb"] = float(np.nanmean(bpb) - np.nanmean(reference_bpb))
        notes.append("no matched seeds: Welch")
    else:
        difference = (treated - reference)[pairs]
        row["difference"] = float(difference.mean()) if n else float("nan")
        row["difference_bpb"] = float((bpb - reference_bpb)[pairs].mean()) if n else float("nan")
        row |= _paired(difference)
        if n > 1:
            row["low"], row["high"] = _bootstrap_interval(data, metric, contrast, rng, n_bootstrap)
        if n < 2:
            notes.append(f"{n} pairs: no interval and no test")
        elif n < 6:
            notes.append(f"{n} pairs: no sign-flip p below {2.0 ** (1 - n):.3g} is possible")
    row["tokens_saved"] = float("nan")
    if metric == "final_val_loss":
        ours, theirs = data.path[contrast.condition], baseline.path
        if not unpaired:
            ours, theirs = ours[pairs], theirs[pairs]
        row["tokens_saved"] = _tokens_saved(data.ends, _mean_path(ours), _mean_path(theirs))
    row["notes"] = "; ".join(notes)
    return row


def _ends(prefix: str, low: float, high: float) -> list[tuple[str, float]]:
    return [(f"{prefix}low", float(low)), (f"{prefix}high", float(high))]


@dataclass(frozen=True)
class _Baseline:
    """What a condition is compared with: loss and bpb (seeds,), path (seeds, stages)."""

    name: str
    loss: Array
    bpb: Array
    path: Array


def _reference(data: Outcomes, metric: str, contrast: _Contrast, notes: list[str]) -> _Baseline:
    loss, bpb, path = data.loss[metric], data.bpb[metric], data.path
    if contrast.baseline is not None:
        i = contrast.baseline
        return _Baseline(data.conditions[i], loss[i], bpb[i], path[i])
    if len(data.seeds) == 1:
        notes.append("one seed: the best static was chosen on the seed that is reported")
        i = int(np.nanargmin(np.where(data.static[:, None], loss, np.nan)[:, 0]))
        return _Baseline(BEST_STATIC, loss[i], bpb[i], path[i])
    choice = best_static_elsewhere(loss, data.static)
    if (choice < 0).any():
        notes.append("no static condition finished on every seed: their mean is the baseline")
        means = (np.nanmean(values[data.static], axis=0) for values in (loss, bpb, path))
        return _Baseline("mean_static", *means)
    chosen = [data.conditions[i] for i in choice]
    counts = {name: chosen.count(name) for name in dict.fromkeys(chosen)}
    notes.append("chosen on other seeds: " + ", ".join(f"{name} x{count}" for name, count in counts.items()))
    seeds = np.arange(len(choice))
    return _Baseline(BEST_STATIC, loss[choice, seeds], bpb[choice, seeds], path[choice, seeds])


def _paired(difference: Array) -> dict[str, object]:
    from scipy import stats

    n = len(difference)
    if n < 2:
        return {}
    result: dict[str, object] = {"p_floor": 2.0 ** (1 - n)}
    if np.ptp(difference) > 0:
        test = stats.ttest_1samp(difference, 0.0)
        interval = test.confidence_interval(LEVEL)
        result |= {"p_paired_t": float(test.pvalue), "t_low": float(interval.low), "t_high": float(interval.high)}
    # Exact while 2^n sign patterns can be listed; beyond, 100,000 of them at random.
    flips = stats.permutation_test(
        (difference,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=100_000,
        rng=np.random.default_rng(0),
    )
    return result | {"p_sign_flip": float(flips.pvalue)}


def _bootstrap_interval(
    data: Outcomes, metric: str, contrast: _Contrast, rng: np.random.Generator, n_bootstrap: int
) -> tuple[float, float]:
    """95 % interval by a parametric bootstrap from pooled residuals.

    Condition and seed are additive effects and their residuals are pooled over conditions, as for cells.
    Each draw redoes the choice of the best static, and what its estimate differs by from the drawn world's
    truth (the condition less the truly best static) is turned around the estimate: the choice is paid for.
    """
    loss = data.loss[metric]
    present = np.isfinite(loss)
    levels, _, _, residuals = additive(loss.T)
    df = int(present.sum()) - sum(loss.shape) + 1
    if df < 1:
        return float("nan"), float("nan")
    scale = np.sqrt(np.nansum(residuals**2) / rng.chisquare(df, n_bootstrap))
    draws = levels[:, None] + scale[:, None, None] * rng.standard_normal((n_bootstrap, *loss.shape))
    worlds = np.concatenate([loss[None], np.where(present, draws, np.nan)])
    if contrast.baseline is not None:
        reference, truth = worlds[:, contrast.baseline], levels[contrast.baseline]
    else:
        choice = best_static_elsewhere(worlds, data.static)
        if (choice[0] < 0).any():
            return float("nan"), float("nan")
        reference = np.take_along_axis(worlds, choice[:, None, :], axis=1)[:, 0]
        truth = levels[data.static].min()
    estimates = np.nanmean(worlds[:, contrast.condition] - reference, axis=1)
    error = estimates[1:] - (levels[contrast.condition] - truth)
    below, above = np.quantile(error, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(estimates[0] - above), float(estimates[0] - below)


def _mean_path(path: Array) -> Array:
    """(stages,) mean over the seeds that finished; NaN where none did."""
    finished = path[np.isfinite(path).all(axis=1)]
    return np.asarray(finished.mean(axis=0)) if len(finished) else np.full(path.shape[1], np.nan)


def _tokens_saved(tokens: Array, ours: Array, theirs: Array) -> float:
    """Sampled tokens by which the better of the two reaches the other's final loss before the stream's end.

    Positive where the condition is the better one. Mean losses at the stage ends, over the seeds that both
    have, are interpolated linearly in log C; where the better one's path starts below that loss already,
    all but its first stage is saved.

    Args:
        tokens: (stages,) sampled tokens; ours, theirs: (stages,) nats per token.
    """
    if not np.isfinite(ours + theirs).all():
        return float("nan")
    sign, losses, goal = (1.0, ours, theirs[-1]) if ours[-1] <= theirs[-1] else (-1.0, theirs, ours[-1])
    above = np.flatnonzero(losses > goal)
    if not len(above):
        return sign * float(tokens[-1] - tokens[0])
    i = int(above[-1])  # the last crossing: from there on the path stays below the goal
    if i == len(losses) - 1:
        return 0.0
    share = (losses[i] - goal) / (losses[i] - losses[i + 1])
    reached = np.exp(np.log(tokens[i]) + share * np.log(tokens[i + 1] / tokens[i]))
    return sign * float(tokens[-1] - reached)


def _holm(rows: list[dict[str, object]]) -> None:
    """Holm's step-down adjustment over the secondary contrasts, in place."""

    def own(row: dict[str, object]) -> float:
        return float(str(row["p_welch" if row["method"] == "welch" else "p_paired_t"]))

    secondary = [row for row in rows if not row["primary"] and np.isfinite(own(row))]
    running = 0.0
    for rank, row in enumerate(sorted(secondary, key=own)):
        running = max(running, min(1.0, own(row) * (len(secondary) - rank)))
        row["p_holm"] = running
    for row in rows:
        if row["primary"]:
            row["p_holm"] = own(row)

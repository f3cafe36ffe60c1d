"""Streams compared: every condition against the best static dropout, paired by seed, the primary contrast first.

The best static is chosen without peeking: for each seed, the static condition that is best on the *other*
seeds. Methods are in docs/methodology.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from analysis.cells import additive, check_table
from tune_dd.errors import UserError
from tune_dd.laws import Array

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
        path: condition -> table of mean val_loss (over finished seeds) by sampled_tokens.
        unfinished: names of trials left out because they did not reach the stream's end.
    """

    conditions: tuple[str, ...]
    static: NDArray[np.bool_]
    seeds: tuple[int, ...]
    loss: dict[str, Array]
    bpb: dict[str, Array]
    path: dict[str, pd.Series]
    unfinished: tuple[str, ...]


def outcomes(table: pd.DataFrame, metrics: Sequence[str] = METRICS) -> Outcomes:
    """Final and trajectory-mean losses of every finished stream.

    The final loss is the last stage's last read-out; the trajectory mean is that of the last read-out of
    each stage. A trial that lacks a stage's end is left out and named.

    Raises:
        UserError: no stream rows, several regimes or models, an unknown metric.
    """
    check_table(table, ("val_loss", "val_bpb"))
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise UserError(f"metric {unknown[0]!r} is not one of {', '.join(METRICS)}")
    rows = table[table["phase"] == "stream"]
    if rows.empty:
        raise UserError("the table has no rows of the stream phase: run --phase stream first")
    for name in ("regime", "model"):
        if rows[name].nunique() > 1:
            raise UserError(f"the stream rows differ in {name} ({', '.join(map(str, rows[name].unique()))})")
    ends = rows.loc[rows.groupby(["condition", "seed", "stage"])["sampled_tokens"].idxmax()]
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
    path = frames["val_loss"][done].groupby("condition").mean()
    return Outcomes(
        conditions=tuple(first.index),
        static=np.asarray(kinds.reindex(first.index) == "static", dtype=np.bool_),
        seeds=tuple(int(seed) for seed in first.columns),
        loss={name: frame.to_numpy() for name, frame in loss.items()},
        bpb={name: frame.to_numpy() for name, frame in bpb.items()},
        path={str(name): pd.Series(row.to_numpy(), index=last.to_numpy()) for name, row in path.iterrows()},
        unfinished=unfinished,
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

    For each metric: the primary condition against the baseline (the primary contrast of ``metrics[0]`` is
    the one named beforehand), the primary against every other path that is not static, and every other
    condition against the baseline.

    Args:
        primary: condition named beforehand.
        baseline: a condition; by default the best static, chosen for each seed on the other seeds.
        n_bootstrap, seed: parametric bootstrap draws, and what seeds them.

    Returns:
        The columns of comparison.csv in order, then t_low, t_high, p_welch, p_floor (the smallest sign-flip
        p that n allows), difference_bpb, tokens_saved, method (paired, welch), notes. Differences are
        condition less baseline: negative is better. ``low`` and ``high`` bound the difference from the truly
        best static at 95 %, by a parametric bootstrap that redoes the choice. ``p_holm`` is adjusted over a
        metric's secondary contrasts; the primary one's is its own p.

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
    contrasts = [_Contrast(first, against, True)]
    for i in range(len(data.conditions)):
        if i in (first, against):
            continue
        if not data.static[i]:
            contrasts.append(_Contrast(first, i, False))
        contrasts.append(_Contrast(i, against, False))
    rows = []
    for number, metric in enumerate(metrics):
        rng = np.random.default_rng([seed, number])
        block = [_contrast(data, metric, contrast, rng, n_bootstrap) for contrast in contrasts]
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
    reference, reference_bpb, name = _reference(data, metric, contrast, notes)
    pairs = np.isfinite(treated) & np.isfinite(reference)
    n = int(pairs.sum())
    unpaired = n < 2 and np.isfinite(treated).sum() > 1 and np.isfinite(reference).sum() > 1
    row: dict[str, object] = {
        "metric": metric,
        "condition": data.conditions[contrast.condition],
        "baseline": name,
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
    row["tokens_saved"] = _tokens_saved(data, contrast, name) if metric == "final_val_loss" else float("nan")
    row["notes"] = "; ".join(notes)
    return row


def _ends(prefix: str, low: float, high: float) -> list[tuple[str, float]]:
    return [(f"{prefix}low", float(low)), (f"{prefix}high", float(high))]


def _reference(data: Outcomes, metric: str, contrast: _Contrast, notes: list[str]) -> tuple[Array, Array, str]:
    """The baseline's loss and bits per byte on each seed, and its name."""
    loss, bpb = data.loss[metric], data.bpb[metric]
    if contrast.baseline is not None:
        return loss[contrast.baseline], bpb[contrast.baseline], data.conditions[contrast.baseline]
    if len(data.seeds) == 1:
        notes.append("one seed: the best static was chosen on the seed that is reported")
        best = int(np.nanargmin(np.where(data.static[:, None], loss, np.nan)[:, 0]))
        return loss[best], bpb[best], BEST_STATIC
    choice = best_static_elsewhere(loss, data.static)
    if (choice < 0).any():
        notes.append("no static condition finished on every seed: their mean is the baseline")
        static = data.static
        return np.nanmean(loss[static], axis=0), np.nanmean(bpb[static], axis=0), "mean_static"
    chosen = [data.conditions[i] for i in choice]
    counts = {name: chosen.count(name) for name in dict.fromkeys(chosen)}
    notes.append("chosen on other seeds: " + ", ".join(f"{name} x{count}" for name, count in counts.items()))
    seeds = np.arange(len(choice))
    return loss[choice, seeds], bpb[choice, seeds], BEST_STATIC


def _paired(difference: Array) -> dict[str, object]:
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


def _tokens_saved(data: Outcomes, contrast: _Contrast, baseline: str) -> float:
    """Sampled tokens by which the better of the two reaches the other's final loss before the stream's end.

    Positive where the condition is the better one. Mean losses at the stage ends are interpolated linearly
    in log C; where the better one's path starts below that loss already, all but its first stage is saved.
    """
    condition = data.conditions[contrast.condition]
    if baseline not in data.path:
        means = data.loss["final_val_loss"]
        static = np.flatnonzero(data.static)
        baseline = data.conditions[static[np.nanmean(means[static], axis=1).argmin()]]
    ours, theirs = data.path[condition], data.path[baseline]
    sign, better, other = (1.0, ours, theirs) if ours.iloc[-1] <= theirs.iloc[-1] else (-1.0, theirs, ours)
    goal = float(other.iloc[-1])
    tokens = better.index.to_numpy(dtype=np.float64)
    losses = better.to_numpy(dtype=np.float64)
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

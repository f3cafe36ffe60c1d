"""A search for a schedule: what every point came to, how much the best of them gained, which parameters mattered.

The best of many points is chosen on the seeds that it is reported on, so its value is flattered and to be
confirmed on other seeds. Methods are in docs/methodology.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.cells import additive
from analysis.companions import read_suggestions
from analysis.comparison import LEVEL, outcomes
from analysis.exports import plain_records
from tune_dd.law import Array

if TYPE_CHECKING:
    import optuna

FITTED, STATIC = "fitted", "static"
ROLES = {FITTED: "the fitted law", STATIC: "the fixed dropout"}
# Importance is that of reaching the best tenth of the points, at least the best five, as its authors advise. With
# twenty points it still errs.
_BEST_SHARE, _BEST_POINTS = 0.1, 5
_MIN_POINTS = 4 * _BEST_POINTS


@dataclass(frozen=True)
class Searched:
    """A search as far as it has come.

    Attributes:
        about: of suggestions.json: space, law, sampler, objective, search_seed, seeds, bounds.
        metric: what was minimised, as in comparison.csv.
        history: one row per point, in the order of suggestion: index, condition, role, ``param_*``, the law's
            coefficients by name, ``dropout_<stage>``, n_seeds (finished), value (mean of the metric over all
            seeds, nats per token; NaN where one is missing), value_std (over seeds), best_so_far.
        contrasts: one row per known point, the best point less it: baseline, n_pairs, difference, low, high (nats
            per token); empty before a point is done.
        importance: parameter, importance (shares of 1); empty where the points are too few.
        path: condition, stage, unique_tokens, dropout of the best point and the known ones.
        notes: sentences that the reader must be told.
    """

    about: Mapping[str, Any]
    metric: str
    history: pd.DataFrame
    contrasts: pd.DataFrame
    importance: pd.DataFrame
    path: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def params(self) -> tuple[str, ...]:
        return tuple(self.about["bounds"])

    @property
    def finished(self) -> pd.DataFrame:
        """The points that have a value."""
        return self.history[self.history["value"].notna()]

    @property
    def best(self) -> dict[Any, Any] | None:
        """The row of the point of least value, the earliest on a tie; None before one is done."""
        ranked = self.finished.sort_values("value", kind="stable").to_dict("records")
        return ranked[0] if ranked else None

    def dropouts(self, row: Mapping[Any, Any]) -> list[float]:
        """The path of a row of ``history``."""
        return [float(row[name]) for name in self.history.columns if str(name).startswith("dropout_")]

    def to_dict(self) -> dict[str, Any]:
        """What search.json holds."""
        best = self.best
        return {
            **{name: value for name, value in self.about.items() if name not in ("points", "checksum", "search")},
            "metric": self.metric,
            "best": None if best is None else str(best["condition"]),
            "contrasts": plain_records(self.contrasts),
            "importance": plain_records(self.importance),
            "points": plain_records(self.history),
            "notes": list(self.notes),
        }


def searched(table: pd.DataFrame, folders: Sequence[Path]) -> Searched | None:
    """The search in a table, None where there is none.

    Args:
        folders: of the runs, one of which holds the search's suggestions.json.

    Raises:
        UserError: several searches, a damaged suggestions.json, no point with a finished trial, or what
            ``outcomes`` refuses.
    """
    if not (table["phase"] == "search").any():
        return None
    about = read_suggestions(folders)
    metric = f"{about['objective']}_val_loss"
    data = outcomes(table, (metric,), phase="search")
    seeds = [int(seed) for seed in about["seeds"]]
    loss = pd.DataFrame(data.loss[metric], index=list(data.conditions), columns=list(data.seeds))
    conditions = [str(point["condition"]) for point in about["points"]]
    loss = loss.reindex(index=conditions, columns=seeds)
    history = pd.DataFrame([_point_row(point) for point in about["points"]])
    history["n_seeds"] = loss.notna().sum(axis=1).to_numpy()
    history["value"] = loss.mean(axis=1, skipna=False).to_numpy()
    history["value_std"] = loss.std(axis=1, ddof=1, skipna=False).to_numpy()
    history["best_so_far"] = history["value"].cummin().ffill()
    notes = [f"left out, unfinished: {', '.join(data.unfinished)}"] if data.unfinished else []
    if len(seeds) == 1:
        notes.append("one seed: nothing says how sure a difference is")
    contrasts = best_contrasts(history, loss.to_numpy())
    return Searched(
        about=about,
        metric=metric,
        history=history,
        contrasts=contrasts,
        importance=parameter_importance(about, history),
        path=_paths(table, history),
        notes=tuple(notes),
    )


def _point_row(point: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: point[name] for name in ("index", "condition", "role")},
        **{f"param_{name}": value for name, value in point["params"].items()},
        **point["coefficients"],
        **{f"dropout_{stage}": value for stage, value in enumerate(point["dropouts"])},
    }


def best_contrasts(history: pd.DataFrame, loss: Array) -> pd.DataFrame:
    """The best point less the fitted law and less the fixed dropout, paired by seed.

    Point and seed are additive effects and the residuals of all points are pooled: the 95 % interval is Student's,
    of a difference of two means over n pairs. It does not charge for having chosen the best.

    Args:
        loss: (points, seeds) of the metric, in the order of ``history``; NaN where not finished.
    """
    from scipy import stats  # as long to load as all else of an analysis

    columns = ["condition", "baseline", "baseline_condition", "n_pairs", "difference", "low", "high"]
    done = history["value"].notna().to_numpy()
    if not done.any():
        return pd.DataFrame(columns=columns)
    _, _, _, residuals = additive(loss[done].T)
    df = (int(done.sum()) - 1) * (loss.shape[1] - 1)
    best = int(np.nanargmin(history["value"].to_numpy()))
    rows = []
    for role in ROLES:
        for other in np.flatnonzero(done & (history["role"] == role).to_numpy() & (np.arange(len(done)) != best)):
            difference = loss[best] - loss[other]
            n = len(difference)
            margin = float("nan")
            if df > 0:
                sigma = float(np.sqrt((residuals**2).sum() / df))
                margin = float(stats.t.ppf((1 + LEVEL) / 2, df)) * sigma * float(np.sqrt(2 / n))
            mean = float(difference.mean())
            names = history["condition"].iloc[best], role, history["condition"].iloc[other]
            rows.append(dict(zip(columns, (*names, n, mean, mean - margin, mean + margin), strict=True)))
    return pd.DataFrame(rows, columns=columns)


def parameter_importance(about: Mapping[str, Any], history: pd.DataFrame) -> pd.DataFrame:
    """How much each parameter mattered for reaching the best points (PED-ANOVA, arXiv:2304.10255), as shares of 1."""
    empty = pd.DataFrame(columns=["parameter", "importance"])
    done = history[history["value"].notna()]
    if len(done) < _MIN_POINTS:
        return empty
    import optuna  # takes half a second, which only a search needs

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(direction="minimize")
            study.add_trials(_trials(about["bounds"], done))
            share = max(_BEST_SHARE, _BEST_POINTS / len(done))
            evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(level)
    if not np.isfinite(list(found.values())).all():
        return empty
    ranked = sorted(found, key=lambda name: -found[name])
    return pd.DataFrame({"parameter": ranked, "importance": [found[name] for name in ranked]})


def _trials(bounds: Mapping[str, Sequence[float]], done: pd.DataFrame) -> list[optuna.trial.FrozenTrial]:
    import optuna

    distributions = {name: optuna.distributions.FloatDistribution(low, high) for name, (low, high) in bounds.items()}
    return [
        optuna.trial.create_trial(
            params={name: float(row[f"param_{name}"]) for name in bounds},
            distributions=dict(distributions),
            value=float(row["value"]),
        )
        for row in done.to_dict("records")
    ]


def _paths(table: pd.DataFrame, history: pd.DataFrame) -> pd.DataFrame:
    """The schedules worth seeing side by side, as stages of the table."""
    rows = table[table["phase"] == "search"].drop_duplicates("stage").sort_values("stage")
    records = history.to_dict("records")
    best = None if history["value"].isna().all() else int(np.nanargmin(history["value"].to_numpy()))
    known = {
        number: f"{row['role']} ({row['condition']})" for number, row in enumerate(records) if row["role"] in ROLES
    }
    names = known if best is None else known | {best: f"best: {known.get(best, records[best]['condition'])}"}
    return pd.DataFrame(
        [
            (name, stage, unique, records[number][f"dropout_{stage}"])
            for number, name in names.items()
            for stage, unique in zip(rows["stage"], rows["unique_tokens"], strict=True)
        ],
        columns=["condition", "stage", "unique_tokens", "dropout"],
    )

"""Laws side by side on hold-outs of the kinds that they are used on: ``python -m analysis laws``.

A law is fitted to one regime's calibration, the cells of runs that no law was frozen for, and judged on what it
was not fitted to: cells of a larger model, of longer training or of a larger prefix, of another corpus, and
streams. Interpolation does not decide: at pocket scale the form that interpolates best need not extrapolate best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.carry import carry, scaled
from analysis.coefficients import Coefficients, fit_law
from analysis.comparison import BEST_STATIC, METRICS, compare, outcomes
from analysis.foretell import Text, comparable, text_of
from analysis.holdout import BASELINES, RIVALS
from analysis.pilot import Split, split
from analysis.report import calibration_rows
from analysis.tables import POINT, Experiment
from analysis.targets import Targets, make_targets, regret_floors
from analysis.texts import Place, compare_texts, pilot_scale
from analysis.typical import ANY, typical
from analysis.verdict import CARRIED, PILOTED, TYPICAL, TYPICAL_PILOTED
from tune_dd.errors import UserError
from tune_dd.law import Array
from tune_dd.laws import DEFAULT_LAW, LAWS, REFERENCE_LAW, get_law

# The kinds of hold-out, in the order in which a cell that goes beyond the calibration in several ways is sorted.
BEYOND = {"n_params": "larger P", "sampled_tokens": "longer C", "unique_tokens": "larger U"}
ANOTHER = "another corpus"
PAIRED = (ANOTHER, CARRIED, PILOTED)  # by the law of one text on another
CELL_KINDS = (*BEYOND.values(), ANOTHER, TYPICAL, TYPICAL_PILOTED, CARRIED, PILOTED)
# Draws behind the interval of a mean regret.
DRAWS = 2000
# Draws behind the interval of a scale that a pilot measures.
PILOT_DRAWS = 200
# What makes two rows of one cell's, by two laws, and what makes cells err together.
SAME = ["fitted_on", "regime", "model", "unique_tokens", "sampled_tokens"]
BLOCK = ["regime", "model", "unique_tokens"]
# What makes a law of one run apply to another: the regime at one scale, under one tokenizer.
PLACE = ("regime", "scale", "tokenizer_hash")
CLASS = ["evidence", "device"]


@dataclass(frozen=True)
class Stream:
    """A stream run: its rows, and the laws that it was run with, condition -> name of the form."""

    table: pd.DataFrame
    laws: dict[str, str]


@dataclass(frozen=True)
class Study:
    """What was run, sorted by what it is for.

    Attributes:
        calibrations: place -> rows of the runs that laws are fitted to.
        holdouts: place -> rows of the static runs that laws were frozen for beforehand.
        frozen: place -> the forms (as they are fitted) that were frozen for all of those runs.
        streams: the streams that a law was frozen for.
        texts: place -> its text, where a run there holds its counts.
        aside: static runs that no form as it is fitted now was frozen for; without ``every`` nothing is judged on them.
    """

    calibrations: dict[Place, pd.DataFrame]
    holdouts: dict[Place, pd.DataFrame]
    frozen: dict[Place, frozenset[str]]
    streams: tuple[Stream, ...]
    texts: dict[Place, Text]
    aside: int = 0


def sort_runs(experiments: Sequence[Experiment], *, every: bool = False) -> Study:
    """Sort runs into calibrations, hold-outs and streams, by phase and by whether a law was frozen for them.

    Args:
        every: keep every static hold-out, and judge every form on all of them. By default a form is judged on no
            hold-out that had been seen before the form was made: those stay that the default form was frozen for or,
            where there are none, that most forms were frozen for, and the forms that were frozen for all of those. A
            form counts as frozen, for streams too, where fits expect the same coefficients of it now as then.

    Raises:
        UserError: there is no calibration among them, or they are of several evidence classes or devices.
    """
    classes = {
        (row.evidence, row.device) for each in experiments for row in each.table[CLASS].drop_duplicates().itertuples()
    }
    if len(classes) > 1:
        told = " and ".join(f"{evidence} on {device}" for evidence, device in classes)
        raise UserError(f"no table mixes evidence classes or devices, and these are {told}: name the runs of one")
    calibrations: dict[Place, list[pd.DataFrame]] = {}
    holdouts: list[tuple[frozenset[str], Place, pd.DataFrame]] = []
    streams = []
    texts: dict[Place, Text] = {}
    for experiment in experiments:
        for config in experiment.configs:
            if (text := text_of(config)) is not None:
                texts[text.regime, str(config["scale_name"]), text.tokenizer_hash] = text
        laws = {config.get("run_id"): config.get("coefficients") for config in experiment.configs}
        for (run_id, phase), rows in experiment.table.groupby(["run_id", "phase"], sort=True):
            frozen = laws.get(run_id)
            if phase in ("confirm", "calibrate"):
                for key, own in rows.groupby(list(PLACE)):
                    regime, scale, tokenizer = map(str, key)
                    place = (regime, scale, tokenizer)
                    if frozen:
                        forms = frozenset(get_law(law["law"]).cells for law in frozen if every or as_now(law))
                        holdouts.append((forms, place, own))
                    else:
                        calibrations.setdefault(place, []).append(own)
            elif phase == "stream" and frozen:
                streams.append(Stream(rows, {law["condition"]: law["law"] for law in frozen if every or as_now(law)}))
    if not calibrations:
        raise UserError("no calibrate or confirm run among them: name runs that a law can be fitted to")
    aside = sum(not forms for forms, _, _ in holdouts)
    if not every:
        holdouts = [each for each in holdouts if each[0]]
        most = max((len(forms) for forms, _, _ in holdouts), default=0)
        frozen_default = [each for each in holdouts if LAWS[DEFAULT_LAW].cells in each[0]]
        holdouts = frozen_default or [each for each in holdouts if len(each[0]) == most]
    kept: dict[Place, list[pd.DataFrame]] = {}
    judged: dict[Place, frozenset[str]] = {}
    for forms, place, own in holdouts:
        kept.setdefault(place, []).append(own)
        judged[place] = frozenset(LAWS) if every else judged.get(place, forms) & forms
    return Study(_join(calibrations), _join(kept), judged, tuple(streams), texts, aside)


def as_now(frozen: Mapping[str, Any]) -> bool:
    """Whether fits of the form that a law was frozen of expect the same coefficients of it now as then.

    Args:
        frozen: its record in config.json or predictions.json.
    """
    expected = {name: list(each) for name, each in get_law(frozen["law"]).expected.items()}
    return (frozen.get("expected") or {}) == expected


def _join(parts: Mapping[Place, Sequence[pd.DataFrame]]) -> dict[Place, pd.DataFrame]:
    """One table per place; what two runs hold counts once."""
    return {
        place: pd.concat(tables, ignore_index=True).drop_duplicates(list(POINT), ignore_index=True)
        for place, tables in sorted(parts.items())
    }


def judge_cells(study: Study, *, laws: Sequence[str] = RIVALS, seed: int = 0) -> pd.DataFrame:
    """Every law on every held-out cell.

    Returns one row per law and cell: law, fitted_on (regime), regime, kind, model, n_params, unique_tokens,
    sampled_tokens, status, target (the cell's own fitted optimum), predicted (dropout), regret (nats per token),
    in_plateau (whether the prediction lies in the cell's plateau; None without one), floor (the mean regret of the
    cell's own optimum, drawn anew from its noise and held to the clamp: what a law that knew it would be charged).

    Cells that lie within the calibration's P, U and C are no hold-out and are left out, but for those of another
    corpus. Those are judged by the law as it is; where runs of both texts hold their counts, by the law carried by
    these (``analysis.carry``), with the rule of other texts than the two; by the law carried by a pilot
    (``analysis.pilot``), a few trials of that text's calibration; and by the mean law of all texts but theirs
    (``analysis.typical``), as it is and carried by that pilot, once each and not for every pair (texts that a form's
    exponents were set on are no strangers to it): all on the seeds that the pilot does not have. Laws that a
    calibration leaves undetermined are left out.
    """
    tables, cells = _calibrated(study, seed)
    others = {place: split(table, seed=seed) for place, table in tables.items()}
    held = {place: make_targets(None, calibration_rows(rows)[0], seed=seed) for place, rows in study.holdouts.items()}
    # Of the cells alone: the same for every law that is judged on them.
    floors = {place: regret_floors(own.cells) for place, own in others.items()}
    held_floors = {place: regret_floors(own) for place, own in held.items()}
    fits = {(place, law): _fit(table, cells[place], law, seed) for place, table in tables.items() for law in laws}
    rows = []
    for place in tables:
        for law in laws:
            fitted = fits[place, law]
            alike = {other[0]: fits[other, law] for other in tables if other[0] != place[0] and other[1] == place[1]}
            known = [each for each in alike.values() if each is not None]
            if len(known) > 1:
                of_all = typical(known)
                for kind, mean in {TYPICAL: of_all, TYPICAL_PILOTED: _piloted(of_all, others[place])}.items():
                    if mean is not None:
                        rows += _judge(
                            mean, others[place].cells, floors[place], lambda *cell, kind=kind: kind, fitted_on=ANY
                        )
            if fitted is None:
                continue
            if place in held and law in study.frozen[place].union(BASELINES):
                rows += _judge(
                    fitted, held[place], held_floors[place], lambda *cell, known=cells[place]: kind_beyond(known, *cell)
                )
            for other, own in others.items():
                if other[0] == place[0] or other[1] != place[1]:
                    continue
                for kind, as_there in _ways(fitted, own, study.texts.get(place), study.texts.get(other)).items():
                    rows += _judge(
                        as_there, own.cells, floors[other], lambda *cell, kind=kind: kind, fitted_on=place[0]
                    )
    return pd.DataFrame(rows)


def _ways(fitted: Coefficients, other: Split, here: Text | None, there: Text | None) -> dict[str, Coefficients]:
    """Kind of hold-out -> the law of one text as it is judged on another."""
    ways = {ANOTHER: fitted}
    if here is not None and there is not None and comparable(here, there):
        ways[CARRIED] = carry(fitted, here, there)
    if (piloted := _piloted(fitted, other)) is not None:
        ways[PILOTED] = piloted
    return ways


def _piloted(fitted: Coefficients, other: Split) -> Coefficients | None:
    """A law carried by another text's pilot; None where there is none, or it tells this form nothing."""
    scale, *_ = pilot_scale(fitted, other)
    return None if np.isnan(scale) else scaled(fitted, scale)


def judge_texts(study: Study, *, law: str = LAWS[DEFAULT_LAW].cells, seed: int = 0) -> pd.DataFrame:
    """Every calibration's law on the cells of the other texts: rows of ``analysis.texts.compare_texts``."""
    tables, _ = _calibrated(study, seed)
    others = {place: split(table, seed=seed) for place, table in tables.items()}
    return compare_texts(fit_texts(study, law=law, seed=seed), others, study.texts)


def fit_texts(study: Study, *, law: str, seed: int = 0) -> dict[Place, Coefficients]:
    """Every calibration's law of one form, but for those that a calibration leaves undetermined."""
    tables, cells = _calibrated(study, seed)
    fitted = {place: _fit(table, cells[place], law, seed, n_bootstrap=PILOT_DRAWS) for place, table in tables.items()}
    return {place: each for place, each in fitted.items() if each is not None}


def _calibrated(study: Study, seed: int) -> tuple[dict[Place, pd.DataFrame], dict[Place, Targets]]:
    """The calibrations' rows, without cells that have one dropout so far (a run under way), and their targets."""
    tables = {place: calibration_rows(rows)[0] for place, rows in study.calibrations.items()}
    return tables, {place: make_targets(None, table, seed=seed) for place, table in tables.items()}


def _fit(table: pd.DataFrame, targets: Targets, law: str, seed: int, *, n_bootstrap: int = 1) -> Coefficients | None:
    try:
        return fit_law(None, table, law=law, n_bootstrap=n_bootstrap, seed=seed, targets=targets)
    except UserError:
        return None


def kind_beyond(known: Targets, n_params: int, unique_tokens: int, sampled_tokens: int) -> str | None:
    """The kind of hold-out that a cell is of a calibration's cells; None where it goes beyond them in nothing."""
    cell = {"n_params": n_params, "unique_tokens": unique_tokens, "sampled_tokens": sampled_tokens}
    return next((kind for name, kind in BEYOND.items() if cell[name] > getattr(known, name).max()), None)


def _judge(
    fitted: Coefficients,
    held: Targets,
    floors: Array,
    kind_of: Callable[..., str | None],
    *,
    fitted_on: str | None = None,
) -> list[dict[str, Any]]:
    rows = []
    for fit, floor in zip(held.fits, floors, strict=True):
        cell = (fit.n_params, fit.unique_tokens, fit.sampled_tokens)
        kind = kind_of(*cell)
        if kind is None:
            continue
        predicted = fitted.predict(*cell)
        rows.append(
            {
                "law": fitted.law,
                "fitted_on": fitted_on or fitted.regime,
                "regime": fit.regime,
                "kind": kind,
                "model": fit.model,
                **dict(zip(("n_params", "unique_tokens", "sampled_tokens"), cell, strict=True)),
                "status": fit.status,
                "target": fit.target,
                "predicted": float(predicted),
                "regret": float(fit.regret(predicted)),
                "in_plateau": fit.plateau[0] <= predicted <= fit.plateau[-1] if fit.plateau else None,
                "floor": float(floor),
            }
        )
    return rows


def summarise_cells(cells: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean regret of each law on each kind of hold-out.

    Returns one row per kind and law, the least mean first: kind, law, n_cells, n_blocks, regret_mean, low, high
    (95 % percentiles of a bootstrap over blocks, the cells of one corpus, model and prefix, which err together whatever
    the law is), less_reference with less_low and less_high (the same of the regret less that of the reference form on
    the same cells; NaN where it was not judged), regret_max, rmse (dropout, over the interior cells), floor_mean (see
    ``judge_cells``), corrected_mean with corrected_low and corrected_high (the same of the regret less the floor).

    A regret is over a cell's *fitted* optimum, whose noise charges even the truth. What it charges is the floor on
    average, so the corrected mean estimates the regret over the true optimum; what the quadratic misses of a curve
    stays in it (``analysis.simulation``).
    """
    rows = []
    for kind in (kind for kind in CELL_KINDS if (cells["kind"] == kind).any()):
        of_kind = cells[cells["kind"] == kind]
        # A form that some calibration cannot give would be judged on fewer cells than the others.
        full = of_kind.groupby("law").size()
        for law in full.index[full == full.max()]:
            own = of_kind[of_kind["law"] == law]
            reference = of_kind[of_kind["law"] == REFERENCE_LAW].set_index(SAME)["regret"]
            less = own["regret"] - reference.reindex(pd.MultiIndex.from_frame(own[SAME])).to_numpy()
            blocks = own.groupby(BLOCK).ngroup().to_numpy()
            low, high = _interval(own["regret"].to_numpy(), blocks, seed)
            less_low, less_high = _interval(less.to_numpy(), blocks, seed)
            corrected = own["regret"] - own["floor"]
            corrected_low, corrected_high = _interval(corrected.to_numpy(), blocks, seed)
            inside = own[own["status"] == "interior"]
            rows.append(
                {
                    "kind": kind,
                    "law": law,
                    "n_cells": len(own),
                    "n_blocks": len(np.unique(blocks)),
                    "regret_mean": own["regret"].mean(),
                    "low": low,
                    "high": high,
                    "less_reference": less.mean(skipna=False),
                    "less_low": less_low,
                    "less_high": less_high,
                    "regret_max": own["regret"].max(),
                    "rmse": float(np.sqrt(((inside["predicted"] - inside["target"]) ** 2).mean())),
                    "floor_mean": own["floor"].mean(),
                    "corrected_mean": corrected.mean(),
                    "corrected_low": corrected_low,
                    "corrected_high": corrected_high,
                }
            )
    frame = pd.DataFrame(rows)
    order = {kind: number for number, kind in enumerate(CELL_KINDS)}
    return frame.sort_values(
        ["kind", "regret_mean"], key=lambda c: c.map(order) if c.name == "kind" else c, kind="stable", ignore_index=True
    )


def _interval(values: Array, blocks: NDArray[np.int64], seed: int) -> tuple[float, float]:
    """95 % percentiles of the mean, blocks drawn with replacement."""
    sums, sizes = np.bincount(blocks, values), np.bincount(blocks)
    drawn = np.random.default_rng([seed, 3]).integers(len(sums), size=(DRAWS, len(sums)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def judge_streams(study: Study, *, n_bootstrap: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Every law's path on every stream that it was frozen for, final validation loss, nats per token.

    Returns one row per stream and law: run (its id), regime, model, law, condition, path (dropout by stage), n_pairs,
    against_static with low and high (the law less the best static, chosen on other seeds), best_path (the
    condition with the lowest mean among all of the stream, whatever made it) and against_best with best_low and
    best_high. The best path was chosen on the seeds that it is compared on, so that distance is an upper bound.
    """
    rows = []
    for stream in study.streams:
        found = outcomes(stream.table, METRICS[:1])
        present = {condition: law for condition, law in stream.laws.items() if condition in found.conditions}
        if not present or not found.static.any():
            continue
        means = found.loss[METRICS[0]].mean(axis=1)
        best = found.conditions[int(np.nanargmin(means))]
        first = next(iter(present))
        settings: Mapping[str, Any] = {"metrics": METRICS[:1], "n_bootstrap": n_bootstrap, "seed": seed}
        contrasts = compare(stream.table, primary=first, **settings)
        static = contrasts[contrasts["baseline"] == BEST_STATIC].set_index("condition")
        if not len(static):  # no fixed rate has finished on every seed
            continue
        for condition, law in present.items():
            path = stream.table[stream.table["condition"] == condition].groupby("stage")["dropout"].first()
            row = {
                "run": stream.table["run_id"].iloc[0],
                "regime": stream.table["regime"].iloc[0],
                "model": stream.table["model"].iloc[0],
                "law": law,
                "condition": condition,
                "path": " ".join(f"{p:.2f}" for p in path),
                "n_pairs": static.at[condition, "n_pairs"],
                "against_static": static.loc[condition, "difference"],
                "low": static.loc[condition, "low"],
                "high": static.loc[condition, "high"],
                "best_path": best,
                **dict.fromkeys(("against_best", "best_low", "best_high"), 0.0),
            }
            if condition != best:
                contrast = compare(stream.table, primary=condition, baseline=best, **settings).iloc[0]
                row |= {
                    "against_best": contrast["difference"],
                    "best_low": contrast["low"],
                    "best_high": contrast["high"],
                }
            rows.append(row)
    return pd.DataFrame(rows)

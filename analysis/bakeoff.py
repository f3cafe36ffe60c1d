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

from analysis.carry import Text, carry, text_of
from analysis.coefficients import Coefficients, fit_law
from analysis.comparison import BEST_STATIC, METRICS, compare, outcomes
from analysis.holdout import RIVALS
from analysis.report import calibration_rows
from analysis.tables import POINT, Experiment
from analysis.targets import Targets, make_targets, target_draws
from analysis.texts import compare_texts
from tune_dd.errors import UserError
from tune_dd.laws import DEFAULT_LAW, LAWS, P_MAX, Array

# The kinds of hold-out, in the order in which a cell that goes beyond the calibration in several ways is sorted.
BEYOND = {"n_params": "larger P", "sampled_tokens": "longer C", "unique_tokens": "larger U"}
ANOTHER, CARRIED = "another corpus", "another corpus, carried"
CELL_KINDS = (*BEYOND.values(), ANOTHER, CARRIED)
# Draws behind the interval of a mean regret, and behind a cell's floor.
DRAWS, FLOOR_DRAWS = 2000, 400
# What makes a law of one run apply to another: the regime at one scale, under one tokenizer.
PLACE = ("regime", "scale", "tokenizer_hash")
Place = tuple[str, str, str]


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
        streams: the streams that a law was frozen for.
        texts: place -> its text, where a run there has counted its bigrams.
    """

    calibrations: dict[Place, pd.DataFrame]
    holdouts: dict[Place, pd.DataFrame]
    streams: tuple[Stream, ...]
    texts: dict[Place, Text]


def sort_runs(experiments: Sequence[Experiment], *, every: bool = False) -> Study:
    """Sort runs into calibrations, hold-outs and streams, by phase and by whether a law was frozen for them.

    Args:
        every: keep the static hold-outs that fewer forms were frozen for than for others. By default they are left out,
            so that no form is judged on a hold-out that had been seen before the form was made.

    Raises:
        UserError: there is no calibration among them.
    """
    calibrations: dict[Place, list[pd.DataFrame]] = {}
    holdouts: list[tuple[set[str], Place, pd.DataFrame]] = []
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
                        holdouts.append(({law["law"] for law in frozen}, place, own))
                    else:
                        calibrations.setdefault(place, []).append(own)
            elif phase == "stream" and frozen:
                streams.append(Stream(rows, {law["condition"]: law["law"] for law in frozen}))
    if not calibrations:
        raise UserError("no calibrate or confirm run among them: name runs that a law can be fitted to")
    most = max((len(frozen) for frozen, _, _ in holdouts), default=0)
    kept: dict[Place, list[pd.DataFrame]] = {}
    for frozen, place, own in holdouts:
        if every or len(frozen) == most:
            kept.setdefault(place, []).append(own)
    return Study(_join(calibrations), _join(kept), tuple(streams), texts)


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
    corpus. Those are judged twice: by the law as it is, and by the law carried to that text (``analysis.carry``), where
    runs of both texts have counted their bigrams. Laws that a calibration leaves undetermined are left out.
    """
    # Without cells that have one dropout so far, as a run under way has them.
    tables = {place: calibration_rows(rows)[0] for place, rows in study.calibrations.items()}
    cells = {place: make_targets(None, table, seed=seed) for place, table in tables.items()}
    held = {place: make_targets(None, calibration_rows(rows)[0], seed=seed) for place, rows in study.holdouts.items()}
    # Of the cells alone: the same for every law that is judged on them.
    floors, held_floors = ({place: _floors(own) for place, own in kept.items()} for kept in (cells, held))
    rows = []
    for place, table in tables.items():
        for law in laws:
            fitted = _fit(table, cells[place], law, seed)
            if fitted is None:
                continue
            if place in held:
                rows += _judge(
                    fitted, held[place], held_floors[place], lambda *cell, known=cells[place]: _kind(known, *cell)
                )
            for other, targets in cells.items():
                if other[0] == place[0] or other[1] != place[1]:
                    continue
                rows += _judge(fitted, targets, floors[other], lambda *cell: ANOTHER)
                if place in study.texts and other in study.texts:
                    carried = carry(fitted, study.texts[place], study.texts[other])
                    rows += _judge(carried, targets, floors[other], lambda *cell: CARRIED, fitted_on=place[0])
    return pd.DataFrame(rows)


def judge_texts(study: Study, *, law: str = LAWS[DEFAULT_LAW].cells, seed: int = 0) -> pd.DataFrame:
    """Every calibration's law on the cells of the other texts: rows of ``analysis.texts.compare_texts``."""
    frames = []
    for scale in sorted({place[1] for place in study.calibrations}):
        own = {place: rows for place, rows in study.calibrations.items() if place[1] == scale}
        tables = {place[0]: calibration_rows(rows)[0] for place, rows in own.items()}
        cells = {regime: make_targets(None, table, seed=seed) for regime, table in tables.items()}
        fitted = {regime: _fit(table, cells[regime], law, seed) for regime, table in tables.items()}
        frames.append(
            compare_texts(
                {regime: each for regime, each in fitted.items() if each is not None},
                cells,
                {place[0]: study.texts[place] for place in own if place in study.texts},
            )
        )
    return pd.concat(frames, ignore_index=True)


def _fit(table: pd.DataFrame, targets: Targets, law: str, seed: int) -> Coefficients | None:
    try:
        return fit_law(None, table, law=law, n_bootstrap=1, seed=seed, targets=targets)
    except UserError:
        return None


def _kind(known: Targets, n_params: int, unique_tokens: int, sampled_tokens: int) -> str | None:
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


def _floors(held: Targets) -> Array:
    """(n,) mean regret of each cell's own optimum, drawn anew, where no law asks for more than ``P_MAX``."""
    draws = np.clip(target_draws(held, FLOOR_DRAWS, np.random.default_rng(0))[0], 0.0, P_MAX)
    return np.array([fit.regret(own).mean() for fit, own in zip(held.fits, draws.T, strict=True)])


def summarise_cells(cells: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean regret of each law on each kind of hold-out.

    Returns one row per kind and law, the least mean first: kind, law, n_cells, n_blocks, regret_mean, low, high
    (95 % percentiles of a bootstrap over blocks, the cells of one law's corpus, corpus, model and prefix, which
    err together), regret_max, rmse (dropout, over the interior cells), floor_mean (see ``judge_cells``).
    """
    rows = []
    for kind in (kind for kind in CELL_KINDS if (cells["kind"] == kind).any()):
        of_kind = cells[cells["kind"] == kind]
        # A form that some calibration cannot give would be judged on fewer cells than the others.
        full = of_kind.groupby("law").size()
        for law in full.index[full == full.max()]:
            own = of_kind[of_kind["law"] == law]
            blocks = [
                group["regret"].to_numpy()
                for _, group in own.groupby(["fitted_on", "regime", "model", "unique_tokens"])
            ]
            sums, sizes = np.array([block.sum() for block in blocks]), np.array([len(block) for block in blocks])
            drawn = np.random.default_rng([seed, 3]).integers(len(blocks), size=(DRAWS, len(blocks)))
            low, high = np.quantile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [0.025, 0.975])
            inside = own[own["status"] == "interior"]
            rows.append(
                {
                    "kind": kind,
                    "law": law,
                    "n_cells": len(own),
                    "n_blocks": len(blocks),
                    "regret_mean": own["regret"].mean(),
                    "low": low,
                    "high": high,
                    "regret_max": own["regret"].max(),
                    "rmse": float(np.sqrt(((inside["predicted"] - inside["target"]) ** 2).mean())),
                    "floor_mean": own["floor"].mean(),
                }
            )
    frame = pd.DataFrame(rows)
    order = {kind: number for number, kind in enumerate(CELL_KINDS)}
    return frame.sort_values(
        ["kind", "regret_mean"], key=lambda c: c.map(order) if c.name == "kind" else c, kind="stable", ignore_index=True
    )


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

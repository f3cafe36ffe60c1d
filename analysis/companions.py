"""What else may lie in a run's folder: the training trace, predictions written beforehand, laws from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.sources import read_lines
from tune_dd.artifacts import PREDICTIONS, SUGGESTIONS, TRACE, read_json
from tune_dd.errors import UserError

POINT_KEYS = {"index", "condition", "role", "params", "coefficients", "dropouts"}
SUGGESTION_KEYS = ("space", "law", "sampler", "objective", "search_seed", "seeds", "bounds")
TRACE_COLUMNS: dict[str, type | tuple[type, ...]] = {"trial_id": str, "step": int, "train_loss": (int, float)}


def read_trace(folders: tuple[Path, ...]) -> tuple[pd.DataFrame | None, list[str]]:
    """Training loss as training went: columns trial_id, step, train_loss (nats per token); and notes.

    A torn last line, as a kill leaves it, is passed over and noted; losses that are not finite are left out
    (the ledger tells of the crash).

    Raises:
        UserError: another line is damaged, file and line named.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for path in (folder / TRACE for folder in folders):
        if not path.is_file():
            continue
        for place, row in read_lines(path, notes):
            for name, kind in TRACE_COLUMNS.items():
                if not isinstance(row, dict) or not isinstance(row.get(name), kind):
                    raise UserError(f"{place}: no {name!r} of the right type: move the file away")
            if math.isfinite(row["train_loss"]):
                rows.append({name: row[name] for name in TRACE_COLUMNS})
    return (pd.DataFrame(rows, columns=list(TRACE_COLUMNS)) if rows else None), notes


def read_predictions(folders: tuple[Path, ...]) -> list[dict[str, Any]]:
    """The predictions.json of the folders that have one: ``coefficients_hash``, ``time``, ``predictions``.

    Raises:
        UserError: a file is damaged or holds something else.
    """
    found = []
    for path in (folder / PREDICTIONS for folder in folders):
        if path.is_file():
            data = read_json(path)
            entries = data.get("predictions") if isinstance(data, dict) else None
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise UserError(f"{path} holds no list of predictions: restore it or move it away")
            found.append(data)
    return found


def read_suggestions(folders: Sequence[Path]) -> dict[str, Any]:
    """The suggestions.json of the one folder that has one: what a search was, and its ``points``.

    Raises:
        UserError: there is none or more than one, or it is damaged.
    """
    files = [folder / SUGGESTIONS for folder in folders if (folder / SUGGESTIONS).is_file()]
    found = {path: read_json(path) for path in files}
    # An adaptive calibration has one too (analysis.adaptive).
    paths = [path for path, data in found.items() if not (isinstance(data, dict) and "full_grid" in data)]
    if not paths:
        raise UserError(f"the search's {SUGGESTIONS} is missing: name the run's folder, or make it again with --resume")
    if len(paths) > 1:
        raise UserError(f"{paths[0].parent} and {paths[1].parent} are two searches: analyse them one by one")
    data = found[paths[0]]
    points = data.get("points") if isinstance(data, dict) else None
    if not isinstance(points, list) or not all(
        isinstance(point, dict) and set(point) >= POINT_KEYS for point in points
    ):
        raise UserError(f"{paths[0]} holds no list of points: make it again with --resume")
    lacking = [name for name in SUGGESTION_KEYS if name not in data]
    if lacking:
        raise UserError(f"{paths[0]} lacks {lacking[0]!r}: make it again with --resume")
    return dict(data)


def outcomes(
    predictions: list[dict[str, Any]], selection: pd.DataFrame, comparison: pd.DataFrame | None
) -> pd.DataFrame:
    """Every prediction beside what came out, as columns ``measured*``; empty text where nothing did yet.

    A prediction that names a cell (unique_tokens, sampled_tokens, and model or n_params) meets that cell's
    fitted optimum; one that names a condition meets its difference from the baseline.
    """
    rows = []
    for entry in (entry for data in predictions for entry in data["predictions"]):
        plain = {name: value for name, value in entry.items() if not isinstance(value, dict | list)}
        rows.append({**plain, **measured_cell(entry, selection), **measured_condition(entry, comparison)})
    return pd.DataFrame(rows)


def measured_cell(entry: dict[str, Any], selection: pd.DataFrame) -> dict[str, Any]:
    keys = [name for name in ("model", "n_params", "unique_tokens", "sampled_tokens") if name in entry]
    if not len(selection) or not {"unique_tokens", "sampled_tokens"} <= set(keys) or len(keys) < 3:
        return {}
    hit = selection[(selection[keys] == pd.Series({name: entry[name] for name in keys})).all(axis=1)]
    if hit.empty:
        return {}
    cell = hit.iloc[0]
    return {"measured": cell["fitted_optimum"], "measured_status": cell["status"]}


def measured_condition(entry: dict[str, Any], comparison: pd.DataFrame | None) -> dict[str, Any]:
    if comparison is None or "condition" not in entry:
        return {}
    metric = entry.get("metric", "final_val_loss")
    hit = comparison[(comparison["condition"] == entry["condition"]) & (comparison["metric"] == metric)]
    if hit.empty:
        return {}
    row = hit.iloc[0]
    return {"measured_difference": row["difference"], "measured_low": row["low"], "measured_high": row["high"]}


def transfers(configs: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for every law that was fitted under another regime or tokenizer than the run it was used in."""
    laws = [law for config in configs for law in config.get("coefficients", []) if isinstance(law, dict)]
    carried = [
        f"Carried: the coefficients of condition {law['condition']} are {how_carried(law)}."
        for law in laws
        if law.get("carried_from")
    ]
    return carried + [
        f"Transfer: the coefficients of condition {law['condition']} were fitted on {law['regime']} under tokenizer "
        f"{str(law['tokenizer_hash'])[:12]}, not on this text and tokenizer."
        for law in laws
        if law.get("transfer")
    ]


def how_carried(law: dict[str, Any]) -> str:
    """By what a law was carried to its text, and what its intervals hold of that."""
    if said := law.get("carried"):
        return str(said)
    # Runs of former versions name the text alone.
    return (
        f"carried from {law['carried_from']} to this text; the run does not record how: the notes of {law['source']} do"
    )

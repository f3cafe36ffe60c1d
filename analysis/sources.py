"""Rows of results from the places where they are found: a run's metrics.jsonl, Tune's own folder, a ResultGrid.

Each place gives the same thing: rows checked against the schema, and where each one came from, so that
whatever is wrong with a number can be told by file and line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.json as pa_json

from tune_dd.artifacts import COLUMNS, CONFIG, LEDGER, METRICS, SCHEMA, check_row, read_json, read_rows
from tune_dd.errors import UserError
from tune_dd.trial import TrialSpec

RESULT, PARAMS = "result.json", "params.json"
LEDGER_COLUMNS = ("trial", "val_bpb", "memory_gb", "status", "description")
# A read-out: what identifies a row within one phase of one run.
KEY = ("phase", "trial_id", "stage", "readout")
FINITE = ("train_loss", "val_loss", "val_bpb", "gap", "learning_rate")
POSITIVE = ("n_params", "unique_tokens", "sampled_tokens")
NUMERIC = tuple(name for name, kind in COLUMNS.items() if kind is not str)
TOO_LARGE = 2**63  # a column of integers holds 64 bits
ARROW = {int: pa.int64(), float: pa.float64(), str: pa.string()}


@dataclass
class Source:
    """The rows of one place, unsorted.

    Attributes:
        name: the path, as messages cite it.
        rows: dicts that hold every needed column of ``metrics.jsonl``; empty where ``table`` holds them instead.
        table: the same as a frame, where the file could be read whole.
        places: for each row, its file and line.
        notes: what was passed over while reading, in sentences.
    """

    name: str
    folder: Path | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    config: dict[str, Any] | None = None
    ledger: list[dict[str, str]] | None = None
    table: pd.DataFrame | None = None

    def add(self, row: dict[str, Any], place: str) -> None:
        check_values(row, place)
        self.rows.append(row)
        self.places.append(place)


def check_values(row: dict[str, Any], place: str) -> None:
    """Refuse numbers that no analysis can use, whatever their type."""
    for name in NUMERIC:
        if row[name] >= TOO_LARGE and row[name] != math.inf:
            raise UserError(f"{place}: {name} is too large to be true: restore the line or delete it")
    for name in FINITE:
        if not math.isfinite(row[name]):
            raise UserError(
                f"{place}: {name} is {row[name]}, the trial {row['trial_name']!r} diverged: "
                "delete the rows of that trial or run it again"
            )
    if not 0.0 <= row["dropout"] < 1.0:
        raise UserError(f"{place}: dropout is {row['dropout']}, outside [0, 1): restore the line or delete it")
    for name in POSITIVE:
        if row[name] <= 0:
            raise UserError(f"{place}: {name} is {row[name]}, not positive: restore the line or delete it")


def read_source(path: Path) -> Source:
    """Read a run folder, a metrics.jsonl, a plain Tune experiment folder or one of its trial folders.

    Raises:
        UserError: nothing of the kind is there, or a line is damaged; the message names file and line.
    """
    if path.is_file():
        return read_metrics(path)
    if not path.is_dir():
        raise UserError(f"{path} does not exist: name the folder of a run, as `tune_dd.sweep` printed it")
    if (path / METRICS).is_file():
        return read_run(path)
    results = [path / RESULT] if (path / RESULT).is_file() else sorted(path.glob(f"*/{RESULT}"))
    if results:
        return read_tune(path, results)
    if (path / CONFIG).is_file():
        raise UserError(f"{path} has no {METRICS} yet: let the run finish its first trial, or --resume it")
    below = sorted(path.glob(f"**/{METRICS}"))[:1]
    hint = f"; a run lies in {below[0].parent}" if below else ""
    raise UserError(f"{path} holds neither {METRICS} nor {RESULT} files: name the folder of a run{hint}")


def read_metrics(path: Path) -> Source:
    source = Source(str(path))
    source.table = read_whole(path)
    if source.table is not None:
        source.places = [f"{path}, line {number}" for number in range(1, len(source.table) + 1)]
        return source
    # Line by line, which takes many times longer and tells what is wrong, and where.
    seen: dict[tuple[Any, ...], str] = {}
    for number, row in read_rows(path):
        place = f"{path}, line {number}"
        key = tuple(row[name] for name in KEY)
        if key in seen:
            raise UserError(f"{place}: repeats the read-out of {seen[key]}: delete one of the two lines")
        seen[key] = f"line {number}"
        source.add(row, place)
    if not source.rows:
        raise UserError(f"{path} has no rows yet: let the run finish its first trial, or --resume it")
    return source


def read_whole(path: Path) -> pd.DataFrame | None:
    """A metrics.jsonl with nothing wrong in it, in one go: its columns in their order and dtypes; else None.

    What is refused here need not be wrong: only what ``read_rows`` and ``Source.add`` would give unchanged is taken.
    """
    schema = pa.schema([(name, ARROW[kind]) for name, kind in COLUMNS.items()])
    options = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        data = path.read_bytes()
        data.decode()
        # One object to a line, so that a row's number is its line's; asked first, since pyarrow dies of a leading null.
        objects = data.startswith(b"{") and data.count(b"\n{") == data.count(b"\n") - 1
        if not (objects and data.endswith(b"}\n")) or b"\r" in data:
            return None
        table = pa_json.read_json(pa.BufferReader(data), parse_options=options)
    except (OSError, UnicodeDecodeError, pa.ArrowException):
        return None
    if data.count(b"\n") != table.num_rows or any(column.null_count for column in table.columns):
        return None
    frame: pd.DataFrame = table.to_pandas()
    sound = (
        (frame["schema"] == SCHEMA).all()
        and (frame[list(NUMERIC)] < TOO_LARGE).all(axis=None)
        and np.isfinite(frame[list(FINITE)]).all(axis=None)
        and frame["dropout"].between(0.0, 1.0, inclusive="left").all()
        and (frame[list(POSITIVE)] > 0).all(axis=None)
        and not frame.duplicated(list(KEY)).any()
    )
    return frame if sound else None


def read_run(folder: Path) -> Source:
    source = read_metrics(folder / METRICS)
    source.name, source.folder = str(folder), folder
    if (folder / CONFIG).is_file():
        config = read_json(folder / CONFIG)
        if not isinstance(config, dict):
            raise UserError(f"{folder / CONFIG} is not a JSON object: restore it or move it away")
        source.config = config
    if (folder / LEDGER).is_file():
        source.ledger = read_ledger(folder / LEDGER)
    return source


def read_ledger(path: Path) -> list[dict[str, str]]:
    """The ledger as text, line by line; quoting has no meaning in it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: restore it or move it away") from None
    header = lines[0].split("\t") if lines else []
    missing = [name for name in LEDGER_COLUMNS if name not in header]
    if missing:
        raise UserError(f"{path}, line 1: column {missing[0]!r} is missing: restore it or move it away")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if not line.strip():
            continue
        if len(cells) != len(header):
            raise UserError(
                f"{path}, line {number}: {len(cells)} fields, not {len(header)}: restore it or move it away"
            )
        rows.append(dict(zip(header, cells, strict=True)))
    return rows


def read_tune(folder: Path, results: list[Path]) -> Source:
    """Read Tune's own files: one ``result.json`` (a line per report) and ``params.json`` per trial."""
    source = Source(str(folder), folder)
    attempts: list[tuple[dict[str, Any], str]] = []
    for path in results:
        params = path.with_name(PARAMS)
        config = read_json(params) if params.is_file() else {}
        for place, row in read_result_lines(path, source.notes):
            attempts.append((without_tune(row, row.get("config") or config, place), place))
    add_attempts(source, attempts)
    if not source.rows:
        raise UserError(f"{folder} has no results yet: let the run finish its first trial")
    return source


def read_result_lines(path: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, result)."""
    for place, row in read_lines(path, notes):
        if not isinstance(row, dict):
            raise UserError(f"{place}: not a result of Tune: delete that line or restore it")
        yield place, row


def read_lines(path: Path, notes: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) of a file of JSON lines. A torn last line, as a kill leaves it, is passed over and noted.

    Raises:
        UserError: the file is not UTF-8, or another line is no JSON; file and line are named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: restore it or move it away") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                notes.append(f"{place}: torn by an interruption, skipped.")
                return
            raise UserError(f"{place}: not JSON: delete that line or restore it") from None
        yield place, value


def without_tune(row: dict[str, Any], config: Any, place: str) -> dict[str, Any]:
    """A result's own columns. Tune puts its id in ``trial_id``; ours is found in the trial's config."""
    row = {name: row[name] for name in COLUMNS if name in row}
    ours = content_id(config)
    if ours is not None:
        row["trial_id"] = ours
    check_row(row, place)
    return row


def content_id(config: Any) -> str | None:
    """The content hash of the trial whose specification a Tune config holds, however deep, else None."""
    if not isinstance(config, dict):
        return None
    if set(TrialSpec.__dataclass_fields__) <= set(config):
        fields = {name: config[name] for name in TrialSpec.__dataclass_fields__}
        return TrialSpec.from_dict(fields).trial_id
    return next((found for value in config.values() if (found := content_id(value)) is not None), None)


def add_attempts(source: Source, attempts: list[tuple[dict[str, Any], str]]) -> None:
    """Keep the last report of each read-out: a retried trial reports again what it had reported before."""
    last = {tuple(row[name] for name in KEY): (row, place) for row, place in attempts}
    for row, place in last.values():
        source.add(row, place)
    if repeats := len(attempts) - len(last):
        source.notes.append(f"{source.name}: {repeats} rows repeated by retried trials, dropped.")


def read_grid(grid: Any) -> Source:
    """The rows of a Ray ``ResultGrid``, by its interface alone: Ray is not imported."""
    source = Source("the result grid")
    attempts: list[tuple[dict[str, Any], str]] = []
    for number, result in enumerate(grid):
        if getattr(result, "error", None) is not None:
            source.notes.append(f"trial {number} of the result grid failed: {one_line(result.error)}")
        frame = result.metrics_dataframe
        if frame is None:
            continue
        for position, record in enumerate(frame.to_dict("records")):
            place = f"trial {number} of the result grid, report {position}"
            attempts.append((without_tune(retyped(record), result.config, place), place))
    add_attempts(source, attempts)
    if not source.rows:
        raise UserError("the result grid holds no results: let a trial report first")
    return source


def retyped(record: dict[str, Any]) -> dict[str, Any]:
    """Plain Python values: a frame's integers are numpy's, and floats where a report lacked them."""
    row = {}
    for name, value in record.items():
        plain = value.item() if hasattr(value, "item") else value
        whole = COLUMNS.get(name) is int and isinstance(plain, float) and plain.is_integer()
        row[name] = int(plain) if whole else plain
    return row


def one_line(error: object) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."

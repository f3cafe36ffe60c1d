"""The files of a run and their schema, written atomically and read back without Ray or torch.

The columns are a contract: other tools read them. A reader ignores columns that it does not know and
refuses, naming file and line, a row that lacks one it needs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tune_dd.errors import UserError

SCHEMA = 1
METRICS = "metrics.jsonl"
TRACE = "trace.jsonl"
CONFIG = "config.json"
LEDGER = "results.tsv"
PREDICTIONS = "predictions.json"  # what a law fitted elsewhere says of a run, written before anything is trained
SUGGESTIONS = "suggestions.json"  # the points of a search or an adaptive calibration, each before it is trained
COEFFICIENTS = "coefficients.json"  # a fitted law
REPORT = "report.html"  # written last
JOURNALS = "journals"  # one file per trial: the run's memory
LIVE = "live"  # progress of the running trials: disposable
STOP = "stop"  # a file in LIVE that asks every trial to save and end

# name -> JSON type. Units are in the docs: losses in nats per token, val_bpb in bits per UTF-8 byte.
COLUMNS: dict[str, type] = {
    "schema": int,
    "run_id": str,
    "trial_id": str,
    "trial_name": str,
    "regime": str,
    "phase": str,
    "scale": str,
    "evidence": str,
    "model": str,
    "n_params": int,
    "vocab_size": int,
    "context": int,
    "batch_size": int,
    "seed": int,
    "condition": str,
    "kind": str,
    "stage": int,
    "readout": int,
    "unique_tokens": int,
    "sampled_tokens": int,
    "steps": int,
    "dropout": float,
    "learning_rate": float,
    "train_loss": float,
    "val_loss": float,
    "val_bpb": float,
    "gap": float,
    "val_tokens": int,
    "corpus_hash": str,
    "tokenizer_hash": str,
    "validation_hash": str,
    "device": str,
    "device_name": str,
    "train_seconds": float,
    "tokens_per_second": float,
    "peak_memory_bytes": int,
}
# Ours beyond the contract: a reader must accept tables without them.
OPTIONAL_COLUMNS = frozenset({"validation_hash"})
# What two runs of the same trial may differ in. Everything else is equal to the last bit on one machine.
TIMING_COLUMNS = ("train_seconds", "tokens_per_second", "peak_memory_bytes")


def reach(point: str) -> None:
    """A named point of a write. Does nothing; the fault tests replace it to kill the process there."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: temp file, flush, fsync, rename, fsync of the folder.

    Raises:
        UserError: the disk is full or the folder cannot be written; the former file is untouched.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        reach("before_temp")
        with open(temp, "wb") as file:
            half = len(data) // 2
            file.write(data[:half])
            reach("half_written")
            file.write(data[half:])
            file.flush()
            sync(file.fileno())
        reach("before_rename")
        os.replace(temp, path)
        reach("after_rename")
        sync_folder(path.parent)
        reach("after_sync")
    except OSError as error:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
        raise storage_error(path, error) from error


def write_text_atomic(path: Path, text: str) -> None:
    write_atomic(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text_atomic(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def checksum(value: dict[str, Any]) -> str:
    """Of a JSON object, without the key ``checksum``: 16 hex digits. Seals config.json and suggestions.json."""
    text = json.dumps({k: v for k, v in value.items() if k != "checksum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def planned_trials(run: Path, config: Mapping[str, Any]) -> int:
    """How many trials a run is to have: at most, while they are chosen as it goes."""
    try:
        record = read_json(run / SUGGESTIONS)
        # One that was altered counts for nothing when the run is taken up either.
        found = record["n_trials"] if record["checksum"] == checksum(record) else None
    except (UserError, KeyError, TypeError):
        found = None
    return int(config["n_trials"]) if found is None else int(found)


def ledger_statuses(run: Path) -> list[str] | None:
    """``keep``, ``discard`` or ``crash`` of each line of a run's ledger; None where none was written or it is damaged.

    A trial has a line, and one that reads another out at further C has that one's name: names are no count of trials.
    """
    try:
        lines = (run / LEDGER).read_text(encoding="utf-8").splitlines()[1:]
        return [line.split("\t")[3] for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError, IndexError):
        return None


def coefficients_file(path: Path) -> Path:
    """The file of a law that is named by itself or by its folder."""
    return path / COEFFICIENTS if path.is_dir() else path


def sync(fd: int) -> None:
    """Have an open file or folder on the disk itself.

    macOS's fsync leaves it in the drive's cache, and its F_FULLFSYNC does not know every file system.
    """
    if hasattr(fcntl, "F_FULLFSYNC"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder last through a power loss."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        sync(fd)
    finally:
        os.close(fd)


def storage_error(path: Path, error: OSError) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"the disk of {path.parent} is full: make space and give the same command with --resume")
    return UserError(
        f"cannot write {path}: {error.strerror or error}; make the folder writable or choose another with --storage"
    )


def read_json(path: Path) -> Any:
    """Raises UserError if the file is missing, unreadable or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: name the folder of a run") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it or start a new run") from None


def encode_row(row: dict[str, Any]) -> str:
    """One line of metrics.jsonl: the columns in their order, without JSON's blanks, no trailing newline.

    Raises:
        UserError: a column is missing or of another type (a programming error made visible).
    """
    check_row(row, "a row to be written")
    return json.dumps({name: row[name] for name in COLUMNS if name in row}, allow_nan=False, separators=(",", ":"))


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write metrics.jsonl whole."""
    write_text_atomic(path, "".join(encode_row(row) + "\n" for row in rows))


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, row) of a metrics.jsonl.

    Raises:
        UserError: naming file and line, for a line that is not JSON or a row that lacks a column.
    """
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    raise UserError(f"{where}: not JSON (torn or foreign): delete that line or restore it") from None
                if not isinstance(row, dict):
                    raise UserError(f"{where}: not a row of results: name a metrics.jsonl written by tune_dd")
                check_row(row, where)
                yield number, row
    except FileNotFoundError:
        raise UserError(f"{path} is missing: name the folder of a run") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): make it readable") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: name a metrics.jsonl written by tune_dd") from None


def check_row(row: dict[str, Any], where: str) -> None:
    for name, kind in COLUMNS.items():
        if name not in row:
            if name in OPTIONAL_COLUMNS:
                continue
            raise UserError(f"{where}: column {name!r} is missing: the table needs every column of its schema")
        value = row[name]
        allowed = (int, float) if kind is float else (kind,)
        if not isinstance(value, allowed) or isinstance(value, bool):
            raise UserError(f"{where}: column {name!r} holds {value!r}, which is not {kind.__name__}")
    if row["schema"] != SCHEMA:
        raise UserError(f"{where}: schema {row['schema']} is not {SCHEMA}: read it with the version that wrote it")

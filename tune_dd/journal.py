"""One journal file per trial: the run's only memory of what was trained.

After every read-out a trial replaces its journal with one that holds all its rows so far, its counters
and, until it is finished, its weights and optimizer. The file is a safetensors file: a JSON header
that can be read without torch, then raw tensors. Nothing in it can execute code when it is read, which
a pickle-based checkpoint cannot promise.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tune_dd import artifacts
from tune_dd.errors import UserError
from tune_dd.trial import TrialSpec

if TYPE_CHECKING:
    import torch

SUFFIX = ".safetensors"
CRASH_SUFFIX = ".crash.json"
_FORMAT = "tune_dd journal 1"
_HEADER_LIMIT = 100_000_000  # bytes, the limit of the safetensors format itself


class DamagedJournal(Exception):
    """A journal that is torn, altered or foreign. It is set aside and its trial begins again."""


@dataclass(frozen=True)
class Journal:
    """What a journal says, without its tensors.

    Attributes:
        trial_id: content hash of the specification that was trained.
        step: optimizer steps done.
        finished: whether every read-out of the trial is in ``rows``.
        rows: rows of metrics.jsonl so far, as the trial knows them.
        counters: what ``TrialRun.load_state`` needs beside the tensors.
        has_weights: whether the trial could be trained on from here.
    """

    trial_id: str
    step: int
    finished: bool
    rows: list[dict[str, Any]]
    counters: dict[str, Any] = field(default_factory=dict)
    has_weights: bool = False


def journal_path(folder: Path, trial_id: str) -> Path:
    return folder / f"{trial_id}{SUFFIX}"


def crash_path(folder: Path, trial_id: str) -> Path:
    return folder / f"{trial_id}{CRASH_SUFFIX}"


def write_journal(
    folder: Path,
    spec: TrialSpec,
    *,
    step: int,
    rows: list[dict[str, Any]],
    counters: dict[str, Any],
    tensors: dict[str, torch.Tensor],
) -> None:
    """Replace the trial's journal, whole or not at all.

    A finished trial is written with no tensors unless the caller gives some: its rows are what counts.

    Raises:
        UserError: the folder cannot be written or the disk is full; the former journal is untouched.
    """
    body = {
        "trial_id": spec.trial_id,
        "step": step,
        "finished": len(rows) == spec.n_readouts,
        "rows": rows,
        "counters": counters,
        "weights": bool(tensors),
    }
    write_body(journal_path(folder, spec.trial_id), body, tensors)


def drop_weights(path: Path) -> None:
    """Write a finished trial's journal again without its weights; one that is not finished stays.

    Raises:
        DamagedJournal: it cannot be trusted.
    """
    found, _ = load_journal(path)
    if found.finished and found.has_weights:
        body = {f.name: getattr(found, f.name) for f in fields(found) if f.name != "has_weights"}
        write_body(path, body | {"weights": False}, {})


def write_body(path: Path, body: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Write a file of the journals' format: a JSON body (its ``trial_id`` names the file) and tensors.

    Raises:
        UserError: the folder cannot be written or the disk is full; the former file is untouched.
    """
    import safetensors.torch

    text = json.dumps(body, sort_keys=True, allow_nan=False)
    metadata = {"format": _FORMAT, "body": text, "checksum": _checksum(text, tensors)}
    artifacts.write_atomic(path, safetensors.torch.save(tensors, metadata=metadata))


def read_journal(path: Path) -> Journal:
    """Rows and counters of a journal, read without torch and without its tensors.

    Raises:
        DamagedJournal: with the reason, if the file is torn, foreign or its header fails its checksum.
        FileNotFoundError: there is no journal.
    """
    with open(path, "rb") as file:
        return _parse(path, _read_metadata(file, os.fstat(file.fileno()).st_size))


def load_journal(path: Path) -> tuple[Journal, dict[str, torch.Tensor]]:
    """A journal with its tensors (on cpu), verified by checksum to the last byte.

    Raises:
        DamagedJournal: with the reason.
        FileNotFoundError: there is no journal.
    """
    import safetensors
    import safetensors.torch

    data = path.read_bytes()
    metadata = _read_metadata(io.BytesIO(data), len(data))
    journal = _parse(path, metadata)
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise DamagedJournal(f"its tensors are torn ({error})") from None
    if _checksum(metadata["body"], tensors) != metadata["checksum"]:
        raise DamagedJournal("its tensors fail their checksum")
    return journal, tensors


def set_aside(path: Path) -> Path:
    """Rename a damaged file to ``NAME.damaged-1`` (the first free number) and return its new path."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    artifacts.sync_folder(path.parent)
    return aside


def record_crash(folder: Path, spec: TrialSpec, reason: str, step: int) -> None:
    """Remember that a trial crashed, so that it is not tried again until the user asks for it."""
    artifacts.write_json(
        crash_path(folder, spec.trial_id), {"trial": spec.name, "reason": " ".join(reason.split()), "step": step}
    )


def read_crashes(folder: Path) -> dict[str, str]:
    """trial_id -> reason of every trial that crashed. A record that is damaged still says that its trial did."""
    return {path.name.removesuffix(CRASH_SUFFIX): _crash_reason(path) for path in folder.glob(f"*{CRASH_SUFFIX}")}


def _crash_reason(path: Path) -> str:
    try:
        return str(artifacts.read_json(path)["reason"])
    except (UserError, KeyError, TypeError):
        return "its record is damaged"


def _checksum(body: str, tensors: dict[str, torch.Tensor]) -> str:
    import torch

    digest = hashlib.blake2b(body.encode(), digest_size=16)
    body_digest = digest.hexdigest()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"{body_digest}-{digest.hexdigest()}"


def _read_metadata(file: BinaryIO, size: int) -> dict[str, str]:
    """The metadata of a safetensors file: 8 bytes of little-endian length, then a JSON header."""
    prefix = file.read(8)
    if len(prefix) < 8:
        raise DamagedJournal("it is shorter than a header")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(size - 8, _HEADER_LIMIT):
        raise DamagedJournal("it is torn or is not a journal")
    try:
        header = json.loads(file.read(length))
        metadata = {key: str(value) for key, value in header.pop("__metadata__").items()}
        body, checksum = metadata["body"], metadata["checksum"]
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedJournal("its header is torn or is not a journal's") from None
    if metadata.get("format") != _FORMAT:
        raise DamagedJournal(f"its format is {metadata.get('format')!r}, not {_FORMAT!r}")
    if hashlib.blake2b(body.encode(), digest_size=16).hexdigest() != checksum.split("-")[0]:
        raise DamagedJournal("its rows fail their checksum")
    if end != size:
        raise DamagedJournal(f"it has {size} bytes where its header promises {end}")
    return metadata


def _parse(path: Path, metadata: dict[str, str]) -> Journal:
    body = json.loads(metadata["body"])
    if path.name != f"{body['trial_id']}{SUFFIX}":
        raise DamagedJournal(f"it belongs to trial {body['trial_id']}")
    return Journal(
        trial_id=body["trial_id"],
        step=body["step"],
        finished=body["finished"],
        rows=body["rows"],
        counters=body["counters"],
        has_weights=body["weights"],
    )

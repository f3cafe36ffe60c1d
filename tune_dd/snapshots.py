"""Trials whose paths begin alike train that beginning once: a snapshot per shared beginning.

Batches, masks and learning rate are pure functions of seed, stage and step, so two trials of one model,
seed and data whose stages agree up to a step have the same weights, optimizer and read-outs there, to the
last bit. The trial that is there first leaves a snapshot; another one starts from it if it is there and
trains for itself if it is not, so nobody waits.

A snapshot is a file like a journal (whole or not at all, checksums, nothing that could run), named by
the content hash of the path.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_dd import journal
from tune_dd.trial import RunContext, TrialSpec

if TYPE_CHECKING:
    import torch

FOLDER = "snapshots"


def path_key(spec: TrialSpec, step: int) -> str:
    """Content hash of all that decides a trial's state after ``step`` steps, 16 hex digits."""
    same: dict[str, Any] = {k: v for k, v in spec.to_dict().items() if k not in ("condition", "kind", "stages")}
    path = []
    for stage in spec.stages:
        path.append([stage.unique_tokens, stage.dropout, min(stage.end_step, step)])
        if stage.end_step >= step:
            break
    same["path"] = path
    if spec.protocol.rate_schedule != "constant":
        same["total_steps"] = spec.total_steps  # the rate of a step depends on the trial's end
    return hashlib.sha256(json.dumps(same, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Sharing:
    """What the trials of a run share.

    Attributes:
        users: key of a shared beginning -> {trial_id: its last step}. Only beginnings after which paths
            part are kept: those in the middle of a longer shared one are of no use.
        shared_steps: optimizer steps that need not be trained again, over the whole run.
    """

    users: dict[str, dict[str, int]]
    shared_steps: int

    @classmethod
    def of(cls, specs: Iterable[TrialSpec]) -> Sharing:
        users: dict[str, dict[str, int]] = {}
        following: dict[str, set[str | None]] = {}  # key -> keys of the beginnings one stage longer
        total = unique = 0
        for spec in specs:
            keys = [path_key(spec, stage.end_step) for stage in spec.stages]
            start = 0
            for number, (key, stage) in enumerate(zip(keys, spec.stages, strict=True)):
                total += stage.end_step - start
                unique += 0 if key in users else stage.end_step - start
                start = stage.end_step
                users.setdefault(key, {})[spec.trial_id] = stage.end_step
                following.setdefault(key, set()).add(keys[number + 1] if number + 1 < len(keys) else None)
        parting = {
            key: trials
            for key, trials in users.items()
            if len(trials) > 1 and (len(following[key]) > 1 or following[key] == {None})
        }
        return cls(parting, total - unique)

    def save_steps(self, trial_id: str, unfinished: set[str]) -> list[int]:
        """Steps at which the trial leaves a snapshot: where another unfinished one could start from it."""
        return sorted(
            trials[trial_id]
            for trials in self.users.values()
            if trial_id in trials and any(other in unfinished for other in trials if other != trial_id)
        )

    def starts(self, trial_id: str) -> list[str]:
        """Files in the run's folder that the trial can start from, the furthest first."""
        found = {key: trials[trial_id] for key, trials in self.users.items() if trial_id in trials}
        return [f"{FOLDER}/{key}{journal.SUFFIX}" for key in sorted(found, key=lambda key: -found[key])]

    def drop_unneeded(self, run_folder: Path, steps: Mapping[str, int]) -> None:
        """Remove every snapshot that no trial in ``steps`` (unfinished trial_id -> steps done) will start from."""
        folder = run_folder / FOLDER
        if not folder.is_dir():
            return
        for path in folder.glob(f"*{journal.SUFFIX}"):
            trials = self.users.get(path.name.removesuffix(journal.SUFFIX), {})
            if not any(trial in steps and steps[trial] == 0 for trial in trials):
                path.unlink(missing_ok=True)
        if not steps:
            for temp in folder.glob(".*.tmp"):
                temp.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()


def kept_weights(specs: Sequence[TrialSpec], journals: Mapping[str, journal.Journal]) -> dict[str, str]:
    """Key of the whole path of each finished trial whose journal kept its weights -> that journal's file."""
    return {
        path_key(spec, spec.total_steps): f"journals/{spec.trial_id}{journal.SUFFIX}"
        for spec in specs
        if spec.trial_id in journals and journals[spec.trial_id].finished and journals[spec.trial_id].has_weights
    }


def longer_than(spec: TrialSpec, kept: Mapping[str, str], steps: Iterable[int]) -> list[str]:
    """Files of finished trials that this one's path goes on from, the furthest first.

    Args:
        kept: as ``kept_weights`` gives.
        steps: the total steps of those trials.
    """
    shorter = sorted({step for step in steps if step < spec.total_steps}, reverse=True)
    return [kept[key] for step in shorter if (key := path_key(spec, step)) in kept]


def save(
    run: RunContext,
    spec: TrialSpec,
    step: int,
    rows: Sequence[dict[str, Any]],
    counters: dict[str, Any],
    tensors: dict[str, torch.Tensor],
) -> None:
    """Leave a snapshot of the trial's path so far, unless one is there.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    key = path_key(spec, step)
    path = Path(run.folder, FOLDER, f"{key}{journal.SUFFIX}")
    if path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    body = {"trial_id": key, "step": step, "finished": False, "rows": list(rows), "counters": counters}
    journal.write_body(path, body | {"weights": True}, tensors)


def find(
    run: RunContext, spec: TrialSpec, starts: Sequence[str]
) -> tuple[journal.Journal, dict[str, torch.Tensor], list[dict[str, Any]]] | None:
    """The first of the files that the trial can go on from: its counters, tensors and rows, now the trial's own.

    A damaged snapshot is removed: the trial then trains what it would have saved.
    """
    for name in starts:
        path = Path(run.folder, name)
        try:
            past, tensors = journal.load_journal(path)
        except FileNotFoundError:
            continue
        except journal.DamagedJournal:
            if path.parent.name == FOLDER:
                path.unlink(missing_ok=True)
            continue
        rows = own_rows(past, spec, run)
        if past.has_weights and rows is not None:
            return past, tensors, rows
    return None


def own_rows(past: journal.Journal, spec: TrialSpec, run: RunContext) -> list[dict[str, Any]] | None:
    """The read-outs along a shared beginning as rows of this trial; None if one that it needs was not made."""
    measured = {row["steps"]: row for row in past.rows}
    rows: list[dict[str, Any]] = []
    for number, stage in enumerate(spec.stages):
        for readout, step in enumerate(stage.readout_steps):
            if step > past.step:
                return rows
            if step not in measured:
                return None
            mine = {"trial_id": spec.trial_id, "trial_name": spec.name, "condition": spec.condition, "kind": spec.kind}
            rows.append(measured[step] | mine | {"run_id": run.run_id, "stage": number, "readout": readout})
    return rows

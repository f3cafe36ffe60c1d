"""The runs on disk: listing them, and dropping what their tables do not need."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
from pathlib import Path

from rich.table import Table

from tune_dd import artifacts, journal
from tune_dd.console import Console
from tune_dd.errors import UserError
from tune_dd.sweep.phases import DECISION
from tune_dd.sweep.progress import format_seconds
from tune_dd.sweep.runs import RunFolder, find_runs, hold, is_held, shown_path
from tune_dd.sweep.state import finished_ids

GATES = ("screen", "confirm")  # phases whose report comes with a decision


def has_lost_journals(run: RunFolder) -> bool:
    """Whether metrics.jsonl has rows, and there is no journal, not even a damaged one: a saved copy has none."""
    table = run.path / artifacts.METRICS
    return table.exists() and table.stat().st_size > 0 and not any(run.journals.glob(f"*{journal.SUFFIX}*"))


def refuse_lost_journals(run: RunFolder) -> None:
    """Refuse a run that has results and none of the journals they come from: all would begin again, its table emptied.

    A single journal that is lost is its trial's memory alone, and that trial is trained again to the same rows.

    Raises:
        UserError: it is one.
    """
    if has_lost_journals(run):
        raise UserError(
            f"{run.path} is a saved copy or has lost its journals: name the run that it was copied from, or restore "
            "its journals, or start a new run"
        )


def crashed_ids(run: RunFolder) -> set[str]:
    """Trials with a record of a crash."""
    return {path.name.removesuffix(journal.CRASH_SUFFIX) for path in run.journals.glob(f"*{journal.CRASH_SUFFIX}")}


def is_reported(run: RunFolder) -> bool:
    """Whether the report tells of every trial as it is now.

    report.html alone does not say so: an extension and a retried crash leave the old one, and ``python -m analysis``
    writes one where the command never came to its end.

    Raises:
        UserError: the run's config cannot be read.
    """
    config = run.config()
    ended = artifacts.ledger_statuses(run.path) or []
    told = len(ended) >= artifacts.planned_trials(run.path, config) and ended.count("crash") <= len(crashed_ids(run))
    decided = config["phase"] not in GATES or (run.path / DECISION).exists()
    return told and decided and (run.path / artifacts.REPORT).exists()


def crashed_rest(run: RunFolder) -> int:
    """How many crashed trials are all that a reported run lacks; 0 where it lacks none, or others besides."""
    finished = finished_ids(run)
    try:
        lacking = artifacts.planned_trials(run.path, run.config()) - len(finished)
        reported = is_reported(run)
    except UserError:
        return 0
    return lacking if reported and 0 < lacking <= len(crashed_ids(run) - finished) else 0


def is_finished(run: RunFolder) -> bool:
    """Whether nothing is left to train or to report; a run whose config cannot be read is not finished."""
    try:
        return len(finished_ids(run)) >= artifacts.planned_trials(run.path, run.config()) and is_reported(run)
    except UserError:
        return False


def list_runs(storage: Path, console: Console) -> None:
    """Print the runs under the storage, newest last."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "regime", "phase", "trials", "crashed", "size", "age", "state"):
        right = name in ("trials", "crashed", "size", "age")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    now = datetime.datetime.now()
    for run in find_runs(storage):
        size = _size(run)
        try:
            config = run.config()
        except UserError as damage:
            table.add_row(shown_path(run.path), "", "", "", "", f"{size / 1e6:.1f} MB", "", str(damage).split(":")[0])
            continue
        planned = artifacts.planned_trials(run.path, config)
        age = (now - datetime.datetime.fromisoformat(config["created"])).total_seconds()
        if has_lost_journals(run):
            ended = artifacts.ledger_statuses(run.path) or []
            done, crashed = len(ended) - ended.count("crash"), ended.count("crash")
            state = "journals lost" if run.journals.exists() else "saved copy"
        else:
            done = len(finished_ids(run))
            crashed = len(crashed_ids(run))
            whole = done >= planned and is_reported(run)
            state = "finished" if whole else "running" if is_held(run) else "resumable"
        table.add_row(
            shown_path(run.path),
            config["regime"]["name"],
            config["phase"],
            f"{done} / {planned}",
            str(crashed),
            f"{size / 1e6:.1f} MB",
            format_seconds(max(age, 0)),
            state,
        )
    if not table.row_count:
        console.print(f"no runs under {storage}", soft_wrap=True)
        return
    console.print_table(table)


def clean_runs(storage: Path, only: Path | None, console: Console) -> None:
    """Drop the weights of finished trials and Ray's directory; tables, rows and reports stay.

    Raises:
        UserError: there is no such run, or another command holds it.
    """
    runs = list(find_runs(storage)) if only is None else [RunFolder(only)]
    if only is not None:
        runs[0].config()
    freed = cleaned = 0
    for run in runs:
        if only is None and is_held(run):
            console.print(f"{shown_path(run.path)} is being searched: left as it is", soft_wrap=True)
            continue
        with hold(run):
            freed += _clean(run)
            cleaned += 1
    console.print(f"{cleaned} run(s) cleaned, {freed / 1e6:.1f} MB freed")


def _clean(run: RunFolder) -> int:
    before = _size(run)
    for path in sorted(run.journals.glob(f"*{journal.SUFFIX}")):
        try:
            journal.drop_weights(path)
        except journal.DamagedJournal:
            continue  # resuming sets it aside and says so
    shutil.rmtree(run.ray, ignore_errors=True)
    return before - _size(run)


def _size(run: RunFolder) -> int:
    """Bytes on disk; files that a running search replaces meanwhile are passed over."""
    size = 0
    for folder, _, names in os.walk(run.path):
        for name in names:
            with contextlib.suppress(OSError):
                size += (Path(folder) / name).stat().st_size
    return size

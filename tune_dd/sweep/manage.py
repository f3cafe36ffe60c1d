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
from tune_dd.sweep.progress import format_seconds
from tune_dd.sweep.runs import RunFolder, find_runs, hold, is_held, shown_path


def refuse_lost_journals(run: RunFolder) -> None:
    """Refuse a run that has results and none of the journals they come from: all would begin again, its table emptied.

    A single journal that is lost is its trial's memory alone, and that trial is trained again to the same rows.

    Raises:
        UserError: metrics.jsonl has rows, and there is no journal, not even a damaged one.
    """
    table = run.path / artifacts.METRICS
    if table.exists() and table.stat().st_size and not any(run.journals.glob(f"*{journal.SUFFIX}*")):
        raise UserError(
            f"{run.path} is a saved copy or has lost its journals: name the run that it was copied from, or restore "
            "its journals, or start a new run"
        )


def finished_trials(run: RunFolder) -> int:
    """How many of the run's journals say that their trial is finished."""
    return len(_finished_ids(run))


def _finished_ids(run: RunFolder) -> set[str]:
    found = set()
    for path in run.journals.glob(f"*{journal.SUFFIX}"):
        with contextlib.suppress(journal.DamagedJournal, FileNotFoundError):
            if journal.read_journal(path).finished:
                found.add(path.name.removesuffix(journal.SUFFIX))
    return found


def crashed_rest(run: RunFolder) -> int:
    """How many crashed trials are all that a reported run lacks; 0 where it lacks none, or others besides."""
    finished = _finished_ids(run)
    crashed = {path.name.removesuffix(journal.CRASH_SUFFIX) for path in run.journals.glob(f"*{journal.CRASH_SUFFIX}")}
    try:
        lacking = artifacts.planned_trials(run.path, run.config()) - len(finished)
    except UserError:
        return 0
    reported = (run.path / artifacts.REPORT).exists()
    return lacking if reported and 0 < lacking <= len(crashed - finished) else 0


def is_finished(run: RunFolder) -> bool:
    """Whether nothing is left to train or to report; a run whose config cannot be read is not finished."""
    try:
        return (
            finished_trials(run) >= artifacts.planned_trials(run.path, run.config())
            and (run.path / artifacts.REPORT).exists()
        )
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
        done, crashed = finished_trials(run), len(list(run.journals.glob(f"*{journal.CRASH_SUFFIX}")))
        try:
            config = run.config()
        except UserError as damage:
            table.add_row(shown_path(run.path), "", "", "", "", f"{size / 1e6:.1f} MB", "", str(damage).split(":")[0])
            continue
        planned = artifacts.planned_trials(run.path, config)
        age = (now - datetime.datetime.fromisoformat(config["created"])).total_seconds()
        state = "finished" if done >= planned else "resumable"
        if state == "resumable" and is_held(run):
            state = "running"
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

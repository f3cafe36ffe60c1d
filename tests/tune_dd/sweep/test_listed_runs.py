"""The list of runs, some of them damaged: one must not hide the others."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from tests_support import spec

from tune_dd import artifacts, journal
from tune_dd.console import Console
from tune_dd.sweep.manage import crashed_rest, is_finished, list_runs
from tune_dd.sweep.phases import DECISION
from tune_dd.sweep.runs import RunFolder, find_runs, new_folder

CONFIG: dict[str, Any] = {
    "schema": artifacts.SCHEMA,
    "created": "2026-01-01T00:00:00",
    "regime": {"name": "tiny"},
    "phase": "calibrate",
    "n_trials": 8,
}


def begin(storage: Path, **changes: Any) -> RunFolder:
    run = new_folder(storage, "tiny", "calibrate", "full")
    run.write_config(CONFIG | changes)
    return run


def end(run: RunFolder, *statuses: str) -> None:
    """A run's trials as they ended: their journals, the ledger, a row, and a report."""
    for number, status in enumerate(statuses):
        one = spec(seed=number)
        if status == "crash":
            journal.record_crash(run.journals, one, "made to fail", 3)
        else:
            rows = [{"a": 1}] * one.n_readouts
            journal.write_journal(run.journals, one, step=20, rows=rows, counters={}, tensors={})
    # A trial that reads another one out at further C has its name.
    lines = ["trial\tval_bpb\tmemory_gb\tstatus\tdescription", *(f"name\t\t\t{status}\tx" for status in statuses)]
    (run.path / artifacts.LEDGER).write_text("\n".join(lines) + "\n")
    (run.path / artifacts.METRICS).write_text("{}\n")
    (run.path / artifacts.REPORT).write_text("page")


def record(run: RunFolder, n_trials: object) -> dict[str, Any]:
    body = {"n_trials": n_trials}
    sealed = body | {"checksum": artifacts.checksum(body)}
    artifacts.write_json(run.path / artifacts.SUGGESTIONS, sealed)
    return sealed


def listed(storage: Path) -> list[str]:
    console = Console(file=io.StringIO(), width=300)
    list_runs(storage, console)
    return console.file.getvalue().splitlines()[1:]  # type: ignore[attr-defined]


def test_a_record_says_how_many_trials_there_will_be_once_that_is_known(tmp_path: Path) -> None:
    run = begin(tmp_path)
    for n_trials, shown in ((5, "0 / 5"), (None, "0 / 8")):
        record(run, n_trials)
        assert shown in listed(tmp_path)[0]


@pytest.mark.parametrize("altered", ["abc", [3], {}, 7])
def test_an_altered_record_counts_for_nothing_and_hides_no_run(altered: object, tmp_path: Path) -> None:
    run, other = begin(tmp_path), begin(tmp_path)
    path = run.path / artifacts.SUGGESTIONS
    for text in (json.dumps(record(run, 5) | {"n_trials": altered}), json.dumps(altered), ""):
        path.write_text(text)
        first, second = listed(tmp_path)
        assert run.path.name in first
        assert other.path.name in second
        assert first.count("0 / 8") == second.count("0 / 8") == 1


def states(run: RunFolder) -> tuple[bool, int, str]:
    """Whether nothing is left, how many crashed trials alone are, and how it is listed."""
    (line,) = listed(run.path.parents[1])
    return is_finished(run), crashed_rest(run), line.split("  ")[-1].strip()


def test_a_report_of_fewer_trials_than_there_are_leaves_a_run_unfinished(tmp_path: Path) -> None:
    run = begin(tmp_path, n_trials=2)
    end(run, "keep", "discard")
    assert states(run) == (True, 0, "finished")
    run.write_config(CONFIG | {"n_trials": 3})
    end(run, "keep", "discard", "keep")
    ledger = run.path / artifacts.LEDGER
    whole = ledger.read_text()
    ledger.write_text("".join(whole.splitlines(keepends=True)[:-1]))  # of before the extension
    assert states(run) == (False, 0, "resumable")
    ledger.write_text(whole)
    assert states(run) == (True, 0, "finished")
    for name in (artifacts.LEDGER, artifacts.REPORT):
        (run.path / name).rename(run.path / "away")
        assert states(run) == (False, 0, "resumable")
        (run.path / "away").rename(run.path / name)


def test_a_report_from_before_a_crash_was_taken_up_again_is_an_old_one(tmp_path: Path) -> None:
    run = begin(tmp_path, n_trials=3)
    end(run, "keep", "crash", "crash")
    assert states(run) == (False, 2, "resumable")
    one, other = (spec(seed=seed) for seed in (1, 2))
    rows = [{"a": 1}] * one.n_readouts
    for trial in (one, other):
        journal.crash_path(run.journals, trial.trial_id).unlink()
        journal.write_journal(run.journals, trial, step=20, rows=rows, counters={}, tensors={})
        assert states(run) == (False, 0, "resumable")
    end(run, "keep", "keep", "keep")
    assert states(run) == (True, 0, "finished")


@pytest.mark.parametrize("phase", ["screen", "confirm"])
def test_a_gate_is_finished_by_its_decision(tmp_path: Path, phase: str) -> None:
    run = begin(tmp_path, phase=phase, n_trials=2)
    end(run, "keep", "crash")
    assert states(run) == (False, 0, "resumable")
    (run.path / DECISION).write_text("{}")
    assert states(run) == (False, 1, "resumable")
    end(run, "keep", "keep")
    assert states(run) == (True, 0, "finished")
    (run.path / DECISION).unlink()
    assert states(run) == (False, 0, "resumable")


def test_what_has_no_journals_is_not_said_to_be_resumable(tmp_path: Path) -> None:
    run = begin(tmp_path, n_trials=3)
    end(run, "keep", "crash", "discard")
    for path in run.journals.iterdir():
        path.unlink()
    for state in ("journals lost", "saved copy"):
        (line,) = listed(tmp_path)
        assert line.split("  ")[-1].strip() == state
        assert line.split()[3:7] == ["2", "/", "3", "1"]
        run.journals.rename(run.path / "away") if state == "journals lost" else None


def test_a_run_whose_config_is_gone_is_found_by_its_copy(tmp_path: Path) -> None:
    run, other = begin(tmp_path), begin(tmp_path)
    (run.path / artifacts.CONFIG).unlink()
    assert [found.path for found in find_runs(tmp_path)] == [run.path, other.path]
    first, _ = listed(tmp_path)
    assert "config.json is missing" in first
    assert run.mend_config() == "config.json was damaged or missing: restored from its copy"
    assert "resumable" in listed(tmp_path)[0]

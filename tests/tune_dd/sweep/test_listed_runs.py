"""The list of runs, some of them damaged: one must not hide the others."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tune_dd import artifacts
from tune_dd.console import Console
from tune_dd.sweep.manage import list_runs
from tune_dd.sweep.runs import RunFolder, find_runs, new_folder

CONFIG: dict[str, Any] = {
    "schema": artifacts.SCHEMA,
    "created": "2026-01-01T00:00:00",
    "regime": {"name": "tiny"},
    "phase": "calibrate",
    "n_trials": 8,
}


def begin(storage: Path) -> RunFolder:
    run = new_folder(storage, "tiny", "calibrate", "full")
    run.write_config(CONFIG)
    return run


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


def test_a_run_whose_config_is_gone_is_found_by_its_copy(tmp_path: Path) -> None:
    run, other = begin(tmp_path), begin(tmp_path)
    (run.path / artifacts.CONFIG).unlink()
    assert [found.path for found in find_runs(tmp_path)] == [run.path, other.path]
    first, _ = listed(tmp_path)
    assert "config.json is missing" in first
    assert run.mend_config() == "config.json was damaged or missing: restored from its copy"
    assert "resumable" in listed(tmp_path)[0]

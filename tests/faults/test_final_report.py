"""Kills while the report of a finished search is written."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from faults_support import FEW, prepare, rows, run, the_run

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("point", ["half_written", "after_rename"])
def test_a_kill_during_the_final_report_loses_nothing(tmp_path: Path, point: str, report_faults) -> None:
    prepare(tmp_path)
    fault = {"kind": "kill_at", "point": point, "file": "model_selection", "once": str(tmp_path / "struck")}
    first = run(tmp_path, "tiny.toml", *FEW, fault=fault)
    assert (tmp_path / "struck").exists(), "the fault did not strike"
    assert first.returncode == -signal.SIGKILL
    before = rows(tmp_path)
    done = run(tmp_path, "tiny.toml", "--device", "cpu", "--resume")
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path)
    report_faults(
        "final report",
        {
            "kill points": 1,
            "rows expected": len(before),
            "rows lost": len(set(before) - set(found)),
            "rows twice": len(found) - len(set(found)),
            "rows changed": len(set(found) - set(before)),
        },
    )
    assert len(before) == 8
    assert found == before
    assert (the_run(tmp_path) / "results.tsv").exists()

"""Trials that raise, diverge, hang or lose their worker: named, left out, and taken up again when asked."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from faults_support import live, prepare, rows, run, start, the_run, tree
from tests_support import wait_until

from tune_dd import artifacts, journal

pytestmark = pytest.mark.faults

OPTIONS = ("--device", "cpu", "--prefixes", "400,600,800,1000,1200", "--dropouts", "0,0.2", "--readouts", "640,1280")
FAULTS = [
    {"kind": "raise", "unique_tokens": 600, "step": 7},
    {"kind": "nan", "unique_tokens": 800, "step": 7},
    {"kind": "hang", "unique_tokens": 1000, "step": 7},
    {"kind": "kill", "unique_tokens": 1200, "step": 12},
]


@pytest.mark.timeout(400)
def test_each_failure_is_named_and_the_rest_goes_on_and_a_retry_mends_it(tmp_path: Path) -> None:
    prepare(tmp_path)
    broken = run(tmp_path, "tiny.toml", *OPTIONS, "--hang-timeout", "15", fault=FAULTS)
    assert broken.returncode == 3, broken.stdout + broken.stderr
    crashes = journal.read_crashes(the_run(tmp_path) / artifacts.JOURNALS)
    by_prefix: dict[str, str] = {}
    for line in (the_run(tmp_path) / artifacts.LEDGER).read_text().splitlines()[1:]:
        name, _, _, status, description = line.split("\t")
        if status == "crash":
            by_prefix[name.split("-")[2]] = description
    assert len(crashes) == 8
    assert "ValueError: made to fail" in by_prefix["U600"]
    assert "TrainingDiverged: the training loss is nan by step" in by_prefix["U800"]
    assert "hung: no progress for 15 s" in by_prefix["U1k"]
    assert "its worker" in by_prefix["U1200"]
    finished = {row["unique_tokens"] for _, row in artifacts.read_rows(the_run(tmp_path) / artifacts.METRICS)}
    assert 400 in finished
    assert broken.stdout.count("crashed: tiny-") == 8
    assert "--retry-crashed" in broken.stdout

    again = run(tmp_path, "--resume", str(the_run(tmp_path)))
    assert again.returncode == 3, "crashed trials are not tried again unless asked for"
    mended = run(tmp_path, "--resume", str(the_run(tmp_path)), "--retry-crashed")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    other = tmp_path / "other"
    other.mkdir()
    prepare(other)
    assert run(other, "tiny.toml", *OPTIONS).returncode == 0
    assert rows(tmp_path) == rows(other)


def test_one_death_of_a_worker_is_no_crash(tmp_path: Path) -> None:
    prepare(tmp_path)
    # The first of four trials, each longer than the time-out: its slot goes to another while it waits its turn.
    slow = {"kind": "slow", "seconds": 0.25}
    fault = {"kind": "kill", "unique_tokens": 400, "step": 12, "once": str(tmp_path / "struck")}
    options = ("--device", "cpu", "--devices", "1", "--readouts", "640,1280", "--hang-timeout", "4")
    done = run(tmp_path, "tiny.toml", *options, fault=[slow, fault])
    assert (tmp_path / "struck").exists()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(set(rows(tmp_path))) == 8


def test_a_worker_that_dies_right_after_its_last_journal_has_finished(tmp_path: Path) -> None:
    prepare(tmp_path)
    struck = str(tmp_path / "struck")
    fault = {"kind": "kill_at", "point": "after_rename", "file": "journals", "count": 2, "once": struck}
    done = run(tmp_path, "tiny.toml", "--device", "cpu", fault=fault)
    assert (tmp_path / "struck").exists()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(set(rows(tmp_path))) == 8


def steps_under_way(folder: Path) -> list[int]:
    steps = []
    for path in folder.glob(f"ray_results/*/*/{artifacts.LIVE}/*.json"):
        try:
            steps.append(int(json.loads(path.read_text())["step"]))
        except (OSError, ValueError):
            continue
    return steps


LONG = ("--device", "cpu", "--readouts", "640000", "--dropouts", "0,0.1")


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_saves_and_leaves_within_ten_seconds(tmp_path: Path, times: int) -> None:
    prepare(tmp_path)
    process = start(tmp_path, "tiny.toml", *LONG)
    wait_until(lambda: steps_under_way(tmp_path) and min(steps_under_way(tmp_path)) > 0)
    began = time.monotonic()
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert time.monotonic() - began < (10 if times == 1 else 5)
    assert "--resume" in out
    for path in (the_run(tmp_path) / artifacts.JOURNALS).glob(f"*{journal.SUFFIX}"):
        found, tensors = journal.load_journal(path)
        assert found.step > 0
        assert tensors
    if times == 1:
        assert list((the_run(tmp_path) / artifacts.JOURNALS).glob(f"*{journal.SUFFIX}"))


def test_a_suspended_machine_is_no_hang(tmp_path: Path) -> None:
    """All of the search is stopped for longer than the hang time-out, as when a lid is closed, and goes on."""
    prepare(tmp_path)
    process = start(tmp_path, "tiny.toml", "--device", "cpu", "--readouts", "19200,38400", "--hang-timeout", "5")
    wait_until(lambda: live(tmp_path))
    pids = list(tree(process.pid))
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # what the raylet started for a moment
            os.kill(pid, signal.SIGSTOP)
    time.sleep(7)
    for pid in pids:  # the supervisor first: it wakes to trials that seem to have stood still
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.1)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err

"""Kills at named points and at random times, and what is left of the table: everything."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from faults_support import SEARCH, finished, kill, live, prepare, rows, run, start, the_run
from tests_support import REPOSITORY, wait_until

from tune_dd import artifacts, journal

pytestmark = pytest.mark.faults

SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, "SIGHUP": signal.SIGHUP}


def test_bare_searches_survive_kills_inside_every_write(
    tmp_path: Path, fault_seed: int, fault_points: int, report_faults
) -> None:
    prepare(tmp_path)
    done = subprocess.run(
        [
            sys.executable,
            str(REPOSITORY / "tests" / "faults" / "campaign.py"),
            str(tmp_path),
            *("--seed", str(fault_seed), "--points", str(fault_points)),
        ],
        cwd=REPOSITORY,
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    report_faults("bare searches, kills inside writes", found)
    assert found["kill points"] >= fault_points
    assert {"before_temp", "half_written", "before_rename", "after_rename", "after_sync"} <= set(found["by point"])
    assert (found["rows lost"], found["rows twice"], found["rows changed"]) == (0, 0, 0)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = prepare(tmp_path_factory.mktemp("unbroken"))
    done = run(folder, "tiny.toml", *SEARCH)
    assert done.returncode == 0, done.stderr
    return rows(folder)


def resume_until_done(folder: Path, faults: list[str], draw: random.Random) -> Counter[str]:
    """Start a search, strike it with each fault in turn, resume it after each; the last attempt is left alone."""
    struck: Counter[str] = Counter()
    options = ["tiny.toml", *SEARCH]
    for fault in [*faults, None]:
        process = start(folder, *options)
        if fault is not None:
            # From before the first trial to the thick of it.
            deadline = time.monotonic() + draw.uniform(1.0, 4.0)
            while time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.02)
            if fault in SIGNALS and process.poll() is None:
                process.send_signal(SIGNALS[fault])
                struck[fault] += 1
            elif fault not in SIGNALS:
                # A part that has not started yet is waited for.
                wait_until(lambda p=process, f=fault: p.poll() is not None or kill(p, f))
                struck[fault] += process.poll() is None or process.returncode != 0
        out, err = process.communicate(timeout=280)
        if list(folder.glob(f"ray_results/*/*/{artifacts.CONFIG}")):
            options = ["--resume", str(the_run(folder))]
        if fault is None:
            assert process.returncode == 0, out + err
    return struck


@pytest.mark.timeout(600)
def test_searches_survive_a_kill_of_any_part(unbroken, tmp_path: Path, fault_seed: int, report_faults) -> None:
    prepare(tmp_path)
    draw = random.Random(fault_seed)
    faults = ["driver", "worker", "raylet", "gcs", "scheduler", "everything", *SIGNALS]
    draw.shuffle(faults)
    # Last, as a search goes on by itself without one and may leave nothing to strike.
    faults.sort(key=lambda fault: fault == "worker")
    struck = resume_until_done(tmp_path, faults, draw)
    found = rows(tmp_path)
    report_faults(
        "whole searches, one part killed at a random time",
        {
            "kill points": sum(struck.values()),
            "by target": dict(struck),
            "rows expected": len(unbroken),
            "rows lost": len(set(unbroken) - set(found)),
            "rows twice": len(found) - len(set(found)),
            "rows changed": len(set(found) - set(unbroken)),
        },
    )
    assert found == unbroken
    assert all(struck[target] for target in ("driver", "worker", "raylet", "gcs", "scheduler", "everything"))


@pytest.mark.timeout(600)
def test_a_stress_campaign_ends_with_the_unbroken_table(
    unbroken, tmp_path: Path, fault_seed: int, report_faults
) -> None:
    prepare(tmp_path)
    draw = random.Random(fault_seed + 1)
    options = ["tiny.toml", *SEARCH]
    kills = 0
    while True:
        began = time.time()
        process = start(tmp_path, *options, fault={"kind": "count"})
        if draw.random() < 0.75:  # else while it starts
            wait_until(lambda p=process, b=began: p.poll() is not None or live(tmp_path, since=b))
        deadline = time.monotonic() + draw.uniform(1.0, 6.0)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        if process.poll() is None:
            kill(process, "everything")
            kills += 1
        out, err = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL), out + err
        if list(tmp_path.glob(f"ray_results/*/*/{artifacts.CONFIG}")):
            options = ["--resume", str(the_run(tmp_path))]
        if finished(tmp_path) == 24 and process.returncode == 0:
            break
        assert kills < 40, "the search makes no headway"
    found = rows(tmp_path)
    kept = [journal.read_journal(p) for p in (the_run(tmp_path) / artifacts.JOURNALS).glob(f"*{journal.SUFFIX}")]
    planned = sum(k.step for k in kept)
    redone = sum(int(k.counters["redone_steps"]) for k in kept)
    report_faults(
        "stress: everything killed every few seconds",
        {
            "kill points": kills,
            "rows expected": len(unbroken),
            "rows lost": len(set(unbroken) - set(found)),
            "rows twice": len(found) - len(set(found)),
            "rows changed": len(set(found) - set(unbroken)),
            "trained over planned steps": round((planned + redone) / planned, 3),
        },
    )
    assert kills >= 2
    assert found == unbroken
    # At most the work since each trial's last read-out: two running trials a kill, 100 steps each.
    assert redone <= kills * 2 * 100

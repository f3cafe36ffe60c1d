"""Starting, watching and killing whole searches."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests_support import TINY_REGIME, synthetic_text

from tune_dd import artifacts, journal

Fault = dict[str, Any] | list[dict[str, Any]] | None
INJECTION = Path(__file__).parent / "injection"
# 24 trials of 300 steps, about half a second each.
SEARCH = (
    "--device",
    "cpu",
    "--dropouts",
    "0,0.1,0.2,0.3",
    "--seeds",
    "0,1,2",
    "--readouts",
    "6400,12800,19200",
)
FEW = ("--device", "cpu", "--readouts", "640,1280")  # 4 trials of 20 steps


def prepare(folder: Path) -> Path:
    (folder / "text.txt").write_text(synthetic_text(120), encoding="utf-8")
    (folder / "tiny.toml").write_text(TINY_REGIME, encoding="utf-8")
    return folder


def environment(fault: Fault) -> dict[str, str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if fault is not None:
        env["TUNE_DD_TEST_FAULT"] = json.dumps([fault] if isinstance(fault, dict) else fault)
        env["PYTHONPATH"] = os.pathsep.join([str(INJECTION), env.get("PYTHONPATH", "")])
    return env


def start(folder: Path, *options: str, fault: Fault = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tune_dd.sweep", *options],
        cwd=folder,
        env=environment(fault),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *options: str, fault: Fault = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tune_dd.sweep", *options],
        cwd=folder,
        env=environment(fault),
        capture_output=True,
        text=True,
        timeout=280,
    )


def the_run(folder: Path) -> Path:
    (config,) = folder.glob(f"ray_results/*/*/{artifacts.CONFIG}")
    return config.parent


def rows(folder: Path) -> list[str]:
    """Rows of the one run in a folder."""
    return rows_of(the_run(folder))


def rows_of(run_folder: Path) -> list[str]:
    """metrics.jsonl without its timings, a string a row."""
    return [
        json.dumps({k: v for k, v in row.items() if k not in artifacts.TIMING_COLUMNS})
        for _, row in artifacts.read_rows(run_folder / artifacts.METRICS)
    ]


def live(folder: Path, since: float = 0.0) -> list[Path]:
    """Heartbeats of the trials that are running: those written since a time, for a kill leaves them behind."""
    found = []
    for path in folder.glob(f"ray_results/*/*/{artifacts.LIVE}/*.json"):
        try:
            if path.stat().st_mtime >= since:
                found.append(path)
        except FileNotFoundError:
            continue
    return found


def finished(folder: Path) -> int:
    count = 0
    for path in folder.glob(f"ray_results/*/*/{artifacts.JOURNALS}/*{journal.SUFFIX}"):
        try:
            count += journal.read_journal(path).finished
        except FileNotFoundError:
            continue
    return count


def tree(root: int) -> dict[int, str]:
    """pid -> command line of a process and all that descend from it (Linux)."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return dict(_command_lines(found))


def _command_lines(pids: set[int]) -> Iterator[tuple[int, str]]:
    for pid in pids:
        try:
            yield pid, Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue


PATTERNS = {
    "worker": re.compile(r"^ray::"),
    "raylet": re.compile(r"/raylet "),
    "gcs": re.compile(r"/gcs_server "),
    "scheduler": re.compile(r"tune_dd\.sweep\.scheduler"),
}


def kill(process: subprocess.Popen[str], target: str) -> bool:
    """SIGKILL a part of a running search; ``everything`` is all at once. False if it was not there."""
    processes = tree(process.pid)
    if target == "everything":
        victims = list(processes)
    elif target == "driver":
        victims = [process.pid]
    else:
        victims = [pid for pid, line in processes.items() if PATTERNS[target].search(line)]
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return bool(victims)

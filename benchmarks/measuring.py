"""What the benchmarks share: the machine in words, and commands run with their time and memory taken."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tune_dd.device import processor_name

REPOSITORY = Path(__file__).resolve().parents[1]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """The processor, its cores and how many processes wanted one of them in the last minute."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"processor": processor_name(), "cores": cores(), "load_before": load}


@dataclass(frozen=True)
class Usage:
    """What a command took: wall seconds, cpu seconds and the peak memory of its largest process, bytes."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str


def run_python(*arguments: str, cwd: Path | None = None, environment: dict[str, str] | None = None) -> Usage:
    """Run ``python ARGUMENTS`` to its end, the repository importable.

    Raises:
        RuntimeError: it failed; its output is in the message.
    """
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if child.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed:\n{output}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return Usage(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, output)


def resident_bytes() -> int:
    """Memory of this process now; 0 where the system does not say."""
    try:
        return int(re.findall(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024
    except (OSError, IndexError):
        return 0


def spread(values: list[float]) -> str:
    """Median and range, as the tables print them."""
    return f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"

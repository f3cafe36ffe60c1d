"""What the benchmarks share: the machine in words, and commands run with their time and memory taken."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tune_dd.device import processor_name

REPOSITORY = Path(__file__).resolve().parents[1]
_POLL_SECONDS = 0.02


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """The processor, its cores and how many processes wanted one of them in the last minute."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"processor": processor_name(), "cores": cores(), "load_before": load}


@dataclass(frozen=True)
class Usage:
    """What a command took: wall seconds, cpu seconds, and its peak memory in bytes (0 where nobody looked)."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str


def run_python(*arguments: str, cwd: Path | None = None, peak_memory: bool = True) -> Usage:
    """Run ``python ARGUMENTS`` to its end, the repository importable.

    Without ``peak_memory`` nothing looks at it meanwhile: fifty times a second that is 2 % of a core.

    Raises:
        RuntimeError: it failed; its output is in the message.
    """
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile("w+") as output:
        began = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        peak, ended = 0, 0
        while not ended:
            if peak_memory:
                # While it runs: the maximum that the kernel tells at the end begins with that of the parent.
                peak = max(peak, memory_bytes("VmHWM", child.pid))
                time.sleep(_POLL_SECONDS)
            ended, status, usage = os.wait4(child.pid, os.WNOHANG if peak_memory else 0)
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        told = output.read()
    if child.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed:\n{told}")
    return Usage(seconds, usage.ru_utime + usage.ru_stime, peak, told)


def memory_bytes(field: str, pid: int | str = "self") -> int:
    """A process's resident memory now (``VmRSS``) or at most (``VmHWM``); 0 where the system does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(kilobytes) * 1024 for kilobytes in re.findall(rf"{field}:\s+(\d+) kB", status))


def tree_cpu(root: int) -> dict[int, tuple[str, float]]:
    """Command line and cpu seconds so far of a process and of all that descend from it (Linux; elsewhere none)."""
    found: dict[int, tuple[int, float]] = {}
    tick = os.sysconf("SC_CLK_TCK")
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        found[int(entry.parent.name)] = (int(fields[1]), (int(fields[11]) + int(fields[12])) / tick)
    tree = {root} & set(found)
    while more := {pid for pid, (parent, _) in found.items() if parent in tree} - tree:
        tree |= more
    lines = {}
    for pid in tree:
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        lines[pid] = (line, found[pid][1])
    return lines


def spread(values: list[float]) -> str:
    """Median and range, as the tables print them."""
    return f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"

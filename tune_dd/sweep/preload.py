"""What a worker of a local Ray imports as it starts: all that a trial needs, and word that it has."""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path

from tune_dd.loading import no_collection

MARKS = "TUNE_DD_WORKER_MARKS"  # names the folder of the marks
_MODULES = ("tune_dd.trainable", "ray.tune", "tune_dd.sweep.worker")


def started(folder: str) -> int:
    """How many workers have said so."""
    return len(list(Path(folder).glob("worker-*")))


if MARKS in os.environ:
    with no_collection():
        for _name in _MODULES:
            importlib.import_module(_name)
    with contextlib.suppress(OSError):
        Path(os.environ[MARKS], f"worker-{os.getpid()}").touch()

"""What a worker of a local Ray imports as it starts: all that a trial needs, and word that it has."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tune_dd.sweep.fork_server import MARKS, load, load_tune

if MARKS in os.environ:
    load()
    load_tune()
    with contextlib.suppress(OSError):
        Path(os.environ[MARKS], f"worker-{os.getpid()}").touch()

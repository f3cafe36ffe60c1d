"""A command's standard streams, which a shell may hand over closed and whose reader may go away."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import IO


def run_main(main: Callable[[], int]) -> int:
    """The exit code of ``main``, whatever is closed of standard output and standard error, before or meanwhile."""
    _open_closed()
    try:
        return main()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # nobody reads on
                discard(stream)


def discard(stream: IO[str]) -> None:
    """Let what a stream still holds, and all that is written to it from here on, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _open_closed() -> None:
    """Open what ``>&-`` closed: Python has None for it, and a file opened later would come by its descriptor."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w"))

"""Processes that draw pictures beside this one. Each picture is drawn alone, so it is the same whoever draws it.

Not a ``ProcessPoolExecutor``: its workers hold both ends of their queue, and outlive a command that is killed.

python -m analysis.painters        such a process: pictures on standard input, what was drawn on standard output
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from analysis.figures import Picture

Drawn = tuple[str, bytes]  # SVG text and PNG bytes, as ``analysis.drawing.render`` gives them

_MOST = 3  # they take most of a second to import what they need, and there are at most some thirty pictures


class Painters:
    """One process for each core but one, at most three. Use as a context manager; ``start`` starts them."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Painters:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        self._processes = []

    def start(self) -> None:
        """Start them, unless they are there; where they cannot be started, there are none."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        while len(self._processes) < min(cores - 1, _MOST):
            # Not of the terminal's process group: Ctrl-C reaches the command alone, which ends them.
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", "analysis.painters"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError:
                return
            self._processes.append(process)

    def draw(self, pictures: Sequence[Picture]) -> list[Drawn]:
        """Each picture drawn, in their order. This process draws too, and all that another one fails at."""
        from analysis.drawing import render

        left = deque(range(len(pictures)))
        drawn: dict[int, Drawn] = {}

        def serve(process: subprocess.Popen[bytes]) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            # A process that ended: what it was given is drawn below.
            with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError, IndexError):
                while True:
                    number = left.popleft()
                    pickle.dump(pictures[number], process.stdin)
                    process.stdin.flush()
                    drawn[number] = pickle.load(process.stdout)

        threads = [threading.Thread(target=serve, args=(process,), daemon=True) for process in self._processes]
        for thread in threads:
            thread.start()
        with contextlib.suppress(IndexError):
            while True:
                number = left.popleft()
                drawn[number] = render(pictures[number])
        for thread in threads:
            thread.join()
        return [drawn[number] if number in drawn else render(picture) for number, picture in enumerate(pictures)]


def main(pictures: BinaryIO, drawn: BinaryIO) -> None:
    """Draw what comes until nothing comes."""
    from analysis.drawing import render

    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            pickle.dump(render(pickle.load(pictures)), drawn)
            drawn.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)

"""Processes that draw pictures beside this one. Each picture is drawn alone, so it is the same whoever draws it.

Not a ``ProcessPoolExecutor``: its workers hold both ends of their queue, and outlive a command that is killed.

python -m analysis.painters        such a process: pictures on standard input, what was drawn on standard output
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from tune_dd.loading import no_collection

if TYPE_CHECKING:
    from analysis.figures import Picture

Drawn = tuple[str, bytes]  # SVG text and PNG bytes, as ``analysis.drawing.render`` gives them

_MOST = 3  # they take most of a second to import what they need, and there are at most some thirty pictures


class Painters:
    """One process for each core but one, at most three. Use as a context manager; ``start`` starts them."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None  # one for each process: it waits for what that one draws
        self._begun: dict[bytes, Future[Drawn]] = {}  # by the pickled picture

    def __enter__(self) -> Painters:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()
        self._threads = None
        self._begun.clear()

    def start(self) -> None:
        """Start them, unless they are there; where they cannot be started, there are none."""
        if self._threads is not None:
            return
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
                break
            self._processes.append(process)
            self._idle.put(process)
        if self._processes:
            self._threads = ThreadPoolExecutor(len(self._processes), thread_name_prefix="painter")

    def begin(self, pictures: Sequence[Picture]) -> None:
        """Have the processes draw pictures that will be asked for, while this one goes on."""
        for picture in pictures:
            self._begin(picture)

    def draw(self, pictures: Sequence[Picture]) -> list[Drawn]:
        """Each picture drawn, in their order. This process draws too, and all that another one fails at."""
        from analysis.drawing import render

        begun = [self._begin(picture) for picture in pictures]
        self._begun.clear()
        drawn: dict[int, Drawn] = {}
        # The processes take the first, this one the last; then it waits for what they are at.
        for number in reversed(range(len(pictures))):
            future = begun[number]
            if future is None or future.cancel():
                drawn[number] = render(pictures[number])
        for number, future in enumerate(begun):
            if future is not None and number not in drawn:
                error = future.exception()
                drawn[number] = future.result() if error is None else render(pictures[number])
        return [drawn[number] for number in range(len(pictures))]

    def _begin(self, picture: Picture) -> Future[Drawn] | None:
        """What a process will have drawn; None where there is no process."""
        if self._threads is None:
            return None
        pickled = pickle.dumps(picture)
        if pickled not in self._begun:
            self._begun[pickled] = self._threads.submit(self._drawn, pickled)
        return self._begun[pickled]

    def _drawn(self, pickled: bytes) -> Drawn:
        """A picture drawn by a process that is idle. Raises what a process that has ended lets a pipe raise."""
        process = self._idle.get_nowait()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(pickled)
        process.stdin.flush()
        drawn: Drawn = pickle.load(process.stdout)
        self._idle.put(process)
        return drawn


def main(pictures: BinaryIO, drawn: BinaryIO) -> None:
    """Draw what comes until nothing comes."""
    with no_collection():
        from analysis.drawing import render

    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            pickle.dump(render(pickle.load(pictures)), drawn)
            drawn.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)

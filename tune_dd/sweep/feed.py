"""Trials that reach Tune one after the other: the command decides what is tried, Tune only when and where it runs.

The command sends a line per trial over the scheduler's standard input, as its suggestions come about, and ``null``
when there will be no more.
"""

from __future__ import annotations

import queue
from typing import Any

from ray.tune.search import Searcher

# For the next trial, when nothing runs and so nothing waits for Tune. Tune itself sleeps a second where none has come.
_WAIT_SECONDS = 2.0

# Of the module, not of the searcher: Tune pickles its searcher, and a queue cannot be pickled.
_lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()


def open_feed(lines: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    global _lines
    _lines = lines


class FedTrials(Searcher):  # type: ignore[misc]  # Ray is untyped
    """A searcher that searches nothing: the next trial that was sent, None while there is none."""

    def __init__(self) -> None:
        super().__init__()
        self._running: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        try:
            trial = _lines.get(block=not self._running, timeout=_WAIT_SECONDS)
        except queue.Empty:
            return None
        if trial is None:
            finished: str = Searcher.FINISHED
            return finished
        self._running.add(trial_id)
        return {"trial": trial}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._running.discard(trial_id)

"""What the user sees while a search runs: a live table on a terminal, else a plain line a minute."""

from __future__ import annotations

import contextlib
import time
from types import TracebackType

from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tune_dd.console import Console
from tune_dd.sweep.state import SearchState
from tune_dd.trial import short_count

_LINE_SECONDS = 60.0
_MAX_CELLS = 24  # rows of the live table; the report has them all


class Progress:
    """Shows a SearchState as it changes. Use as a context manager around the search."""

    def __init__(self, console: Console, tokens_per_step: int, resume_command: str) -> None:
        self.resume_command = resume_command
        self._console = console
        self._tokens_per_step = tokens_per_step
        self._live: Live | None = None
        self._started = time.monotonic()
        self._first_steps: int | None = None
        self._next_line = 0.0

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.__exit__(kind, error, trace)
            self._live = None

    def say(self, message: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone: that is no reason to stop
            self._console.print(message, style="yellow", soft_wrap=True)

    def update(self, state: SearchState) -> None:
        """Show the state; a terminal that went away is no reason to stop."""
        with contextlib.suppress(OSError):
            self._update(state)

    def _update(self, state: SearchState) -> None:
        now = time.monotonic()
        if self._first_steps is None:
            if not state.live:
                return  # Ray is starting: speed counts from the first step
            self._first_steps, self._started = state.steps_done, now
        if self._live is not None:
            self._live.update(self._table(state, now))
        elif now >= self._next_line:
            self._next_line = now + _LINE_SECONDS
            best = state.best_per_cell()
            tail = ""
            if best:
                _, unique, sampled, dropout, loss, _ = best[-1]
                tail = f"; best so far at U {short_count(unique)}, C {short_count(sampled)}: p {dropout} ({loss:.4f})"
            self._console.print(self._headline(state, now) + tail, soft_wrap=True)

    def _headline(self, state: SearchState, now: float) -> str:
        done, running, crashed = len(state.finished), len(state.live), len(state.crashes)
        left = state.n_planned - done - running - crashed
        steps_done = state.steps_done
        trained = steps_done - (self._first_steps or 0)
        elapsed = now - self._started
        speed = trained / elapsed if elapsed > 1 else 0.0
        text = f"{done} trials done, {running} running, {max(left, 0)} left"
        if crashed:
            text += f", {crashed} crashed"
        if speed > 0:
            remaining = (state.steps_planned - steps_done) / speed
            text += f"; {speed * self._tokens_per_step:,.0f} tokens/s; {format_seconds(remaining)} left"
        return text

    def _table(self, state: SearchState, now: float) -> Group:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("model", "U", "C", "best p", "val_loss", "trials"):
            table.add_column(name, justify="left" if name == "model" else "right")
        cells = state.best_per_cell()
        for model, unique, sampled, dropout, loss, n_trials in cells[-_MAX_CELLS:]:
            table.add_row(model, short_count(unique), short_count(sampled), dropout, f"{loss:.4f}", str(n_trials))
        bar = ProgressBar(total=max(state.steps_planned, 1), completed=state.steps_done, width=60)
        parts: list[RenderableType] = [Text(self._headline(state, now)), Padding(bar, 0)]
        if cells:
            parts += [Text("best so far", style="dim"), table]
        return Group(*parts)


def format_seconds(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"

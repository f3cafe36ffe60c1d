"""Progress bars on standard error, where that is a terminal; silence elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

# Called with what is done and what there is in all.
Report = Callable[[int, int], None]


@contextlib.contextmanager
def progress_bar(description: str, show: bool) -> Iterator[Report]:
    """A bar of parts done, if ``show``."""
    if not (show and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    from rich.progress import Progress

    from tune_dd.console import Console

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def transfer_bar(description: str) -> Iterator[Report]:
    """A bar of bytes, with their rate and the time that is left."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from tune_dd.console import Console

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

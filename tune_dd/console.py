"""The console of every command."""

from __future__ import annotations

from typing import IO, Any

import rich.console

from tune_dd.streams import discard

_LOG_WIDTH = 110  # columns, where there is no terminal to ask


class Console(rich.console.Console):
    """Prints text as it is and goes on in silence once nobody reads.

    Brackets are no markup and colons no emoji: paths and names are the user's.
    """

    def __init__(
        self, *, width: int | None = None, log_width: int = _LOG_WIDTH, file: IO[str] | None = None, **options: Any
    ) -> None:
        super().__init__(width=width, file=file, markup=False, emoji=False, highlight=False, **options)
        if width is None and not self.is_terminal:
            self.width = log_width

    def on_broken_pipe(self) -> None:
        """The reader of a pipe has seen enough, which is no reason to stop; rich would exit."""
        self.quiet = True
        discard(self.file)

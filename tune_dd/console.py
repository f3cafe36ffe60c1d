"""The console of every command."""

from __future__ import annotations

from typing import IO, Any

import rich.console
from rich.measure import Measurement
from rich.table import Table

from tune_dd.streams import discard

_LOG_WIDTH = 110  # columns, where there is no terminal to ask
_ROOMY = 10_000  # columns, more than any table takes


class Console(rich.console.Console):
    """Prints text as it is, tables whole, and goes on in silence once nobody reads.

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

    def print_table(self, table: Table) -> None:
        """Print a table of which nothing is cut.

        Where it needs more columns than there are it keeps its own width, and the terminal wraps its lines.
        """
        roomy = self.options.update(width=_ROOMY)
        for column in table.columns:
            column.overflow = "fold"
            if column.no_wrap:
                cells = (column.header, *column.cells)
                column.min_width = max(Measurement.get(self, roomy, cell).maximum for cell in cells)
        needed = Measurement.get(self, roomy, table).minimum
        if needed > self.width:
            table.width = needed
        self.print(table, crop=False)

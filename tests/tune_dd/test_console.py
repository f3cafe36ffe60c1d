"""What every command prints through: nothing of the user's is taken for markup, and no table is cut."""

from __future__ import annotations

import io
import os

from tune_dd.console import Console

PATH = "q [v2]/a:rocket:[/bold]"


def test_brackets_and_colons_are_printed_as_they_are() -> None:
    file = io.StringIO()
    Console(width=80, file=file).print(f"--resume '{PATH}'", style="yellow")
    assert file.getvalue() == f"--resume '{PATH}'\n"


def test_without_a_terminal_lines_are_as_wide_as_asked() -> None:
    assert Console(file=io.StringIO(), log_width=77).width == 77


def test_a_reader_that_goes_away_stops_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        console = Console(file=pipe)
        console.print("nobody reads this")
        console.print("nor this")
        print("nor this", file=pipe, flush=True)  # beside the console: goes nowhere, like its own

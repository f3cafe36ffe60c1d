"""What every command prints through: nothing of the user's is taken for markup, and no table is cut."""

from __future__ import annotations

import io
import os

import pytest
from rich.table import Table

from tune_dd.console import Console

PATH = "q [v2]/a:rocket:[/bold]"


def printed(width: int, table: Table) -> list[str]:
    file = io.StringIO()
    Console(width=width, file=file).print_table(table)
    return file.getvalue().splitlines()


def listing() -> Table:
    table = Table("run", "state", box=None, pad_edge=False)
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    table.add_row(PATH, "crashed twice")
    return table


def test_brackets_and_colons_are_printed_as_they_are() -> None:
    file = io.StringIO()
    Console(width=80, file=file).print(f"--resume '{PATH}'", style="yellow")
    assert file.getvalue() == f"--resume '{PATH}'\n"
    assert printed(80, listing())[1].split("  ") == [PATH, "crashed twice"]


@pytest.mark.parametrize("width", [1, 10, 36])
def test_a_table_wider_than_the_terminal_keeps_its_own_width(width: int) -> None:
    assert printed(width, listing()) == printed(80, listing())


def test_a_column_of_prose_is_folded_before_the_terminal_is_overrun() -> None:
    table = Table("cell", "why", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    table.add_row("L2 U 400", "its interval is wider than asked for")
    lines = printed(24, table)
    assert max(map(len, lines)) <= 24
    assert lines[1].startswith("L2 U 400  its interval")


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

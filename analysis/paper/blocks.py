"""What a section is made of: sentences, tables and figures whose every number knows where it comes from.

Texts are plain and know neither LaTeX nor Markdown; ``analysis.paper.tex`` and ``analysis.paper.markdown`` write them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure as Canvas

MINUS, DASH = "−", "–"


@dataclass(frozen=True)
class Number:
    """A number as it is shown.

    Attributes:
        value: unrounded; None where there is none.
        text: as printed.
        source: the saved run (or chain) that it comes from, below the results folder.
        column: where in its tables: ``comparison.difference`` is that column of comparison.csv.
    """

    value: float | int | None
    text: str
    source: str
    column: str


@dataclass(frozen=True)
class Ref:
    """A table or figure of the same section, by its name: ``Table 3`` in the paper, ``the table below`` elsewhere."""

    name: str
    kind: str = "table"


Parts = tuple[str | Number | Ref, ...]


@dataclass(frozen=True)
class Cited:
    """Makes the numbers of one source."""

    source: str

    def number(self, value: float, column: str, digits: int = 3, *, signed: bool = False) -> Number:
        """A fixed number of digits; a dash where there is none."""
        if not np.isfinite(value):
            return Number(None, DASH, self.source, column)
        text = f"{value:{'+' if signed else ''}.{digits}f}"
        if not float(text):
            text = text.lstrip("+-")
        return Number(float(value), text.replace("-", MINUS), self.source, column)

    def count(self, value: int, column: str, text: str | None = None) -> Number:
        shown = f"{value:,}" if value >= 10_000 else str(value)
        return Number(int(value), shown if text is None else text, self.source, column)

    def interval(
        self, low: float, high: float, columns: tuple[str, str], digits: int = 3, *, signed: bool = False
    ) -> Parts:
        """``[low, high]``, nothing where there is none."""
        if not (np.isfinite(low) and np.isfinite(high)):
            return ()
        first, second = (
            self.number(value, column, digits, signed=signed)
            for value, column in zip((low, high), columns, strict=True)
        )
        return (" [", first, ", ", second, "]")

    def p_value(self, value: float, column: str) -> Number:
        if np.isfinite(value) and value < 0.001:
            return Number(float(value), "< 0.001", self.source, column)
        return self.number(value, column)


@dataclass(frozen=True)
class Paragraph:
    parts: Parts


@dataclass(frozen=True)
class Table:
    """A table of one evidence class.

    Attributes:
        name: file-wide unique; its label in the paper.
        header: a title per column. align: ``l`` or ``r`` per column.
        groups: rows, in groups that a space divides.
        headed: the first cell of each group is a line of its own in the paper, where the rows are long.
    """

    name: str
    caption: Parts
    header: Sequence[str]
    align: str
    groups: Sequence[Sequence[Sequence[Parts]]]
    headed: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure. ``draw`` fills a canvas of ``size`` inches; ``data`` is shown nowhere else and kept in the summary."""

    name: str
    caption: Parts
    draw: Callable[[Canvas], None]
    size: tuple[float, float]


Block = Paragraph | Table | Figure


@dataclass(frozen=True)
class Section:
    """A part of the paper.

    Attributes:
        name: lower-case letters: the paper inputs ``generated/<name>.tex`` where ``\\if<name>`` holds.
        title: heading in a regime's report.
        blocks: in order; none where what is saved has nothing to say.
        details: what the reports of the regimes show beyond them, cell by cell and path by path; not in the paper.
        sentences: letters -> what the paper's prose takes from here as the macro of that name.
    """

    name: str
    title: str
    blocks: Sequence[Block] = ()
    sentences: Mapping[str, Parts] = field(default_factory=dict)
    details: Sequence[Block] = ()

    def paper_numbers(self) -> Iterator[tuple[str, Number]]:
        """Every number of the paper with the place that shows it."""
        for name, parts in self.sentences.items():
            yield from ((f"{self.name}, {name}", part) for part in parts if isinstance(part, Number))
        yield from self.numbers_of(self.blocks)

    def report_numbers(self) -> Iterator[tuple[str, Number]]:
        """Every number of a regime's report with the place that shows it."""
        yield from self.numbers_of([*self.blocks, *self.details])

    def numbers_of(self, blocks: Sequence[Block]) -> Iterator[tuple[str, Number]]:
        for position, block in enumerate(blocks):
            if isinstance(block, Paragraph):
                place = f"{self.name}, paragraph {position + 1}"
                yield from ((place, part) for part in block.parts if isinstance(part, Number))
                continue
            yield from ((f"{block.name}, caption", part) for part in block.caption if isinstance(part, Number))
            if isinstance(block, Table):
                yield from ((place, number) for place, number in cells(block))


def cells(table: Table) -> Iterator[tuple[str, Number]]:
    """The numbers of a table with their row and column, a row named by its leading texts."""
    named = ""
    for group in table.groups:
        for number, row in enumerate(group):
            first = plain(row[0]).strip()
            named = first or named if number else first
            label = " ".join(dict.fromkeys(text for text in (named, leading(row[1:])) if text))
            for title, parts in zip(table.header, row, strict=True):
                for part in parts:
                    if isinstance(part, Number):
                        yield f"{table.name}, {label}, {title}", part


def leading(row: Sequence[Parts]) -> str:
    """The text of the first cells of a row, up to one that is a number of a run."""
    words = []
    for parts in row[:2]:
        if any(isinstance(part, Number) for part in parts):
            break
        words.append(plain(parts))
    return " ".join(word for word in words if word)


def plain(parts: Parts) -> str:
    """As text, as if the table or figure that is meant came next."""
    words = (f"the {part.kind} below" if isinstance(part, Ref) else part for part in parts)
    text = "".join(part.text if isinstance(part, Number) else part for part in words)
    return text[:1].upper() + text[1:] if parts and isinstance(parts[0], Ref) else text


def join(parts: Sequence[Parts], between: str = " ") -> Parts:
    """One text out of several."""
    result: list[str | Number | Ref] = []
    for part in parts:
        if result and part:
            result.append(between)
        result += part
    return tuple(result)


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"

"""Pieces of the page: text, tables, galleries. Everything that comes from users is escaped by ``text``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.figures import Picture

MAX_ROWS = 400

Shown = Sequence[tuple[str, "Picture", str]]


def text(value: object) -> str:
    return escape(str(value), quote=True)


def paragraph(value: str, kind: str = "") -> str:
    return f'<p class="{kind}">{text(value)}</p>' if kind else f"<p>{text(value)}</p>"


def html_table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], numeric: int | None = None, caption: str = ""
) -> str:
    """A table whose columns from ``numeric`` on are numbers, set to the right; it scrolls by itself."""
    kinds = [column_kind(name, i, numeric) for i, name in enumerate(headings)]
    head = "".join(f'<th scope="col"{kind}>{text(name)}</th>' for name, kind in zip(headings, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{text(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    above = f'<p class="caption">{text(caption)}</p>' if caption else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'{above}<div class="scroll" tabindex="0">{table}</div>'


def column_kind(name: str, column: int, numeric: int | None) -> str:
    """Numbers to the right, prose free to wrap."""
    if name == "description":
        return ' class="t"'
    return ' class="n"' if numeric is not None and column >= numeric and name != "status" else ""


def gallery(shown: Shown, section: str, *, wide: bool) -> str:
    """Pictures side by side as far as the screen allows. Their ids are their file names."""
    figures = [
        f'<figure><h3>{text(picture.title)}</h3><div role="img" aria-label="{text(picture.caption)}">{svg}</div>'
        f"<figcaption>{text(picture.caption)}</figcaption></figure>"
        for key, picture, svg in shown
        if key == section
    ]
    return f'<div class="{"wide" if wide else "grid"}">{"".join(figures)}</div>' if figures else ""


def definitions(rows: dict[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in rows.items()) + "</dl>"


def cut_text(n: int, what: str, file: str) -> str:
    """What follows a table of ``n`` rows: nothing, or that it was cut."""
    return paragraph(f"The first {MAX_ROWS} of {n} {what}; {file} has them all.") if n > MAX_ROWS else ""

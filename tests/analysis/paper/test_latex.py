"""The paper as LaTeX: escapes, tables in parts and in two columns, and that it compiles."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests_support import REPOSITORY

from analysis.paper import tex
from analysis.paper.blocks import Cited, Table
from analysis.paper.build import build

PAPER = REPOSITORY / "paper" / "dropout_decay_regime_specific_pressure_law.tex"


@pytest.mark.parametrize(
    ("value", "digits", "signed", "text"),
    [
        (-0.0316, 3, True, "−0.032"),
        (0.0135, 3, True, "+0.013"),
        (-0.0001, 3, True, "0.000"),
        (float("nan"), 3, False, "–"),
        (0.5, 2, False, "0.50"),
    ],
)
def test_a_number_as_it_is_shown(value: float, digits: int, signed: bool, text: str) -> None:
    assert Cited("run").number(value, "column", digits, signed=signed).text == text


def test_latex_is_escaped() -> None:
    assert tex.escape("L2_H2_D64: 5 % & −0.1 ≤ x {#}") == (
        r"L2\_H2\_D64: 5 \% \& \ensuremath{-}0.1 \ensuremath{\le} x \{\#\}"
    )


def compiled(folder: Path) -> Iterator[str]:
    """Compile the paper in a folder that has its parts; the lines of LaTeX's log."""
    shutil.copy(PAPER, folder)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", PAPER.name]
    for _ in range(2):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]
    yield from (folder / PAPER.name).with_suffix(".log").read_text(errors="replace").splitlines()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
@pytest.mark.parametrize("which", ["all", "one run"])
def test_the_paper_compiles(results: Path, built: Path, tmp_path: Path, which: str) -> None:
    if which == "all":
        shutil.copytree(built / "paper", tmp_path / "paper")
    else:
        shutil.copytree(results / "pydocs-stream-pocket", tmp_path / "saved" / "pydocs-stream-pocket")
        build(tmp_path / "saved", tmp_path / "paper", tmp_path / "docs")
    log = list(compiled(tmp_path / "paper"))
    assert not [line for line in log if "undefined" in line or line.startswith("Overfull")]
    assert json.loads((tmp_path / "paper" / "paper_results_summary.json").read_text())["studies"]


def test_a_table_longer_than_a_page_goes_on_in_parts() -> None:
    groups = [[[(f"row {group}.{number}",)] for number in range(20)] for group in range(7)]
    table = Table("long", ("What it shows.",), ("name",), "l", groups)
    text = tex.table_text(table)
    assert text.count("begin{table}") == text.count("end{table}") == 4
    assert text.count("label{tab:long}") == 1
    assert text.count("(continued)") == 3
    rows = re.findall(r"row \d\.\d+", text)
    assert rows == [f"row {group}.{number}" for group in range(7) for number in range(20)]
    assert max(part.count("row ") for part in text.split("begin{table}")) <= tex.PAGE_LINES
    assert "continued" not in tex.table_text(Table("short", ("It.",), ("name",), "l", groups[:2]))

"""What the analysis says of an adaptive calibration, from the record that its command left."""

from __future__ import annotations

import html
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from analysis.adaptive import REASONS, read_adaptive
from analysis.report import analyse
from analysis.terminal import print_tables
from tune_dd import artifacts
from tune_dd.console import Console
from tune_dd.errors import UserError


def record(**changes: Any) -> dict[str, Any]:
    cells = [
        {
            "model": "L2_H2_D64",
            "unique_tokens": 4000 * (number + 1),
            "sampled_tokens": 262_144,
            "decided": reason in ("narrow", "edge"),
            "reason": reason,
            "width": None if reason == "edge" else 0.1234,
            "n_trials": 9 + number,
            "n_seeds": 2,
        }
        for number, reason in enumerate(REASONS)
    ]
    grid = {"target_width": 0.05, "budget": 0.4}
    return {"schema": 1, "grid": grid, "full_grid": 96, "cells": cells, "points": [{}] * 37} | changes


def test_it_is_read_where_there_is_one(tmp_path: Path) -> None:
    empty, adaptive, search = (tmp_path / name for name in ("empty", "adaptive", "search"))
    for folder in (empty, adaptive, search):
        folder.mkdir()
    artifacts.write_json(adaptive / artifacts.SUGGESTIONS, record())
    artifacts.write_json(search / artifacts.SUGGESTIONS, {"space": "ends", "points": []})
    (found,) = read_adaptive([empty, adaptive, search])
    assert found.sentence == (
        "Adaptive: 2 of 7 cells are decided (interval within 0.05, or an optimum at the grid's edge) after 37 of the "
        "full grid's 96 trials (39%; at most 40% allowed)."
    )
    assert found.cells["width"].isna().sum() == 1
    artifacts.write_json(adaptive / artifacts.SUGGESTIONS, record(cells=[]))
    assert read_adaptive([adaptive]) == [], "the first round is under way"


@pytest.mark.parametrize(
    "changes", [{"cells": [{}]}, {"cells": [{**record()["cells"][0], "reason": "weather"}]}, {"points": None}]
)
def test_a_damaged_record_is_told_and_the_rest_is_shown(
    changes: dict[str, Any], synthetic: ModuleType, tmp_path: Path
) -> None:
    rows = synthetic.calibration(prefixes=(8_000,))
    folder = synthetic.write_run(tmp_path / "run", rows)
    artifacts.write_json(folder / artifacts.SUGGESTIONS, record(**changes))
    with pytest.raises(UserError, match="--resume"):
        read_adaptive([folder])
    result = analyse([folder], report=False)
    assert any("What is decided is not shown" in note for note in result.notes)
    assert len(result.selection) == 4


def test_terminal_and_page_say_what_is_decided_and_why_the_rest_was_left(synthetic: ModuleType, tmp_path: Path) -> None:
    """Of a run with unequal seeds, as an adaptive one leaves it."""
    rows = [
        row
        for row in synthetic.calibration(prefixes=(8_000, 16_000))
        if row["seed"] == 0 or (0.2 <= row["dropout"] <= 0.4 and row["seed"] == 1)
    ]
    folder = synthetic.write_run(tmp_path / "run", rows)
    artifacts.write_json(folder / artifacts.SUGGESTIONS, record())
    result = analyse([folder], export=False)
    assert result.adaptive[0].trained == 37
    assert result.selection["fitted_low"].notna().all()
    console = Console(width=200, record=True, file=io.StringIO())
    print_tables(result, console)
    shown = console.export_text()
    page = result.report.read_text()
    assert result.adaptive[0].sentence in shown
    assert html.escape(result.adaptive[0].sentence) in page
    for reason, words in REASONS.items():
        assert (words in shown) == (reason not in ("narrow", "edge")), reason
        assert html.escape(words) in page
    assert "0.123" in shown

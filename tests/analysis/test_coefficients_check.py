"""A damaged coefficients.json is refused by the key that is wrong; what may be missing or null is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests_support import coefficients

from analysis.__main__ import main
from analysis.advise import read_coefficients
from analysis.coefficients import Coefficients
from tune_dd.errors import UserError

CELL = {"n_params": 12_672, "unique_tokens": 400, "sampled_tokens": 640}
HELD_OUT = {"law": "odds", "holdout": "cell", "regret_mean": 0.1, "regret_max": 0.2}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("law", ["interaction"]),
        ("regime", None),
        ("tokenizer_hash", 3),
        ("rank", 4.0),
        ("seed", True),
        ("p_max", "0.65"),
        ("p_max", 1.5),
        ("p_min", float("nan")),
        ("discrepancy", None),
        ("rmse", 10**400),
        ("loo_rmse", "none"),
        ("coefficients", [0.5, 0.4, 0.0, -0.4]),
        ("coefficients", {"A": 0.5, "B": 0.4, "D": None, "C0": -0.4}),
        ("intervals", {"A": [0.4, 0.6]}),
        ("intervals", {name: [0.1] for name in ("A", "B", "D", "C0")}),
        ("intervals", {name: ["low", "high"] for name in ("A", "B", "D", "C0")}),
        ("cells", []),
        ("cells", {}),
        ("cells", [3]),
        ("cells", [CELL, {"unique_tokens": 400, "sampled_tokens": 640}]),
        ("cells", [CELL | {"n_params": "12672"}]),
        ("cells", [CELL | {"n_params": 0}]),
        ("draws", 3),
        ("draws", [[0.5, 0.4, 0.0, -0.4], [0.5, 0.4, 0.0]]),
        ("draws", [[0.5, 0.4, 0.0, -0.4, 1.0]]),
        ("draws", [[0.5, 0.4, 0.0, None]]),
        ("notes", [None]),
        ("expected", {"B": [0.9]}),
        ("expected", {"slope": [0.9, 0.1]}),
        ("expected", [0.9, 0.1]),
        ("held_out", [{"law": "odds"}]),
        ("held_out", [HELD_OUT | {"regret_max": "much"}]),
    ],
)
def test_the_damaged_key_is_named_in_one_line(
    key: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "coefficients.json"
    file.write_text(json.dumps(coefficients(**{key: value})))
    assert main(["advise", "--coefficients", str(file), "--params", "12672", "--stages", "400:640"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"error: {file}: {key} is damaged (not ")


@pytest.mark.parametrize(
    "changes",
    [
        {"draws": []},
        {"draws": [], "intervals": {name: [None, None] for name in ("A", "B", "D", "C0")}},
        {"loo_rmse": 0.1, "loo_regret": 1},
        {"held_out": [HELD_OUT, HELD_OUT | {"law": "onset", "regret_mean": None, "regret_max": None}]},
        {"cells": [CELL | {"unique_tokens": 123.4}]},
    ],
)
def test_what_may_be_null_or_empty_is_read(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "coefficients.json"
    file.write_text(json.dumps(coefficients(**changes)))
    assert isinstance(read_coefficients(file), Coefficients)
    assert main(["advise", "--coefficients", str(file), "--params", "12672", "--stages", "400:640"]) == 0
    assert "dropout" in capsys.readouterr().out


def test_coefficients_of_another_law_are_told_as_such() -> None:
    with pytest.raises(UserError, match="law onset has the coefficients A, B, C0, not A, B, D, C0"):
        Coefficients.from_dict(coefficients(law="onset"))

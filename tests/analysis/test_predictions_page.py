"""Predictions beside what came out, as a reader of the page meets them."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from analysis.companions import outcomes
from analysis.predictions_page import predictions_part

STREAM: list[dict[str, Any]] = [
    {"condition": "law", "metric": "final_val_loss", "predicted": "below the best static"},
    {
        "dropout": 0.31592872,
        "high": 0.3553,
        "law": "saturating_capped",
        "low": 0.2799,
        "model": "L2_H2_D64",
        "sampled_tokens": 131_072,
        "schedule": "law",
        "stage": 0,
        "unique_tokens": 4_000,
    },
]
COMPARISON = pd.DataFrame(
    [{"condition": "law", "metric": "final_val_loss", "difference": -0.0459, "low": -0.0609, "high": -0.0285}]
)


def tables(page: str) -> list[list[list[str]]]:
    """Of each table its rows, the headings first."""
    found = re.findall(r"<table>(.*?)</table>", page)
    return [
        [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
        for table in found
    ]


def test_contrasts_and_schedules_are_two_tables_without_gaps() -> None:
    page = predictions_part(outcomes([{"predictions": STREAM}], pd.DataFrame(), COMPARISON), "rehearsal")
    assert tables(page) == [
        [
            ["condition", "loss", "predicted", "measured difference", "95 % interval"],
            ["law", "Final validation loss", "below the best static", "-0.0459", "[-0.0609, -0.0285]"],
        ],
        [
            ["schedule", "law", "model", "stage", "U", "C", "dropout", "95 % interval"],
            ["law", "saturating_capped", "L2_H2_D64", "0", "4k", "131k", "0.3159", "[0.2799, 0.3553]"],
        ],
    ]


def test_cells_stand_beside_their_optimum() -> None:
    cell = {"law": "onset", "model": "m", "unique_tokens": 8_000, "sampled_tokens": 262_144, "dropout": 0.35}
    cell |= {"low": None, "high": None}
    selection = pd.DataFrame([{**cell, "n_params": 5, "fitted_optimum": 0.3, "status": "censored_high"}])
    other = cell | {"unique_tokens": 4_000, "who": "a <reader>"}
    page = predictions_part(outcomes([{"predictions": [cell, other]}], selection, None), "run")
    assert tables(page) == [
        [
            ["law", "model", "U", "C", "dropout", "measured optimum", "status", "who"],
            ["onset", "m", "8k", "262k", "0.3500", "0.3000", "censored high", "-"],
            ["onset", "m", "4k", "262k", "0.3500", "-", "-", "a &lt;reader&gt;"],
        ]
    ]
    assert predictions_part(pd.DataFrame(), "run") == ""

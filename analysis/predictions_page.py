"""The page's section on what a law said beforehand: a table for each kind of prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis import html
from analysis.figures import METRICS, count_text
from analysis.html import cut_text, html_table
from analysis.terminal import STATUS_WORDS, interval_text, signed

# The columns that are shown, what tells rows apart first; others of a file that somebody else wrote come last.
WORDS = {"schedule": "schedule", "condition": "condition", "metric": "loss", "predicted": "predicted"}
WORDS |= {"law": "law", "model": "model"}
NUMBERS = {"stage": "stage", "n_params": "P", "unique_tokens": "U", "sampled_tokens": "C", "dropout": "dropout"}
NUMBERS |= {"interval": "95 % interval", "measured": "measured optimum", "measured_status": "status"}
NUMBERS |= {"measured_difference": "measured difference", "measured_interval": "95 % interval"}
ENDS = {"interval": ("low", "high"), "measured_interval": ("measured_low", "measured_high")}


def predictions_part(predictions: pd.DataFrame, evidence: str) -> str:
    """Of ``analysis.companions.outcomes``: contrasts of conditions, the laws' schedules stage by stage, cells."""
    if predictions.empty:
        return ""
    contrast = has(predictions, "predicted")
    stage = has(predictions, "stage") & ~contrast
    kinds = (
        (contrast, "Which way the contrasts were said to go, and their measured differences in nats per token."),
        (stage, "The dropout that each law gives each stage, with the interval of the law's value."),
        (~contrast & ~stage, "The dropout that the law gives each cell, with the interval of the law's value."),
    )
    return "".join(
        prediction_table(predictions[kind], f"{caption} Class: {evidence}.") for kind, caption in kinds if kind.any()
    )


def has(frame: pd.DataFrame, column: str) -> pd.Series:
    return frame[column].notna() if column in frame else pd.Series(False, index=frame.index)


def prediction_table(rows: pd.DataFrame, caption: str) -> str:
    """The columns of which a row has something, in an order that reads."""
    for name, (low, high) in ENDS.items():
        if has(rows, low).any():
            ends = zip(rows[low].astype(float), rows[high].astype(float), strict=True)
            rows = rows.assign(**{name: [interval_text(*pair, 4) for pair in ends]})
    rows = rows.drop(columns=[end for ends in ENDS.values() for end in ends], errors="ignore")
    known = [name for name in (*WORDS, *NUMBERS) if has(rows, name).any()]
    columns = [*known, *(name for name in rows if name not in known and rows[name].notna().any())]
    headings = [(WORDS | NUMBERS).get(str(name), str(name).replace("_", " ")) for name in columns]
    shown = rows[columns].head(html.MAX_ROWS).itertuples(index=False, name=None)
    cells = [[cell(str(name), value) for name, value in zip(columns, row, strict=True)] for row in shown]
    numeric = sum(name in WORDS for name in columns)
    cut = cut_text(len(rows), "predictions", "predictions.json")
    return html_table(headings, cells, numeric=numeric, caption=caption) + cut


def cell(name: str, value: Any) -> str:
    """A value as its column shows it; what a row lacks is a dash."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "-"
    if name == "metric":
        return METRICS.get(value, str(value))
    if name == "measured_status":
        return STATUS_WORDS.get(value, str(value))
    if name in ("unique_tokens", "sampled_tokens", "n_params"):
        return count_text(float(value))
    if name == "stage":
        return str(int(value))  # a column with gaps holds floats
    if name == "measured_difference":
        return signed(float(value), 4)
    return f"{value:.4f}" if isinstance(value, float) else str(value)

"""The contrasts of a stream as the paper shows them: which are made, what they show, and how a path is called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.comparison import BEST_STATIC
from analysis.paper.blocks import DASH, Cited, Parts, join
from analysis.paper.studies import Study
from analysis.words import direction

FINAL = "final_val_loss"
LAW, REVERSED, NONE = "law", "reversed_law", "static_0.00"
PATHS = {LAW: "the law", REVERSED: "the law reversed", "linear_decay": "straight line"}
SHORT = {-1: "lower", 0: "not shown", 1: "higher", None: DASH}
MAX_SHARED = 6  # paths that a figure has room for
Row = dict[Any, Any]  # of comparison.csv


def rows_of(study: Study, metric: str = FINAL) -> list[Row]:
    comparison = study.analysis.comparison
    return [] if comparison is None else comparison[comparison["metric"] == metric].to_dict("records")


def primary(study: Study) -> Row | None:
    return next((row for row in rows_of(study) if row["primary"]), None)


def against(study: Study, condition: str, baseline: str, metric: str = FINAL) -> Row | None:
    """The contrast of a condition and a baseline; against the best static whatever stands for it."""
    for row in rows_of(study, metric):
        static = row["baseline"] in (BEST_STATIC, "mean_static")
        if row["condition"] == condition and (static if baseline == BEST_STATIC else row["baseline"] == baseline):
            return row
    return None


def shown_direction(row: Row) -> int | None:
    """By interval and t test; the primary contrast by its own p, all others by Holm's."""
    return direction(row, float(row["p_holm"]))


def path_name(condition: str) -> str:
    return "no dropout" if condition == NONE else PATHS.get(condition, condition.replace("_", " "))


def paths(study: Study) -> list[str]:
    """The conditions that are no fixed dropout: the law first, then its relatives, then those by hand."""
    rows = study.analysis.experiment.table
    stream = rows[rows["phase"] == "stream"]
    names = stream.loc[stream["kind"] != "static", "condition"].unique()
    known = {name: number for number, name in enumerate(PATHS)}
    return sorted(map(str, names), key=lambda name: (known.get(name, len(known)), name))


def shared_paths(studies: Sequence[Study]) -> list[str]:
    """The paths that at least half of the streams have, in the order of ``paths``; of many those that most have."""
    owned = [{*paths(study), NONE} for study in studies]
    names = dict.fromkeys([*PATHS, *sorted(set().union(*map(set, owned)) - {NONE}), NONE])
    made = {name: sum(against(study, name, BEST_STATIC) is not None for study in studies) for name in names}
    most = sorted(names, key=lambda name: -made[name])[:MAX_SHARED]
    return [name for name in names if name in most and 2 * made[name] >= len(studies)]


def law_form(study: Study) -> str:
    """The form of the law that the stream's path ``law`` was made by; empty where its config does not say."""
    frozen = study.configs.get("stream", {}).get("coefficients") or []
    forms = [str(law["law"]) for law in frozen if law.get("condition") == LAW]
    return forms[0].replace("_", " ") if forms else ""


def dropouts(study: Study, condition: str) -> Parts:
    rows = study.analysis.experiment.table
    own = rows[(rows["phase"] == "stream") & (rows["condition"] == condition)].drop_duplicates("stage")
    cited = Cited(study.source("stream"))
    numbers = [cited.number(value, f"metrics.dropout, {condition}", 2) for value in own.sort_values("stage")["dropout"]]
    return join([(replace(number, text=number.text.removeprefix("0")),) for number in numbers])


def fixed_rates(cited: Cited, row: Row) -> Parts:
    """The fixed dropouts that the best static stood for, from the contrast's notes; none where it was their mean."""
    names = re.findall(r"static_(\d\.\d+)", str(row["notes"]))
    return join([(cited.number(float(name), place(row, "notes"), 2),) for name in names], " or ")


def difference(cited: Cited, row: Row) -> Parts:
    value = cited.number(row["difference"], place(row, "difference"), signed=True)
    return (value, *cited.interval(row["low"], row["high"], (place(row, "low"), place(row, "high")), signed=True))


def place(row: Row, column: str) -> str:
    return f"comparison.{column}, {row['condition']} less {row['baseline']}, {row['metric']}"


def signs(rows: Sequence[Row]) -> pd.Series:
    """How many contrasts show each direction: index -1 (lower), 0 (neither is shown) and 1 (higher)."""
    shown = pd.Series([shown_direction(row) or 0 for row in rows], dtype=int)
    return shown.value_counts().reindex([-1, 0, 1], fill_value=0)

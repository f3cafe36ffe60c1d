"""Streams that were run and are no longer saved: what the contrast named beforehand came to on each of them.

What is kept is a choice, made with the outcome known. ``removed_streams.csv`` beside the saved runs says what became of
the rest, a row per stream: run, evidence, regime, model, law (of the contrast named beforehand), seeds, n_pairs,
difference, low, high and p_paired_t (of the law less the best static, as in comparison.csv; nats per token) and the
commit of the repository that removed it (``removed_by``: its parent has the run).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.paper.blocks import Block, Cited, Paragraph, Parts, Ref, Section, Table
from analysis.paper.contrasts import SHORT, primary, shown_direction
from analysis.paper.studies import Study, by_class, class_words
from analysis.words import direction
from tune_dd.errors import UserError

NAME = "removed"
FILE = "removed_streams.csv"
TEXTS = ("run", "evidence", "regime", "model", "law", "seeds", "removed_by")
NUMBERS = ("n_pairs", "difference", "low", "high", "p_paired_t")


def read_removed(results: Path) -> pd.DataFrame:
    """The rows of ``removed_streams.csv``; none where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    path = results / FILE
    if not path.is_file():
        return pd.DataFrame(columns=[*TEXTS, *NUMBERS])
    try:
        types = dict.fromkeys(TEXTS, str) | dict.fromkeys(NUMBERS, float)
        table = pd.read_csv(path, dtype=types)[[*TEXTS, *NUMBERS]]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}): restore it, or remove it") from None
    if (lacking := table.isna().any(axis=1)).any():
        raise UserError(f"{path} is damaged (line {int(lacking.argmax()) + 2} lacks a value): restore it, or remove it")
    return table


def section(gone: pd.DataFrame, studies: Sequence[Study]) -> Section:
    """Of these studies' texts and classes; nothing where no stream of theirs was removed."""
    blocks: list[Block] = []
    details: list[Block] = []
    sentences: dict[str, Parts] = {}
    for evidence, group in by_class(studies):
        regimes = {study.regime: study.title for study in group}
        own = gone[(gone["evidence"] == evidence) & gone["regime"].isin(list(regimes))]
        if len(own):
            table = by_law(evidence, group, own)
            blocks += [Paragraph((*tally(group, own), " ", Ref(table.name), " sums up those.")), table]
            details.append(by_run(evidence, group, own, regimes))
            sentences.setdefault("RemovedAbstract", in_short(group, own))
    return Section(NAME, "Streams that are no longer saved", blocks, sentences, details)


def shown(rows: pd.DataFrame) -> list[int]:
    """Of each contrast the direction that interval and t test bear out, 0 where they do not."""
    return [direction(row, row["p_paired_t"]) or 0 for row in rows.to_dict("records")]


def of_all(studies: Sequence[Study], gone: pd.DataFrame) -> list[int]:
    """The same of what is saved and what was removed together."""
    kept = [row for study in studies if (row := primary(study)) is not None]
    return [*(shown_direction(row) or 0 for row in kept), *shown(gone)]


def tally(studies: Sequence[Study], gone: pd.DataFrame) -> Parts:
    cited, every = Cited(FILE), of_all(studies, gone)
    return (
        "Which streams are kept was chosen with their outcome known: ",
        cited.count(len(gone), "run"),
        " were removed, for room. Of all ",
        cited.count(len(every), "run, and comparison of those saved"),
        " the law is shown to end lower than the best fixed dropout on ",
        cited.count(every.count(-1), "direction by interval and t test"),
        " and higher on ",
        cited.count(every.count(1), "direction by interval and t test"),
        ".",
    )


def in_short(studies: Sequence[Study], gone: pd.DataFrame) -> Parts:
    cited, every = Cited(FILE), of_all(studies, gone)
    return (
        "Of all streams ever run, those that are no longer kept included, the law beats it on ",
        cited.count(every.count(-1), "direction by interval and t test"),
        " of ",
        cited.count(len(every), "run, and comparison of those saved"),
        ".",
    )


def by_law(evidence: str, studies: Sequence[Study], gone: pd.DataFrame) -> Table:
    rows: list[list[Parts]] = []
    for keys, own in gone.groupby(["law", "model"], sort=True):
        law, model = map(str, keys)
        cited, signs = Cited(FILE), shown(own)
        mean = cited.number(own["difference"].mean(), f"difference, mean, {law}, {model}", signed=True)
        counts = [(cited.count(signs.count(sign), f"direction, {law}, {model}"),) for sign in (-1, 0, 1)]
        streams = cited.count(len(own), f"run, {law}, {model}")
        rows.append([(law.replace("_", " "),), (model,), (streams,), (mean,), *counts])
    return Table(
        name=f"removed-{evidence}",
        caption=(
            "Streams that were run and are no longer saved, by the form of the law named beforehand: mean difference "
            "of final validation loss from the best fixed dropout, nats per token, and on how many interval and t test "
            f"show the law lower, show neither, show it higher. {class_words(studies)}",
        ),
        header=("form", "model", "streams", "law less best fixed", *(SHORT[sign] for sign in (-1, 0, 1))),
        align="llrrrrr",
        groups=[rows],
    )


def by_run(evidence: str, studies: Sequence[Study], gone: pd.DataFrame, titles: dict[str, str]) -> Table:
    rows: list[list[Parts]] = []
    for row in gone.sort_values(["regime", "run"]).to_dict("records"):
        rows.append(run_row(row, titles[row["regime"]]))
    return Table(
        name=f"removed-runs-{evidence}",
        caption=(
            "Every stream that was run and is no longer saved: final validation loss of the law less that of the best "
            "fixed dropout, nats per token, with an interval at the 95 % level and the p of the paired t test. The "
            f"parent of the commit named has the run. {class_words(studies)}",
        ),
        header=("corpus", "run", "model", "form", "seeds", "law less best fixed", "p", "shown", "removed by"),
        align="lllllrrll",
        groups=[rows],
    )


def run_row(row: dict[Any, Any], title: str) -> list[Parts]:
    cited, run = Cited(FILE), row["run"]
    value = cited.number(row["difference"], f"difference, {run}", signed=True)
    ends = cited.interval(row["low"], row["high"], (f"low, {run}", f"high, {run}"), signed=True)
    return [
        (title,),
        (run,),
        (row["model"],),
        (row["law"].replace("_", " "),),
        (row["seeds"],),
        (value, *ends),
        (cited.p_value(row["p_paired_t"], f"p_paired_t, {run}"),),
        (SHORT[direction(row, row["p_paired_t"])],),
        (row["removed_by"],),
    ]

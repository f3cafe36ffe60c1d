"""Streams in full, path by path and stream by stream: for the reports of the regimes."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.comparison import BEST_STATIC
from analysis.paper.blocks import DASH, Cited, Parts, Table, listed
from analysis.paper.contrasts import (
    LAW,
    NONE,
    SHORT,
    against,
    difference,
    dropouts,
    fixed_rates,
    path_name,
    paths,
    place,
    primary,
    shown_direction,
)
from analysis.paper.studies import Study, class_words
from analysis.words import t_test

SHOWN = {-1: "beats", 0: "is not shown to differ from", 1: "loses to", None: "cannot be told from"}
IN_TEXT = {LAW: "the law", "reversed_law": "the law reversed", "linear_decay": "the straight line"}


def primary_sentence(study: Study) -> Parts:
    row = primary(study)
    if row is None:
        return ()
    cited = Cited(study.source("stream"))
    name, p = t_test(pd.Series(row))
    column = "p_welch" if row["method"] == "welch" else "p_paired_t"
    rates = fixed_rates(cited, row)
    return (
        f"On {study.label} the law {SHOWN[shown_direction(row)]} the best fixed dropout (",
        *(("rate ", *rates) if rates else ("the mean of the fixed rates",)),
        "): ",
        *difference(cited, row),
        " nats per token over ",
        cited.count(row["n_pairs"], place(row, "n_pairs")),
        f" pairs, {name} p = ",
        cited.p_value(p, place(row, column)),
        ", exact sign flip p = ",
        cited.number(row["p_sign_flip"], place(row, "p_sign_flip"), 4),
        ".",
    )


def other_paths(study: Study) -> Parts:
    """Which other paths beat or lose to the best fixed dropout and the law; of the others no direction is shown."""
    verdicts: list[str] = []
    others = [name for name in paths(study) if name != LAW]
    for baseline, words in ((BEST_STATIC, "the best fixed dropout"), (LAW, "the law")):
        by_sign: dict[int, list[str]] = {}
        for name in others:
            row = against(study, name, BEST_STATIC) if baseline == BEST_STATIC else against(study, LAW, name)
            sign = shown_direction(row) if row is not None else None
            if sign:
                by_sign.setdefault(sign if baseline == BEST_STATIC else -sign, []).append(quoted(name))
        for sign, (one, many) in ((-1, ("beats", "beat")), (1, ("loses to", "lose to"))):
            if names := by_sign.get(sign):
                verdicts.append(f"{listed(names)} {many if len(names) > 1 else one} {words}")
    said = "; ".join(verdicts) or "no other path is shown to differ from the best fixed dropout or from the law"
    return (f"On {study.label}, by Holm's p: {said}.",)


def quoted(condition: str) -> str:
    """A path's name within a sentence."""
    return IN_TEXT.get(condition, f"“{path_name(condition)}”")


def stream_table(evidence: str, studies: Sequence[Study]) -> Table:
    """Every path and no dropout, against the best fixed dropout and against the law."""
    groups = []
    for study in studies:
        cited = Cited(study.source("stream"))
        rows: list[list[Parts]] = []
        for condition in [*paths(study), NONE]:
            fixed = against(study, condition, BEST_STATIC)
            if fixed is None:
                continue
            law = against(study, LAW, condition)
            rows.append(
                [
                    (study.label if not rows else "",),
                    (path_name(condition),),
                    dropouts(study, condition),
                    difference(cited, fixed),
                    (cited.p_value(fixed["p_holm"], place(fixed, "p_holm")),),
                    (SHORT[shown_direction(fixed)],),
                    difference(cited, law) if law else (DASH,),
                    (cited.p_value(law["p_holm"], place(law, "p_holm")) if law else DASH,),
                ]
            )
        groups.append(rows)
    return Table(
        name=f"stream-paths-{evidence}",
        caption=(
            "Final validation loss of each path less that of the best fixed dropout (chosen for each seed on the other "
            "seeds), and of the law less each other path, nats per token; negative is better. Paired by seed, with "
            "intervals at the 95 % level. The law against the best fixed dropout is the one contrast named beforehand, "
            "with its own p of the paired t test; every other p is adjusted by Holm's method. Shown: the direction "
            f"that interval and p bear out together. {class_words(studies)}",
        ),
        header=("corpus", "path", "dropout by stage", "less best fixed", "p", "shown", "law less path", "p"),
        align="llllrllr",
        groups=groups,
    )

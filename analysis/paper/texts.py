"""What it costs to use the law of one text on another: as it is, carried by bigrams, carried by a pilot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from analysis.bakeoff import Study as Runs
from analysis.bakeoff import judge_texts
from analysis.paper.blocks import Block, Cited, Paragraph, Parts, Ref, Table
from analysis.paper.studies import Study, class_words
from tune_dd.laws import DEFAULT_LAW, LAWS

# Column of the pairs' regret -> how it is called.
WAYS = {
    "raw": "as it is",
    "carried": "by bigrams",
    "piloted": "by a pilot",
    "best": "best scale",
    "own": "its own law",
}
SOURCE = "all calibrations"
LEAST_TEXTS = 5  # of which a rank correlation is told


def text_blocks(evidence: str, studies: Sequence[Study], runs: Runs) -> list[Block]:
    """A sentence over all pairs of texts and a table with a row per text; none where there is but one text."""
    pairs = judge_texts(runs)
    if pairs.empty:
        return []
    shares = overlaps(studies)
    table = texts_table(evidence, studies, pairs, shares)
    return [Paragraph((Ref(table.name), *over_all_pairs(pairs), *repetition(pairs, shares))), table]


def overlaps(studies: Sequence[Study]) -> dict[str, float]:
    """Regime -> the share of its validation text's 13-grams that its training text has too, where it was measured."""
    found: dict[str, float] = {}
    for study in studies:
        for config in study.analysis.experiment.configs:
            share = config.get("data", {}).get("manifest", {}).get("validation_overlap")
            if share is not None:
                found[str(config["regime"]["name"])] = float(share)
    return found


def repetition(pairs: pd.DataFrame, shares: Mapping[str, float]) -> Parts:
    """How the texts' scales go with how much they repeat themselves; nothing of a few texts, or of equal ones."""
    scales = np.log10(pairs["best_scale"]).groupby(pairs["regime"]).mean()
    known = [str(regime) for regime in scales.index if regime in shares]
    if len(known) < LEAST_TEXTS or len({shares[regime] for regime in known}) == 1:
        return ()
    found = spearmanr(scales[known], [shares[regime] for regime in known])
    cited = Cited(SOURCE)
    return (
        " What texts repeat goes with it: over ",
        cited.count(len(known), "config.data.manifest.validation_overlap, texts"),
        " texts the rank correlation of the scale at which a text's U counts with its overlap, the share of its "
        "validation text's 13-grams that its training text has too, is ",
        cited.number(float(found.statistic), "rank correlation of best_scale and validation_overlap", 2),
        " (p-value ",
        cited.p_value(float(found.pvalue), "rank correlation of best_scale and validation_overlap, p"),
        ").",
    )


def over_all_pairs(pairs: pd.DataFrame) -> Parts:
    cited = Cited(SOURCE)
    known = pairs[pairs["pilot_low"].notna()]
    held = (known["pilot_low"] <= known["best_scale"]) & (known["best_scale"] <= known["pilot_high"])

    def mean(way: str) -> Parts:
        return (cited.number(pairs[f"regret_{way}"].mean(), f"law_texts.regret_{way}, mean", 4),)

    compared = cited.count(int(pairs["scale"].notna().sum()), "law_texts.scale, pairs")
    return (
        " tells what the law of one text costs on another. Over ",
        cited.count(len(pairs), "law_texts, pairs"),
        " pairs of ",
        cited.count(pairs["regime"].nunique(), "law_texts.regime"),
        f" texts the {LAWS[DEFAULT_LAW].cells} form loses ",
        *mean("raw"),
        " nats per token as it is, ",
        *mean("carried"),
        " carried by bigrams (",
        compared,
        " pairs whose bigram losses compare), ",
        *mean("piloted"),
        " carried by a pilot, and ",
        *mean("own"),
        " where it was fitted to the text itself. The pilots' 95 % intervals hold the best scale in ",
        cited.number(float(held.mean()), "law_texts.pilot_low to pilot_high, share that holds best_scale", 2),
        " of the pairs.",
    )


def texts_table(evidence: str, studies: Sequence[Study], pairs: pd.DataFrame, shares: Mapping[str, float]) -> Table:
    """A row per text: the mean regret there of the laws of all others, and its overlap."""
    titles = {study.regime: study.title for study in studies}
    cited = Cited(SOURCE)
    rows: list[list[Parts]] = []
    for regime, own in pairs.groupby("regime", sort=False):
        means = ((f"regret_{way}", own[f"regret_{way}"].mean()) for way in WAYS)
        rows.append(
            [
                (titles[str(regime)],),
                (cited.count(len(own), f"law_texts, pairs, {regime}"),),
                *((cited.number(value, f"law_texts.{column}, {regime}", 4),) for column, value in means),
                (cited.number(shares.get(str(regime), np.nan), f"config.data.manifest.validation_overlap, {regime}"),),
            ]
        )
    return Table(
        name=f"texts-{evidence}",
        caption=(
            f"The {LAWS[DEFAULT_LAW].cells} law of every other text on each: mean regret, nats per token, as it is, "
            "with U scaled by bigrams, by a pilot and at best, and of the law fitted to that text, on the seeds that "
            "the pilots do not have; and the share of the text's validation 13-grams that its training text has too. "
            f"{class_words(studies)}",
        ),
        header=("text", "laws", *WAYS.values(), "overlap"),
        align="l" + "r" * (2 + len(WAYS)),
        groups=[sorted(rows, key=lambda row: str(row[0][0]))],
    )

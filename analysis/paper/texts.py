"""What it costs to use the law of one text on another: as it is, carried by counts, carried by a pilot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.bakeoff import Study as Runs
from analysis.bakeoff import judge_texts
from analysis.foretell import fit_rule
from analysis.paper.blocks import Block, Cited, Paragraph, Parts, Ref, Table
from analysis.paper.studies import Study, class_words
from analysis.texts import measure
from tune_dd.laws import DEFAULT_LAW, LAWS

# Column of the pairs' regret -> how it is called.
WAYS = {
    "raw": "as it is",
    "carried": "by counts",
    "piloted": "by a pilot",
    "best": "best scale",
    "own": "its own law",
}
SOURCE = "all calibrations"


def text_blocks(evidence: str, studies: Sequence[Study], runs: Runs) -> list[Block]:
    """A sentence over all pairs of texts and a table with a row per text; none where there is but one text."""
    pairs = judge_texts(runs)
    if pairs.empty:
        return []
    shares = overlaps(studies)
    table = texts_table(evidence, studies, pairs, shares)
    return [
        Paragraph(
            (
                Ref(table.name),
                *over_all_pairs(pairs),
                *counted(pairs, runs, {study.regime: study.title for study in studies}),
            )
        ),
        table,
    ]


def overlaps(studies: Sequence[Study]) -> dict[str, float]:
    """Regime -> the share of its validation text's 13-grams that its training text has too, where it was measured."""
    found: dict[str, float] = {}
    for study in studies:
        for config in study.analysis.experiment.configs:
            share = config.get("data", {}).get("manifest", {}).get("validation_overlap")
            if share is not None:
                found[str(config["regime"]["name"])] = float(share)
    return found


def counted(pairs: pd.DataFrame, runs: Runs, titles: Mapping[str, str]) -> Parts:
    """The rule by which counts foretell a scale, and what it told of texts that it was not fitted to; empty of few."""
    rule = fit_rule(measure(pairs, runs.texts))
    if rule is None:
        return ()
    known, cited = pairs[pairs["scale"].notna()], Cited(SOURCE)
    held = holds_best(known, "low", "high")
    missed = known.loc[~held, ["fitted_on", "regime"]]
    of_text = missed.stack().value_counts()
    return (
        " Over ",
        cited.count(len(rule.regimes), "measured_texts"),
        " texts what a text's U counts as goes with ",
        cited.number(rule.per_nat, "measured_texts, decades of U per nat of bigram loss", 2),
        " decades per nat that a bigram model loses less on it, and ",
        cited.number(rule.per_root, "measured_texts, decades of U per root of validation_overlap", 2),
        " per root of its overlap, the share of its validation text's 13-grams that its training text has too; pairs "
        "left out with both their texts are told to ",
        cited.number(rule.spread, "measured_texts, root mean square of pairs left out, decades", 3),
        " decades. Every pair is carried by the rule of other texts than its two, whose 95 % interval holds the best "
        "scale in ",
        cited.number(float(held.mean()), "law_texts.low to high, share that holds best_scale", 2),
        " of the pairs",
        *(
            (
                "; of the ",
                cited.count(len(missed), "law_texts.low to high, pairs that miss best_scale"),
                " that it misses, ",
                cited.count(int(of_text.iloc[0]), "law_texts.low to high, pairs that miss best_scale, of one text"),
                f" are from or to {titles.get(str(of_text.index[0]), str(of_text.index[0]))}",
            )
            if len(missed)
            else ()
        ),
        ".",
    )


def holds_best(pairs: pd.DataFrame, low: str, high: str) -> pd.Series[bool]:
    """Of each pair whether the interval in these columns holds its best scale."""
    return (pairs[low] <= pairs["best_scale"]) & (pairs["best_scale"] <= pairs[high])


def over_all_pairs(pairs: pd.DataFrame) -> Parts:
    cited = Cited(SOURCE)
    known = pairs[pairs["pilot_low"].notna()]
    held = holds_best(known, "pilot_low", "pilot_high")

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
        " carried by counts (",
        compared,
        " pairs whose counts compare), ",
        *mean("piloted"),
        " carried by a pilot, and ",
        *mean("own"),
        " where it was fitted to the text itself. The pilots' 95 % intervals hold the best scale in ",
        cited.number(float(held.mean()), "law_texts.pilot_low to pilot_high, share that holds best_scale", 3),
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
            "with U scaled by counts, by a pilot and at best, and of the law fitted to that text, on the seeds that "
            "the pilots do not have; and the share of the text's validation 13-grams that its training text has too. "
            f"{class_words(studies)}",
        ),
        header=("text", "laws", *WAYS.values(), "overlap"),
        align="l" + "r" * (2 + len(WAYS)),
        groups=[sorted(rows, key=lambda row: str(row[0][0]))],
    )

"""Schedules searched for: the best point beside the law and the fixed dropout that the search began with."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.paper.blocks import Block, Cited, Paragraph, Parts, Ref, Section, Table, join
from analysis.paper.studies import Study, by_class, class_words
from analysis.searched import ROLES, Searched

NAME = "search"


def section(studies: Sequence[Study]) -> Section:
    blocks: list[Block] = []
    found = [study for study in studies if study.analysis.search is not None and study.analysis.search.best is not None]
    for evidence, group in by_class(found):
        table = points_table(evidence, group)
        blocks += [
            Paragraph((*join([lead(study) for study in group]), " ", Ref(table.name), " gives their paths.")),
            table,
        ]
    return Section(
        NAME,
        "How much a schedule could gain",
        blocks,
        {"SearchAbstract": join([lead(s) for s in found])} if found else {},
    )


def searched_of(study: Study) -> Searched:
    if study.analysis.search is None:
        raise ValueError(f"{study.name} has no search")
    return study.analysis.search


def lead(study: Study) -> Parts:
    """The best point's lead over what was known."""
    search, cited = searched_of(study), Cited(study.source("search"))
    said: list[Parts] = []
    for row in search.contrasts.to_dict("records"):
        ends = (f"search.contrasts.low, {row['baseline']}", f"search.contrasts.high, {row['baseline']}")
        value = cited.number(row["difference"], f"search.contrasts.difference, {row['baseline']}", signed=True)
        said.append(
            (value, *cited.interval(row["low"], row["high"], ends, signed=True), f" from {ROLES[row['baseline']]}")
        )
    return (
        f"On {study.label} the best of ",
        cited.count(len(search.finished), "search.value"),
        " points ends ",
        *(join(said, " and ") or ("at one of the points that it began with",)),
        " (nats per token; chosen on the seeds that it is reported on, so this is a ceiling and no estimate).",
    )


def points_table(evidence: str, studies: Sequence[Study]) -> Table:
    groups = []
    for study in studies:
        search, cited = searched_of(study), Cited(study.source("search"))
        best = search.best or {}
        known = search.finished[search.finished["role"].isin(list(ROLES))].to_dict("records")
        rows: list[list[Parts]] = []
        for name, row in [("best point", best), *((ROLES[row["role"]], row) for row in known)]:
            path = [(cited.number(p, f"search.dropout, {row['condition']}", 2),) for p in search.dropouts(row)]
            rows.append(
                [
                    (study.label if not rows else "",),
                    (name,),
                    join(path),
                    (cited.number(row["value"], f"search.value, {row['condition']}", 4),),
                    (cited.count(row["n_seeds"], f"search.n_seeds, {row['condition']}"),),
                ]
            )
        groups.append(rows)
    return Table(
        name=f"search-{evidence}",
        caption=(
            "The best point of a search for a schedule and those that it began with: dropout by stage and validation "
            "loss (mean over seeds, nats per token). The best point's loss is flattered by its choice. "
            f"{class_words(studies)}",
        ),
        header=("corpus", "schedule", "dropout by stage", "loss", "seeds"),
        align="lllrr",
        groups=groups,
    )

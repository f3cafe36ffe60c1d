"""Schedules searched for: the best point beside the law and the fixed dropout that the search began with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.paper.blocks import DASH, Block, Cited, Paragraph, Parts, Ref, Section, Table, join
from analysis.paper.studies import Study, by_class, class_words
from analysis.searched import FITTED, ROLES, STATIC, Searched

NAME = "search"
# What a search began with, by its role. The law is of a form that was current then, which the table names.
BEGAN = {FITTED: "the law that it began with", STATIC: "the fixed dropout"}


def section(studies: Sequence[Study]) -> Section:
    blocks: list[Block] = []
    details: list[Block] = []
    found = [study for study in studies if study.analysis.search is not None and study.analysis.search.best is not None]
    for evidence, group in by_class(found):
        table = best_table(evidence, group)
        blocks += [Paragraph((*lead(group), " ", Ref(table.name), " gives the paths.")), table]
        details.append(points_table(evidence, group))
    sentences = {"SearchAbstract": lead(found, [STATIC])} if found else {}
    return Section(NAME, "How much a schedule could gain", blocks, sentences, details)


def searched_of(study: Study) -> Searched:
    if study.analysis.search is None:
        raise ValueError(f"{study.name} has no search")
    return study.analysis.search


def lead(studies: Sequence[Study], baselines: Sequence[str] = tuple(ROLES)) -> Parts:
    """The range over the searches of the best point's lead over what each began with."""
    cited = Cited(studies[0].source("search") if len(studies) == 1 else "all searches")
    said: list[Parts] = []
    for baseline in baselines:
        leads = sorted({own for study in studies if (own := lead_of(study, baseline)) is not None})
        if leads:
            column = f"search.contrasts.difference, {baseline}"
            ends = [(cited.number(value, column, signed=True),) for value in (leads[0], leads[-1])]
            said.append((*join(ends[: len(leads)], " to "), f" from {BEGAN[baseline]}"))
    return (
        "Direct search ends ",
        *(join(said, " and ") or ("at one of the points that it began with",)),
        " (",
        cited.count(len(studies), "search, runs"),
        f" {'search' if len(studies) == 1 else 'searches'}), flattered: its best was chosen on these seeds.",
    )


def lead_of(study: Study, baseline: str) -> float | None:
    """The best point of a search less one that it began with: 0 where it is that one, None where there is none."""
    row, best = contrast(study, baseline), searched_of(study).best or {}
    if row is None:
        return 0.0 if best.get("role") == baseline else None
    return float(row["difference"])


def contrast(study: Study, baseline: str) -> dict[Any, Any] | None:
    """The best point of a search against one that it began with; None where it is that one."""
    rows = searched_of(study).contrasts.to_dict("records")
    return next((row for row in rows if row["baseline"] == baseline), None)


def best_table(evidence: str, studies: Sequence[Study]) -> Table:
    """A row per search: its best point's path, and its lead."""
    rows: list[list[Parts]] = []
    for study in studies:
        search, cited = searched_of(study), Cited(study.source("search"))
        best = search.best or {}
        path = [(cited.number(p, f"search.dropout, {best['condition']}", 2),) for p in search.dropouts(best)]
        rows.append(
            [
                (study.label,),
                (cited.count(len(search.finished), "search.value"),),
                (cited.count(len(search.about["seeds"]), "suggestions.seeds"),),
                (str(search.about["law"]).replace("_", " "),),
                join(path),
                *(lead_over(cited, contrast(study, baseline), baseline) for baseline in ROLES),
            ]
        )
    return Table(
        name=f"search-best-{evidence}",
        caption=(
            "Searches for a schedule: points tried, seeds, the form of the law that the search began with, dropout by "
            "stage of the best point, and its validation loss less that of the points that the search began with (nats "
            "per token, paired by seed, with intervals at the 95 % level). The choice of the best flatters all. "
            f"{class_words(studies)}",
        ),
        header=("search", "points", "seeds", "law", "dropout by stage", "less that law", "less the fixed dropout"),
        align="lrrll" + "l" * len(ROLES),
        groups=[rows],
    )


def lead_over(cited: Cited, row: dict[Any, Any] | None, baseline: str) -> Parts:
    if row is None:
        return (DASH,)
    ends = (f"search.contrasts.low, {baseline}", f"search.contrasts.high, {baseline}")
    value = cited.number(row["difference"], f"search.contrasts.difference, {baseline}", signed=True)
    return (value, *cited.interval(row["low"], row["high"], ends, signed=True))


def points_table(evidence: str, studies: Sequence[Study]) -> Table:
    groups = []
    for study in studies:
        search, cited = searched_of(study), Cited(study.source("search"))
        best = search.best or {}
        known = search.finished[search.finished["role"].isin(list(ROLES))].to_dict("records")
        rows: list[list[Parts]] = []
        for name, row in [("best point", best), *((BEGAN[row["role"]], row) for row in known)]:
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

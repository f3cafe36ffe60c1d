"""Laws side by side beyond what they were fitted to: cells held out by kind, and streams."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.bakeoff import Study as Runs
from analysis.bakeoff import judge_cells, judge_streams, sort_runs, summarise_cells
from analysis.paper.blocks import DASH, Block, Cited, Paragraph, Parts, Ref, Section, Table, join, listed
from analysis.paper.studies import Study, by_class, class_words
from analysis.verdict import alike, level_laws, winner
from tune_dd.errors import UserError

NAME = "bakeoff"
FLOOR = "the optima themselves"
AIM = 0.01  # nats per token: how near to the best path a law's path should end


def section(studies: Sequence[Study]) -> Section:
    blocks: list[Block] = []
    sentences: dict[str, Parts] = {}
    for evidence, group in by_class(studies):
        runs = sorted_runs(group)
        if runs is None:
            continue
        every = judge_cells(runs)
        cells = summarise_cells(every) if len(every) else pd.DataFrame()
        streams = judge_streams(runs)
        if len(streams):
            streams = streams[streams.groupby("run")["law"].transform("nunique") > 1]
        said: list[Parts] = []
        if len(cells):
            table = cells_table(evidence, group, cells)
            said.append(ahead(cells))
            blocks += [Paragraph((Ref(table.name), " puts the forms side by side. ", *said[-1])), table]
        if len(streams):
            table = streams_table(evidence, group, streams)
            said.append(streamed(streams))
            blocks += [Paragraph((Ref(table.name), " does so on streams. ", *said[-1])), table]
        if len(cells) and len(streams):
            blocks.append(Paragraph((winner(cells, streams)[1],)))
        if said:
            sentences.setdefault("BakeoffAbstract", join(said))
    return Section(NAME, "Which law holds beyond its calibration", blocks, sentences)


def sorted_runs(studies: Sequence[Study]) -> Runs | None:
    try:
        return sort_runs([study.analysis.experiment for study in studies])
    except UserError:  # no calibration among them
        return None


def spoken(law: str) -> str:
    return law.replace("_", " ")


def ahead(cells: pd.DataFrame) -> Parts:
    """Which form has the least mean regret on each kind of hold-out; forms that are level are named together."""
    leading: dict[str, list[str]] = {}
    for kind, own in cells.groupby("kind", sort=False):
        leading.setdefault(alike([spoken(law) for law in level_laws(own)]), []).append(str(kind))
    said = [f"that of {forms} for {listed(kinds)}" for forms, kinds in leading.items()]
    return (f"The least mean regret is {listed(said)}.",)


def streamed(streams: pd.DataFrame) -> Parts:
    """How near each law comes to the best path of its stream, over the streams that it ran on."""
    cited = Cited("streams with several laws")
    said: list[Parts] = []
    for law, own in streams.groupby("law", sort=False):
        column = f"comparison.difference from the best static, mean over streams, {law}"
        mean = cited.number(own["against_static"].mean(), column, signed=True)
        near = cited.count(int((own["against_best"] <= AIM).sum()), f"against_best within {AIM}, {law}")
        n = cited.count(len(own), f"streams, {law}")
        said.append((f"{spoken(str(law))} ", mean, " (near the best path on ", near, " of ", n, ")"))
    limit = cited.number(AIM, "what counts as near", 2)
    return (
        "Final loss less that of the best fixed dropout, nats per token, mean over the streams that a law ran on: ",
        *join(said, "; "),
        ". Near is within ",
        limit,
        " of whatever path did best there.",
    )


def cells_table(evidence: str, studies: Sequence[Study], cells: pd.DataFrame) -> Table:
    cited = Cited("all calibrations and hold-outs")
    groups = []
    for kind, own in cells.groupby("kind", sort=False):
        rows: list[list[Parts]] = []
        for row in own.to_dict("records"):
            place = f"{kind}, {row['law']}"
            rows.append(
                [
                    (str(kind) if not rows else "",),
                    (spoken(row["law"]),),
                    (cited.count(row["n_cells"], f"law_cells.n_cells, {place}"),),
                    (
                        cited.number(row["regret_mean"], f"law_cells.regret_mean, {place}"),
                        *cited.interval(
                            row["low"], row["high"], (f"law_cells.low, {place}", f"law_cells.high, {place}")
                        ),
                    ),
                    (cited.number(row["regret_max"], f"law_cells.regret_max, {place}"),),
                    (cited.number(row["rmse"], f"law_cells.rmse, {place}"),),
                ]
            )
        floor = cited.number(own["floor_mean"].iloc[0], f"law_cells.floor_mean, {kind}")
        rows.append([("",), (FLOOR,), (DASH,), (floor,), (DASH,), (DASH,)])
        groups.append(rows)
    return Table(
        name=f"bakeoff-cells-{evidence}",
        caption=(
            "Forms of law fitted to every saved calibration and judged on cells beyond it: mean regret with a 95 % "
            "interval by a bootstrap over blocks of cells, the largest regret (nats per token), and the root mean "
            "square error of the dropout over interior cells. Last of each kind, what a law that knew each cell's "
            f"optimum would be charged for their noise and the clamp. {class_words(studies)}",
        ),
        header=("held out", "law", "cells", "mean regret", "largest", "error"),
        align="llrrrr",
        groups=groups,
    )


def streams_table(evidence: str, studies: Sequence[Study], streams: pd.DataFrame) -> Table:
    labels = {study.regime: study.title for study in studies}
    groups = []
    for _, own in streams.groupby("run", sort=False):
        rows: list[list[Parts]] = []
        first = own.iloc[0]
        title = f"{labels[first['regime']]}, {first['model']}; best path: {spoken(first['best_path'])}"
        for row in own.to_dict("records"):
            cited, place = Cited(row["run"]), row["condition"]
            ends = (f"comparison.low, {place}", f"comparison.high, {place}")
            near = (f"low of {place} less {row['best_path']}", f"high of {place} less {row['best_path']}")
            path = [(cited.number(float(p), f"metrics.dropout, {place}", 2),) for p in row["path"].split()]
            rows.append(
                [
                    (title,),
                    (spoken(row["law"]),),
                    join(path),
                    (
                        cited.number(row["against_static"], f"comparison.difference, {place}", signed=True),
                        *cited.interval(row["low"], row["high"], ends, signed=True),
                    ),
                    (
                        cited.number(row["against_best"], f"{place} less {row['best_path']}", signed=True),
                        *cited.interval(row["best_low"], row["best_high"], near, signed=True),
                    ),
                ]
            )
        groups.append(rows)
    return Table(
        name=f"bakeoff-streams-{evidence}",
        caption=(
            "Several laws on one stream, all frozen beforehand: dropout by stage, and final validation loss less that "
            "of the best fixed dropout and of the best path of that stream, whatever made it (chosen on the seeds "
            f"compared, so that distance is an upper bound), nats per token. {class_words(studies)}",
        ),
        header=("stream", "law", "dropout by stage", "less best fixed", "less best path"),
        align="lllrr",
        groups=groups,
        headed=True,
    )

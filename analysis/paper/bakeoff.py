"""Laws side by side beyond what they were fitted to: cells held out by kind, and streams."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.bakeoff import ANOTHER, BEYOND, judge_cells, judge_streams, sort_runs, summarise_cells
from analysis.bakeoff import Study as Runs
from analysis.comparison import METRICS as COMPARED
from analysis.paper.blocks import DASH, Block, Cited, Number, Paragraph, Parts, Ref, Section, Table, join
from analysis.paper.contrasts import LAW, against, signs
from analysis.paper.studies import Study, by_class, class_words
from analysis.paper.texts import text_blocks
from analysis.verdict import CARRIED, PILOTED, TYPICAL, TYPICAL_PILOTED, alike, level_laws, stream_leader, winner
from tune_dd.errors import UserError
from tune_dd.laws import LAWS, REFERENCE_LAW

NAME = "bakeoff"
TRAJECTORY = COMPARED[1]  # the mean loss along a stream
FLOOR = "the optima themselves"
# Kinds of hold-out without their letters; another is called as it is.
PLAIN = {
    "larger P": "larger models",
    "longer C": "longer training",
    "larger U": "more text",
    TYPICAL: "another corpus by the mean of the others' laws",
    TYPICAL_PILOTED: "another corpus by the mean of the others' laws and a pilot there",
    CARRIED: "another corpus by a law carried there by counts",
    PILOTED: "another corpus by a law carried there by a pilot",
}
IN_SHORT = (*BEYOND.values(), ANOTHER, TYPICAL_PILOTED)  # the kinds of which the abstract tells
AIM = 0.01  # nats per token: how near to the best path a law's path should end


def section(studies: Sequence[Study]) -> Section:
    blocks: list[Block] = []
    details: list[Block] = []
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
            table = forms_table(evidence, group, cells)
            said.append(ahead(cells[cells["kind"].isin(IN_SHORT)]))
            lead: Parts = (Ref(table.name), " puts the forms side by side. ", *ahead(cells), " ")
            blocks += [Paragraph((*lead, *corrected(cells, winner(cells, streams)[0]))), table]
            blocks += text_blocks(evidence, group, runs)
            details.append(cells_table(evidence, group, cells))
        if len(streams):
            table = stream_forms_table(evidence, group, streams)
            said.append(ahead_on_streams(streams))
            blocks += [Paragraph((Ref(table.name), " does so on streams. ", *join([said[-1], along(group)]))), table]
            details.append(streams_table(evidence, group, streams))
        if len(cells) and len(streams):
            best, why = winner(cells, streams)
            blocks.append(Paragraph((f"Preferred by these tables is {spoken(best)}. {spoken(why)}",)))
        if said:
            sentences.setdefault("BakeoffAbstract", join(said))
    return Section(NAME, "Which law holds beyond its calibration", blocks, sentences, details)


def sorted_runs(studies: Sequence[Study]) -> Runs | None:
    try:
        return sort_runs([study.analysis.experiment for study in studies])
    except UserError:  # no calibration among them
        return None


def spoken(law: str) -> str:
    return law.replace("_", " ")


def ahead(cells: pd.DataFrame) -> Parts:
    """Which forms have the least mean regret, as it is printed, on each kind of hold-out, and the reference form's."""
    leading: dict[str, list[pd.DataFrame]] = {}
    for _, own in cells.groupby("kind", sort=False):
        printed = own.assign(regret_mean=own["regret_mean"].round(3))
        leading.setdefault(alike([spoken(law) for law in level_laws(printed)]), []).append(own)
    said: list[Parts] = []
    for forms, kinds in leading.items():
        told: list[Parts] = []
        for own in kinds:
            kind = str(own["kind"].iloc[0])
            told.append((f"{PLAIN.get(kind, kind)} (", *beside(own, first=not said and not told), ")"))
        said.append((f"{forms} for ", *listed_parts(told)))
    return ("On cells beyond the calibrations the least mean regret is that of ", *join(said, "; "), ".")


def corrected(cells: pd.DataFrame, law: str) -> Parts:
    """What a form loses on each kind of hold-out once the noise of the cells' optima is taken off; empty if none."""
    cited = Cited("all calibrations and hold-outs")
    told: list[Parts] = []
    for row in cells[cells["law"] == LAWS[law].cells].to_dict("records"):
        kind = str(row["kind"])
        place = f"{kind}, {row['law']}"
        ends = (f"law_cells.corrected_low, {place}", f"law_cells.corrected_high, {place}")
        mean = cited.number(row["corrected_mean"], f"law_cells.corrected_mean, {place}", 4)
        told.append(
            (f"{PLAIN.get(kind, kind)} ", mean, *cited.interval(row["corrected_low"], row["corrected_high"], ends))
        )
    if not told:
        return ()
    return (
        "A regret is over a cell's fitted optimum, whose noise charges even the truth; less that charge ",
        f"{spoken(LAWS[law].cells)} loses: ",
        *join(told, "; "),
        ".",
    )


def beside(own: pd.DataFrame, *, first: bool) -> Parts:
    """The least mean regret on one kind of hold-out and the reference form's; the first says what they are."""
    cited, kind = Cited("all calibrations and hold-outs"), own["kind"].iloc[0]
    means = own.set_index("law")["regret_mean"]
    best = str(means.idxmin())
    least = cited.number(float(means[best]), f"law_cells.regret_mean, {kind}, {best}")
    unit = " nats per token" if first else ""
    if best == REFERENCE_LAW or REFERENCE_LAW not in means:
        return (least, unit)
    reference = cited.number(float(means[REFERENCE_LAW]), f"law_cells.regret_mean, {kind}, {REFERENCE_LAW}")
    return (least, f"{unit}, the reference form " if first else ", ", reference)


def listed_parts(parts: Sequence[Parts]) -> Parts:
    """``a``, ``a and b``, ``a, b and c``."""
    return parts[0] if len(parts) == 1 else (*join(parts[:-1], ", "), " and ", *parts[-1])


def ahead_on_streams(streams: pd.DataFrame) -> Parts:
    """The form with the lowest mean on streams, beside the reference form there. It is a mean, and no test."""
    leader = stream_leader(streams.pivot_table(index="run", columns="law", values="against_static"))
    if leader is None:
        return ("On streams no form ends as low as every other, on average over the streams that both ran on.",)
    own = streams[streams["law"] == leader]
    reference = streams[(streams["law"] == REFERENCE_LAW) & streams["run"].isin(own["run"])]
    both = leader != REFERENCE_LAW and len(reference) > 0
    if both:
        own = own[own["run"].isin(reference["run"])]
    cited = Cited("streams with several laws")
    mean, near = on_streams(cited, own)
    other, other_near = on_streams(cited, reference)
    return (
        f"On streams {spoken(leader)} ends no higher than any other form on those that both ran on, on average: over ",
        cited.count(len(own), f"streams, {leader}"),
        " that the reference form ran on too" if both else "",
        " it ends ",
        mean,
        *((" (the reference form ", other, ")") if both else ()),
        " nats per token from the best fixed dropout on average; less than ",
        cited.number(AIM, "what counts as near", 2),
        " above the best of all paths there on ",
        near,
        *((" (the reference form on ", other_near, ")") if both else ()),
        ".",
    )


def along(studies: Sequence[Study]) -> Parts:
    """On how many streams the law and the reference form's path differ in the mean loss along them."""
    rows = [row for study in studies if (row := against(study, LAW, f"{LAW}_{REFERENCE_LAW}", TRAJECTORY))]
    if not rows:
        return ()
    lower, _, higher = signs(rows)
    cited = Cited("streams with several laws")
    column = "comparison, by interval and Holm's p, trajectory_val_loss, law less the reference form"
    return (
        "In the mean over the ends of a stream's stages the law is shown lower than the reference form on ",
        cited.count(lower, column),
        " of ",
        cited.count(len(rows), column),
        " and higher on ",
        cited.count(higher, column),
        ".",
    )


def on_streams(cited: Cited, own: pd.DataFrame) -> tuple[Number, Number]:
    """Of a law the mean difference from the best fixed dropout, and on how many streams it is near the best path."""
    law = own["law"].iloc[0] if len(own) else ""
    mean = cited.number(
        own["against_static"].mean(), f"comparison.difference from the best static, mean, {law}", signed=True
    )
    return mean, cited.count(int((own["against_best"] <= AIM).sum()), f"against_best within {AIM}, {law}")


def forms_table(evidence: str, studies: Sequence[Study], cells: pd.DataFrame) -> Table:
    """A form in two lines, mean regret and its interval; a column per kind of hold-out."""
    cited = Cited("all calibrations and hold-outs")
    kinds = {str(kind): own.set_index("law") for kind, own in cells.groupby("kind", sort=False)}
    ranks = cells.groupby("kind")["regret_mean"].rank().groupby(cells["law"]).mean()
    sizes: list[Parts] = [
        (cited.count(int(own["n_cells"].iloc[0]), f"law_cells.n_cells, {kind}"),) for kind, own in kinds.items()
    ]
    floors: list[Parts] = [
        (cited.number(own["floor_mean"].iloc[0], f"law_cells.floor_mean, {kind}"),) for kind, own in kinds.items()
    ]
    groups: list[list[list[Parts]]] = [[[("cells",), *sizes]]]
    for law in sorted(ranks.index, key=lambda law: (ranks[law], law)):
        means: list[Parts] = []
        ends: list[Parts] = []
        for kind, own in kinds.items():
            place = f"{kind}, {law}"
            row = own.loc[law] if law in own.index else None
            columns = (f"law_cells.low, {place}", f"law_cells.high, {place}")
            means.append(
                (DASH,) if row is None else (cited.number(row["regret_mean"], f"law_cells.regret_mean, {place}"),)
            )
            ends.append(() if row is None else cited.interval(row["low"], row["high"], columns))
        groups.append([[(spoken(str(law)),), *means], [("",), *ends]])
    groups.append([[(FLOOR,), *floors]])
    return Table(
        name=f"bakeoff-cells-{evidence}",
        caption=(
            "Forms of law fitted to every saved calibration and judged on cells beyond it: mean regret, nats per "
            "token, with a 95 % interval by a bootstrap over blocks of cells; the lowest mean rank first. Beyond the "
            "rates tried a regret is that of a straight line on. Last, what "
            "a law that knew each cell's optimum would be charged for their noise and the clamp. What is by something "
            f"is another corpus too. {class_words(studies)}",
        ),
        header=("form", *(kind.removeprefix(f"{ANOTHER}, ") for kind in kinds)),
        align="l" + "r" * len(kinds),
        groups=groups,
    )


def stream_forms_table(evidence: str, studies: Sequence[Study], streams: pd.DataFrame) -> Table:
    """A row per form over the streams that it ran on, the reference form on the same ones beside it."""
    cited = Cited("streams with several laws")
    rows: list[list[Parts]] = []
    order = streams.groupby("law").agg(n=("run", "size"), mean=("against_static", "mean"))
    for law in order.sort_values(["n", "mean"], ascending=[False, True], kind="stable").index:
        own = streams[streams["law"] == law]
        shared = streams[(streams["law"] == REFERENCE_LAW) & streams["run"].isin(own["run"])]
        mean, near = on_streams(cited, own)
        away = cited.number(own["against_best"].mean(), f"less the best path, mean, {law}", signed=True)
        count = cited.count(len(own), f"streams, {law}")
        beside_it: Parts = (on_streams(cited, shared)[0],) if len(shared) == len(own) else (DASH,)
        rows.append([(spoken(str(law)),), (count,), (mean,), beside_it, (away,), (near,)])
    return Table(
        name=f"bakeoff-streams-{evidence}",
        caption=(
            "Forms of law on the streams that several were frozen for: final validation loss less that of the best "
            "fixed dropout, of the form and of the reference form on the same streams (a dash where it did not run on "
            "all), and less that of the best path of each stream, whatever made it (chosen on the seeds compared, so "
            "that distance is an upper bound), nats per token, mean over the streams; on how many of them the form is "
            f"within {AIM} of that path. A form that ran on less than half of these streams leads nothing. "
            f"{class_words(studies)}",
        ),
        header=("form", "streams", "less best fixed", "reference form there", "less best path", "near it"),
        align="lrrrrr",
        groups=[rows],
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
                    (
                        cited.number(row["corrected_mean"], f"law_cells.corrected_mean, {place}"),
                        *cited.interval(
                            row["corrected_low"],
                            row["corrected_high"],
                            (f"law_cells.corrected_low, {place}", f"law_cells.corrected_high, {place}"),
                        ),
                    ),
                    (cited.number(row["regret_max"], f"law_cells.regret_max, {place}"),),
                    (cited.number(row["rmse"], f"law_cells.rmse, {place}"),),
                ]
            )
        floor = cited.number(own["floor_mean"].iloc[0], f"law_cells.floor_mean, {kind}")
        rows.append([("",), (FLOOR,), (DASH,), (floor,), (DASH,), (DASH,), (DASH,)])
        groups.append(rows)
    return Table(
        name=f"bakeoff-kinds-{evidence}",
        caption=(
            "Forms of law fitted to every saved calibration and judged on cells beyond it: mean regret with a 95 % "
            "interval by a bootstrap over blocks of cells, the same corrected for noise, the largest regret (nats per "
            "token), and the root mean square error of the dropout over interior cells. Last of each kind, what a law "
            "that knew each cell's optimum would be charged for their noise and the clamp: the correction. "
            f"{class_words(studies)}",
        ),
        header=("held out", "law", "cells", "mean regret", "corrected", "largest", "error"),
        align="llrrrrr",
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
        name=f"bakeoff-paths-{evidence}",
        caption=(
            "Several laws on one stream, all frozen beforehand: dropout by stage, and final validation loss less that "
            "of the best fixed dropout and of the best path of that stream, whatever made it (chosen on the seeds "
            f"compared, so that distance is an upper bound), nats per token. {class_words(studies)}",
        ),
        header=("stream", "law", "dropout by stage", "less best fixed", "less best path"),
        align="lllrr",
        groups=groups,
    )

"""Streams: the law against the best fixed dropout, and the other paths. What is claimed follows the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.comparison import BEST_STATIC
from analysis.figures import curve_means
from analysis.paper import figures
from analysis.paper.blocks import DASH, Block, Cited, Figure, Paragraph, Parts, Ref, Section, Table, join, plain
from analysis.paper.contrasts import (
    LAW,
    NONE,
    PATHS,
    REVERSED,
    SHORT,
    Row,
    against,
    difference,
    dropouts,
    law_form,
    path_name,
    paths,
    place,
    primary,
    rows_of,
    shared_paths,
    shown_direction,
    signs,
)
from analysis.paper.stream_details import other_paths, primary_sentence, stream_table
from analysis.paper.studies import Study, by_class, class_words
from tune_dd.laws import DEFAULT_LAW

NAME = "streams"
MAX_PANELS = 6  # of streams side by side; of more, one of each corpus


def section(studies: Sequence[Study]) -> Section:
    blocks: list[Block] = []
    details: list[Block] = []
    shown = [study for study in studies if study.analysis.comparison is not None]
    for evidence, group in by_class(shown):
        named = [study for study in group if primary(study)]
        lead: list[Parts] = []
        if named:
            table = law_table(evidence, named)
            lead = [(Ref(table.name), " holds the law against the best fixed dropout."), law_tally(named)]
            lead += [by_form(named), order_sentence(group)]
            blocks += [Paragraph(join([part for part in lead if part])), table]
        others, forest = paths_table(evidence, group), forest_figure(evidence, group)
        path = path_figure(evidence, group)
        refs = (Ref(others.name), " and ", Ref(forest.name, "figure"), " do so for every path, ")
        more = (Ref(path.name, "figure"), " shows how the paths come to where they end. ", *decays(group))
        blocks += [Paragraph((*refs, *more)), others, forest, path]
        if directions := predicted(group):
            blocks.append(Paragraph(directions))
        details += [Paragraph(join([primary_sentence(study) for study in named]))] if named else []
        details += [Paragraph(join([other_paths(study) for study in group])), stream_table(evidence, group)]
    sentences = {"StreamsAbstract": abstract(shown), "StreamsOrder": order_sentence(shown)} if shown else {}
    return Section(NAME, "Streams: the law against the best fixed dropout", blocks, sentences, details)


def streams_of(studies: Sequence[Study]) -> Cited:
    return Cited(studies[0].source("stream") if len(studies) == 1 else "all streams of the class")


def law_table(evidence: str, studies: Sequence[Study]) -> Table:
    """The contrast named beforehand, a row per stream."""
    groups = []
    for title in dict.fromkeys(study.title for study in studies):
        rows: list[list[Parts]] = []
        for study in (study for study in studies if study.title == title):
            row, cited = primary_row(study), Cited(study.source("stream"))
            rows.append(
                [
                    (title,),
                    (study.mark or DASH,),
                    (law_form(study) or DASH,),
                    dropouts(study, LAW),
                    difference(cited, row),
                    (cited.p_value(row["p_holm"], place(row, "p_holm")),),
                    (SHORT[shown_direction(row)],),
                ]
            )
        groups.append(rows)
    return Table(
        name=f"streams-{evidence}",
        caption=(
            "The contrast named beforehand: final validation loss of the law's path less that of the best fixed "
            "dropout (chosen for each seed on the other seeds), nats per token; negative is better. Paired by seed, "
            "with an interval at the 95 % level and the p of the paired t test. Shown: the direction that both bear "
            f"out. {class_words(studies)}",
        ),
        header=("corpus", "stream", "form", "dropout by stage", "law less best fixed", "p", "shown"),
        align="llllrrl",
        groups=groups,
        headed=True,
    )


def primary_row(study: Study) -> Row:
    row = primary(study)
    if row is None:
        raise ValueError(f"{study.name} has no primary contrast")
    return row


def paths_table(evidence: str, studies: Sequence[Study]) -> Table:
    """Every path over the streams that it ran on, against the best fixed dropout and against the law."""
    owners: dict[str, list[Study]] = {}
    for study in studies:
        for condition in [*paths(study), NONE]:
            if against(study, condition, BEST_STATIC) is not None:
                owners.setdefault(condition, []).append(study)
    rest = sorted(owners.keys() - PATHS.keys() - {NONE}, key=lambda name: (-len(owners[name]), name))
    rows: list[list[Parts]] = []
    for condition in (name for name in (*PATHS, *rest, NONE) if name in owners):
        own = owners[condition]
        fixed = [row for study in own if (row := against(study, condition, BEST_STATIC))]
        law = [row for study in own if (row := against(study, LAW, condition))]
        cited = streams_of(own)
        rows.append(
            [
                (path_name(condition),),
                (cited.count(len(own), f"comparison, streams with {condition}"),),
                *tallied(cited, fixed, f"{condition} less {BEST_STATIC}"),
                *tallied(cited, law, f"{LAW} less {condition}"),
            ]
        )
    return Table(
        name=f"paths-{evidence}",
        caption=(
            "Every path over the streams that it ran on: final validation loss less that of the best fixed dropout, "
            "and of the law less that path, nats per token, mean over those streams; and on how many streams interval "
            f"and p (Holm's; of the law its own) show it lower, show neither, show it higher. {class_words(studies)}",
            *by_hand({name: owners[name] for name in rest}),
        ),
        header=("path", "streams", "less best fixed", *SHOWN_HEADER, "law less path", *SHOWN_HEADER),
        align="lrrrrrrrrr",
        groups=[rows],
    )


def by_hand(owners: Mapping[str, Sequence[Study]]) -> Parts:
    """The rates of the paths that have the same ones on every stream: those that nobody fitted."""
    said: list[Parts] = []
    for condition, own in owners.items():
        rates = [dropouts(study, condition) for study in own]
        if len(own) > 1 and len({plain(each) for each in rates}) == 1:
            said.append((f"{path_name(condition)} has ", *rates[0]))
    return (" By stage ", *join(said, ", "), ".") if said else ()


SHOWN_HEADER = ("lower", "not shown", "higher")


def tallied(cited: Cited, rows: Sequence[Row], what: str) -> list[Parts]:
    """The mean difference of some contrasts, and how many are shown lower, in neither direction, and higher."""
    if not rows:
        return [(DASH,)] * 4
    mean = float(np.mean([row["difference"] for row in rows]))
    shown = cited.number(mean, f"comparison.difference, {what}", signed=True)
    column = f"comparison, by interval and p, {what}"
    return [(shown,), *((cited.count(n, column),) for n in signs(rows))]


def forest_figure(evidence: str, studies: Sequence[Study]) -> Figure:
    data = [(path_name(condition), forest_frame(studies, condition)) for condition in shared_paths(studies)]
    return Figure(
        name=f"forest-{evidence}",
        caption=(
            "Final validation loss less that of the best fixed dropout, nats per token, paired by seed, with intervals "
            "at the 95 % level: a panel per path that most streams have, each with a scale of its own. "
            "Filled: interval and Holm's p (of the law: its own) bear the direction out together; hollow: not shown. "
            f"{class_words(studies)}",
        ),
        draw=lambda canvas: figures.draw_forest(canvas, data),
        size=(figures.WIDTH, figures.fitting(0.85, 0.24, len(studies))),
    )


def forest_frame(studies: Sequence[Study], condition: str) -> pd.DataFrame:
    """Columns label, difference, low, high, shown: a row per stream, NaN where it lacks the path."""
    records = []
    for study in studies:
        row = against(study, condition, BEST_STATIC) or dict.fromkeys(("difference", "low", "high"), np.nan)
        shown = bool(np.isfinite(row["difference"])) and shown_direction(row) in (-1, 1)
        records.append((study.lines, row["difference"], row["low"], row["high"], shown))
    return pd.DataFrame(records, columns=["label", "difference", "low", "high", "shown"])


def path_figure(evidence: str, studies: Sequence[Study]) -> Figure:
    chosen = panels(studies)
    conditions = [name for name in shared_paths(studies) if name not in (REVERSED, NONE)]
    data = [(study.lines, along_stream(study, conditions)) for study in chosen]
    columns = figures.STREAM_COLUMNS + (len(data) > MAX_PANELS)
    some = len(chosen) < len(studies)
    which = " Of each corpus one stream: of the default form if there is such, with most paths." if some else ""
    return Figure(
        name=f"stream-{evidence}",
        caption=(
            "Validation loss along the stream less that of the fixed dropout with the lowest mean final loss, mean "
            "over seeds, nats per token, against sampled tokens C; below zero is better. Dotted lines: a new prefix "
            f"begins.{which} "
            f"{class_words(studies)}",
        ),
        draw=lambda canvas: figures.draw_streams(canvas, data, columns),
        size=figures.grid_size(len(data), 1.7, columns),
    )


def panels(studies: Sequence[Study]) -> list[Study]:
    """The streams to draw: all of a few; of many, one of each corpus.

    That is one of the form that is now the default, if there is one; of several the one with most paths; of those the
    last.
    """
    if len(studies) <= MAX_PANELS:
        return list(studies)
    default = DEFAULT_LAW.replace("_", " ")

    def merit(study: Study) -> tuple[bool, int]:
        return law_form(study) == default, len(paths(study))

    chosen: dict[str, Study] = {}
    for study in studies:
        known = chosen.get(study.title)
        if known is None or merit(study) >= merit(known):
            chosen[study.title] = study
    return list(chosen.values())


def along_stream(study: Study, conditions: Sequence[str]) -> pd.DataFrame:
    """Columns name, stage, sampled_tokens, difference: these paths at each read-out."""
    table = study.analysis.experiment.table
    means = curve_means(table[table["phase"] == "stream"])
    last = means[(means["kind"] == "static") & (means["sampled_tokens"] == means["sampled_tokens"].max())]
    best = str(last.sort_values("val_loss", kind="stable")["condition"].iloc[0])
    base = means[means["condition"] == best].set_index("sampled_tokens")["val_loss"]
    shown = means[means["condition"].isin(conditions)].copy()
    shown["difference"] = shown["val_loss"] - shown["sampled_tokens"].map(base)
    shown["name"] = [path_name(name) for name in shown["condition"]]
    shown["baseline"] = f"fixed {best.removeprefix('static_')}"
    return shown[["name", "stage", "unique_tokens", "sampled_tokens", "difference", "baseline"]].reset_index(drop=True)


def law_tally(studies: Sequence[Study]) -> Parts:
    """On how many streams the law beats the best fixed dropout, loses to it, and neither is shown."""
    found, cited = signs([primary_row(study) for study in studies]), streams_of(studies)
    column = "comparison, by interval and t test, the primary contrast"
    won, neither, lost = (cited.count(n, column) for n in found)
    total = cited.count(len(studies), "comparison, the primary contrast")
    return (
        "By the contrast named beforehand the fitted law beats the best fixed dropout on ",
        *(won, " of ", total, " streams, is not shown to differ from it on ", neither, " and loses to it on ", lost),
        ".",
    )


def by_form(studies: Sequence[Study]) -> Parts:
    """The same by the form that the law had; nothing where it had one."""
    own: dict[str, list[Study]] = {}
    for study in studies:
        own.setdefault(law_form(study), []).append(study)
    if len(own) < 2 or "" in own:
        return ()
    said: list[Parts] = []
    for form, group in sorted(own.items(), key=lambda item: (-len(item[1]), item[0])):
        cited, column = streams_of(group), f"comparison, the primary contrast, {form}"
        won = cited.count(int(signs([primary_row(study) for study in group])[-1]), column)
        said.append((f"{form} on ", won, " of ", cited.count(len(group), column)))
    return ("By the form that the law had, it does so as ", *join(said, ", as "), ".")


def abstract(studies: Sequence[Study]) -> Parts:
    """What the primary contrasts show, class by class."""
    groups = list(by_class([study for study in studies if primary(study)]))
    if not groups:
        return ("No stream was run with the contrast named beforehand.",)
    if len(groups) == 1:
        return law_tally(groups[0][1])
    return join([(*law_tally(group)[:-1], f" (class: {evidence}).") for evidence, group in groups])


def decays(studies: Sequence[Study]) -> Parts:
    """On how many streams some decay that is not the law beats the best fixed dropout."""
    won = 0
    for study in studies:
        others = [name for name in paths(study) if name not in (LAW, REVERSED)]
        rows = [row for name in others if (row := against(study, name, BEST_STATIC))]
        won += any(shown_direction(row) == -1 for row in rows)
    cited = streams_of(studies)
    return (
        "Some other decay beats the best fixed dropout on ",
        cited.count(won, "comparison, by interval and Holm's p"),
        " of ",
        cited.count(len(studies), "comparison"),
        " streams (by interval and Holm's p; which decay was not named beforehand).",
    )


def order_sentence(studies: Sequence[Study]) -> Parts:
    """Whether the order of the law's rates matters: the law less its reverse, by model."""
    rows: dict[tuple[int, str], list[Row]] = {}
    for study in studies:
        if row := against(study, LAW, REVERSED):
            table = study.analysis.experiment.table
            stream = table[table["phase"] == "stream"].iloc[0]
            rows.setdefault((int(stream["n_params"]), str(stream["model"])), []).append(row)
    if not rows:
        return ("No stream was run with the law reversed.",)
    cited = Cited(studies[0].source("stream") if len(studies) == 1 else "all streams")
    said: list[Parts] = [
        (
            cited.count(int(signs(own)[-1]), f"comparison, by interval and Holm's p, {model}"),
            " of ",
            cited.count(len(own), f"comparison, {model}"),
            f" streams of {model}",
        )
        for (_, model), own in sorted(rows.items())
    ]
    return ("The law's rates in reverse are shown to end higher than the law on ", *join(said, ", "), ".")


def predicted(studies: Sequence[Study]) -> Parts:
    """How many of the directions written down before the streams came out so."""
    borne = refuted = total = 0
    for study in studies:
        frame = study.analysis.predictions
        entries = frame.to_dict("records") if "predicted" in frame else []
        for entry in entries:
            if isinstance(entry.get("predicted"), str) and isinstance(entry.get("condition"), str):
                rows = rows_of(study, entry["metric"])
                own = (row for row in rows if row["condition"] == entry["condition"] and row["baseline"] == BEST_STATIC)
                row = next(own, None)
                sign = None if row is None else shown_direction(row)
                expected = -1 if entry["predicted"].startswith("below") else 1
                total += 1
                borne += sign == expected
                refuted += sign == -expected
    if not total:
        return ()
    cited = streams_of(studies)
    return (
        "Before the streams were trained the program wrote down the direction of ",
        cited.count(total, "predictions.predicted"),
        " contrasts (final loss and mean along the stream, the law and its reverse): ",
        cited.count(borne, "predictions, comparison"),
        " are borne out, ",
        cited.count(refuted, "predictions, comparison"),
        " are refuted, and of the others no direction is shown.",
    )

"""Streams: the law against the best fixed dropout, and the other paths. What is claimed follows the numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.comparison import BEST_STATIC
from analysis.figures import curve_means
from analysis.paper import figures
from analysis.paper.blocks import DASH, Block, Cited, Figure, Paragraph, Parts, Ref, Section, Table, join, listed
from analysis.paper.studies import Study, by_class, class_words
from analysis.words import direction, t_test

NAME = "streams"
FINAL = "final_val_loss"
PATHS = {"law": "the law", "reversed_law": "the law reversed", "linear_decay": "straight line"}
IN_TEXT = {"law": "the law", "reversed_law": "the law reversed", "linear_decay": "the straight line"}
SHOWN = {-1: "beats", 0: "is not shown to differ from", 1: "loses to", None: "cannot be told from"}
SHORT = {-1: "lower", 0: "not shown", 1: "higher", None: DASH}
Row = dict[Any, Any]


def section(studies: Sequence[Study]) -> Section:
    blocks: list[Block] = []
    shown = [study for study in studies if study.analysis.comparison is not None]
    for evidence, group in by_class(shown):
        table, forest, path = (
            stream_table(evidence, group),
            forest_figure(evidence, group),
            path_figure(evidence, group),
        )
        blocks.append(Paragraph(join([primary_sentence(study) for study in group if primary(study)])))
        lead = (Ref(table.name), " and ", Ref(forest.name, "figure"), " hold the other paths beside it, ")
        more = (Ref(path.name, "figure"), " how they come about. ", *join([other_paths(study) for study in group]))
        blocks += [Paragraph((*lead, *more)), table, forest, path]
        if directions := predicted(group):
            blocks.append(Paragraph(directions))
    named = [study for study in shown if primary(study)]
    sentences = {}
    if named:
        sentences = {"StreamsAbstract": abstract(named), "StreamsOrder": order_sentence(shown)}
    return Section(NAME, "Streams: the law against the best fixed dropout", blocks, sentences)


def rows_of(study: Study, metric: str = FINAL) -> list[Row]:
    comparison = study.analysis.comparison
    return [] if comparison is None else comparison[comparison["metric"] == metric].to_dict("records")


def primary(study: Study) -> Row | None:
    return next((row for row in rows_of(study) if row["primary"]), None)


def against(study: Study, condition: str, baseline: str) -> Row | None:
    """The contrast of a condition and a baseline in final loss; against the best static whatever stands for it."""
    for row in rows_of(study):
        static = row["baseline"] in (BEST_STATIC, "mean_static")
        if row["condition"] == condition and (static if baseline == BEST_STATIC else row["baseline"] == baseline):
            return row
    return None


def shown_direction(row: Row) -> int | None:
    """By interval and t test; the primary contrast by its own p, all others by Holm's."""
    return direction(row, float(row["p_holm"]))


def path_name(condition: str) -> str:
    return PATHS.get(condition, condition.replace("_", " "))


def paths(study: Study) -> list[str]:
    """The conditions that are no fixed dropout: the law first, then its relatives, then those by hand."""
    rows = study.analysis.experiment.table
    stream = rows[rows["phase"] == "stream"]
    names = stream.loc[stream["kind"] != "static", "condition"].unique()
    known = {name: number for number, name in enumerate(PATHS)}
    return sorted(map(str, names), key=lambda name: (known.get(name, len(known)), name))


def dropouts(study: Study, condition: str) -> Parts:
    rows = study.analysis.experiment.table
    own = rows[(rows["phase"] == "stream") & (rows["condition"] == condition)].drop_duplicates("stage")
    cited = Cited(study.source("stream"))
    numbers = [cited.number(value, f"metrics.dropout, {condition}", 2) for value in own.sort_values("stage")["dropout"]]
    return join([(replace(number, text=number.text.removeprefix("0")),) for number in numbers])


def chosen_static(cited: Cited, row: Row) -> Parts:
    """The fixed dropouts that the best static stood for, from the contrast's notes."""
    names = re.findall(r"static_(\d\.\d+)", str(row["notes"]))
    rates: list[Parts] = [(cited.number(float(name), place(row, "notes"), 2),) for name in names]
    return ("rate ", *join(rates, " or ")) if rates else ("the mean of the fixed rates",)


def difference(cited: Cited, row: Row) -> Parts:
    value = cited.number(row["difference"], place(row, "difference"), signed=True)
    return (value, *cited.interval(row["low"], row["high"], (place(row, "low"), place(row, "high")), signed=True))


def place(row: Row, column: str) -> str:
    return f"comparison.{column}, {row['condition']} less {row['baseline']}, {row['metric']}"


def stream_table(evidence: str, studies: Sequence[Study]) -> Table:
    """Every path and no dropout, against the best fixed dropout and against the law."""
    groups = []
    for study in studies:
        cited = Cited(study.source("stream"))
        rows: list[list[Parts]] = []
        for condition in [*paths(study), "static_0.00"]:
            fixed = against(study, condition, BEST_STATIC)
            if fixed is None:
                continue
            law = against(study, "law", condition)
            rows.append(
                [
                    (study.label if not rows else "",),
                    ("no dropout" if condition == "static_0.00" else path_name(condition),),
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
        name=f"streams-{evidence}",
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
        headed=True,
    )


def primary_sentence(study: Study) -> Parts:
    row = primary(study)
    if row is None:
        return ()
    cited = Cited(study.source("stream"))
    name, p = t_test(pd.Series(row))
    column = "p_welch" if row["method"] == "welch" else "p_paired_t"
    return (
        f"On {study.label} the law {SHOWN[shown_direction(row)]} the best fixed dropout (",
        *chosen_static(cited, row),
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
    others = [name for name in paths(study) if name != "law"]
    for baseline, words in ((BEST_STATIC, "the best fixed dropout"), ("law", "the law")):
        by_sign: dict[int, list[str]] = {}
        for name in others:
            row = against(study, name, BEST_STATIC) if baseline == BEST_STATIC else against(study, "law", name)
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


def forest_figure(evidence: str, studies: Sequence[Study]) -> Figure:
    data = [(study.label, forest_frame(study)) for study in studies]
    rows = max(len(frame) for _, frame in data)
    return Figure(
        name=f"forest-{evidence}",
        caption=(
            "Final validation loss less that of the best fixed dropout, nats per token, paired by seed, with intervals "
            "at the 95 % level. Filled: a path or fixed rate whose difference interval and Holm's p (the law: its own) "
            f"bear out together; hollow: not shown. {class_words(studies)}",
        ),
        draw=lambda canvas: figures.draw_forest(canvas, data),
        size=figures.grid_size(len(data), 1, 0.75 + 0.16 * rows),
    )


def forest_frame(study: Study) -> pd.DataFrame:
    """Columns name, difference, low, high, shown, path: the paths first, then the fixed rates as they rise."""
    records = []
    statics = sorted({str(row["condition"]) for row in rows_of(study)} - set(paths(study)))
    for condition in [*paths(study), *statics]:
        row = against(study, condition, BEST_STATIC)
        if row is not None:
            path = condition not in statics
            name = path_name(condition) if path else f"fixed {condition.removeprefix('static_')}"
            shown = shown_direction(row) in (-1, 1)
            records.append((name, row["difference"], row["low"], row["high"], shown, path))
    return pd.DataFrame(records, columns=["name", "difference", "low", "high", "shown", "path"])


def path_figure(evidence: str, studies: Sequence[Study]) -> Figure:
    data = [(study.label, along_stream(study)) for study in studies]
    return Figure(
        name=f"stream-{evidence}",
        caption=(
            "Validation loss along the stream less that of the fixed dropout with the lowest mean final loss, mean "
            "over seeds, nats per token; below zero is better. Dotted lines: a new prefix begins. "
            f"{class_words(studies)}",
        ),
        draw=lambda canvas: figures.draw_streams(canvas, data),
        size=figures.grid_size(len(data), 1, 1.9, figures.STREAM_COLUMNS),
    )


def along_stream(study: Study) -> pd.DataFrame:
    """Columns name, stage, sampled_tokens, difference: every path and no dropout, at each read-out."""
    table = study.analysis.experiment.table
    means = curve_means(table[table["phase"] == "stream"])
    last = means[(means["kind"] == "static") & (means["sampled_tokens"] == means["sampled_tokens"].max())]
    best = str(last.sort_values("val_loss", kind="stable")["condition"].iloc[0])
    base = means[means["condition"] == best].set_index("sampled_tokens")["val_loss"]
    shown = means[means["condition"].isin([*paths(study), "static_0.00"])].copy()
    shown["difference"] = shown["val_loss"] - shown["sampled_tokens"].map(base)
    shown["name"] = ["no dropout" if name == "static_0.00" else path_name(name) for name in shown["condition"]]
    shown["baseline"] = f"fixed {best.removeprefix('static_')}"
    return shown[["name", "stage", "unique_tokens", "sampled_tokens", "difference", "baseline"]].reset_index(drop=True)


def verdicts(studies: Sequence[Study]) -> Iterator[tuple[str, list[str]]]:
    """Verb -> corpora on which the law does that to the best fixed dropout."""
    for sign in (-1, 0, 1, None):
        labels = [study.label for study in studies if (row := primary(study)) and shown_direction(row) == sign]
        if labels:
            yield SHOWN[sign], labels


def abstract(studies: Sequence[Study]) -> Parts:
    """What the primary contrasts show, corpus by corpus and class by class."""
    parts: list[Parts] = []
    for evidence, group in by_class(studies):
        said = [f"{verb} the best fixed dropout on {listed(labels)}" for verb, labels in verdicts(group)]
        said[1:] = [text.replace("the best fixed dropout", "it") for text in said[1:]]
        parts.append((f"By the contrast named beforehand the fitted law {listed(said)} (class: {evidence}).",))
        parts.append(decays(group))
    return join(parts)


def decays(studies: Sequence[Study]) -> Parts:
    """On how many corpora some decay that is not the law beats the best fixed dropout."""
    cited = Cited(studies[0].source("stream") if len(studies) == 1 else "all streams of the class")
    won = 0
    for study in studies:
        others = [name for name in paths(study) if name not in ("law", "reversed_law")]
        rows = [row for name in others if (row := against(study, name, BEST_STATIC))]
        won += any(shown_direction(row) == -1 for row in rows)
    return (
        "Some other decay beats the best fixed dropout on ",
        cited.count(won, "comparison, by interval and Holm's p"),
        " of ",
        cited.count(len(studies), "comparison"),
        " streams (by interval and Holm's p; which decay was not named beforehand).",
    )


def order_sentence(studies: Sequence[Study]) -> Parts:
    """Whether the order of the law's rates matters: the law less its reverse."""
    rows = [(study, row) for study in studies if (row := against(study, "law", "reversed_law"))]
    if not rows:
        return ("No stream was run with the law reversed.",)
    cited = Cited(rows[0][0].source("stream") if len(rows) == 1 else "all streams")
    won = sum(shown_direction(row) == -1 for _, row in rows)
    return (
        "The same rates in the reverse order are shown to end higher than the law on ",
        cited.count(won, "comparison, by interval and Holm's p"),
        " of ",
        cited.count(len(rows), "comparison"),
        " streams.",
    )


def predicted(studies: Sequence[Study]) -> Parts:
    """How many of the directions written down before the streams came out so."""
    borne = refuted = total = 0
    for study in studies:
        frame = study.analysis.predictions
        entries = frame.to_dict("records") if "predicted" in frame else []
        for entry in entries:
            if isinstance(entry.get("predicted"), str) and isinstance(entry.get("condition"), str):
                row = next(
                    (
                        row
                        for row in rows_of(study, entry["metric"])
                        if row["condition"] == entry["condition"] and row["baseline"] == BEST_STATIC
                    ),
                    None,
                )
                sign = None if row is None else shown_direction(row)
                expected = -1 if entry["predicted"].startswith("below") else 1
                total += 1
                borne += sign == expected
                refuted += sign == -expected
    if not total:
        return ()
    cited = Cited(studies[0].source("stream") if len(studies) == 1 else "all streams of the class")
    return (
        "Before the streams were trained the program wrote down the direction of ",
        cited.count(total, "predictions.predicted"),
        " contrasts (final loss and mean along the stream, the law and its reverse): ",
        cited.count(borne, "predictions, comparison"),
        " are borne out, ",
        cited.count(refuted, "predictions, comparison"),
        " are refuted, and of the others no direction is shown.",
    )

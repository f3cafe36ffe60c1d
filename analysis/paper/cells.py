"""Where the best dropout lies: a table and a figure of the cells' optima, and how they move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures import count_text
from analysis.paper import figures
from analysis.paper.blocks import DASH, Block, Cited, Figure, Paragraph, Parts, Ref, Section, Table
from analysis.paper.studies import Study, by_class, class_words
from analysis.terminal import at_zero
from analysis.words import change

NAME = "cells"
Row = dict[Any, Any]  # of model_selection.csv


def section(studies: Sequence[Study]) -> Section:
    blocks: list[Block] = []
    details: list[Block] = []
    # What was held out has a section of its own.
    shown = [study for study in studies if len(study.analysis.selection) and not study.held_out]
    for evidence, group in by_class(shown):
        table, figure, gains = (
            optimum_table(evidence, group),
            optimum_figure(evidence, group),
            gain_table(evidence, group),
        )
        lead = (Ref(table.name), " gives the best dropout after the longest training, ", Ref(figure.name, "figure"))
        more = (" that of all cells, ", Ref(gains.name), " what dropout gains. ")
        blocks += [Paragraph((*lead, *more, *movement(group))), table, figure, gains]
        details.append(detail_table(evidence, group))
    sentences = {"CellsAbstract": abstract(shown)} if shown else {}
    return Section(NAME, "Where the best dropout lies", blocks, sentences, details)


def models_of(study: Study) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Phase, model and cells of each model, by size."""
    groups = study.analysis.selection.groupby(["n_params", "phase", "model"], sort=True)
    for (_, phase, model), cells in groups:
        yield str(phase), str(model), cells


def last_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of the longest training, by U."""
    chosen = cells[cells["sampled_tokens"] == cells["sampled_tokens"].max()].sort_values("unique_tokens")
    result: pd.DataFrame = chosen.reset_index(drop=True)
    return result


def optimum(cited: Cited, row: Row) -> Parts:
    """The optimum with its interval; of a censored cell the bound that its interval supports."""
    low, high = "model_selection.fitted_low", "model_selection.fitted_high"
    if row["status"] == "no_signal":
        return ("no signal",)
    if row["status"] == "interior":
        best = cited.number(row["fitted_optimum"], "model_selection.fitted_optimum", 2)
        return (best, *cited.interval(row["fitted_low"], row["fitted_high"], (low, high), 2))
    sign, column = ("≤ ", "fitted_high") if row["status"] == "censored_low" else ("≥ ", "fitted_low")
    if not np.isfinite(row[column]):
        return (cited.number(row["grid_optimum"], "model_selection.grid_optimum", 2), " (edge)")
    if at_zero(row) and not row[column]:
        return (cited.number(0.0, f"model_selection.{column}", 0),)
    return (sign, cited.number(row[column], f"model_selection.{column}", 2))


def optimum_table(evidence: str, studies: Sequence[Study]) -> Table:
    return table_by_prefix(
        studies,
        optimum,
        f"optimum-{evidence}",
        "Best dropout after the longest training of each model, with its interval at the 95 % level, by unique tokens "
        "U. Where the lowest or highest rate tried did best (a censored cell) stands the end of the interval that "
        "bounds the optimum; 0 where no rate above it is left; no signal where the rates are not shown to differ.",
    )


def gain_table(evidence: str, studies: Sequence[Study]) -> Table:
    return table_by_prefix(
        studies,
        gain,
        f"gain-{evidence}",
        "Gain in the same cells: the validation loss without dropout less that at the best rate above zero, nats per "
        "token, with an interval at the 95 % level that holds whichever rate was best.",
    )


def table_by_prefix(studies: Sequence[Study], show: Callable[[Cited, Row], Parts], name: str, caption: str) -> Table:
    """A row per corpus and model, a column per U, at the longest training."""
    series = [(study, *model) for study in studies for model in models_of(study)]
    prefixes = sorted({int(u) for *_, cells in series for u in last_cells(cells)["unique_tokens"]})
    groups = []
    for study in studies:
        rows: list[list[Parts]] = []
        for phase, model, cells in models_of(study):
            cited, last = Cited(study.source(phase)), last_cells(cells)
            by_prefix = {row["unique_tokens"]: row for row in last.to_dict("records")}
            sampled = int(last["sampled_tokens"].iloc[0])
            rows.append(
                [
                    (study.label if not rows else "",),
                    (model,),
                    (cited.count(sampled, "model_selection.sampled_tokens", count_text(sampled)),),
                    *(show(cited, by_prefix[u]) if u in by_prefix else (DASH,) for u in prefixes),
                ]
            )
        groups.append(rows)
    return Table(
        name=name,
        caption=(f"{caption} {class_words(studies)}",),
        header=("corpus", "model", "C", *(f"U = {count_text(u)}" for u in prefixes)),
        align="llr" + "l" * len(prefixes),
        groups=groups,
    )


def detail_table(evidence: str, studies: Sequence[Study]) -> Table:
    """Plateau and gain of the same cells."""
    groups = []
    for study in studies:
        rows: list[list[Parts]] = []
        for phase, model, cells in models_of(study):
            cited = Cited(study.source(phase))
            for row in last_cells(cells).to_dict("records"):
                rows.append(
                    [
                        (study.label if not rows else "",),
                        (model,),
                        (
                            cited.count(
                                row["unique_tokens"], "model_selection.unique_tokens", count_text(row["unique_tokens"])
                            ),
                        ),
                        plateau(cited, row),
                        gain(cited, row),
                    ]
                )
        groups.append(rows)
    return Table(
        name=f"plateau-{evidence}",
        caption=(
            "The same cells: plateau (the rates not shown worse than the best) and gain, the validation loss without "
            f"dropout less that at the best rate above zero, nats per token. {class_words(studies)}",
        ),
        header=("corpus", "model", "U", "plateau", "gain"),
        align="llrll",
        groups=groups,
    )


def plateau(cited: Cited, row: Row) -> Parts:
    if not np.isfinite(row["plateau_low"]):
        return (DASH,)
    low, high = (cited.number(row[name], f"model_selection.{name}", 2) for name in ("plateau_low", "plateau_high"))
    return (low,) if low.value == high.value else (low, " to ", high)


def gain(cited: Cited, row: Row) -> Parts:
    columns = ("model_selection.improvement_low", "model_selection.improvement_high")
    value = cited.number(row["improvement"], "model_selection.improvement", 2)
    return (value, *cited.interval(row["improvement_low"], row["improvement_high"], columns, 2))


def optimum_figure(evidence: str, studies: Sequence[Study]) -> Figure:
    data = figures.optimum_frames(studies)
    whole = len(data) == sum(1 for study in studies for _ in models_of(study))
    panels = "corpus and model" if whole else "corpus, of its largest model"
    return Figure(
        name=f"optimum-{evidence}",
        caption=(
            f"Best dropout against unique tokens U, a colour per number of sampled tokens C, a panel per {panels}. "
            "Bars: intervals at the 95 % level; hollow triangles: censored cells, the bar reaching to the bound; "
            "crosses: cells without a signal; lines: the fitted law. "
            f"{class_words(studies)}",
        ),
        draw=lambda canvas: figures.draw_optima(canvas, data),
        size=figures.grid_size(len(data), 1.6, figures.columns_of(len(data))),
    )


def trends(study: Study) -> Iterator[tuple[str, int]]:
    """Of each model the sign of the optimum's move from first cell to last, 0 if none is shown.

    ``U``: after the longest training; ``C`` and ``C, largest U``: on the smallest prefix and on the largest.
    """
    for _, _, cells in models_of(study):
        yield from moves("U", last_cells(cells))
        prefixes = cells["unique_tokens"]
        yield from moves("C", cells[prefixes == prefixes.min()].sort_values("sampled_tokens"))
        if prefixes.nunique() > 1:
            yield from moves("C, largest U", cells[prefixes == prefixes.max()].sort_values("sampled_tokens"))


def moves(by: str, cells: pd.DataFrame) -> Iterator[tuple[str, int]]:
    rows = cells.to_dict("records")
    if len(rows) > 1:
        yield by, change(rows[0], rows[-1]) or 0


def tally(studies: Sequence[Study], letter: str, sign: int) -> Parts:
    """``k of n`` series of cells whose optimum is shown to move that way."""
    found = [move for study in studies for by, move in trends(study) if by == letter]
    cited = Cited(studies[0].name if len(studies) == 1 else "all of these studies")
    column = "model_selection, intervals of the first and last cell"
    return (cited.count(found.count(sign), column), " of ", cited.count(len(found), column))


def movement(studies: Sequence[Study]) -> Parts:
    """How the optimum moves with U and C, claimed where the intervals of a series' ends do not meet."""
    return (
        "A move of the best dropout is claimed where the intervals of the first and the last cell of a series do not "
        "meet. From the smallest to the largest prefix it falls in ",
        *tally(studies, "U", -1),
        " series (one per corpus and model) and rises in ",
        *tally(studies, "U", 1),
        ". From the first to the last read-out on the smallest prefix it rises in ",
        *tally(studies, "C", 1),
        " and falls in ",
        *tally(studies, "C", -1),
        "; on the largest it rises in ",
        *tally(studies, "C, largest U", 1),
        ".",
    )


def abstract(studies: Sequence[Study]) -> Parts:
    return (
        "The best dropout is shown to fall as the text grows in ",
        *tally(studies, "U", -1),
        " series of cells, and to rise with training on it in ",
        *tally(studies, "C", 1),
        " on the smallest prefix and ",
        *tally(studies, "C, largest U", 1),
        " on the largest.",
    )

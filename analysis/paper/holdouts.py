"""Hold-outs: what a frozen law said of cells before they were trained, beside what came out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.companions import read_predictions
from analysis.figures import count_text
from analysis.paper.blocks import DASH, Block, Cited, Paragraph, Parts, Ref, Section, Table, join
from analysis.paper.cells import optimum
from analysis.paper.studies import Study, by_class, class_words

NAME = "holdouts"
KEYS = ["model", "unique_tokens", "sampled_tokens"]  # of a cell within a study
MAX_ROWS = 24  # of cells in the table; the summary above it counts them all


def section(studies: Sequence[Study]) -> Section:
    blocks: list[Block] = []
    found = [(study, frame) for study in studies if len(frame := held_out_cells(study))]
    frames = {study.name: frame for study, frame in found}
    for evidence, group in by_class([study for study, _ in found]):
        table, detail = summary_table(evidence, group, frames), cell_table(evidence, group, frames)
        lead = (Ref(table.name), " sums up and ", Ref(detail.name), " lists what came out. ")
        said = join([sentence(study, frames[study.name]) for study in group])
        blocks += [Paragraph((*lead, *said)), table, detail]
    sentences = {"HoldoutsAbstract": abstract(found)} if found else {}
    return Section(NAME, "Predictions written down before training", blocks, sentences)


def held_out_cells(study: Study) -> pd.DataFrame:
    """Predicted cells that were measured: law, model, U, C, the prediction with its interval and the cell's row.

    Only what a static run's own predictions.json says counts: a stream's stages are no cells.
    """
    columns = ["law", "model", "unique_tokens", "sampled_tokens", "dropout", "low", "high"]
    folders = tuple(study.analysis.experiment.folders)
    entries = [entry for data in read_predictions(folders) for entry in data["predictions"] if "stage" not in entry]
    entries = [entry for entry in entries if set(columns[1:5]) <= set(entry)]
    if not entries or study.analysis.selection.empty:
        return pd.DataFrame()
    predicted = pd.DataFrame(entries).reindex(columns=columns)
    fits = {(fit.model, fit.unique_tokens, fit.sampled_tokens): fit for fit in study.analysis.fits}
    merged = predicted.merge(study.analysis.selection, on=KEYS, how="inner", suffixes=("", "_cell"))
    merged["law"] = merged["law"].fillna("law")
    merged["regret"] = [
        float(fits[key].regret(np.array(p)))
        for key, p in zip(merged[KEYS].itertuples(index=False, name=None), merged["dropout"], strict=True)
    ]
    merged["error"] = (merged["dropout"] - merged["fitted_optimum"]).where(merged["status"] == "interior")
    return merged


def numbers(study: Study, law: str, own: pd.DataFrame) -> dict[str, Parts]:
    """Interior and all cells, root mean square error (dropout), mean and largest regret (nats)."""
    cited = Cited(study.source("calibrate"))
    error = own["error"].dropna()
    rmse = float(np.sqrt((error**2).mean())) if len(error) else float("nan")
    inside = own["dropout"].between(own["fitted_low"], own["fitted_high"]) & (own["status"] == "interior")
    return {
        "interior": (cited.count(len(error), "model_selection.status"), " of ", cited.count(len(own), "predictions")),
        "rmse": (cited.number(rmse, f"predictions.dropout less model_selection.fitted_optimum, {law}"),),
        "inside": (cited.count(int(inside.sum()), f"model_selection interval holds predictions.dropout, {law}"),),
        "mean": (cited.number(own["regret"].mean(), f"regret of predictions.dropout, mean, {law}", 4),),
        "largest": (cited.number(own["regret"].max(), f"regret of predictions.dropout, largest, {law}", 4),),
    }


def sentence(study: Study, frame: pd.DataFrame) -> Parts:
    """What the frozen law lost; of several laws, which lost least and which most."""
    means = {str(law): float(own.mean()) for law, own in frame.groupby("law")["regret"]}
    if len(means) > 1:
        cited = Cited(study.source("calibrate"))
        nearest, farthest = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        least, most = (
            cited.number(means[law], f"regret of predictions.dropout, mean, {law}", 4) for law in (nearest, farthest)
        )
        return (
            f"On {study.label}, of ",
            cited.count(len(means), "predictions.law, distinct"),
            f" laws frozen beforehand the {nearest.replace('_', ' ')} law comes nearest, ",
            least,
            " nats per token above the best dropout on average, ",
            f"and the {farthest.replace('_', ' ')} law is farthest, ",
            most,
            ".",
        )
    said: list[Parts] = []
    for law, own in frame.groupby("law", sort=True):
        shown = numbers(study, str(law), own)
        said.append(
            (
                f"On {study.label} the {str(law).replace('_', ' ')} law, frozen beforehand, is off by ",
                *shown["rmse"],
                " in dropout (root mean square over the interior cells, ",
                *shown["interior"],
                "), and its dropout costs ",
                *shown["mean"],
                " nats per token more than the best one on average, at most ",
                *shown["largest"],
                ".",
            )
        )
    return join(said)


def abstract(found: Sequence[tuple[Study, pd.DataFrame]]) -> Parts:
    """Over all texts and laws: how many cells were predicted, and the range of the laws' mean regret."""
    cited = Cited(found[0][0].source("calibrate") if len(found) == 1 else "all hold-outs")
    means = [own["regret"].mean() for _, frame in found for _, own in frame.groupby("law")]
    cells = sum(len(frame.drop_duplicates(KEYS)) for _, frame in found)
    lowest, highest = (cited.number(end(means), "regret of predictions.dropout, mean", 4) for end in (min, max))
    return (
        "Laws frozen before ",
        cited.count(cells, "predictions, distinct cells"),
        " cells of ",
        cited.count(len(found), "predictions"),
        " studies were trained lose there, by their dropout, ",
        *((lowest,) if len(means) == 1 else (lowest, " to ", highest)),
        " nats per token on average.",
    )


def summary_table(evidence: str, studies: Sequence[Study], frames: dict[str, pd.DataFrame]) -> Table:
    groups = []
    for study in studies:
        rows: list[list[Parts]] = []
        for law, own in frames[study.name].groupby("law", sort=True):
            shown = numbers(study, str(law), own)
            named = (str(law).replace("_", " "),)
            rows.append([(study.label if not rows else "",), named, *shown.values()])
        groups.append(rows)
    return Table(
        name=f"holdouts-{evidence}",
        caption=(
            "Laws frozen before the cells were trained: interior cells of all, root mean square error of the predicted "
            "dropout on them, how many of their intervals hold the prediction, mean and largest regret at the "
            f"predicted dropout over all cells, nats per token. {class_words(studies)}",
        ),
        header=("corpus", "law", "interior", "error", "held", "regret", "largest"),
        align="lllrrrr",
        groups=groups,
    )


def cell_table(evidence: str, studies: Sequence[Study], frames: dict[str, pd.DataFrame]) -> Table:
    groups = []
    for study in studies:
        cited = Cited(study.source("calibrate"))
        rows: list[list[Parts]] = []
        order = ["sampled_tokens", "n_params", "unique_tokens", "law"]
        frame = frames[study.name].sort_values(order, kind="stable")
        for row in frame.tail(MAX_ROWS).to_dict("records"):
            ends = ("predictions.low", "predictions.high")
            predicted = cited.number(row["dropout"], "predictions.dropout", 2)
            place = [
                (cited.count(row[name], f"predictions.{name}", count_text(row[name])),)
                for name in ("unique_tokens", "sampled_tokens")
            ]
            rows.append(
                [
                    (study.label if not rows else "",),
                    (str(row["law"]).replace("_", " "),),
                    (row["model"],),
                    *place,
                    (predicted, *cited.interval(row["low"], row["high"], ends, 2)),
                    optimum(cited, row) or (DASH,),
                    (cited.number(row["regret"], "regret of predictions.dropout", 4),),
                ]
            )
        groups.append(rows)
    return Table(
        name=f"holdout-cells-{evidence}",
        caption=(
            f"Predicted and measured dropout of held-out cells (of each corpus at most the last {MAX_ROWS}), with "
            "intervals at the 95 % level (of the prediction: of the law's own value), and the regret at the predicted "
            f"dropout. {class_words(studies)}",
        ),
        header=("corpus", "law", "model", "U", "C", "predicted", "measured", "regret"),
        align="lllrrllr",
        groups=groups,
    )

"""Hold-outs: what a frozen law said of cells before they were trained, beside what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.bakeoff import as_now
from analysis.companions import read_predictions
from analysis.figures import count_text
from analysis.paper.bakeoff import spoken
from analysis.paper.blocks import DASH, Block, Cited, Number, Paragraph, Parts, Ref, Section, Table, join
from analysis.paper.cells import optimum
from analysis.paper.studies import Study, by_class, class_words
from analysis.report import calibration_rows
from analysis.targets import make_targets, regret_floors
from tune_dd.laws import DEFAULT_LAW, LAWS, REFERENCE_LAW

NAME = "holdouts"
HEADER = ("law", "cells", "regret", "corrected", "miss", "inside")
FIGURES = (
    "cells with their optimum inside the grid of all, mean regret at the predicted dropout over all (nats per token), "
    "the same corrected for the noise of the cells' optima, root mean square miss of that dropout over the former, "
    "share of predictions inside the cell's plateau. A dash: no cell tells it. "
)
FORMER = "former_"
KEYS = ["model", "unique_tokens", "sampled_tokens"]  # of a cell within a study


def section(studies: Sequence[Study]) -> Section:
    blocks: list[Block] = []
    details: list[Block] = []
    found = [(study, frame) for study in studies if len(frame := held_out_cells(study))]
    frames = {study.name: frame for study, frame in found}
    for evidence, group in by_class([study for study, _ in found]):
        own = [(study, frames[study.name]) for study in group]
        table = together_table(evidence, own)
        blocks += [Paragraph((Ref(table.name), " sums up what came out. ", *lost(own))), table]
        said = join([sentence(study, frame) for study, frame in own])
        details += [summary_table(evidence, group, frames), Paragraph(said), cell_table(evidence, group, frames)]
    sentences = {"HoldoutsAbstract": lost(found)} if found else {}
    return Section(NAME, "Predictions written down before training", blocks, sentences, details)


def held_out_cells(study: Study) -> pd.DataFrame:
    """Predicted cells that were measured: law, model, U, C, the prediction with its interval and the cell's row.

    Only what a static run's own predictions.json says counts: a stream's stages are no cells.
    """
    columns = ["law", "model", "unique_tokens", "sampled_tokens", "dropout", "low", "high"]
    folders = tuple(study.analysis.experiment.folders)
    entries = [entry for data in read_predictions(folders) for entry in _named(data) if "stage" not in entry]
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
    targets = make_targets(None, calibration_rows(study.analysis.experiment.table)[0])
    places = [(fit.model, fit.unique_tokens, fit.sampled_tokens) for fit in targets.fits]
    floors = dict(zip(places, regret_floors(targets), strict=True))
    merged["corrected"] = merged["regret"] - [floors[key] for key in merged[KEYS].itertuples(index=False, name=None)]
    within = merged["dropout"].between(merged["plateau_low"], merged["plateau_high"])
    merged["in_plateau"] = within.astype(float).where(merged["plateau_low"].notna())
    merged["error"] = (merged["dropout"] - merged["fitted_optimum"]).where(merged["status"] == "interior")
    return merged


def _named(predicted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The predictions; a law's name with a word before it where fits expected other coefficients of its form then."""
    former = {record["law"] for record in predicted.get("coefficients", ()) if not as_now(record)}
    return [
        entry | {"law": f"{FORMER}{entry['law']}"} if entry.get("law") in former else entry
        for entry in predicted["predictions"]
    ]


def judged_together(found: Sequence[tuple[Study, pd.DataFrame]]) -> pd.DataFrame:
    """The cells that most forms were frozen for: no form is judged on cells that had been seen before it was made.

    Where the default form was frozen for any of them, of those.
    """
    cells = pd.concat([frame.assign(study=study.name) for study, frame in found], ignore_index=True)
    cells["default"] = [law in LAWS and LAWS[law].cells == LAWS[DEFAULT_LAW].cells for law in cells["law"]]
    with_default = cells.groupby(["study", *KEYS])["default"].transform("any")
    cells = cells[with_default] if with_default.any() else cells
    forms = cells.groupby(["study", *KEYS])["law"].transform("nunique")
    judged: pd.DataFrame = cells[forms == forms.max()]
    return judged


def numbers(cited: Cited, law: str, own: pd.DataFrame) -> dict[str, Parts]:
    """Cells (those with an interior optimum of all), root mean square miss (dropout), regret, share in the plateau."""
    error = own["error"].dropna()
    rmse = float(np.sqrt((error**2).mean())) if len(error) else float("nan")
    return {
        "interior": (cited.count(len(error), "model_selection.status"), " of ", cited.count(len(own), "predictions")),
        "mean": (cited.number(own["regret"].mean(), f"regret of predictions.dropout, mean, {law}", 4),),
        "corrected": (
            cited.number(own["corrected"].mean(), f"corrected regret of predictions.dropout, mean, {law}", 4),
        ),
        "rmse": (cited.number(rmse, f"predictions.dropout less model_selection.fitted_optimum, {law}"),),
        "share": (cited.number(own["in_plateau"].mean(), f"predictions.dropout within the plateau, {law}", 2),),
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
        shown = numbers(Cited(study.source("calibrate")), str(law), own)
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


def lost(found: Sequence[tuple[Study, pd.DataFrame]]) -> Parts:
    """What the law with the least mean regret lost, beside the reference form on the same cells."""
    judged = judged_together(found)
    most = int(judged.groupby(["study", *KEYS])["law"].nunique().max())
    means = judged.groupby("law")["regret"].mean()
    best, cited = str(means.idxmin()), hold_outs(found)

    def mean(law: str) -> Number:
        return cited.number(float(means[law]), f"regret of predictions.dropout, mean, {law}")

    reference = REFERENCE_LAW in means.index and best != REFERENCE_LAW
    count = cited.count(len(judged.drop_duplicates(["study", *KEYS])), "predictions, distinct cells, most laws")
    stored: Parts = (" predicted ", count, " cells before these were trained")
    several: Parts = ("Of ", cited.count(most, "predictions.law, distinct"), " forms that", *stored, ", ")
    return (
        *((*several, f"{spoken(best)} has the least") if most > 1 else (f"The {spoken(best)} form", *stored, "; its")),
        " mean regret (loss above the best rate's)",
        " is " if most == 1 else ", ",
        mean(best),
        " nats per token",
        *((" (the reference form ", mean(REFERENCE_LAW), ")") if reference else ()),
        ".",
    )


def hold_outs(found: Sequence[tuple[Study, pd.DataFrame]]) -> Cited:
    return Cited(found[0][0].source("calibrate") if len(found) == 1 else "all hold-outs")


def together_table(evidence: str, found: Sequence[tuple[Study, pd.DataFrame]]) -> Table:
    """A group per model, the largest first, and in it a row per form, the least mean regret first."""
    judged, cited = judged_together(found), hold_outs(found)
    groups = []
    for _, of_model in sorted(judged.groupby("n_params"), key=lambda item: -float(item[0])):  # type: ignore[arg-type]
        order = of_model.groupby("law")["regret"].mean().sort_values(kind="stable").index.tolist()
        model = str(of_model["model"].iloc[0])
        groups.append(law_rows(model, cited, of_model, order, f", {model}"))
    return Table(
        name=f"holdouts-together-{evidence}",
        caption=(
            "Laws frozen before the cells were trained, by the model that these are of, over the cells that most "
            f"forms (the default among them, where it was for any) were frozen for: {FIGURES}"
            f"{class_words([study for study, _ in found])}",
        ),
        header=("model", *HEADER),
        align="llrrrrr",
        groups=groups,
    )


def summary_table(evidence: str, studies: Sequence[Study], frames: dict[str, pd.DataFrame]) -> Table:
    groups = []
    for study in studies:
        frame = frames[study.name]
        groups.append(law_rows(study.label, Cited(study.source("calibrate")), frame, sorted(frame["law"].unique())))
    return Table(
        name=f"holdouts-{evidence}",
        caption=(
            f"Laws frozen before the cells were trained, study by study: {FIGURES}Of a form called former its fits "
            f"expected other coefficients then. {class_words(studies)}",
        ),
        header=("study", *HEADER),
        align="lllrrrr",
        groups=groups,
    )


def law_rows(label: str, cited: Cited, cells: pd.DataFrame, laws: Sequence[str], place: str = "") -> list[list[Parts]]:
    """A row per law; the label stands in the first."""
    rows: list[list[Parts]] = []
    for law in laws:
        shown = numbers(cited, f"{law}{place}", cells[cells["law"] == law])
        values = [shown[name] for name in ("interior", "mean", "corrected", "rmse", "share")]
        rows.append([(label if not rows else "",), (spoken(str(law)),), *values])
    return rows


def cell_table(evidence: str, studies: Sequence[Study], frames: dict[str, pd.DataFrame]) -> Table:
    groups = []
    for study in studies:
        cited = Cited(study.source("calibrate"))
        rows: list[list[Parts]] = []
        order = ["sampled_tokens", "n_params", "unique_tokens", "law"]
        frame = frames[study.name].sort_values(order, kind="stable")
        for row in frame.to_dict("records"):
            ends = ("predictions.low", "predictions.high")
            predicted = cited.number(row["dropout"], "predictions.dropout", 2)
            place = [
                (cited.count(row[name], f"predictions.{name}", count_text(row[name])),)
                for name in ("unique_tokens", "sampled_tokens")
            ]
            rows.append(
                [
                    (study.label if not rows else "",),
                    (spoken(str(row["law"])),),
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
            "Predicted and measured dropout of held-out cells, with intervals at the 95 % level (of the prediction: of "
            f"the law's own value), and the regret at the predicted dropout. {class_words(studies)}",
        ),
        header=("corpus", "law", "model", "U", "C", "predicted", "measured", "regret"),
        align="lllrrllr",
        groups=groups,
    )

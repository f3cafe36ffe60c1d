"""What each picture shows, computed before anything is drawn: a ``Picture`` holds its data as a table.

The data come from the statistics (cell fits, coefficients, comparisons); nothing is estimated here.
``analysis.drawing`` draws them, ``analysis.report`` writes them beside their CSV.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from analysis.coefficients import Coefficients
    from analysis.optimum import CellFit

# A page with more panels than this is not read, and 24 take some seconds to draw; the CSV holds all cells.
MAX_PANELS, MAX_CURVES = 24, 12
# Pictures of the optimum are pairs, one per model, and each holds a line per level: as many as colours tell apart.
MAX_PAIRS, MAX_LEVELS = 4, 9
MAX_TRACES, MAX_NAMES = 48, 28  # lines of single trials; names that colour and dash tell apart
CURVE_POINTS = 61
COMPACT, WIDE = (3.7, 2.7), (4.5, 3.1)  # inches


@dataclass(frozen=True)
class Picture:
    """A figure, ready to be drawn.

    Attributes:
        name: file stem.
        title, caption: for the page, plain text. The caption is also the picture's description.
        data: what is drawn, as written to CSV.
        kind: name of the function in ``analysis.drawing`` that draws it.
        labels: texts and numbers that the drawing needs beside the data.
        size: inches.
    """

    name: str
    title: str
    caption: str
    data: pd.DataFrame
    kind: str
    labels: Mapping[str, Any]
    size: tuple[float, float] = COMPACT


def count_text(value: float) -> str:
    """A token or parameter count to three digits, as axes and titles show it: 262144 -> 262k."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:g}"


def cell_pictures(fits: Sequence[CellFit]) -> list[Picture]:
    """Validation loss against dropout, one picture per cell, at most ``MAX_PANELS``.

    Where there are more cells, those of the last read-outs are shown: they decide what is best.
    """
    kept = sorted(fits, key=lambda fit: -fit.sampled_tokens)[:MAX_PANELS]
    kept.sort(key=lambda fit: (fit.n_params, fit.model, fit.phase, fit.unique_tokens, fit.sampled_tokens))
    return [cell_picture(fit) for fit in kept]


def cell_picture(fit: CellFit) -> Picture:
    """Series of the data: ``seed`` (one loss per seed), ``mean``, ``quadratic`` and ``cubic`` (fitted curves)."""
    where = f"U = {count_text(fit.unique_tokens)}, C = {count_text(fit.sampled_tokens)}"
    best = optimum_text(fit.status, fit.fitted_optimum, fit.fitted_low, fit.fitted_high, fit.grid_optimum)
    plateau = f"; not shown worse: {fit.plateau[0]:g} to {fit.plateau[-1]:g}" if fit.plateau else ""
    return Picture(
        name=f"cell-{fit.phase}-{fit.model}-U{fit.unique_tokens}-C{fit.sampled_tokens}",
        title=f"{fit.model}, {where}",
        caption=f"{fit.model}, {where}: best dropout: {best}{plateau}.",
        data=pd.DataFrame(cell_rows(fit), columns=["series", "seed", "dropout", "val_loss"]),
        kind="draw_cell",
        labels={
            "status": fit.status,
            "optimum": fit.fitted_optimum,
            "low": fit.fitted_low,
            "high": fit.fitted_high,
            "plateau": (fit.plateau[0], fit.plateau[-1]) if fit.plateau else None,
            "grid_optimum": fit.grid_optimum,
        },
    )


def cell_rows(fit: CellFit) -> Iterator[tuple[str, int | None, float, float]]:
    for seed, losses in zip(fit.seeds, fit.losses, strict=True):
        for dropout, loss in zip(fit.dropouts, losses, strict=True):
            if np.isfinite(loss):
                yield "seed", seed, float(dropout), float(loss)
    for dropout, level in zip(fit.dropouts, fit.levels, strict=True):
        yield "mean", None, float(dropout), float(level)
    for name, curve in (("quadratic", fit.quadratic), ("cubic", fit.cubic)):
        if curve is not None:
            grid = np.linspace(curve.low, curve.high, CURVE_POINTS)
            for dropout, loss in zip(grid, curve.loss(grid), strict=True):
                yield name, None, float(dropout), float(loss)


def optimum_text(status: str, optimum: float, low: float, high: float, edge: float) -> str:
    """An optimum in words; of a censored one the bound that the interval supports, never the grid's edge.

    Args:
        status: of the cell, as in model_selection.csv.
        optimum, low, high: fitted optimum and its 95 % interval, NaN where there is none.
        edge: the dropout of least mean loss.
    """
    if status == "no_signal":
        return "nothing that stands out"
    if status == "interior":
        return f"{optimum:.2f} [{low:.2f}, {high:.2f}]" if np.isfinite(low) else f"{optimum:.2f}"
    word, bound = ("lowest", f"at most {high:.2f}") if status == "censored_low" else ("highest", f"at least {low:.2f}")
    if not np.isfinite(low):
        return f"the {word} tried, {edge:.3g} (censored)"
    return f"{bound} (censored: the {word} tried, {edge:.3g}, did best)"


def optimum_pictures(selection: pd.DataFrame, coefficients: Coefficients | None) -> list[Picture]:
    """The optimum against U (a line per C) and against C (a line per U), a pair of pictures per model.

    At most ``MAX_PAIRS`` models, those with the most cells (the larger ones on a tie), and ``MAX_LEVELS`` lines.
    """
    pictures = []
    models = list(selection.groupby(["n_params", "phase", "model"], sort=True))
    kept = sorted(range(len(models)), key=lambda i: (-len(models[i][1]), -i))[:MAX_PAIRS]
    for (_, phase, model), cells in (models[i] for i in sorted(kept)):
        for x, by in (("unique_tokens", "sampled_tokens"), ("sampled_tokens", "unique_tokens")):
            if cells[x].nunique() < 2:
                continue
            letters = {"unique_tokens": "U", "sampled_tokens": "C"}
            law = "; line and band: the fitted law with its 95 % interval" if coefficients else ""
            levels = spread(cells[by].unique().tolist(), MAX_LEVELS)
            cut = f" {len(levels)} of {cells[by].nunique()} values of {letters[by]} are shown."
            pictures.append(
                Picture(
                    name=f"optimum-{phase}-{model}-against-{letters[x]}",
                    title=f"{model}: best dropout against {letters[x]}",
                    caption=f"{model}: the best dropout of each cell against {letters[x]}, one colour per "
                    f"{letters[by]}. Bars: 95 % intervals; hollow triangles: censored, at the highest or lowest rate "
                    f"tried, the bar reaching to the bound; crosses: no signal{law}."
                    + (cut if len(levels) < cells[by].nunique() else ""),
                    data=optimum_data(cells[cells[by].isin(levels)], coefficients, x, by),
                    kind="draw_optimum",
                    labels={"x": x, "by": by},
                    size=WIDE,
                )
            )
    return pictures


def spread(values: Sequence[float], most: int) -> list[float]:
    """At most ``most`` of the distinct values, evenly by rank, the smallest and the largest among them."""
    ranked = sorted(set(values))
    if len(ranked) <= most:
        return ranked
    return [ranked[round(i)] for i in np.linspace(0, len(ranked) - 1, most)]


def optimum_data(cells: pd.DataFrame, coefficients: Coefficients | None, x: str, by: str) -> pd.DataFrame:
    """Series ``cell`` (one row per cell) and, with coefficients, ``law`` (a grid in x for each level of ``by``).

    Columns: series, x, by, n_params, dropout, low, high, status.
    """
    measured = pd.DataFrame(
        {
            "series": "cell",
            x: cells[x],
            by: cells[by],
            "n_params": cells["n_params"],
            "dropout": cells["fitted_optimum"].where(cells["status"] == "interior", cells["grid_optimum"]),
            "low": cells["fitted_low"],
            "high": cells["fitted_high"],
            "status": cells["status"],
        }
    )
    if coefficients is None:
        return measured
    grid = np.geomspace(cells[x].min(), cells[x].max(), CURVE_POINTS)
    lines = []
    for level in sorted(cells[by].unique()):
        points = {x: grid, by: np.full_like(grid, level)}
        place = cells["n_params"].iloc[0], points["unique_tokens"], points["sampled_tokens"]
        low, high = coefficients.interval(*place)
        line = {"series": "law", x: grid, by: level, "n_params": place[0], "dropout": coefficients.predict(*place)}
        lines.append(pd.DataFrame({**line, "low": low, "high": high, "status": ""}))
    return pd.concat([measured, *lines], ignore_index=True)


def law_pictures(coefficients: Coefficients, held_out: pd.DataFrame | None = None) -> list[Picture]:
    """The law against the cells, its coefficients in pairs, and the laws' regret on what was held out."""
    pictures = [law_fit_picture(coefficients)]
    if len(coefficients.coefficients) > 1 and coefficients.draws:
        pictures.append(
            Picture(
                name="coefficient-pairs",
                title="Coefficients in pairs",
                caption=f"Bootstrap refits of the {coefficients.law} law: each coefficient against each other; "
                "the cross is the fit. Coefficients that lie along a line are known together, not alone.",
                data=pd.DataFrame(coefficients.draws, columns=list(coefficients.coefficients)),
                kind="draw_pairs",
                labels={"fit": dict(coefficients.coefficients)},
                size=(4.5, 4.1),
            )
        )
    if held_out is not None and len(held_out):
        pictures.append(held_out_picture(held_out))
    return pictures


def law_fit_picture(coefficients: Coefficients) -> Picture:
    """Columns of the data: the cells of coefficients.json with ``residual`` = law less target, dropout."""
    data = pd.DataFrame(coefficients.cells)
    data["residual"] = data["law"] - data["target"]
    return Picture(
        name="law-residuals",
        title=f"The {coefficients.law} law against the cells",
        caption="The law's dropout less the cell's optimum, against the law's dropout: filled, fitted with the cell; "
        "hollow, with that cell left out. Bars: standard deviation of the optimum. Triangles: censored cells, "
        "where only one side is known.",
        data=data,
        kind="draw_residuals",
        labels={},
        size=WIDE,
    )


def held_out_picture(held_out: pd.DataFrame) -> Picture:
    """Mean regret (nats per token) of each law on the cells held out, a row per law and way of holding out."""
    return Picture(
        name="held-out-regret",
        title="What each law loses on cells it has not seen",
        caption="Mean regret of the law's dropout, validation loss over the cell's best in nats per token, on cells "
        "left out of the fit. Smaller is better; only the hold-out of the kind that will be used decides.",
        data=held_out.reset_index(drop=True),
        kind="draw_held_out",
        labels={},
        size=WIDE,
    )


def curve_pictures(table: pd.DataFrame) -> list[Picture]:
    """Training and validation loss as sampling goes on, one picture per model and prefix."""
    data = curve_means(table)
    pictures = []
    static = data[~data["phase"].isin(["stream", "search"])]
    for (phase, _, model, prefix), rows in static.groupby(["phase", "n_params", "model", "unique_tokens"], sort=True):
        where = f"{model}, U = {count_text(rows['unique_tokens'].iloc[0])}"
        pictures.append(
            Picture(
                name=f"curves-{phase}-{model}-U{prefix}",
                title=where,
                caption=f"{where}: loss against sampled tokens, mean over seeds, a colour per dropout. "
                "Solid: validation; dotted: training.",
                data=rows.reset_index(drop=True),
                kind="draw_curves",
                labels={},
            )
        )
    return pictures[:MAX_CURVES]


def curve_means(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of the losses at every read-out of every condition."""
    keys = ["phase", "n_params", "model", "kind", "condition", "stage", "unique_tokens", "sampled_tokens", "dropout"]
    groups = table.groupby(keys, as_index=False, sort=True)
    return groups.agg(train_loss=("train_loss", "mean"), val_loss=("val_loss", "mean"), n_seeds=("seed", "nunique"))


def stream_pictures(table: pd.DataFrame) -> list[Picture]:
    """Dropout and validation loss along the stream, a colour per condition, mean over seeds."""
    data = curve_means(table[table["phase"] == "stream"])
    pictures = []
    for (_, model), rows in data.groupby(["n_params", "model"], sort=True):
        for value, title, kind in (
            ("dropout", "dropout at each stage", "draw_paths"),
            ("val_loss", "validation loss along the stream", "draw_stream"),
        ):
            pictures.append(
                Picture(
                    name=f"stream-{model}-{value.replace('_', '-')}",
                    title=f"{model}: {title}",
                    caption=f"{model}: {title}, a colour per condition, mean over seeds.",
                    data=rows.reset_index(drop=True),
                    kind=kind,
                    labels={},
                    size=WIDE,
                )
            )
    return pictures


def trace_pictures(table: pd.DataFrame, trace: pd.DataFrame | None) -> list[Picture]:
    """Training loss step by step, if there is any: columns trial_id, step, train_loss joined with what the trial is.

    The dropout of a schedule moves, so trials of a stream are told apart by condition. Where there are more than
    ``MAX_TRACES``, those of the first seeds are shown, so that every condition is.
    """
    if trace is None or trace.empty:
        return []
    names = ["trial_id", "phase", "model", "condition", "unique_tokens", "seed", "dropout"]
    trials = table.drop_duplicates("trial_id")[names].sort_values("seed", kind="stable")
    traced = trials[trials["trial_id"].isin(trace["trial_id"])]
    shown = traced.head(MAX_TRACES)
    streams = bool(shown["phase"].isin(["stream", "search"]).any())
    rates = table.loc[table["trial_id"].isin(shown["trial_id"]), ["condition", "dropout"]].drop_duplicates()
    told = rates["condition"].nunique() <= MAX_NAMES if streams else True
    of = f" of {len(traced)}" if len(shown) < len(traced) else ""
    colours = f"a colour per {'condition' if streams else 'dropout'}" if told else "of more conditions than colours"
    picture = Picture(
        name="trace",
        title="Training loss step by step",
        caption=f"Training loss of {len(shown)}{of} trials as training went, {colours}.",
        data=trace.merge(shown.drop(columns="phase"), on="trial_id", how="inner"),
        kind="draw_trace",
        labels={"rates": rates if streams else None, "told": told},
        size=WIDE,
    )
    return [picture]


def comparison_pictures(comparison: pd.DataFrame) -> list[Picture]:
    """Paired differences of conditions, one picture per metric."""
    pictures = []
    for metric, rows in comparison.groupby("metric", sort=True):
        pictures.append(
            Picture(
                name=f"comparison-{str(metric).replace('_', '-')}",
                title=f"{METRICS.get(str(metric), str(metric))}: one condition less another",
                caption="Differences paired by seed in nats per token with 95 % intervals; below zero the first "
                "named is better. The primary contrast is filled.",
                data=rows.sort_values(["primary", "difference"], ascending=[False, True]).reset_index(drop=True),
                kind="draw_comparison",
                labels={},
                size=(4.5, 0.9 + 0.19 * len(rows)),
            )
        )
    return pictures


METRICS = {
    "final_val_loss": "Final validation loss",
    "trajectory_val_loss": "Validation loss along the stream",
}

"""Pictures drawn with matplotlib: SVG and PNG bytes that are the same on every run."""

from __future__ import annotations

import io
import re
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures import MAX_LEVELS, Picture, count_text, spread
from analysis.palette import (
    ACCENT,
    DASHES,
    DROPOUT,
    FAINT,
    INK,
    LOSS,
    MARKERS,
    OKABE_ITO,
    PALE_LAST,
    PLATEAU,
    PNG_DPI,
    STYLE,
    UNITS,
    count_axis,
    named_styles,
    ordered_colours,
    schedule_styles,
)

LEGEND_ROW, LEGEND_ROWS = 0.16, 4  # inches of a row of a legend, and rows that a picture's size has room for
DASHED = 3.0


def render(picture: Picture) -> tuple[str, bytes]:
    """Draw a picture: its SVG text and its PNG bytes, neither with a date in it.

    It is laid out once, for the PNG. ``Figure.savefig`` would lay it out for both and draw each twice.
    """
    svg, png = io.StringIO(), io.BytesIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=picture.size, layout="constrained", dpi=PNG_DPI)
        globals()[picture.kind](figure, picture)
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})  # type: ignore[no-untyped-call]
        figure.set_layout_engine("none")
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    return clean_svg(svg.getvalue(), picture), png.getvalue()


def clean_svg(svg: str, picture: Picture) -> str:
    """An SVG to stand in a page: no XML prologue, ids of its own, and a fallback for its font."""
    svg = svg[svg.index("<svg") :]
    prefix = re.sub(r"\W", "_", picture.name)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)([^")]+)', rf"\g<1>{prefix}-\2", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")


def draw_cell(figure: Figure, picture: Picture) -> None:
    """Seeds faint, means as dots, the fitted curves, the optimum with its interval and the plateau."""
    ax = figure.add_subplot()
    data, labels = picture.data, picture.labels
    series = dict(list(data.groupby("series")))
    if labels["plateau"]:
        low, high = labels["plateau"]
        edge = grid_half_step(series["mean"]["dropout"]) / 3  # a plateau of one rate must be seen too
        ax.axvspan(low - edge, high + edge, color=PLATEAU, alpha=0.18, lw=0, label="plateau")
    for number, (_, rows) in enumerate(series["seed"].groupby("seed")):
        ax.plot(
            rows["dropout"],
            rows["val_loss"],
            color=FAINT,
            lw=0.6,
            marker=".",
            ms=2.5,
            label="seeds" if not number else None,
        )
    mean = series["mean"]
    ax.plot(mean["dropout"], mean["val_loss"], "o", color=INK, ms=3.5, label="mean")
    for name, colour, dash in (("quadratic", OKABE_ITO[0], "-"), ("cubic", OKABE_ITO[2], DASHES[1])):
        if name in series:
            ax.plot(series[name]["dropout"], series[name]["val_loss"], color=colour, ls=dash, label=name)
    low, high = data["val_loss"].min(), data["val_loss"].max()
    at = low - 0.07 * (high - low)
    if labels["status"] == "interior":
        if np.isfinite(labels["low"]):
            ends = [labels["low"], labels["high"]]
            ax.plot(ends, [at, at], color=ACCENT, lw=1.6, solid_capstyle="butt", label="95 % interval")
        ax.plot(labels["optimum"], at, "D", color=ACCENT, ms=4.5, label="optimum")
    elif labels["status"] != "no_signal":
        marker, bound = ("<", labels["high"]) if labels["status"] == "censored_low" else (">", labels["low"])
        if np.isfinite(bound):
            ax.plot([bound, labels["grid_optimum"]], [at, at], color=ACCENT, lw=1.6, label="to its 95 % bound")
        ax.plot(labels["grid_optimum"], at, marker, mfc="none", color=ACCENT, ms=6, label="censored")
    ax.set_xlabel(DROPOUT)
    ax.set_ylabel(LOSS)
    figure.legend(loc="outside lower center", ncols=4, columnspacing=1.0, handlelength=1.4)


def grid_half_step(dropouts: pd.Series) -> float:
    steps = np.diff(np.sort(dropouts.unique()))
    return float(steps.min() / 2) if len(steps) else 0.02


def draw_optimum(figure: Figure, picture: Picture) -> None:
    """Best dropout against U or C, the other as colour and marker."""
    ax = figure.add_subplot()
    x, by = picture.labels["x"], picture.labels["by"]
    cells = picture.data[picture.data["series"] == "cell"]
    law = picture.data[picture.data["series"] == "law"]
    colours = ordered_colours(cells[by].tolist())
    shift = dict(zip(colours, np.linspace(-0.012, 0.012, len(colours)) if len(colours) > 1 else [0.0], strict=True))
    span = np.log(cells[x].max() / cells[x].min())
    for (level, colour), marker in zip(colours.items(), cycle(MARKERS), strict=False):
        line = law[law[by] == level]
        if law.empty:
            own = cells[cells[by] == level].sort_values(x)
            ax.plot(own[x] * np.exp(shift[level] * span), own["dropout"], color=colour, lw=0.6)
        ax.fill_between(line[x], line["low"], line["high"], color=colour, alpha=0.13, lw=0)
        ax.plot(line[x], line["dropout"], color=colour, lw=1)
        for status, rows in cells[cells[by] == level].groupby("status"):
            at = rows[x] * np.exp(shift[level] * span)  # side by side, so that bars do not hide one another
            if status == "interior":
                reach = np.abs(rows[["low", "high"]].to_numpy().T - rows["dropout"].to_numpy())
                ax.errorbar(at, rows["dropout"], yerr=reach, fmt=marker, color=colour, ms=4.5, lw=0.8)
            else:
                shape = {"censored_low": "v", "censored_high": "^"}.get(str(status), "x")
                if status in ("censored_low", "censored_high"):
                    bound = rows["low" if status == "censored_high" else "high"]
                    ax.vlines(at, rows["dropout"], bound, color=colour, lw=0.8)
                ax.plot(at, rows["dropout"], shape, mfc="none", color=colour, ms=5)
        ax.plot([], [], marker=marker, color=colour, label=count_text(level))
    ax.set_xlabel(f"{UNITS[x]} (tokens)")
    ax.set_ylabel(f"best {DROPOUT}")
    ax.set_ylim(-0.03, None)
    count_axis(ax, "x", cells[x].tolist())
    figure.legend(
        title=f"{UNITS[by]} (tokens)", loc="outside lower center", ncols=6, columnspacing=1.0, title_fontsize=7
    )


def draw_residuals(figure: Figure, picture: Picture) -> None:
    """Law less target against the law's dropout, with and without the cell in the fit."""
    ax = figure.add_subplot()
    data = picture.data
    colours = ordered_colours(data["unique_tokens"].tolist())
    named = spread(list(colours), MAX_LEVELS)
    ax.axhline(0, color=INK, lw=0.8)
    for prefix, colour in colours.items():
        own = data[data["unique_tokens"] == prefix]
        points = own[own["status"] == "interior"]
        ax.errorbar(points["law"], points["residual"], yerr=points["target_sd"], fmt="o", color=colour, ms=4, lw=0.8)
        for status, shape in (("censored_low", "v"), ("censored_high", "^")):
            rows = own[own["status"] == status]
            ax.plot(rows["law"], rows["residual"], shape, mfc="none", color=colour, ms=5)
        if points["left_out"].notna().any():
            ax.plot(
                points["left_out"], points["left_out"] - points["target"], "o", mfc="none", color=colour, ms=6, lw=0
            )
        ax.plot([], [], "o", color=colour, label=f"U = {count_text(prefix)}" if prefix in named else None)
    ax.set_xlabel("the law's dropout rate p")
    ax.set_ylabel("law less optimum (dropout rate)")
    figure.legend(loc="outside lower center", ncols=5, columnspacing=1.0)


def draw_pairs(figure: Figure, picture: Picture) -> None:
    """Lower triangle of scatter plots, one per pair of coefficients."""
    data, fit = picture.data, picture.labels["fit"]
    names = list(data.columns)
    size = len(names) - 1
    for row, vertical in enumerate(names[1:]):
        for column, horizontal in enumerate(names[: row + 1]):
            ax = figure.add_subplot(size, size, row * size + column + 1)
            ax.plot(data[horizontal], data[vertical], ".", color=OKABE_ITO[0], ms=1.8, alpha=0.5, rasterized=True)
            ax.plot(fit[horizontal], fit[vertical], "P", color=ACCENT, mec="white", ms=7)
            ax.tick_params(labelsize=6)
            if row == size - 1:
                ax.set_xlabel(horizontal)
            if column == 0:
                ax.set_ylabel(vertical)


def draw_held_out(figure: Figure, picture: Picture) -> None:
    """A dot per law and way of holding out."""
    ax = figure.add_subplot()
    data = picture.data
    laws = list(dict.fromkeys(data["law"]))
    ways = list(dict.fromkeys(data["holdout"]))
    for way, style in named_styles(ways).items():
        rows = data[data["holdout"] == way]
        at = [laws.index(law) for law in rows["law"]]
        ax.plot(rows["regret_mean"], at, style["marker"], color=style["color"], ms=5, label=escaped(str(way)))
    ax.set_yticks(range(len(laws)), laws)
    ax.set_ylim(len(laws) - 0.5, -0.5)
    ax.set_xlim(0, None)
    ax.set_xlabel("mean regret on held-out cells (nats per token)")
    figure.legend(loc="outside lower center", ncols=3)


def draw_curves(figure: Figure, picture: Picture) -> None:
    """Loss against C for each dropout; validation solid, training dotted."""
    ax = figure.add_subplot()
    data = picture.data
    for dropout, colour in ordered_colours(data["dropout"].tolist()).items():
        rows = data[data["dropout"] == dropout].sort_values("sampled_tokens")
        ax.plot(rows["sampled_tokens"], rows["val_loss"], color=colour, marker=".", label=f"p = {dropout:g}")
        ax.plot(rows["sampled_tokens"], rows["train_loss"], color=colour, lw=0.9, ls=":")
    ax.set_xlabel("sampled tokens C (tokens)")
    ax.set_ylabel("loss (nats per token)")
    count_axis(ax, "x", data["sampled_tokens"].tolist())
    legend_below(figure, 4)


def draw_paths(figure: Figure, picture: Picture) -> None:
    """Dropout at each stage, a step line per condition."""
    ax = figure.add_subplot()
    stages = picture.data.drop_duplicates(["condition", "stage"])
    for name, style in schedule_styles(stages).items():
        rows = stages[stages["condition"] == name].sort_values("stage")
        ax.plot(rows["stage"], rows["dropout"], **style, label=escaped(name))
    prefixes = stages.drop_duplicates("stage").sort_values("stage")
    ax.set_xticks(
        prefixes["stage"],
        [f"{s}\nU {count_text(u)}" for s, u in zip(prefixes["stage"], prefixes["unique_tokens"], strict=True)],
    )
    ax.set_xlabel("stage, and its unique tokens")
    ax.set_ylabel(DROPOUT)
    legend_below(figure, 3, DASHED)


def draw_stream(figure: Figure, picture: Picture) -> None:
    """Validation loss of every condition less the mean over conditions: their spread is small beside its fall."""
    ax = figure.add_subplot()
    wide = picture.data.pivot_table(index="sampled_tokens", columns="condition", values="val_loss")
    wide = wide.sub(wide.mean(axis=1), axis=0)
    for name, style in schedule_styles(picture.data).items():
        ax.plot(wide.index, wide[name], **style, label=escaped(name))
    ax.axhline(0, color=INK, lw=0.6)
    ax.set_xlabel("sampled tokens C (tokens)")
    ax.set_ylabel("validation loss less the mean\nover conditions (nats per token)")
    count_axis(ax, "x", wide.index.tolist())
    legend_below(figure, 3, DASHED)


def draw_trace(figure: Figure, picture: Picture) -> None:
    """Training loss of single trials, a colour per dropout, or the style of its schedule."""
    ax = figure.add_subplot()
    data, rates = picture.data, picture.labels["rates"]
    by = "dropout" if rates is None else "condition"
    styles: dict[Any, dict[str, Any]]
    if rates is None:
        styles = {p: {"color": colour} for p, colour in ordered_colours(data[by].tolist()).items()}
    elif picture.labels["told"]:
        styles = {name: {**style, "marker": None} for name, style in schedule_styles(rates).items()}
    else:
        styles = {name: {"color": FAINT} for name in rates["condition"]}
    for _, rows in data.groupby("trial_id", sort=False):
        ax.plot(rows["step"], rows["train_loss"], **styles[rows[by].iloc[0]] | {"lw": 0.6, "alpha": 0.8})
    for name, style in styles.items() if picture.labels["told"] else ():
        ax.plot([], [], **style, label=f"p = {name:g}" if rates is None else escaped(name))
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("training loss (nats per token)")
    legend_below(figure, 5, 1.4 if rates is None else DASHED)


def legend_below(figure: Figure, most: int, handle: float = 1.4) -> None:
    """The legend in as many columns, up to ``most``, as the figure's width has room for; taller by what it takes.

    Args:
        handle: length of the lines in it, in letters: a dash is told from a whole line at ``DASHED``.
    """
    labels = [text for ax in figure.axes for text in ax.get_legend_handles_labels()[1]]
    if not labels:
        return
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    for columns in range(most, 0, -1):
        legend = figure.legend(loc="outside lower center", ncols=columns, columnspacing=1.0, handlelength=handle)
        if columns == 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            break
        legend.remove()
    width, height = figure.get_size_inches()
    rows = -(-len(labels) // columns)
    figure.set_size_inches(width, height + LEGEND_ROW * max(0, rows - LEGEND_ROWS))


def draw_comparison(figure: Figure, picture: Picture) -> None:
    """A forest plot: difference and interval per condition, the primary contrast filled."""
    ax = figure.add_subplot()
    rows = picture.data.iloc[::-1].reset_index(drop=True)
    for at, row in enumerate(rows.to_dict("records")):
        colour = OKABE_ITO[0] if row["primary"] else INK
        ax.plot([row["low"], row["high"]], [at, at], color=colour, lw=1.4)
        ax.plot(row["difference"], at, "o", color=colour, mfc=colour if row["primary"] else "white", ms=5)
    ax.axvline(0, color=INK, lw=0.8)
    ax.locator_params(axis="x", nbins=6)
    names = [f"{row['condition']} − {row['baseline']}" for row in rows.to_dict("records")]
    ax.set_yticks(range(len(rows)), [escaped(name) for name in names])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.set_xlabel("difference in validation loss (nats per token)")


def mark_known(ax: Axes, data: pd.DataFrame, x: str, y: str) -> None:
    """The points known beforehand and the best one, each with its own marker."""
    best = data.loc[[data["value"].idxmin()]]
    for rows, label, marker, colour, size in (
        (data[data["role"] == "fitted"], "fitted law", "s", OKABE_ITO[0], 6),
        (data[data["role"] == "static"], "fixed dropout", "D", OKABE_ITO[2], 6),
        (best, "best point", "*", ACCENT, 10),
    ):
        ax.plot(rows[x], rows[y], marker, color=colour, ms=size, mfc="none", mew=1.4, label=label)


def draw_search_history(figure: Figure, picture: Picture) -> None:
    """Value of every point in order, and the best so far."""
    ax = figure.add_subplot()
    data = picture.data
    ax.plot(data["index"], data["value"], "o", color=FAINT, ms=3.5, label="point")
    ax.step(data["index"], data["best_so_far"], where="post", color=INK, lw=1, label="best so far")
    mark_known(ax, data, "index", "value")
    ax.set_xlabel("point, in the order of suggestion")
    ax.set_ylabel(picture.labels["loss"])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=5, columnspacing=1.0, handlelength=1.4)


def draw_search_slice(figure: Figure, picture: Picture) -> None:
    """Value against one parameter, early points dark."""
    ax = figure.add_subplot()
    data, x = picture.data, picture.labels["x"]
    ax.scatter(data[x], data["value"], c=data["index"], cmap=PALE_LAST, s=14, lw=0)
    mark_known(ax, data, x, "value")
    ax.set_xlabel(picture.labels["xlabel"])
    ax.set_ylabel(picture.labels["loss"])
    figure.legend(loc="outside lower center", ncols=3, columnspacing=1.0, handlelength=1.4)


def draw_search_map(figure: Figure, picture: Picture) -> None:
    """The two ends of each path, dark where the loss is low."""
    ax = figure.add_subplot()
    data, (x, y) = picture.data, (picture.labels["x"], picture.labels["y"])
    shown = ax.scatter(data[x], data[y], c=data["value"], cmap=PALE_LAST, s=26, lw=0)
    ends = [data[[x, y]].to_numpy().min(), data[[x, y]].to_numpy().max()]
    ax.plot(ends, ends, color=INK, lw=0.8, ls=DASHES[1])
    mark_known(ax, data, x, y)
    ax.set_xlabel(picture.labels["ends"]["p_first"])
    ax.set_ylabel(picture.labels["ends"]["p_last"])
    figure.colorbar(shown, ax=ax, label=picture.labels["loss"])
    figure.legend(loc="outside lower center", ncols=3, columnspacing=1.0, handlelength=1.4)


def draw_search_importance(figure: Figure, picture: Picture) -> None:
    """A bar per parameter."""
    ax = figure.add_subplot()
    rows = picture.data.iloc[::-1]
    ax.barh(rows["parameter"], rows["importance"], color=OKABE_ITO[0], height=0.5)
    ax.set_xlim(0, 1)
    ax.set_xlabel("importance (share of 1)")


def escaped(text: str) -> str:
    """A user's text as matplotlib must draw it: a dollar begins a formula otherwise, and a leading _ hides it."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text

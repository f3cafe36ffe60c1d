"""The paper's figures: panels side by side, one per corpus, in the colours and marks of ``analysis.palette``."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from analysis.figures import count_text, optimum_data
from analysis.palette import DASHES, DROPOUT, INK, OKABE_ITO, STYLE, count_axis, ordered_colours

if TYPE_CHECKING:
    from analysis.paper.studies import Study

WIDTH = 6.4  # inches, the paper's text
HEIGHT = 8.6  # inches, of a page with the figure's caption
COLUMNS, MANY, NARROW = 4, 16, 5  # panels in a row, and where there are more than so many of them
PAGE = 30  # panels that are still read on one page
STREAM_COLUMNS = 2  # their axes have long labels
MARKERS = ("o", "s", "D", "P", "X", "p", "h", "*")  # triangles mean that a cell is censored
STAND_IN = {"censored_low": "v", "censored_high": "^"}


def fitting(rest: float, each: float, count: int) -> float:
    """Inches of so many lines of a figure beside the rest of it, less where a page would not hold them."""
    return rest + min(each * count, HEIGHT - rest)


def columns_of(panels: int) -> int:
    """The most panels in a row."""
    return NARROW if panels > MANY else COLUMNS


def grid_size(panels: int, height: float, columns: int) -> tuple[float, float]:
    """Inches of a figure of so many panels side by side, in lines of at most so many columns."""
    return min(WIDTH, 2.2 + 2.4 * panels), fitting(0.6, height, -(-panels // columns))


def render(draw: object, size: tuple[float, float]) -> tuple[bytes, bytes]:
    """PDF and PNG (200 dpi) of what ``draw`` puts on a canvas; neither has a date in it."""
    pdf, png = io.BytesIO(), io.BytesIO()
    with mpl.rc_context({**STYLE, "pdf.fonttype": 42}):
        canvas = Canvas(figsize=size, layout="constrained")
        draw(canvas)  # type: ignore[operator]
        canvas.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
        canvas.savefig(png, format="png", dpi=200, metadata={"Software": None})
    return pdf.getvalue(), png.getvalue()


def lines_of(count: int, most: int) -> tuple[int, int]:
    """Lines and columns of panels."""
    columns = min(count, most)
    return -(-count // columns), columns


Optima = list[tuple[str, pd.DataFrame]]  # title, frame of ``optimum_data``


def optimum_frames(studies: Sequence[Study]) -> Optima:
    """A panel per corpus and model, the models by size; of more than a page holds, each corpus' largest model's."""
    frames = []
    for study in studies:
        groups = study.analysis.selection.groupby(["n_params", "phase", "model"], sort=True)
        for (_, _, model), cells in groups:
            data = optimum_data(cells, study.analysis.coefficients, "unique_tokens", "sampled_tokens")
            frames.append((study.title, int(cells["n_params"].iloc[0]), (f"{study.title}\n{model}", data)))
    if len(frames) > PAGE:
        largest: dict[str, int] = {}
        for corpus, n_params, _ in frames:
            largest[corpus] = max(n_params, largest.get(corpus, 0))
        frames = [each for each in frames if each[1] == largest[each[0]]]
    return [panel for _, _, panel in frames]


def draw_optima(canvas: Canvas, frames: Optima) -> None:
    """Best dropout against U, a colour per C."""
    lines, columns = lines_of(len(frames), columns_of(len(frames)))
    axes = canvas.subplots(lines, columns, sharey=True, squeeze=False)
    levels = sorted({level for _, data in frames for level in data["sampled_tokens"].unique()})
    colours = ordered_colours(levels)
    markers = dict(zip(levels, cycle(MARKERS), strict=False))
    used = set()
    for number, (title, data) in enumerate(frames):
        line, column = divmod(number, columns)
        ax = axes[line][column]
        used.add((line, column))
        corpus, model = title.splitlines()
        ax.set_title("\n".join([*textwrap.wrap(corpus, 84 // columns), model]), fontsize=7)
        ax.tick_params(labelsize=6)
        cells = data[data["series"] == "cell"]
        shift = np.linspace(-0.05, 0.05, len(levels)) if len(levels) > 1 else np.zeros(1)
        for level, offset in zip(levels, shift, strict=True):
            law = data[(data["series"] == "law") & (data["sampled_tokens"] == level)]
            ax.plot(law["unique_tokens"], law["dropout"], color=colours[level], lw=0.9)
            draw_cells(ax, cells[cells["sampled_tokens"] == level], offset, colours[level], markers[level])
        count_axis(ax, "x", cells["unique_tokens"].tolist())
    # Once, when all is drawn: the panels share their scale, and an earlier limit would cut the later ones.
    highest = max(float(np.nanmax(data[["dropout", "low", "high"]].to_numpy())) for _, data in frames)
    axes[0][0].set_ylim(-0.04, highest + 0.04)
    hide_unused(axes, used)
    label_lowest(axes, used, "unique tokens U")
    canvas.supylabel(f"best {DROPOUT}", fontsize=8)
    handles = [
        Line2D([], [], color=colours[level], marker=markers[level], ms=4, lw=0.9, label=f"C = {count_text(level)}")
        for level in levels
    ]
    legend(canvas, handles, 1.0)


def draw_cells(ax: Axes, cells: pd.DataFrame, offset: float, colour: object, marker: str) -> None:
    for status, rows in cells.groupby("status"):
        at = rows["unique_tokens"] * np.exp(offset)  # side by side, so that bars do not hide one another
        if status == "interior":
            reach = np.abs(rows[["low", "high"]].to_numpy().T - rows["dropout"].to_numpy())
            ax.errorbar(at, rows["dropout"], yerr=reach, fmt=marker, color=colour, ms=3.5, lw=0.8)
            continue
        if status in STAND_IN:
            bound = rows["low" if status == "censored_high" else "high"]
            ax.vlines(at, rows["dropout"], bound, color=colour, lw=0.8)
        ax.plot(at, rows["dropout"], STAND_IN.get(str(status), "x"), mfc="none", color=colour, ms=4, mew=0.8)


def draw_forest(canvas: Canvas, data: Sequence[tuple[str, pd.DataFrame]]) -> None:
    """Differences with intervals: a row per stream, a panel per path."""
    axes = canvas.subplots(1, len(data), sharey=True, squeeze=False)[0]
    labels = data[0][1]["label"]
    at = -np.arange(len(labels))
    for number, (ax, (name, frame)) in enumerate(zip(axes, data, strict=True)):
        colour = OKABE_ITO[0] if not number else INK
        ax.set_title(textwrap.fill(name, 12), fontsize=7)
        ax.axvline(0, color=INK, lw=0.7)
        for y, row in zip(at, frame.to_dict("records"), strict=True):
            ax.plot([row["low"], row["high"]], [y, y], color=colour, lw=1.1)
            ax.plot(row["difference"], y, "o", color=colour, mfc=colour if row["shown"] else "white", ms=3.5)
        ax.set_yticks(at, labels)
        ax.set_ylim(at[-1] - 0.7, 0.7)
        ax.tick_params(labelsize=6)
        ax.locator_params(axis="x", nbins=2)
    canvas.supxlabel("loss less the best fixed dropout's (nats per token)", fontsize=7.5)


def draw_streams(canvas: Canvas, data: Sequence[tuple[str, pd.DataFrame]], most: int = STREAM_COLUMNS) -> None:
    """Loss along the stream less a fixed dropout's, a panel per stream, so many in a line."""
    lines, columns = lines_of(len(data), most)
    names = list(dict.fromkeys(name for _, frame in data for name in sorted(frame["name"].unique(), key=stream_order)))
    styles = dict(zip(names, zip(cycle(OKABE_ITO), cycle(DASHES), cycle(MARKERS), strict=False), strict=False))
    axes = canvas.subplots(lines, columns, squeeze=False)
    used = set()
    for number, (label, frame) in enumerate(data):
        line, column = divmod(number, columns)
        ax = axes[line][column]
        used.add((line, column))
        corpus, *mark = label.splitlines()
        marks = textwrap.wrap(" ".join(mark), 66 // columns)
        ax.set_title("\n".join([corpus, *marks, f"less {frame['baseline'].iloc[0]}"]), fontsize=7)
        ax.axhline(0, color=INK, lw=0.7)
        ends = frame.groupby("stage")["sampled_tokens"].max().sort_index()
        for end in ends.iloc[:-1]:
            ax.axvline(end, color="#bbbbbb", lw=0.6, ls=DASHES[2])
        for name, (colour, dash, marker) in styles.items():
            own = frame[frame["name"] == name].sort_values("sampled_tokens")
            ax.plot(own["sampled_tokens"], own["difference"], color=colour, ls=dash, marker=marker, ms=2.5, lw=1)
        prefixes = frame.drop_duplicates("stage").sort_values("stage")["unique_tokens"]
        ax.set_xticks(ends.tolist(), [f"{count_text(c)}\n{count_text(u)}" for c, u in zip(ends, prefixes, strict=True)])
        ax.tick_params(axis="x", labelsize=6)
    hide_unused(axes, used)
    label_lowest(axes, used, "C, below: prefix U")
    canvas.supylabel("loss less fixed rate's (nats per token)", fontsize=8)
    handles = [
        Line2D([], [], color=colour, ls=dash, marker=marker, ms=3, lw=1, label=name)
        for name, (colour, dash, marker) in styles.items()
    ]
    legend(canvas, handles, 1.5)


def legend(canvas: Canvas, handles: list[Line2D], inches: float) -> None:
    """Below the panels, in as many columns of so many inches as fit."""
    canvas.legend(handles=handles, loc="outside lower center", ncols=max(1, int(canvas.get_figwidth() / inches)))


def stream_order(name: str) -> tuple[bool, str]:
    """The law first."""
    return name != "the law", name


def hide_unused(axes: np.ndarray, used: set[tuple[int, int]]) -> None:
    for (line, column), ax in np.ndenumerate(axes):
        if (line, column) not in used:
            ax.set_visible(False)


def label_lowest(axes: np.ndarray, used: set[tuple[int, int]], x: str) -> None:
    """A label at the lowest panel of each column: one for the whole figure would lie on the legend."""
    for column in range(axes.shape[1]):
        lines = [line for line, other in used if other == column]
        if lines:
            axes[max(lines)][column].set_xlabel(x, fontsize=7)

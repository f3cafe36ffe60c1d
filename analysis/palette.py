"""What the pictures share: colours, marks, matplotlib's settings, names of quantities, an axis of token counts.

Colours are safe for colour-blind readers: Okabe and Ito's set for names, viridis for ordered quantities,
and a marker or a line style repeats what a colour says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.ticker import FuncFormatter, NullLocator

from analysis.figures import count_text

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, FAINT, ACCENT = "#222222", "#9a9a9a", "#D55E00"
PLATEAU = "#56B4E9"
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)))
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
# As ``ordered_colours``, for a quantity that varies continuously.
PALE_LAST = ListedColormap(mpl.colormaps["viridis"](np.linspace(0.0, 0.88, 256)), name="viridis_to_0.88")
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1.3,
    "figure.constrained_layout.h_pad": 0.05,
    "svg.hashsalt": "tune_dd",  # ids in the SVG, otherwise random
    "svg.fonttype": "none",  # text stays text: small, selectable, read aloud
}
PNG_DPI = 150
LOSS = "validation loss (nats per token)"
DROPOUT = "dropout rate p"
UNITS = {"unique_tokens": "unique tokens U", "sampled_tokens": "sampled tokens C"}


def ordered_colours(levels: Sequence[float]) -> dict[float, Any]:
    """Viridis from dark to light, its palest end left out: it vanishes on white."""
    values = sorted(set(levels))
    shades = mpl.colormaps["viridis"](np.linspace(0.0, 0.88, len(values)))
    return dict(zip(values, shades, strict=True))


def named_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour, dash and marker per name; together they tell 28 names apart.

    Names that share a colour differ in both others: in a small legend a dash alone is not seen.
    """
    styles = {}
    for number, name in enumerate(names):
        around, place = divmod(number, len(OKABE_ITO))
        dash, marker = DASHES[around % len(DASHES)], MARKERS[(place + around) % len(MARKERS)]
        styles[name] = {"color": OKABE_ITO[place], "linestyle": dash, "marker": marker}
    return styles


def schedule_styles(data: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """A style per condition: schedules by name, fixed dropouts thin, dashed, and dark to light as they rise."""
    rates = data.groupby("condition")["dropout"].agg(["min", "max"])
    fixed = rates.loc[rates["min"] == rates["max"], "min"].sort_values()
    shades = ordered_colours(fixed.tolist())
    thin = {"linestyle": DASHES[2], "marker": ".", "lw": 0.9, "ms": 3.5}
    styles = named_styles(sorted(set(rates.index) - set(fixed.index)))
    return {name: {**style, "lw": 1.3, "ms": 3.5} for name, style in styles.items()} | {
        str(name): {**thin, "color": shades[rate]} for name, rate in fixed.items()
    }


def count_axis(ax: Axes, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis of token counts with ticks at what was measured, at most eight of them."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    ticks = sorted(set(values))
    step = -(-len(ticks) // 8)
    axis.set_ticks(ticks[::-1][::step])
    axis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value)))
    axis.set_minor_locator(NullLocator())

"""The tables in the terminal: at most 100 columns, without ornament where nobody looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from analysis.adaptive import REASONS
from analysis.figures import METRICS, count_text
from analysis.words import CLASS_WORDS, answer, law_sentence
from tune_dd.console import Console

if TYPE_CHECKING:
    from analysis.adaptive import Adaptive
    from analysis.report import Analysis
    from analysis.searched import Searched

# More cells than fit on two screens are cut to the last read-outs, which decide; the CSV has them all.
MAX_ROWS = 60
MAX_POINTS = 5  # of a search; search.csv has them all
STATUS_WORDS = {
    "interior": "interior",
    "censored_low": "censored low",
    "censored_high": "censored high",
    "no_signal": "no signal",
}


def print_tables(analysis: Analysis, console: Console | None = None) -> None:
    """Print what was found: class and regime, the optimum and plateau of each cell, the law, the stream."""
    console = console or make_console()
    experiment = analysis.experiment
    table = experiment.table
    trials = experiment.so_far or f"{table['trial_id'].nunique()} trials"
    console.print(
        Text(f"{experiment.regime}: {trials}, {len(table)} read-outs on {', '.join(devices(table))}."),
        Text(CLASS_WORDS.get(experiment.evidence, f"Class: {experiment.evidence}.")),
    )
    for note in analysis.notes:
        console.print(Text(f"Note: {note}", style="yellow"))
    for _, cells in analysis.selection.groupby("phase") if len(analysis.selection) else ():
        console.print_table(selection_table(cells, experiment.evidence, console))
    for adaptive in analysis.adaptive:
        console.print(Text(adaptive.sentence))
        if not adaptive.cells["decided"].all():
            console.print_table(undecided_table(adaptive, console))
    print_law(analysis, console)
    if analysis.comparison is not None:
        for _, rows in analysis.comparison.groupby("metric", sort=False):
            console.print_table(comparison_table(rows, experiment.evidence, console))
    if analysis.search is not None and analysis.search.best is not None:
        console.print_table(search_table(analysis.search, experiment.evidence, console))
    if text := answer(analysis.selection, analysis.comparison, analysis.search):
        console.print(Text(f"So far: {text}" if experiment.so_far else text, style="bold"))


def make_console() -> Console:
    """A console that is 100 columns wide where there is no terminal to ask."""
    return Console(log_width=100)


def devices(table: pd.DataFrame) -> list[str]:
    pairs = table[["device", "device_name"]].drop_duplicates().itertuples(index=False, name=None)
    return sorted({f"{device} ({name})" if name and name != device else device for device, name in pairs})


def new_table(title: str, console: Console) -> Table:
    style = box.SIMPLE_HEAD if console.is_terminal else box.MARKDOWN
    return Table(title=Text(title), title_justify="left", box=style, pad_edge=False, title_style="bold")


def selection_table(selection: pd.DataFrame, evidence: str, console: Console) -> Table:
    """Optimum and plateau per cell of one phase. Its columns fit in a hundred for the models of every regime."""
    phase = selection["phase"].iloc[0]
    cells, title = selection, f"Best dropout per cell with 95 % interval, {phase}; gain over p = 0 in nats ({evidence})"
    if len(cells) > MAX_ROWS:
        last = cells.groupby(["model", "unique_tokens"])["sampled_tokens"].transform("max")
        cells = cells[cells["sampled_tokens"] == last]
        hidden = len(selection) - min(len(cells), MAX_ROWS)
        cells = cells.head(MAX_ROWS)
        title += f", last read-outs; model_selection.csv has the other {hidden}"
    table = new_table(title, console)
    table.add_column("model", overflow="fold")
    for name in ("U", "C", "seeds", "best", "interval", "plateau"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("gain", justify="right", no_wrap=True)
    order = ["n_params", "model", "unique_tokens", "sampled_tokens"]
    for row in cells.sort_values(order).to_dict("records"):
        values = [
            row["model"],
            count_text(row["unique_tokens"]),
            count_text(row["sampled_tokens"]),
            str(row["n_seeds"]),
            best_text(row),
            optimum_interval(row),
            plateau_text(row),
            STATUS_WORDS[row["status"]],
            signed(row["improvement"], 3),
        ]
        table.add_row(*map(Text, values), style=None if row["status"] == "interior" else "dim")
    return table


def undecided_table(adaptive: Adaptive, console: Console) -> Table:
    """The cells that an adaptive calibration left undecided."""
    rows = adaptive.cells[~adaptive.cells["decided"]]
    hidden = f", the first {MAX_ROWS} of {len(rows)}" if len(rows) > MAX_ROWS else ""
    table = new_table(f"Cells left undecided{hidden}", console)
    table.add_column("model", overflow="fold")
    for name in ("U", "C", "trials", "seeds", "width"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why")
    for row in rows.head(MAX_ROWS).to_dict("records"):
        table.add_row(*map(Text, verdict_texts(row)))
    return table


def verdict_texts(row: dict[Any, Any]) -> tuple[str, ...]:
    """Model, U, C, trials, seeds at the best dropout, width of the interval, and why."""
    return (
        row["model"],
        count_text(row["unique_tokens"]),
        count_text(row["sampled_tokens"]),
        str(row["n_trials"]),
        str(row["n_seeds"]),
        f"{row['width']:.3f}" if np.isfinite(row["width"]) else "-",
        REASONS[row["reason"]],
    )


def best_text(row: dict[Any, Any]) -> str:
    """The fitted optimum; for a flat cell nothing, for a censored one the bound that its interval supports.

    Where one seed gives no interval it is the rate that did best; the status says that it lay at the edge.
    """
    if row["status"] == "no_signal":
        return "-"
    if row["status"] == "interior":
        return f"{row['fitted_optimum']:.2f}"
    if at_zero(row):
        return "0"  # nothing lies below it
    sign, bound = ("<=", "fitted_high") if row["status"] == "censored_low" else (">=", "fitted_low")
    return f"{sign}{row[bound]:.2f}" if np.isfinite(row[bound]) else f"{row['grid_optimum']:.2f}"


def at_zero(row: dict[Any, Any]) -> bool:
    return bool(row["status"] == "censored_low" and row["grid_optimum"] == 0)


def optimum_interval(row: dict[Any, Any]) -> str:
    """The optimum's 95 % interval; none for a censored cell, whose other end nothing bounds."""
    if str(row["status"]).startswith("censored") and not at_zero(row):
        return "-"
    return interval_text(row["fitted_low"], row["fitted_high"], 2)


def plateau_text(row: dict[Any, Any]) -> str:
    return f"{row['plateau_low']:.2f}-{row['plateau_high']:.2f}" if np.isfinite(row["plateau_low"]) else "-"


def interval_text(low: float, high: float, digits: int) -> str:
    return f"[{low:.{digits}f}, {high:.{digits}f}]" if np.isfinite(low) and np.isfinite(high) else "-"


def signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}" if np.isfinite(value) else "-"


def print_law(analysis: Analysis, console: Console) -> None:
    coefficients = analysis.coefficients
    if coefficients is None:
        if len(analysis.selection):
            console.print(Text(analysis.why_no_law))
        return
    table = new_table(f"The {coefficients.law} law", console)
    table.add_column("coefficient")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    for name, value in coefficients.coefficients.items():
        table.add_row(name, f"{value:.4f}", interval_text(*coefficients.intervals[name], 4))
    console.print_table(table)
    console.print(Text(law_sentence(coefficients)))
    for note in coefficients.notes:
        console.print(Text(f"Note: {note}.", style="yellow"))


def comparison_table(rows: pd.DataFrame, evidence: str, console: Console) -> Table:
    """Conditions less their baselines by one metric, paired by seed."""
    metric = METRICS[str(rows["metric"].iloc[0])]
    table = new_table(f"{metric}, condition less baseline, nats per token ({evidence})", console)
    for name in ("condition", "baseline"):
        table.add_column(name, overflow="fold")
    for name in ("difference", "95 % interval", "pairs", "p sign", "p Holm"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows.to_dict("records"):
        table.add_row(
            Text(str(row["condition"]) + (" (primary)" if row["primary"] else "")),
            Text(str(row["baseline"])),
            signed(row["difference"], 4),
            interval_text(row["low"], row["high"], 4),
            str(row["n_pairs"]),
            p_text(row["p_sign_flip"]),
            p_text(row["p_holm"]),
            style="bold" if row["primary"] else None,
        )
    return table


def search_table(search: Searched, evidence: str, console: Console) -> Table:
    """The best points of a search and the two known beforehand."""
    ranked = search.finished.sort_values("value", kind="stable")
    known = ranked["role"] != "sampled"
    rows = ranked[known | (np.arange(len(ranked)) < MAX_POINTS)]
    title = f"{METRICS[search.metric]} of the best points of {len(ranked)}, nats per token ({evidence})"
    table = new_table(title, console)
    for name in ("point", "role"):
        table.add_column(name, no_wrap=True)
    table.add_column("dropout by stage", overflow="fold")
    for name in ("loss", "std", "seeds"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, row in enumerate(rows.to_dict("records")):
        table.add_row(
            row["condition"],
            row["role"],
            " ".join(f"{p:.3f}" for p in search.dropouts(row)),
            f"{row['value']:.4f}",
            f"{row['value_std']:.4f}" if np.isfinite(row["value_std"]) else "-",
            str(row["n_seeds"]),
            style="bold" if not number else None,
        )
    return table


def p_text(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "-"

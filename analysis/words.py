"""The answer in plain words: how the best dropout moves with U and C, how sure that is, where it is censored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.figures import count_text, optimum_text

if TYPE_CHECKING:
    from analysis.coefficients import Coefficients
    from analysis.searched import Searched

CLASS_WORDS = {
    "evidence": "Evidence: full scale on mps, the device of the reference study.",
    "run": "Run: full scale, but not on mps, the device of the reference study; it is no evidence for that study.",
    "rehearsal": "Rehearsal: pocket scale; it shows that the method works and is no evidence for the reference study.",
}
SIGNIFICANT = 0.05
Row = pd.Series | Mapping[Any, Any]  # of a table
UNCERTAIN = {
    "censored_low": "at its low end",
    "censored_high": "at its high end",
    "no_signal": "without a visible effect",
}


def answer(selection: pd.DataFrame, comparison: pd.DataFrame | None = None, search: Searched | None = None) -> str:
    """A sentence on each that there is of optimum, stream and search; empty where there is nothing to say."""
    parts = []
    if len(selection):
        parts.append(optimum_sentence(main_model(selection)))
    if comparison is not None and len(comparison):
        parts.append(stream_sentence(comparison))
    if search is not None:
        parts.append(search_sentence(search))
    return " ".join(part for part in parts if part)


def main_model(selection: pd.DataFrame) -> pd.DataFrame:
    """The cells of the model (and phase) with most of them, the larger model on a tie."""
    sizes = selection.groupby(["phase", "model"])["n_params"].agg(["size", "max"]).sort_values(["size", "max"])
    phase, model = sizes.index[-1]
    chosen: pd.DataFrame = selection[(selection["phase"] == phase) & (selection["model"] == model)]
    return chosen


def optimum_sentence(cells: pd.DataFrame) -> str:
    last = cells[cells["sampled_tokens"] == cells["sampled_tokens"].max()].sort_values("unique_tokens")
    first = cells[cells["unique_tokens"] == cells["unique_tokens"].min()].sort_values("sampled_tokens")
    place = f"On {cells['regime'].iloc[0]}, {cells['model'].iloc[0]}"
    c, u = count_text(last["sampled_tokens"].iloc[0]), count_text(first["unique_tokens"].iloc[0])
    if len(last) > 1:
        text = f"{place}, the best dropout after C = {c} sampled tokens {move(last, 'unique_tokens', 'U')}"
    else:
        where = f"U = {count_text(last['unique_tokens'].iloc[0])} unique and C = {c} sampled tokens"
        text = f"{place}, the best dropout at {where} is {optimum(last.iloc[0])}"
    if len(first) > 1:
        text += f"; at U = {u} it {move(first, 'sampled_tokens', 'C')}"
    return f"{text}; {certainty(cells)}."


def move(cells: pd.DataFrame, column: str, letter: str) -> str:
    """From the first cell to the last, claimed as a move only where their intervals do not meet."""
    a, b = cells.iloc[0], cells.iloc[-1]
    places = [f"{letter} = {count_text(row[column])}" for row in (a, b)]
    if a["status"] == b["status"] and a["status"] != "interior" and best(a) == best(b):
        if a["status"] == "no_signal":
            return f"stays {optimum(a)} from {places[0]} to {places[1]}"
        end = "highest" if a["status"] == "censored_high" else "lowest"
        return f"stays at the {end} tried, {best(a):.3g} (censored), from {places[0]} to {places[1]}"
    verb = {-1: "falls", 0: "does not move clearly:", 1: "rises", None: "goes"}[change(a, b)]
    return f"{verb} from {optimum(a)} at {places[0]} to {optimum(b)} at {places[1]}"


def change(a: Row, b: Row) -> int | None:
    """-1 (the optimum falls from a to b), 1 (it rises) or 0: their intervals meet; None where one has none."""
    if not (np.isfinite(a["fitted_low"]) and np.isfinite(b["fitted_low"])):
        return None
    if bounds(b)[1] < bounds(a)[0]:
        return -1
    return 1 if bounds(a)[1] < bounds(b)[0] else 0


def bounds(row: Row) -> tuple[float, float]:
    """What the cell says of its optimum: an interval, half a line where censored, all rates where it says nothing."""
    if row["status"] == "no_signal":
        return 0.0, 1.0
    low, high = float(row["fitted_low"]), float(row["fitted_high"])
    if row["status"] == "censored_low":
        return 0.0, high
    return (low, 1.0) if row["status"] == "censored_high" else (low, high)


def best(row: pd.Series) -> float:
    return float(row["fitted_optimum" if row["status"] == "interior" else "grid_optimum"])


def optimum(row: pd.Series) -> str:
    return optimum_text(
        row["status"], row["fitted_optimum"], row["fitted_low"], row["fitted_high"], row["grid_optimum"]
    )


def certainty(cells: pd.DataFrame) -> str:
    counts = cells["status"].value_counts()
    interior = int(counts.get("interior", 0))
    text = f"{interior} of {len(cells)} cells have their optimum inside the grid"
    censored = [f"{counts[status]} {word}" for status, word in UNCERTAIN.items() if status in counts]
    text += f" ({', '.join(censored)})" if censored else ""
    if cells["fitted_low"].isna().all():
        text += "; with one seed nothing says how sure this is"
    return text


def stream_sentence(comparison: pd.DataFrame) -> str:
    primary = comparison[comparison["primary"].astype(bool) & (comparison["metric"] == "final_val_loss")]
    if primary.empty:
        return ""
    row = primary.iloc[0]
    baseline = {"best_static": "the best static dropout"}.get(row["baseline"], row["baseline"])
    return (
        f"On the stream, {row['condition']} {verdict(row)} {baseline}: final validation loss "
        f"{row['difference']:+.4f} nats per token{support(row)}."
    )


def verdict(row: pd.Series) -> str:
    """What a contrast shows, in words."""
    words = {None: "cannot be told from", -1: "ends lower than", 1: "ends higher than"}
    return words.get(direction(row, t_test(row)[1]), "is not shown to differ from")


def direction(row: Row, p: float) -> int | None:
    """-1 (lower), 1 (higher) or 0 (neither is shown); None where there is no interval.

    A direction is claimed where the interval and the t test both bear it out.

    Args:
        row: a row of comparison.csv.
        p: of the t test, adjusted where the contrast is one of several.
    """
    if not np.isfinite(row["low"]):
        return None
    if p < SIGNIFICANT and (row["high"] < 0 or row["low"] > 0):
        return -1 if row["high"] < 0 else 1
    return 0


def t_test(row: pd.Series) -> tuple[str, float]:
    """The t test that a contrast allows, and its p; Welch where no seed is matched, NaN where there is none."""
    welch = row.get("method") == "welch"
    return ("Welch's t", float(row["p_welch"])) if welch else ("paired t", float(row["p_paired_t"]))


def support(row: pd.Series) -> str:
    """How sure a difference is: interval, seeds, test."""
    seeds = int(row["n_pairs"])
    name, p = t_test(row)
    if not np.isfinite(row["low"]):
        return f" over {seeds} {'seed' if seeds == 1 else 'seeds'}, too few to say how sure this is"
    over = "no seed matched" if row.get("method") == "welch" else f"{seeds} seeds"
    return f" [{row['low']:+.4f}, {row['high']:+.4f}] ({over}, {name} p = {p:.3f})"


def search_sentence(search: Searched) -> str:
    """The best schedule of a search and its lead, which is flattered, over what was known."""
    best = search.best
    if best is None:
        return ""
    n = len(search.finished)
    path = " ".join(f"{p:.3f}" for p in search.dropouts(best))
    if not len(search.contrasts):
        return f"The search has finished {n} of its points; the best so far is {best['condition']}, {path}."
    names = {"fitted": "the law that it began with", "static": "the fixed dropout that it began with"}
    leads = [
        f"{row['difference']:+.4f}"
        + (f" [{row['low']:+.4f}, {row['high']:+.4f}]" if np.isfinite(row["low"]) else "")
        + f" from {names[row['baseline']]}"
        for row in search.contrasts.to_dict("records")
    ]
    seeds = len(search.about["seeds"])
    loss = "final validation loss" if search.about["objective"] == "final" else "trajectory-mean validation loss"
    return (
        f"Of {n} schedules searched the best is {path} ({best['condition']}): {loss}, in nats per token over "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}, {' and '.join(leads)}. It was chosen on these seeds, which "
        "flatters it: confirm it on others."
    )


def law_sentence(coefficients: Coefficients) -> str:
    """The fitted law as a formula with its numbers, and how well it predicts cells left out.

    A law from one model size says so before anything else: how dropout depends on P is then a guess.
    """
    terms = ", ".join(f"{name} = {value:.3f}" for name, value in coefficients.coefficients.items())
    sizes = {cell["n_params"] for cell in coefficients.cells if cell["status"] == "interior"}
    caution = ""
    if len(sizes) == 1:
        caution = (
            f"For models of P = {count_text(sizes.pop())} only, since one size cannot tell how dropout depends on P "
            "(not even the sign of a coefficient of P is known): "
        )
    text = (
        f"{caution}{'the' if caution else 'The'} {coefficients.law} law, p = {coefficients.form.formula}, "
        f"fits {coefficients.n_cells} cells with {terms}."
    )
    return f"{text} {left_out_sentence(coefficients)}".rstrip()


def left_out_sentence(coefficients: Coefficients) -> str:
    """The two errors on a cell left out, each with the cells that it is over; empty where they are unknown."""
    if coefficients.loo_rmse is None or coefficients.loo_regret is None:
        return ""
    fitted, n = coefficients.n_cells, len(coefficients.cells)
    return (
        f"For a cell left out of the fit, while other read-outs of the same trials stay in it, the law is off by "
        f"{coefficients.loo_rmse:.3f} in dropout (root mean square over the {fitted} cells whose optimum it is fitted "
        f"to), and its dropout costs {coefficients.loo_regret:.4f} nats per token more than the best one (mean over "
        f"all {n} cells)."
    )

"""The page's section on a search for a schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis import html
from analysis.html import Shown, cut_text, gallery, html_table, paragraph
from analysis.searched import ROLES, Searched
from analysis.terminal import interval_text, signed

if TYPE_CHECKING:
    from analysis.report import Analysis

FLATTERED = (
    "The best of many points is chosen on the seeds that it is reported on, which flatters it. "
    "Its interval does not charge for the choice. Confirm it on other seeds, as a condition of --phase stream."
)


def search_part(analysis: Analysis, shown: Shown) -> str:
    """What was found, the contrasts, every point from the best on, the pictures."""
    search = analysis.search
    if search is None:
        return ""
    notes = "".join(paragraph(f"Note: {note}.", "note") for note in search.notes)
    evidence = f"Class: {analysis.experiment.evidence}."
    return (
        paragraph(FLATTERED)
        + contrast_table(search, evidence)
        + notes
        + point_table(search, evidence)
        + (gallery(shown, "search", wide=True))
    )


def contrast_table(search: Searched, evidence: str) -> str:
    rows = [
        (
            ROLES[row["baseline"]],
            row["baseline_condition"],
            signed(row["difference"], 4),
            interval_text(row["low"], row["high"], 4),
            row["n_pairs"],
        )
        for row in search.contrasts.to_dict("records")
    ]
    if not rows:
        return ""
    caption = f"The best point less what was known, nats per token, paired by seed; below zero it is better. {evidence}"
    return html_table(["the best point less", "condition", "difference", "95 % interval", "pairs"], rows, 2, caption)


def point_table(search: Searched, evidence: str) -> str:
    ranked = search.history.sort_values("value", kind="stable", na_position="last")
    rows = [
        (
            row["condition"],
            row["role"],
            " ".join(f"{p:.3f}" for p in search.dropouts(row)),
            *(f"{row[f'param_{name}']:.4f}" for name in search.params),
            f"{row['value']:.4f}" if np.isfinite(row["value"]) else "-",
            f"{row['value_std']:.4f}" if np.isfinite(row["value_std"]) else "-",
            row["n_seeds"],
        )
        for row in ranked.head(html.MAX_ROWS).to_dict("records")
    ]
    headings = ["point", "role", "dropout by stage", *search.params, "loss", "std", "seeds"]
    caption = f"Every point, the best first; loss in nats per token, mean over seeds. {evidence}"
    return html_table(headings, rows, 3, caption) + cut_text(len(ranked), "points", "search.csv")

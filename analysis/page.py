"""report.html: one self-contained page that opens offline, on a phone and in print.

Everything that comes from users (names, paths, descriptions) is escaped here, in one place each: a cell
of a table or a piece of text goes through ``text``. Pictures are inline SVG that matplotlib escaped.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import html
from analysis.figures import MAX_PAIRS, METRICS, count_text
from analysis.html import Shown, cut_text, definitions, gallery, html_table, paragraph, text
from analysis.predictions_page import predictions_part
from analysis.search_page import search_part
from analysis.style import STYLE_SHEET
from analysis.terminal import (
    STATUS_WORDS,
    best_text,
    devices,
    interval_text,
    optimum_interval,
    p_text,
    plateau_text,
    signed,
    verdict_texts,
)
from analysis.words import CLASS_WORDS, answer, law_sentence, left_out_sentence, t_test

if TYPE_CHECKING:
    from analysis.report import Analysis

# No script, no request: what a page of results may do is be read.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render_page(analysis: Analysis, shown: Shown) -> str:
    """The page as text; ``shown`` holds (section, picture, SVG)."""
    experiment = analysis.experiment
    title = f"{experiment.regime}: which dropout?"
    sections = [
        ("answer", "The answer", answer_part(analysis)),
        ("run", "What was run", run_part(analysis)),
        ("cells", "Best dropout per cell", selection_part(analysis, shown)),
        ("optimum", "Optimum against unique and sampled tokens", optimum_part(analysis, shown)),
        ("law", "The law", law_part(analysis, shown)),
        ("stream", "Schedules on the stream", stream_part(analysis, shown)),
        ("search", "A schedule searched for", search_part(analysis, shown)),
        (
            "predictions",
            "Predicted beforehand, and what came out",
            predictions_part(analysis.predictions, experiment.evidence),
        ),
        ("curves", "Training curves", gallery(shown, "curves", wide=False) + gallery(shown, "trace", wide=True)),
        ("ledger", "Ledger", ledger_part(analysis)),
        ("reproduce", "How to reproduce", reproduce_part(analysis)),
    ]
    sections = [(key, heading, body) for key, heading, body in sections if body]
    links = "".join(f'<a href="#{key}">{text(heading)}</a>' for key, heading, _ in sections)
    bodies = "".join(f'<section id="{key}"><h2>{text(heading)}</h2>{body}</section>' for key, heading, body in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE_SHEET}</style></head><body>"
        f"<header><h1>{text(title)}</h1>{badge(experiment.evidence)}</header>"
        f"<nav>{links}</nav><main>{bodies}</main></body></html>\n"
    )


def badge(evidence: str) -> str:
    kind = evidence if evidence in CLASS_WORDS else "run"
    return f'<p class="badge {kind}">{text(CLASS_WORDS.get(evidence, f"Class: {evidence}."))}</p>'


def answer_part(analysis: Analysis) -> str:
    said = answer(analysis.selection, analysis.comparison, analysis.search) or "Nothing can be said yet."
    parts = [paragraph(said, "answer")]
    if so_far := analysis.experiment.so_far:
        parts.insert(0, paragraph(f"Not finished: {so_far}. What follows may change with the others.", "note"))
    if analysis.coefficients is not None:
        parts.append(paragraph(law_sentence(analysis.coefficients)))
    parts += [paragraph(f"Note: {note}", "note") for note in analysis.notes]
    return "".join(parts)


def run_part(analysis: Analysis) -> str:
    table, configs = analysis.experiment.table, analysis.experiment.configs
    models = table.drop_duplicates("model").sort_values("n_params")
    planned = [config["n_trials"] for config in configs if isinstance(config.get("n_trials"), int)]
    n_trials = table["trial_id"].nunique()
    progress = f"{n_trials} with results"
    if planned and len(planned) == len(analysis.experiment.folders):
        most = "at most " if analysis.adaptive else ""
        progress += f" of {most}{sum(planned)} planned"
    ledger = analysis.experiment.ledger
    crashed = int((ledger["status"] == "crash").sum()) if ledger is not None else 0
    rows: list[tuple[str, str]] = [
        ("Class", f"{analysis.experiment.evidence} (no table on this page mixes classes)"),
        ("Regime", " ".join(dict.fromkeys([analysis.experiment.regime, *titles(configs)]))),
        ("Phase, scale", f"{listed(table['phase'])}; {listed(table['scale'])}"),
        ("Trials", progress + (f", {crashed} crashed" if crashed else "")),
        ("Device", ", ".join(devices(table))),
        ("Models", ", ".join(f"{row.model} (P = {row.n_params:,})" for row in models.itertuples())),
        ("Seeds", listed(table["seed"])),
        ("Unique tokens U", ", ".join(count_text(u) for u in sorted(table["unique_tokens"].unique()))),
        ("Protocol", f"batch {listed(table['batch_size'])} x context {listed(table['context'])}, {rates(table)}"),
        ("Vocabulary", listed(table["vocab_size"])),
        (
            "Validation",
            f"{listed(table['val_tokens'])} tokens, text {listed(table['validation_hash']) or 'not hashed'}",
        ),
        ("Corpus", listed(table["corpus_hash"])),
        ("Tokenizer", listed(table["tokenizer_hash"])),
        ("Runs", ", ".join(str(folder) for folder in analysis.experiment.folders) or str(analysis.folder)),
    ]
    for config in configs:
        if isinstance(config.get("attribution"), str):
            rows.append(("Attribution", config["attribution"]))
    return definitions(dict(rows))


def titles(configs: list[dict[str, Any]]) -> list[str]:
    regimes = [config["regime"] for config in configs if isinstance(config.get("regime"), dict)]
    return [f"({regime['title']})" for regime in regimes if regime.get("title")]


def listed(values: pd.Series) -> str:
    return ", ".join(str(value) for value in sorted(values.unique()))


def rates(table: pd.DataFrame) -> str:
    low, high = table["learning_rate"].min(), table["learning_rate"].max()
    return f"learning rate {high:g}" if low == high else f"learning rate {low:g} to {high:g} at read-outs"


def selection_part(analysis: Analysis, shown: Shown) -> str:
    selection = analysis.selection
    if selection.empty:
        return ""
    # A phone shows the first columns: what tells the cells apart, and the answer.
    names = [name for name in ("phase", "model") if selection[name].nunique() > 1]
    headings = [*names, "U", "C", "best", "95 % interval", "plateau", "status", "cubic", "seeds", "gain (nats)"]
    rows = [
        (
            *(row[name] for name in names),
            count_text(row["unique_tokens"]),
            count_text(row["sampled_tokens"]),
            best_text(row),
            optimum_interval(row),
            plateau_text(row),
            STATUS_WORDS[row["status"]],
            f"{row['cubic_optimum']:.2f}" if np.isfinite(row["cubic_optimum"]) else "-",
            row["n_seeds"],
            signed(row["improvement"], 3),
            interval_text(row["improvement_low"], row["improvement_high"], 3),
        )
        for row in selection.head(html.MAX_ROWS).to_dict("records")
    ]
    only = ", ".join(str(selection[name].iloc[0]) for name in ("phase", "model") if name not in names)
    caption = f"Class: {analysis.experiment.evidence}. {f'All cells: {only}.' if only else ''}"
    table = html_table([*headings, "95 % interval"], rows, numeric=len(names), caption=caption)
    margin = analysis.settings.margin
    within = "one pooled paired standard error" if margin is None else f"{margin:g} nats per token, the margin given"
    about = paragraph(
        f"The plateau is the set of dropouts not shown worse than the best one: within {within}. Where the best rate "
        "is the grid's highest or lowest, the optimum is censored: the bound given is the end of its 95 % interval "
        "that lies inside the grid. The gain is the loss at p = 0 less that at the best other rate, its interval "
        "charged for having chosen the best."
    )
    cut = cut_text(len(selection), "cells", "model_selection.csv")
    drawn = sum(section == "cells" for section, _, _ in shown)
    rest = paragraph(f"Drawn are {drawn} of the {len(selection)} cells, those of the last read-outs.")
    return (
        about
        + table
        + cut
        + adaptive_part(analysis)
        + (rest if drawn < len(selection) else "")
        + gallery(shown, "cells", wide=False)
    )


def adaptive_part(analysis: Analysis) -> str:
    """Of adaptive calibrations: which cells are decided, how many trials each took, why it was left."""
    headings = ["model", "U", "C", "trials", "seeds", "width", "why it was left", "decided"]
    parts = []
    for adaptive in analysis.adaptive:
        records = adaptive.cells.head(html.MAX_ROWS).to_dict("records")
        rows = [(*verdict_texts(row), "yes" if row["decided"] else "no") for row in records]
        caption = (
            "Trials: those that the cell was read out of. Seeds: of its best dropout. Width: of its optimum's 95 % "
            f"interval, in dropout. Class: {analysis.experiment.evidence}."
        )
        parts.append(paragraph(adaptive.sentence) + html_table(headings, rows, numeric=1, caption=caption))
        parts.append(cut_text(len(adaptive.cells), "cells", "suggestions.json"))
    return "".join(parts)


def optimum_part(analysis: Analysis, shown: Shown) -> str:
    models = len(analysis.selection.drop_duplicates(["phase", "model"])) if len(analysis.selection) else 0
    cut = paragraph(f"Drawn are the {MAX_PAIRS} models with the most cells, of {models}.") if models > MAX_PAIRS else ""
    return cut + gallery(shown, "optimum", wide=True)


def law_part(analysis: Analysis, shown: Shown) -> str:
    coefficients = analysis.coefficients
    if coefficients is None:
        return paragraph(analysis.why_no_law) if len(analysis.selection) else ""
    rows = [
        (name, f"{value:.4f}", interval_text(*coefficients.intervals[name], 4))
        for name, value in coefficients.coefficients.items()
    ]
    quality = {
        "Form": f"p = {coefficients.form.formula}, held to [{coefficients.p_min:g}, {coefficients.p_max:g}]",
        "Cells": f"{coefficients.n_cells} whose optimum it is fitted to, {len(coefficients.cells)} in all",
        "Design": f"rank {coefficients.rank}, condition number {coefficients.condition_number:.1f}",
        "Error on the cells fitted": f"{coefficients.rmse:.4f} in dropout (root mean square)",
    }
    if left_out := left_out_sentence(coefficients):
        quality["Error on a cell left out"] = left_out
    parts = [
        html_table(
            ["coefficient", "value", "95 % interval"],
            rows,
            numeric=1,
            caption=f"Class: {analysis.experiment.evidence}.",
        ),
        definitions(quality),
        *(paragraph(f"Note: {note}.", "note") for note in coefficients.notes),
        held_out_table(analysis),
        gallery(shown, "law", wide=True),
    ]
    return "".join(parts)


def held_out_table(analysis: Analysis) -> str:
    """Mean regret, a row per law and a column per way of holding out."""
    held_out = analysis.held_out
    if held_out is None or held_out.empty:
        return ""
    ways = list(dict.fromkeys(held_out["holdout"]))
    wide = held_out.pivot(index="law", columns="holdout", values="regret_mean")
    rows = [
        (law, *(f"{wide.loc[law, way]:.4f}" if np.isfinite(wide.loc[law, way]) else "-" for way in ways))
        for law in dict.fromkeys(held_out["law"])
    ]
    caption = (
        "Mean regret, in nats per token, on cells held out: each cell alone, then the largest level of each "
        f"quantity; - where the other cells leave the law undetermined. Class: {analysis.experiment.evidence}."
    )
    return html_table(["law", *(way.replace("_", " ") for way in ways)], rows, numeric=1, caption=caption)


def stream_part(analysis: Analysis, shown: Shown) -> str:
    pictures = gallery(shown, "stream", wide=True)
    if analysis.comparison is None:
        return pictures
    about = paragraph(stream_text(int(analysis.comparison["n_pairs"].max())))
    tables = [
        metric_table(rows, f"{METRICS[str(metric)]}. Class: {analysis.experiment.evidence}.")
        for metric, rows in analysis.comparison.groupby("metric", sort=False)
    ]
    return about + "".join(tables) + pictures


def stream_text(pairs: int) -> str:
    """What the comparison's columns mean, and what its p-values leave out."""
    words = (
        "Differences are condition less baseline in nats per token, paired by seed where seeds match (otherwise "
        "Welch): below zero the condition is better. The interval charges for having chosen the best static dropout "
        "among several, on other seeds than the one it is used on. The p-values do not: where nothing differed, the "
        "paired t test against a baseline so chosen rejected in about 9 of 100 simulated streams at the 5 % level. So "
        "a direction is claimed only where interval and t test agree."
    )
    if pairs > 1:
        words += f" With {pairs} pairs no two-sided sign-flip p is below {2.0 ** (1 - pairs):.3g}."
    return words


def metric_table(comparison: pd.DataFrame, caption: str) -> str:
    headings = ["condition", "baseline", "difference", "95 % interval", "pairs", "t test", "sign flip", "Holm"]
    rows = [
        (
            f"{row['condition']}{' (primary)' if row['primary'] else ''}",
            row["baseline"],
            signed(row["difference"], 4),
            interval_text(row["low"], row["high"], 4),
            row["n_pairs"],
            p_text(t_test(row)[1]),
            p_text(row["p_sign_flip"]),
            p_text(row["p_holm"]),
            signed(row["difference_bpb"], 4),
            count_text(round(row["tokens_saved"])) if row["tokens_saved"] > 0 else "-",
        )
        for _, row in comparison.iterrows()
    ]
    told = dict.fromkeys(note for notes in comparison["notes"] for note in notes.split("; ") if note)
    notes = "".join(paragraph(f"Note: {note}.", "note") for note in told)
    return html_table([*headings, "bits per byte", "tokens saved"], rows, numeric=2, caption=caption) + notes


def ledger_part(analysis: Analysis) -> str:
    """Every trial, crashed ones first and in sight; a long ledger is folded."""
    ledger = analysis.experiment.ledger
    if ledger is None:
        return ""
    crashed = ledger[ledger["status"] == "crash"]
    columns = ["trial", "status", "description", "val_bpb", "memory_gb"]
    count = f"{len(ledger)} trials, {len(crashed)} crashed."
    parts = [paragraph(count)]
    if len(crashed):
        parts.append(
            html_table(
                columns, crashed[columns].head(html.MAX_ROWS).itertuples(index=False, name=None), caption="Crashed"
            )
        )
        parts.append(cut_text(len(crashed), "crashed trials", "results.tsv"))
    rest = ledger[ledger["status"] != "crash"]
    table = html_table(columns, rest[columns].head(html.MAX_ROWS).itertuples(index=False, name=None))
    more = cut_text(len(rest), "other trials", "results.tsv")
    parts.append(f"<details><summary>{len(rest)} other trials</summary>{table}{more}</details>" if len(rest) else "")
    return "".join(parts)


def reproduce_part(analysis: Analysis) -> str:
    parts = []
    for config in analysis.experiment.configs:
        if isinstance(config.get("command"), str):
            parts.append(f"<pre>{text(config['command'])}</pre>")
        rows = {
            "Created": config.get("created"),
            "Version": config.get("version"),
            "Commit": config.get("git_commit"),
            "Python": config.get("python"),
            "Platform": config.get("platform"),
            "Libraries": versions(config.get("libraries")),
        }
        if known := {name: str(value) for name, value in rows.items() if value}:
            parts.append(definitions(known))
    parts.append(paragraph("This page and the tables beside it come from:"))
    runs = [str(folder) for folder in analysis.experiment.folders] or [str(analysis.folder)]
    command = shlex.join(["python", "-m", "analysis", *runs, *analysis.settings.arguments()])
    parts.append(f"<pre>{text(command)}</pre>")
    parts.append(
        paragraph(
            "Every number can be traced: metrics.jsonl holds one row per read-out, summary.json every seed's values "
            "beside each mean, and figures/ the data of each picture as CSV."
        )
    )
    return "".join(parts)


def versions(libraries: object) -> str:
    if not isinstance(libraries, dict):
        return ""
    return ", ".join(f"{name} {version}" for name, version in sorted(libraries.items()))

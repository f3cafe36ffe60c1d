"""Which form of law holds beyond what it was fitted to: ``python -m analysis laws``.

Every form is fitted to each regime's calibration, the cells of runs that no law was frozen for, and judged on larger
models, longer training, larger prefixes, other texts (as it is, carried there by counts or by a pilot, and the mean of
texts) and streams. It is also told what U of one text counts as under the law of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.advise import TYPICAL_FILE
from analysis.bakeoff import PAIRED, fit_texts, judge_cells, judge_streams, judge_texts, sort_runs, summarise_cells
from analysis.exports import make_folder, write_pair
from analysis.foretell import fit_rule, record
from analysis.tables import load_experiment
from analysis.targets import counted
from analysis.terminal import interval_text, make_console, new_table
from analysis.texts import measure
from analysis.typical import typical
from analysis.verdict import winner
from tune_dd.arguments import OneLineParser
from tune_dd.artifacts import METRICS, write_json
from tune_dd.errors import UserError
from tune_dd.laws import DEFAULT_LAW

if TYPE_CHECKING:
    from rich.table import Table

    from tune_dd.console import Console


def laws_command(arguments: Sequence[str]) -> int:
    """Print the tables and, with ``--out``, write them."""
    from rich.text import Text

    options = parser().parse_args(arguments)
    if options.bootstrap < 1:
        raise UserError(f"--bootstrap {options.bootstrap}: give at least one draw, better 2000")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: give 0 or more")
    runs = options.runs or sorted(path.parent for path in options.results.glob(f"**/{METRICS}"))
    if not runs:
        raise UserError(f"no run below {options.results}: name runs, or --results FOLDER")
    study = sort_runs([load_experiment([run]) for run in runs], every=options.every)
    every = judge_cells(study, seed=options.seed)
    cells = summarise_cells(every, seed=options.seed) if len(every) else every
    streams = judge_streams(study, n_bootstrap=options.bootstrap, seed=options.seed)
    former = f"{counted(study.aside, 'hold-out')} frozen for forms that are fitted otherwise now"
    if not len(cells) and not len(streams):
        raise UserError(
            "nothing is held out: name another corpus, a calibrate run begun with --coefficients, or a stream"
            + (f"; --every judges the {former}" if study.aside else "")
        )
    console = make_console()
    if study.aside:
        console.print(f"Left out: {former}; --every judges them too.", soft_wrap=True)
    for kind, rows in cells.groupby("kind", sort=False) if len(cells) else ():
        what = f"Regret on {rows['n_cells'].iloc[0]} held-out cells, nats per token: {kind}"
        floor = f"the optima's own noise is charged {rows['floor_mean'].iloc[0]:.3f}; corrected: less that"
        table = new_table(f"{what} ({floor})", console)
        for name in ("law", "mean", "95 % interval", "corrected", "95 % interval", "largest", "rmse of p"):
            table.add_column(name, justify="left" if name == "law" else "right")
        for row in rows.to_dict("records"):
            table.add_row(
                row["law"],
                f"{row['regret_mean']:.4f}",
                interval_text(row["low"], row["high"], 3),
                f"{row['corrected_mean']:.4f}",
                interval_text(row["corrected_low"], row["corrected_high"], 3),
                f"{row['regret_max']:.3f}",
                f"{row['rmse']:.3f}",
            )
        console.print_table(table)
    for _, rows in streams.groupby("run", sort=False) if len(streams) else ():
        first = rows.iloc[0]
        what = "final loss less the best static's, and the best path's"
        title = f"Stream of {first['regime']}, {first['model']}: {what}"
        table = new_table(title, console)
        for name in ("law", "dropout by stage", "less best static", "95 % interval", "less best path"):
            table.add_column(name, justify="left" if name == "law" else "right")
        for row in rows.to_dict("records"):
            interval = interval_text(row["low"], row["high"], 3)
            best = f"{row['against_best']:+.3f} ({row['best_path']})"
            table.add_row(row["law"], row["path"], f"{row['against_static']:+.3f}", interval, best)
        console.print_table(table)
    texts = judge_texts(study, seed=options.seed)
    if len(texts):
        console.print_table(_texts_table(texts, console))
    measured = measure(texts, study.texts) if len(texts) else []
    if (rule := fit_rule(measured)) is not None:
        console.print(
            f"What U of {len(rule.regimes)} texts counts as goes with {rule.per_nat:.2f} decades per nat less of "
            f"bigram loss and {rule.per_root:.2f} per root of the share repeated; texts left out are told to "
            f"{rule.spread:.2f}.",
            soft_wrap=True,
        )
    name, why = winner(cells, streams)
    console.print(Text(f"{name}: {why}", style="bold"))
    if options.out is not None:
        make_folder(options.out)
        verdict = {"law": name, "why": why}
        # Not those of pairs of texts: each cell once for every other text would be hundreds of megabytes.
        once = every[~every["kind"].isin(PAIRED)] if len(every) else every
        write_pair(options.out, "law_cells", cells, {**verdict, "cells": once.to_dict("records")})
        write_pair(options.out, "law_streams", streams)
        if len(texts):
            write_pair(options.out, "law_texts", texts)
            write_json(options.out / "measured_texts.json", record(measured))
        fitted = fit_texts(study, law=DEFAULT_LAW, seed=options.seed)
        if len(fitted) == len({regime for regime, _, _ in fitted}) > 1:  # of one scale
            write_json(options.out / TYPICAL_FILE.name, typical(list(fitted.values())).to_dict())
        console.print(f"Tables: {options.out}", soft_wrap=True)
    return 0


def _texts_table(texts: pd.DataFrame, console: Console) -> Table:
    """The pairs of the first text: what U of each other one counts as."""
    first = texts["fitted_on"].iloc[0]
    table = new_table(f"What U of another text counts as under the law of {first}, and its mean regret there", console)
    names = ("text", "counts", "pilot", "best", "as it is", "by counts", "by a pilot", "at best", "its own law")
    for name in names:
        table.add_column(name, justify="left" if name == "text" else "right")
    for row in texts[texts["fitted_on"] == first].to_dict("records"):
        ways = ("raw", "carried", "piloted", "best", "own")
        shown = [(row[name], 2) for name in ("scale", "pilot_scale", "best_scale")]
        shown += [(row[f"regret_{way}"], 4) for way in ways]
        table.add_row(row["regime"], *("" if np.isnan(value) else f"{value:.{digits}f}" for value, digits in shown))
    return table


def parser() -> OneLineParser:
    result = OneLineParser(prog="python -m analysis laws", description=__doc__)
    add = result.add_argument
    add(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="calibrate, confirm and stream runs (default: all of --results)",
    )
    add("--results", type=Path, default=Path("ray_results/saved"), help="where to look for runs (default: %(default)s)")
    add("--every", action="store_true", help="judge every form on every hold-out, seen or not when it was made")
    add("--bootstrap", type=int, default=2000, help="draws behind the streams' intervals (default: %(default)s)")
    add("--seed", type=int, default=0, help="of every bootstrap (default: %(default)s)")
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write law_cells.*, law_streams.*, law_texts.*, measured_texts.json and typical_law.json there",
    )
    return result

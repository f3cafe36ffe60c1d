"""What texts share in the floored form of law: ``python -m analysis exponents``.

Exponents are fitted to the cells of all texts at once, for several numbers of passes under the onset, and every text's
hold-outs are judged by exponents of the others. B, the slope, is told by the texts whose longer training was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.exponents import EXPONENTS, fit_shared, judge_joint, leave_one_out, load_texts
from analysis.terminal import make_console, new_table
from tune_dd.arguments import OneLineParser
from tune_dd.artifacts import METRICS
from tune_dd.errors import UserError
from tune_dd.laws import Floor

if TYPE_CHECKING:
    from rich.table import Table

    from tune_dd.console import Console

PASSES = "0,1,2,2.5,3,4"
MOST_PASSES = 1000


def exponents_command(arguments: Sequence[str]) -> int:
    """Print a table of fits, and one of the texts at the passes that the registered form has, where it is tried."""
    options = parser().parse_args(arguments)
    runs = options.runs or sorted(path.parent for path in options.results.glob(f"**/{METRICS}"))
    if not runs:
        raise UserError(f"no run below {options.results}: name runs, or --results FOLDER")
    tried = parse_passes(options.passes)
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: give 0 or more")
    texts = load_texts(runs, seed=options.seed)
    console = make_console()
    what = f"The floored form fitted to {len(texts)} texts together"
    table = new_table(f"{what}; exponents, and their range with one text left out", console)
    for name in ("passes", "cost", *EXPONENTS, "B", "sd of ln B"):
        table.add_column(name, justify="right")
    judged, joint = {}, {}
    for passes in tried:
        shared = fit_shared(list(texts.values()), passes)
        judged[passes], floors = leave_one_out(texts, passes)
        joint[passes] = judge_joint(texts, shared)
        ranges = []
        for name in EXPONENTS:
            each = [getattr(floor, name) for floor in floors.values()]
            ranges.append(f"{getattr(shared.floor, name):.2f} ({min(each):.2f}-{max(each):.2f})")
        spread = float(np.log(shared.told).std(ddof=1))
        table.add_row(f"{passes:g}", f"{shared.cost:.4f}", *ranges, f"{shared.slope[0]:.3f}", f"{spread:.3f}")
    console.print_table(table)
    if not any(map(len, judged.values())):
        console.print("Nothing is held out: name calibrate runs begun with --coefficients too.", soft_wrap=True)
        return 0
    told = "Regret (corrected) on hold-outs whose text the exponents had not seen, nats per token"
    console.print_table(_means(judged, told, console))
    fitted = "The same with exponents, B and C0 fitted to the hold-outs too: what the form itself misses"
    console.print_table(_means(joint, fitted, console))
    if Floor().passes in judged:
        console.print_table(_texts(judged[Floor().passes], f"{told}, {Floor().passes:g} passes", console))
    return 0


def parse_passes(text: str) -> list[float]:
    """``0,2.5`` -> numbers.

    Raises:
        UserError: one is no number, or below 0, or more than any text is read.
    """
    try:
        passes = [float(part) for part in text.split(",")]
    except ValueError:
        passes = [-1.0]
    if not all(0 <= value <= MOST_PASSES for value in passes):
        raise UserError(f"--passes {text}: give numbers of passes from 0 to {MOST_PASSES}, such as {PASSES}")
    return passes


def _means(judged: dict[float, pd.DataFrame], title: str, console: Console) -> Table:
    table = new_table(title, console)
    of_any = next(iter(judged.values()))["kind"]
    kinds = list(dict.fromkeys(of_any))
    table.add_column("passes", justify="right")
    for kind in kinds:
        table.add_column(f"{kind} ({(of_any == kind).sum()})", justify="right")
    for passes, rows in judged.items():
        table.add_row(f"{passes:g}", *(_shown(rows[rows["kind"] == kind]) for kind in kinds))
    return table


def _texts(judged: pd.DataFrame, title: str, console: Console) -> Table:
    table = new_table(title, console)
    kinds = list(dict.fromkeys(judged["kind"]))
    table.add_column("text")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for text, rows in judged.groupby("text"):
        table.add_row(str(text), *(_shown(rows[rows["kind"] == kind]) for kind in kinds))
    return table


def _shown(rows: pd.DataFrame) -> str:
    return f"{rows['regret'].mean():.4f} ({rows['corrected'].mean():.4f})" if len(rows) else ""


def parser() -> OneLineParser:
    result = OneLineParser(prog="python -m analysis exponents", description=__doc__)
    add = result.add_argument
    add("runs", nargs="*", type=Path, metavar="RUN", help="calibrations and hold-outs (default: all of --results)")
    add("--results", type=Path, default=Path("ray_results/saved"), help="where to look for runs (default: %(default)s)")
    add("--passes", default=PASSES, metavar="N,...", help="passes under the onset to try (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the cells' bootstrap (default: %(default)s)")
    return result

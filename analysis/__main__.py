"""Read runs and say what they show.

    python -m analysis                       # the newest run under ray_results/
    python -m analysis RUN [RUN ...]         # these, together
    python -m analysis advise --coefficients RUN/coefficients.json \\
        --params 31e6 --unique-tokens 1e6 --sampled-tokens 8e6    # without --coefficients: what texts have on average
    python -m analysis carry RUN TEXT --out FOLDER    # RUN's law for another text, by a few trials there or none
    python -m analysis carry PILOT --out FOLDER       # what texts have on average, by a few trials of one
    python -m analysis laws RUN [RUN ...]    # which form of law holds beyond what it was fitted to
    python -m analysis exponents             # what all texts share in the floored form
    python -m analysis save RUN_OR_CHAIN     # keep what it found under ray_results/saved/
    python -m analysis.paper                 # tables, figures and numbers of paper/ from what is saved

RUN is a run's folder, a metrics.jsonl, or a plain Tune experiment folder. Prints the tables, writes
summary.*, model_selection.*, coefficients.json, comparison.*, figures/ and report.html into the run's
folder (of what is saved: into the same place under ray_results/read/), and says where. Needs neither torch nor Ray.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tune_dd.arguments import OneLineParser
from tune_dd.errors import UserError
from tune_dd.streams import run_main

STORAGE = Path("ray_results")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 for what the user can mend (one line on stderr), 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["advise"]:
            from analysis.advise import advise_command

            return advise_command(arguments[1:])
        if arguments[:1] == ["carry"]:
            from analysis.carry_command import carry_command

            return carry_command(arguments[1:])
        if arguments[:1] == ["exponents"]:
            from analysis.exponents_command import exponents_command

            return exponents_command(arguments[1:])
        if arguments[:1] == ["laws"]:
            from analysis.laws_command import laws_command

            return laws_command(arguments[1:])
        if arguments[:1] == ["save"]:
            from analysis.saved import save_command

            return save_command(arguments[1:])
        return analyse_command(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: give the command again", file=sys.stderr)
        return 130


def analyse_command(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if options.seed < 0:
        raise UserError(f"--seed {options.seed} must not be negative")
    from analysis.report import analyse
    from analysis.tables import newest_run
    from analysis.terminal import make_console, print_tables

    console = make_console()
    analysis = analyse(
        options.runs or [newest_run(options.storage)],
        out=options.out,
        law=options.law,
        margin=options.margin,
        n_bootstrap=options.bootstrap,
        seed=options.seed,
        report=options.report,
        optuna=options.optuna,
        tensorboard=options.tensorboard,
    )
    print_tables(analysis, console)
    for path in analysis.files:
        if path.name in ("optuna.db", "tensorboard"):
            console.print(f"Export: {path}", soft_wrap=True)
    where = f"Report: {analysis.report}" if options.report else f"Tables: {analysis.folder}"
    console.print(where, soft_wrap=True)
    return 0


def parser() -> OneLineParser:
    from tune_dd.laws import DEFAULT_LAW, LAWS  # late, like all that loads numpy: Ctrl-C meanwhile is caught in main

    result = OneLineParser(
        prog="python -m analysis",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("runs", nargs="*", type=Path, metavar="RUN", help="run folders or metrics.jsonl files (default: the newest)")
    add("--storage", type=Path, default=STORAGE, help="where to look for the newest run (default: %(default)s)")
    out = "folder for the files (default: the run's; for several, combined/ beside the first; read/ in place of saved/)"
    add("--out", type=Path, help=out)
    add("--law", choices=sorted(LAWS), help=f"fit this law and no other (default: {DEFAULT_LAW}, else first_order)")
    margin = "plateau columns only, not the law: margin in nats per token (default: one pooled paired standard error)"
    add("--margin", type=float, help=margin)
    draws = "bootstrap draws behind every interval: optima, coefficients, comparison (default: %(default)s)"
    add("--bootstrap", type=int, default=2000, help=draws)
    add("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    add("--no-report", dest="report", action="store_false", help="tables only: no page, no figures")
    add("--optuna", action="store_true", help="write optuna.db, for optuna-dashboard")
    add("--tensorboard", action="store_true", help="write TensorBoard scalars under tensorboard/")
    return result


if __name__ == "__main__":
    sys.exit(run_main(main))

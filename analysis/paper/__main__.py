"""The paper's numbers from saved results alone.

    python -m analysis.paper                          # from ray_results/saved into paper/ and docs/
    python -m analysis.paper --results FOLDER --output paper --docs docs

Writes paper/generated/*.tex, paper/figures/*.pdf, paper/paper_results_summary.json (every number with its run and
column) and docs/<regime>_report.md. Nothing is trained; neither torch nor Ray is needed; the same saved runs give the
same bytes. `make paper` then builds the PDF.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.saved import SAVED
from tune_dd.arguments import OneLineParser
from tune_dd.console import Console
from tune_dd.errors import UserError
from tune_dd.streams import run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 for what the user can mend (one line on stderr)."""
    try:
        options = parser().parse_args(sys.argv[1:] if argv is None else argv)
        if not options.results.is_dir():
            raise UserError(f"{options.results} does not exist: keep a run with `python -m analysis save RUN_OR_CHAIN`")
        from analysis.paper.build import build

        files = build(options.results, options.output, options.docs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console().print(f"{len(files)} files, among them {options.output / 'paper_results_summary.json'}", soft_wrap=True)
    return 0


def parser() -> OneLineParser:
    result = OneLineParser(
        prog="python -m analysis.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add("--results", type=Path, default=SAVED, metavar="FOLDER", help="saved runs (default: %(default)s)")
    add("--output", type=Path, default=Path("paper"), metavar="FOLDER", help="the paper's (default: %(default)s)")
    add("--docs", type=Path, default=Path("docs"), metavar="FOLDER", help="of the reports (default: %(default)s)")
    return result


if __name__ == "__main__":
    sys.exit(run_main(main))

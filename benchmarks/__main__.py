"""``python -m benchmarks [NAME ...] [--quick] [--json FILE]``: run benchmarks by name, all of them by default.

A benchmark is a module with ``run(*, quick) -> dict``, which prints its table and returns its figures. Ratios
within one run are the figures to trust: absolute times depend on the machine and on what else it does.
docs/performance.md says what each of them measures.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = {
    "step": "tokens per second of a training step, and its share of the machine's matrix product",
    "search": "a whole search against the same trials in a bare loop without Ray; its start, journals, memory, plan",
    "corpus": "text to tokens on all cores against one; memory of a large source; reload; a batch's share of a step",
    "analysis": "tables and page of a run of 10,080 trials",
    "answer": "--adaptive against the full grid, on saved runs and simulated cells: tokens, agreement, coverage",
}


def main(arguments: list[str] | None = None) -> int:
    listing = "\n".join(f"  {name:10s} {what}" for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this machine and this code, side by side.",
        epilog=f"benchmarks:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="small and once: to see that it works, not to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument(
        "--runs", type=Path, nargs="+", metavar="RUN", help="answer: finished full grids (default: below ray_results/)"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}: choose from {', '.join(BENCHMARKS)}")
    figures: dict[str, Any] = {}
    for name in options.names or BENCHMARKS:
        print(f"== {name}: {BENCHMARKS[name]}", flush=True)
        more = {"runs": options.runs} if name == "answer" else {}
        figures[name] = importlib.import_module(f"benchmarks.{name}").run(quick=options.quick, **more)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

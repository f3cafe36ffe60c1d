"""``python -m benchmarks [NAME ...] [--json FILE]``: run benchmarks by name, all of them by default.

A benchmark is a module with ``run() -> dict``, which prints its table and returns its figures. Ratios
within one run are the figures to trust: absolute times depend on the machine and on what else it does.
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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}: choose from {', '.join(BENCHMARKS)}")
    figures: dict[str, Any] = {}
    for name in options.names or BENCHMARKS:
        print(f"== {name}: {BENCHMARKS[name]}", flush=True)
        figures[name] = importlib.import_module(f"benchmarks.{name}").run()
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

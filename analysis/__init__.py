"""From a run's result table to the best dropout, the law, the pictures and the page.

Nothing here imports torch or Ray. Names are loaded on first use, so ``import analysis`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Experiment": "tables",
    "load_experiment": "tables",
    "from_result_grid": "tables",
    "newest_run": "tables",
    "Analysis": "report",
    "analyse": "report",
    "print_tables": "report",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'analysis' has no attribute {name!r}")
    return getattr(import_module(f"analysis.{_HOMES[name]}"), name)

"""Options and the closing figure of the fault campaigns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

_figures: list[tuple[str, dict[str, Any]]] = []


@pytest.fixture
def fault_seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--fault-seed"))


@pytest.fixture
def fault_points(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--fault-points"))


@pytest.fixture
def report_faults() -> Callable[[str, dict[str, Any]], None]:
    """Add a line to the figure that is printed when the suite ends."""
    return lambda name, found: _figures.append((name, found))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not _figures:
        return
    terminalreporter.section(f"fault campaigns, seed {config.getoption('--fault-seed')}")
    total = sum(int(found["kill points"]) for _, found in _figures)
    for name, found in _figures:
        terminalreporter.line(f"{name}: " + ", ".join(f"{key} {value}" for key, value in found.items()))
    lost = sum(int(found["rows lost"]) for _, found in _figures)
    twice = sum(int(found["rows twice"]) for _, found in _figures)
    terminalreporter.line(f"in all: {total} kill points, {lost} rows lost, {twice} rows twice")

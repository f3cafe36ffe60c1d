"""Options and the closing figure of the fault campaigns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

_FIGURE = "fault campaign"


@pytest.fixture
def fault_seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--fault-seed"))


@pytest.fixture
def fault_points(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--fault-points"))


@pytest.fixture
def report_faults(request: pytest.FixtureRequest) -> Callable[[str, dict[str, Any]], None]:
    """Add a line to the figure that is printed when the suite ends (by the main process, with pytest-xdist)."""
    return lambda name, found: request.node.user_properties.append((_FIGURE, [name, found]))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    reports = [r for reports in terminalreporter.stats.values() for r in reports if getattr(r, "when", "") == "call"]
    figures = [value for report in reports for key, value in report.user_properties if key == _FIGURE]
    if not figures:
        return
    terminalreporter.section(f"fault campaigns, seed {config.getoption('--fault-seed')}")
    for name, found in figures:
        terminalreporter.line(f"{name}: " + ", ".join(f"{key} {value}" for key, value in found.items()))
    total, lost, twice = (sum(int(f[key]) for _, f in figures) for key in ("kill points", "rows lost", "rows twice"))
    terminalreporter.line(f"in all: {total} kill points, {lost} rows lost, {twice} rows twice")

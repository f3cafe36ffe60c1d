"""Shared by all tests: a synthetic text and a regime so small that a trial takes a fraction of a second."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tests_support import TINY_REGIME, synthetic_text

# No test asks the real hub: nobody listens there. Those that fetch have one of their own on loopback.
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"
os.environ.pop("HF_TOKEN", None)
os.environ.pop("HF_HUB_OFFLINE", None)

# What runs in a shell's background inherits an ignored SIGINT; the commands that tests interrupt are a user's.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of whole searches first: the last file, during which one of two workers is idle, is then a short one."""
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/tune_dd/sweep/", "tests/test_document")))


@pytest.fixture
def tiny_regime(tmp_path: Path) -> Path:
    """The path of a regime file with its text beside it: 4 trials of 20 steps, 8 rows."""
    (tmp_path / "text.txt").write_text(synthetic_text(120), encoding="utf-8")
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_REGIME, encoding="utf-8")
    return path


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-seed", default=1, help="replays a fault campaign")
    parser.addoption("--fault-points", default=100, help="kill points inside writes")

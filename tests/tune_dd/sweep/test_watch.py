"""What the driver's callback tells the command."""

from __future__ import annotations

import io
import json

import pytest

from tune_dd.sweep import events
from tune_dd.sweep.watch import Watch


def told(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    pipe = io.StringIO()
    monkeypatch.setattr(events, "_pipe", pipe)
    return pipe


def test_the_end_of_the_experiment_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = told(monkeypatch)
    Watch().on_experiment_end(trials=[])
    assert json.loads(pipe.getvalue())["event"] == "done"


def test_tunes_own_failure_is_not_told_as_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = told(monkeypatch)
    try:
        raise RuntimeError("Tune failed")
    except RuntimeError:
        Watch().on_experiment_end(trials=[])  # as Tune does while it handles its failure
    assert pipe.getvalue() == ""

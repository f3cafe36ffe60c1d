"""The watch over a search: which signals it hears, and what counts as a hang."""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests_support import spec

from search_spaces.static_dropout import StaticGrid
from tune_dd import journal
from tune_dd.builtin_regimes import POCKET, REGIMES
from tune_dd.console import Console
from tune_dd.corpus.cache import CacheFiles, held
from tune_dd.errors import UserError
from tune_dd.sweep.plan import Plan
from tune_dd.sweep.progress import Progress
from tune_dd.sweep.runs import RunFolder, new_folder
from tune_dd.sweep.state import SearchState
from tune_dd.sweep.supervisor import Supervisor
from tune_dd.trial import TrialSpec

HANG_SECONDS = 60.0


class FakeRay:
    """A scheduler that trains nothing; ``turns``: what happens in each turn of the watch, the end after them."""

    is_local = True

    def __init__(self, *turns: Any) -> None:
        self.events, self._turns = self, iter(turns)

    def get(self, timeout: float) -> dict[str, Any]:
        for turn in self._turns:
            turn()
            raise queue.Empty
        return {"event": "done"}

    def start(self, plan: Plan) -> None:
        pass

    def search(self, run: RunFolder, what: dict[str, Any]) -> None:
        pass

    def let_go(self) -> None:
        pass

    end = let_go


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = new_folder(tmp_path, "tiny", "calibrate", "full")
    run.live.mkdir()
    return run


def supervisor(run: RunFolder, ray: Any, *specs: TrialSpec, context: dict[str, Any] | None = None) -> Supervisor:
    plan = Plan(REGIMES["owt"], "calibrate", "pocket", POCKET, (StaticGrid.of_scale(POCKET),), "cpu", 1, 1)
    state = SearchState(run, specs, lambda text: None)
    progress = Progress(Console(file=io.StringIO()), 1, "resume")
    return Supervisor(run, plan, context or {}, state, progress, ray, hang_seconds=HANG_SECONDS)


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_that_the_caller_ignores_stays_ignored(folder: RunFolder, handlers: None) -> None:
    """As nohup begins a command."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    heard = []

    class Interrupted(FakeRay):
        def let_go(self) -> None:
            if not heard:
                heard.append((signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)))
                os.kill(os.getpid(), signal.SIGHUP)

    outcome = supervisor(folder, Interrupted()).search()
    assert outcome.signal is None
    ((hang_up, terminate),) = heard
    assert hang_up is signal.SIG_IGN
    assert terminate not in (signal.SIG_IGN, signal.SIG_DFL)
    assert (signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)) == (signal.SIG_IGN, signal.SIG_DFL)


def test_a_cache_is_held_while_it_is_searched(folder: RunFolder, tmp_path: Path) -> None:
    files = CacheFiles(tmp_path / "cache", POCKET.vocab_size)
    files.folder.mkdir()
    files.tokens.touch()
    tried = []

    def replace() -> None:
        with pytest.raises(UserError, match="a search that is running reads it"), held(files, to_replace=True):
            pytest.fail("it would be replaced")
        tried.append(True)

    # The rounds of a search: a trial that is not trained is tried again.
    watched = supervisor(folder, FakeRay(replace), spec(), context={"cache_folder": str(files.folder)})
    watched.search()
    assert tried
    with held(files, to_replace=True):
        pass


@pytest.mark.parametrize("asleep", [True, False])
def test_a_machine_that_slept_has_no_hung_trial(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, asleep: bool
) -> None:
    """The time of one turn of the watch, or of many: a trial that does not move for that long hangs."""
    trial, real, passed = spec(), time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + passed[0])
    beat = {"host": "elsewhere", "pid": 1, "step": 5}
    (folder.live / f"{trial.trial_id}.json").write_text(json.dumps(beat))

    def wait(seconds: float) -> None:
        passed[0] += seconds

    n_turns = 1 if asleep else 20
    turns = [lambda: wait(1.2 * HANG_SECONDS / n_turns)] * n_turns
    supervisor(folder, FakeRay(*turns), trial)._watch()
    assert journal.crash_path(folder.journals, trial.trial_id).exists() != asleep

"""One trial: what is reported is on disk, and what is written beside the training is the state of its read-out."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_support import on_text, prepare_law, spec

from tune_dd import artifacts, journal, trainable, training
from tune_dd.arithmetic import DeviceMiscomputes, check_arithmetic
from tune_dd.errors import UserError
from tune_dd.model import Transformer
from tune_dd.training import TrialRun
from tune_dd.trial import RunContext, Stage, TrialSpec


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    prepare_law(folder)
    return folder / ".cache" / "dropout_decay_tiny"


def trial(cache: Path) -> TrialSpec:
    """30 steps, three read-outs."""
    return on_text(spec(stages=(Stage(400, 0.2, (10, 20, 30)),)), cache)


def context(folder: Path, cache: Path) -> RunContext:
    for name in ("journals", "live"):
        (folder / name).mkdir(parents=True)
    return RunContext(str(folder), str(cache), "run", "calibrate", "cpu", 1, 512)


def test_a_row_is_reported_once_its_journal_is_on_disk(cache: Path, tmp_path: Path) -> None:
    one, run = trial(cache), context(tmp_path / "run", cache)
    path = journal.journal_path(run.journals, one.trial_id)
    reported = []

    def report(row: dict[str, Any]) -> None:
        found = journal.read_journal(path)
        assert found.step == row["steps"] == found.counters["step"]
        assert found.rows[-1] == row
        reported.append(threading.current_thread())

    assert trainable.run_trial(one, run, report)
    assert len(reported) == 3
    assert threading.main_thread() not in reported


def test_training_goes_on_while_a_journal_is_written(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trial(cache)
    alone, slow = context(tmp_path / "alone", cache), context(tmp_path / "slow", cache)
    assert trainable.run_trial(one, alone, lambda row: None)
    write, beat = journal.write_journal, trainable.Heartbeat.beat
    further = threading.Event()

    def count(self: Any, step: int, *, force: bool = False) -> None:
        if step == 15:
            further.set()
        beat(self, step, force=force)

    def wait(folder: Path, trial: TrialSpec, *, step: int, **what: Any) -> None:
        if step == 10:
            assert further.wait(60), "the training waited for the journal"
            assert what["counters"]["step"] == 10
        write(folder, trial, step=step, **what)

    monkeypatch.setattr(trainable.Heartbeat, "beat", count)
    monkeypatch.setattr(journal, "write_journal", wait)
    assert trainable.run_trial(one, slow, lambda row: None)
    rows = [
        [{k: v for k, v in row.items() if k not in artifacts.TIMING_COLUMNS} for row in found.rows]
        for found in (journal.read_journal(journal.journal_path(run.journals, one.trial_id)) for run in (alone, slow))
    ]
    assert rows[0] == rows[1]


def test_a_device_is_looked_at_before_each_row_before_a_stop_is_saved_and_when_a_trial_goes_on(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, run = trial(cache), context(tmp_path / "run", cache)
    begin, looked = TrialRun.__init__, []
    monkeypatch.setattr(TrialRun, "__init__", lambda self, *how: begin(self, *how, as_accelerator=True))

    def look(model: Transformer, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        looked.append(model.embedding.weight.detach().clone())
        check_arithmetic(model, inputs, targets)

    monkeypatch.setattr(training, "check_arithmetic", look)
    beat = trainable.Heartbeat.beat

    def stop(self: Any, step: int, *, force: bool = False) -> None:
        beat(self, step, force=force)
        if step == 15:
            (run.live / artifacts.STOP).touch()

    monkeypatch.setattr(trainable.Heartbeat, "beat", stop)
    assert not trainable.run_trial(one, run, lambda row: None)
    assert len(looked) == 2  # steps 10 and 15; nothing before the first step
    (run.live / artifacts.STOP).unlink()
    monkeypatch.setattr(trainable.Heartbeat, "beat", beat)
    assert trainable.run_trial(one, run, lambda row: None)
    assert torch.equal(looked[1], looked[2])  # what was saved at step 15
    assert len(looked) == 5  # and steps 20 and 30
    monkeypatch.setattr(training, "check_arithmetic", make_fail)
    other = context(tmp_path / "other", cache)
    with pytest.raises(DeviceMiscomputes):
        trainable.run_trial(one, other, lambda row: pytest.fail("a row of a device that errs"))
    assert not list(other.journals.iterdir())


def make_fail(*batch: object) -> None:
    raise DeviceMiscomputes("made to fail")


def test_a_failing_write_ends_the_trial_with_its_reason(cache: Path, tmp_path: Path) -> None:
    one, run = trial(cache), context(tmp_path / "run", cache)

    def report(row: dict[str, Any]) -> None:
        shutil.rmtree(run.journals)

    with pytest.raises(UserError, match="cannot write"):
        trainable.run_trial(one, run, report)


def test_a_write_that_fails_aside_ends_the_training_before_its_next_read_out(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, run = on_text(spec(stages=(Stage(400, 0.2, (10, 2000)),)), cache), context(tmp_path / "run", cache)
    beat, steps = trainable.Heartbeat.beat, []

    def fail(*what: object, **more: object) -> None:
        raise UserError("the disk is full")

    def count(self: Any, step: int, *, force: bool = False) -> None:
        steps.append(step)
        beat(self, step, force=force)

    monkeypatch.setattr(journal, "write_journal", fail)
    monkeypatch.setattr(trainable.Heartbeat, "beat", count)
    with pytest.raises(UserError, match="the disk is full"):
        trainable.run_trial(one, run, lambda row: pytest.fail("a row that no journal holds"))
    assert 10 <= max(steps) < 2000


@pytest.mark.parametrize("name", ["corpus_hash", "tokenizer_hash", "validation_hash"])
def test_a_cache_that_is_not_the_planned_one_is_refused(cache: Path, tmp_path: Path, name: str) -> None:
    one, run = replace(trial(cache), **{name: "another"}), context(tmp_path / "run", cache)
    with pytest.raises(UserError, match="is not the one this run was planned on: resume the run"):
        trainable.run_trial(one, run, lambda row: pytest.fail("a row of another text"))
    assert not list(run.journals.iterdir())


def test_what_was_begun_aside_is_done_when_the_training_fails() -> None:
    done = []
    begun = threading.Event()

    def work() -> None:
        assert begun.wait(60)
        done.append(True)

    aside = trainable.Aside()
    aside.begin(work)
    aside.look()
    assert not done
    begun.set()
    with pytest.raises(ValueError, match="made to fail"), aside:
        raise ValueError("made to fail")
    assert done == [True]

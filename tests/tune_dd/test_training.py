"""A trial's training: continued equals uninterrupted, paired by seed, honest about divergence."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from tune_dd.arithmetic import DeviceMiscomputes
from tune_dd.dropout import DropoutMasks
from tune_dd.evaluation import TrainingDiverged
from tune_dd.regimes import ModelSpec, Protocol
from tune_dd.stream import evaluation_windows
from tune_dd.training import TRACE_EVERY, TrialData, TrialRun, estimate_step_seconds
from tune_dd.trial import Stage, TrialSpec

torch.set_num_threads(1)  # tests run side by side; threads that wait for each other cost more than they give

CPU = torch.device("cpu")
VOCAB = 300
PROTOCOL = Protocol(batch_size=4, context=24, learning_rate=1e-2, warmup_steps=5)
STAGES = (Stage(400, 0.3, (10, 20)), Stage(1500, 0.1, (40,)))


def trial(**changes: Any) -> TrialSpec:
    spec = TrialSpec(
        regime="test",
        scale="pocket",
        corpus_hash="c",
        tokenizer_hash="t",
        validation_hash="v",
        vocab_size=VOCAB,
        model=ModelSpec(2, 2, 16),
        protocol=PROTOCOL,
        seed=0,
        condition="hand_made",
        kind="anchor_decay",
        stages=STAGES,
    )
    return replace(spec, **changes)


def skewed_data() -> TrialData:
    """Tokens of unequal frequency, so that there is something to learn."""
    drawn = np.minimum(np.random.default_rng(0).geometric(0.05, 4000), VOCAB - 1).astype(np.uint16)
    train, validation = drawn[:3000], drawn[3000:]
    token_bytes = np.arange(VOCAB, dtype=np.int64) % 5
    return TrialData(train, validation, evaluation_windows(validation, 24, 480, salt="test"), token_bytes)


def outcome(run: TrialRun) -> tuple[dict[str, Any], list[list[float]], dict[str, torch.Tensor]]:
    return run.read_out(), run.trace, run.state()[0]


def assert_same(run: TrialRun, other: TrialRun) -> None:
    (out, trace, tensors), (out2, trace2, tensors2) = outcome(run), outcome(other)
    assert out == out2
    assert trace == trace2
    assert tensors.keys() == tensors2.keys()
    assert all(torch.equal(tensors[name], tensors2[name]) for name in tensors)


def uninterrupted(spec: TrialSpec, **how: Any) -> TrialRun:
    run = TrialRun(spec, skewed_data(), CPU, **how)
    assert run.advance(spec.total_steps)
    return run


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("as_accelerator", [False, True])
def test_a_run_continued_from_its_state_equals_one_never_stopped(precision: str, as_accelerator: bool) -> None:
    spec = trial(protocol=replace(PROTOCOL, precision=precision, rate_schedule="warmdown"))
    whole = uninterrupted(spec, as_accelerator=as_accelerator)
    for cut in (0, 1, 7, 10, 15, TRACE_EVERY, 19, 20, 21, 33, 39, 40):
        first = TrialRun(spec, skewed_data(), CPU, as_accelerator=as_accelerator)
        first.advance(cut)
        first.read_out() if cut % 2 else None  # an evaluation leaves no trace in training
        tensors, counters = first.state()
        stored = load(save(tensors)), json.loads(json.dumps(counters))
        second = TrialRun(replace(spec), skewed_data(), CPU, as_accelerator=as_accelerator)
        second.load_state(*stored)
        assert second.step == cut
        second.advance(spec.total_steps)
        assert_same(whole, second)


def test_many_cuts_on_the_way_change_nothing() -> None:
    spec = trial()
    run = TrialRun(spec, skewed_data(), CPU)
    while run.step < spec.total_steps:
        run.advance(run.step + 3 if run.step < 36 else spec.total_steps)
        following = TrialRun(spec, skewed_data(), CPU)
        following.load_state(*run.state())
        run = following
    assert_same(uninterrupted(spec), run)


@pytest.mark.parametrize("as_accelerator", [False, True])
def test_a_look_at_the_device_changes_nothing(as_accelerator: bool) -> None:
    spec = trial()
    run = TrialRun(spec, skewed_data(), CPU, as_accelerator=as_accelerator)
    for step in (0, 7, 10, 11, 20, 40):  # 20 and 40 are the ends of stages
        run.advance(step)
        run.check_device()
    assert_same(uninterrupted(spec, as_accelerator=as_accelerator), run)


@pytest.mark.parametrize(("precision", "looks"), [("float32", True), ("bfloat16", False)])
def test_an_accelerator_that_errs_is_found_in_float32(precision: str, looks: bool) -> None:
    run = TrialRun(trial(protocol=replace(PROTOCOL, precision=precision)), skewed_data(), CPU, as_accelerator=True)
    run.advance(10)
    run.model.head.weight.register_hook(lambda gradient: 1.1 * gradient)
    with pytest.raises(DeviceMiscomputes) if looks else contextlib.nullcontext():
        run.check_device()


def test_a_trial_that_has_diverged_is_not_blamed_on_the_device() -> None:
    run = TrialRun(trial(), skewed_data(), CPU, as_accelerator=True)
    run.advance(10)
    with torch.no_grad():
        run.model.head.weight.fill_(float("nan"))
    run._train_step()
    with pytest.raises(TrainingDiverged):
        run.check_device()


def test_should_stop_leaves_a_whole_state_and_says_so() -> None:
    spec, asked, seen = trial(), [], []
    run = TrialRun(spec, skewed_data(), CPU)

    def should_stop() -> bool:
        asked.append(run.step)
        return run.step == 13

    assert not run.advance(spec.total_steps, should_stop=should_stop, on_step=seen.append)
    assert run.step == 13
    assert seen == list(range(1, 14))
    assert asked == list(range(14))
    assert run.advance(spec.total_steps)
    assert_same(uninterrupted(spec), run)


PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_training import trial, uninterrupted
print(json.dumps(uninterrupted(trial(seed=int(sys.argv[2]))).read_out()))
"""


def test_fresh_processes_agree_and_another_seed_differs() -> None:
    def in_process(seed: int) -> str:
        command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(seed)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    first, again, other = in_process(3), in_process(3), in_process(4)
    assert first == again
    assert json.loads(first)["val_loss"] != json.loads(other)["val_loss"]


def test_two_dropouts_of_a_seed_start_and_sample_alike() -> None:
    """Paired: their weights before the first step are equal; their batches do not know the dropout."""
    low, high = (TrialRun(trial(stages=(Stage(400, p, (5,)),)), skewed_data(), CPU) for p in (0.1, 0.5))
    assert all(torch.equal(a, b) for a, b in zip(low.model.parameters(), high.model.parameters(), strict=True))
    assert low.read_out()["val_loss"] == high.read_out()["val_loss"]


@pytest.mark.parametrize("as_accelerator", [False, True])
def test_no_two_steps_and_no_two_stages_have_the_same_masks(
    as_accelerator: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two paths that differ in where the second stage begins, on the same batches."""
    one, other = (Stage(400, 0.3, (5,)), Stage(800, 0.3, (6,))), (Stage(400, 0.3, (6,)),)
    runs = [TrialRun(trial(stages=s), skewed_data(), CPU, as_accelerator=as_accelerator) for s in (one, other)]
    same = runs[1]._batch(0, other[0])
    monkeypatch.setattr(TrialRun, "_batch", lambda self, index, stage: same)
    states = []
    for step in (5, 6):
        for run in runs:
            run.advance(step)
        states.append([run.state()[0]["model/head.weight"] for run in runs])
    assert torch.equal(*states[0])
    assert not torch.equal(*states[1])
    keys = []
    begin = DropoutMasks.begin
    monkeypatch.setattr(DropoutMasks, "begin", lambda self, *key: (keys.append(key), begin(self, *key))[1])
    TrialRun(trial(), skewed_data(), CPU, as_accelerator=as_accelerator).advance(22)
    assert keys == [(0.3, 0, 0, step) for step in range(20)] + [(0.1, 0, 1, 20), (0.1, 0, 1, 21)]


def test_training_learns_and_the_read_out_is_complete() -> None:
    run = TrialRun(trial(), skewed_data(), CPU)
    before = run.read_out()
    run.advance(10)
    first = run.read_out()
    run.advance(40)
    last = run.read_out()
    assert set(last) == {
        "train_loss", "val_loss", "val_bpb", "gap", "val_tokens", "learning_rate", "dropout",
    }  # fmt: skip
    assert before["val_loss"] == pytest.approx(math.log(VOCAB), abs=1e-4)
    assert last["val_loss"] < first["val_loss"] < before["val_loss"]
    assert last["gap"] == last["val_loss"] - last["train_loss"]
    assert (first["dropout"], last["dropout"]) == (0.3, 0.1)
    assert last["val_tokens"] == 480
    assert last["learning_rate"] == PROTOCOL.learning_rate
    assert [step for step, _ in run.trace] == [16, 32]
    assert run.train_seconds > 0
    assert all(type(value) in (int, float) for value in last.values())


def test_the_accelerator_path_has_the_losses_of_the_cpu_path() -> None:
    """Without dropout, whose masks come from other generators, the two differ by rounding alone."""
    spec = trial(stages=(Stage(400, 0.0, (20,)),))
    ours, theirs = uninterrupted(spec).read_out(), uninterrupted(spec, as_accelerator=True).read_out()
    assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-3)
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)


@pytest.mark.parametrize("as_accelerator", [False, True])
def test_divergence_is_told_with_its_step(as_accelerator: bool) -> None:
    run = TrialRun(trial(), skewed_data(), CPU, as_accelerator=as_accelerator)
    run.advance(12)
    with torch.no_grad():
        next(run.model.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingDiverged, match="step 16"):
        run.advance(40)
    with pytest.raises(TrainingDiverged):
        run.read_out()


def test_a_step_past_the_end_is_refused() -> None:
    run = uninterrupted(trial(stages=(Stage(400, 0.0, (2,)),)))
    with pytest.raises(ValueError, match="past the end"):
        run.advance(3)


def test_a_state_of_another_model_is_refused_by_name() -> None:
    run, other = TrialRun(trial(), skewed_data(), CPU), TrialRun(trial(model=ModelSpec(2, 2, 32)), skewed_data(), CPU)
    tensors, counters = run.state()
    with pytest.raises(ValueError, match="embedding"):
        other.load_state(tensors, counters)
    del tensors["optimizer/exp_avg/head.weight"]
    with pytest.raises(ValueError, match=r"optimizer/exp_avg/head\.weight"):
        run.load_state(tensors, counters)


def test_a_state_does_not_change_when_training_goes_on() -> None:
    run = TrialRun(trial(), skewed_data(), CPU)
    run.advance(3)
    tensors, counters = run.state()
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    run.advance(20)
    assert all(torch.equal(tensors[name], copies[name]) for name in tensors)
    assert counters["step"] == 3
    assert counters["trace"] == []


def test_a_step_is_timed_without_a_corpus() -> None:
    assert 0 < estimate_step_seconds(trial(), CPU, n_steps=3) < 5

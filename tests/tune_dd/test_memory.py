"""The estimate of a trial's memory against what its buffers and a process really take."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
import torch
from tests_support import REPOSITORY, spec

from tune_dd import kernels
from tune_dd.fused import FusedStep
from tune_dd.memory import cpu_trial_bytes, parameter_bytes
from tune_dd.model import Transformer
from tune_dd.native import hand_written_step
from tune_dd.regimes import ModelSpec, Protocol
from tune_dd.trial import Stage, TrialSpec

PROTOCOL = Protocol(batch_size=16, context=128, learning_rate=1e-2, warmup_steps=1)


def trial(model: str) -> TrialSpec:
    stages = (Stage(4000, 0.3, (2,)),)
    return spec(model=ModelSpec.parse(model), vocab_size=1024, protocol=PROTOCOL, stages=stages)


def tensor_bytes(values: object) -> int:
    """Of every tensor in an object, its lists and its parts."""
    if isinstance(values, torch.Tensor):
        return values.nbytes
    if isinstance(values, list):
        return sum(map(tensor_bytes, values))
    if isinstance(values, (torch.nn.Module, ctypes.CDLL)) or not hasattr(values, "__dict__"):
        return 0
    return sum(map(tensor_bytes, vars(values).values()))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", ["L2_H2_D64", "L4_H4_D128"])
def test_the_kept_buffers_are_counted(monkeypatch: pytest.MonkeyPatch, name: str, compiled: bool) -> None:
    if not compiled:
        monkeypatch.setattr(kernels, "load", lambda: None)
    what = trial(name)
    step = hand_written_step(Transformer(what.model, what.vocab_size, what.protocol.context), what.protocol.batch_size)
    assert compiled or isinstance(step, FusedStep)
    copies = 3 * 3 * 4 * what.n_params
    estimate = cpu_trial_bytes(what) - parameter_bytes(what) - copies
    assert estimate == pytest.approx(tensor_bytes(step), rel=0.1)


PROGRAM = """
import re, sys
import numpy as np
import torch
from pathlib import Path
from tempfile import TemporaryDirectory
from tune_dd import journal
from tune_dd.stream import evaluation_windows
from tune_dd.training import TrialData, TrialRun
import safetensors.torch
from test_memory import trial

def peak():  # not ru_maxrss, which a child inherits from the process that started it
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

torch.set_num_threads(1)
spec = trial(sys.argv[1])
tokens = np.random.default_rng(0).integers(0, spec.vocab_size, 8000).astype(np.uint16)
data = TrialData(tokens, tokens, evaluation_windows(tokens, 128, 128, salt="x"), np.ones(spec.vocab_size, np.int64))
torch.randn(256, 256) @ torch.randn(256, 256)
before = peak()
run = TrialRun(spec, data, torch.device("cpu"))
run.advance(2)
tensors, counters = run.state()
with TemporaryDirectory() as folder:
    journal.write_journal(Path(folder), spec, step=2, rows=[], counters=counters, tensors=tensors)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_process_takes_what_is_estimated() -> None:
    name = "L4_H4_D256"
    path = f"import sys; sys.path[:0] = {[str(REPOSITORY / 'tests'), str(REPOSITORY / 'tests' / 'tune_dd')]!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", path + PROGRAM, name], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert int(done.stdout) == pytest.approx(cpu_trial_bytes(trial(name)), rel=0.2)

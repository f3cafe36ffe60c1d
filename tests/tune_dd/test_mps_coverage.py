"""No operator that MPS lacks and no float64 tensor, checked without a Mac.

A step, an evaluation and a state round trip run on cpu along the accelerator's path. A dispatch mode
records their operators, exact to the overload, and each must have an MPS entry in the table of kernels
that torch was built from (native_functions.yaml, packed under torchgen). Operators composed of others
need no entry of their own: those that autograd takes apart never reach the mode, and for the rest the
profiler's tree tells what they called, which must be covered in turn.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchgen
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tune_dd import training
from tune_dd.regimes import ModelSpec, Protocol
from tune_dd.stream import evaluation_windows
from tune_dd.training import TrialData, TrialRun
from tune_dd.trial import Stage, TrialSpec

torch.set_num_threads(1)


@cache
def kernel_table() -> dict[str, dict[str, Any]]:
    """Every native operator, ``name.overload`` (``name`` for the default one), with its entry."""
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    entries = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    return {entry["func"].split("(")[0]: entry for entry in entries}


@cache
def standing(name: str) -> str:
    """``kernel`` where MPS has one of its own, ``composite`` where the operator calls others, else ``lacking``."""
    entry = kernel_table().get(name)
    if entry is None:
        return "lacking"
    if "structured_delegate" in entry:
        return standing(entry["structured_delegate"])
    if "dispatch" not in entry:
        return "composite"
    keys = {key.strip() for keys in entry["dispatch"] for key in keys.split(",")}
    if "MPS" in keys:
        return "kernel"
    return "composite" if any(key.startswith("Composite") for key in keys) else "lacking"


class Recorder(TorchDispatchMode):
    """Names of the operators that ran, and of those that made a float64 tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()
        self.doubles: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace != "aten":  # bookkeeping of the profiler, on the host
            return out
        name = str(func).removeprefix("aten.").removesuffix(".default")
        self.operators.add(name)
        if any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64 for leaf in tree_leaves(out)):
            self.doubles.add(name)
        return out


@cache
def standing_of_any_overload(base: str) -> str:
    """The best standing of an operator's overloads: the profiler tells names without them."""
    found = {standing(name) for name in kernel_table() if name.split(".")[0] == base}
    return next((best for best in ("kernel", "composite") if best in found), "lacking")


def lacking_below(event: Any) -> set[str]:
    """Operators without an MPS kernel that a composite operator's event called."""
    found: set[str] = set()
    for child in event.cpu_children:
        if not child.name.startswith("aten::"):
            continue
        base = child.name.removeprefix("aten::")
        state = standing_of_any_overload(base)
        if state == "lacking":
            found.add(base)
        elif state == "composite":
            found |= lacking_below(child)
    return found


def missing_on_mps(work: Any) -> tuple[set[str], set[str], set[str]]:
    """Operators that ``work`` needs and MPS lacks, those that made float64, and all recorded ones."""
    recorder = Recorder()
    with sdpa_kernel(SDPBackend.MATH):  # the cpu's flash kernel has no counterpart on MPS
        with recorder:
            work()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            work()
    missing = {name for name in recorder.operators if standing(name) == "lacking"}
    composite = {name.split(".")[0] for name in recorder.operators if standing(name) == "composite"}
    for event in profiled.events():
        if event.name.removeprefix("aten::") in composite:
            missing |= lacking_below(event)
    return missing, recorder.doubles, recorder.operators


def trial_run(precision: str) -> TrialRun:
    spec = TrialSpec(
        regime="test", scale="pocket", corpus_hash="c", tokenizer_hash="t", validation_hash="v", vocab_size=300,
        model=ModelSpec(2, 2, 16), protocol=Protocol(2, 16, 1e-2, 2, weight_decay=0.1, precision=precision), seed=0,
        condition="static_0.30", kind="static", stages=(Stage(400, 0.3, (100,)),),
    )  # fmt: skip
    tokens = (np.arange(600) % 300).astype(np.uint16)
    data = TrialData(tokens, tokens, evaluation_windows(tokens, 16, 64, salt="test"), np.ones(300, np.int64))
    return TrialRun(spec, data, torch.device("cpu"), as_accelerator=True)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_evaluation_and_state_need_nothing_that_mps_lacks(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "TRACE_EVERY", 2)
    run = trial_run(precision)

    def work() -> None:
        run.advance(run.step + 3)  # past a point of the trace
        run.read_out()
        run.load_state(*run.state())
        run.advance(run.step + 1)

    missing, doubles, operators = missing_on_mps(work)
    # What a step consists of was really seen.
    assert {"mm", "bmm", "_safe_softmax", "embedding_dense_backward", "uniform_", "_fused_adamw_"} <= operators
    assert missing == set()
    assert doubles == set()
    assert standing("_scaled_dot_product_attention_math_for_mps") == "kernel"


def test_building_a_trial_needs_nothing_that_mps_lacks() -> None:
    missing, doubles, _ = missing_on_mps(lambda: trial_run("float32"))
    assert missing == set()
    assert doubles == set()


def test_an_operator_that_mps_lacks_is_found() -> None:
    x = torch.randn(4, 4)
    missing, doubles, _ = missing_on_mps(lambda: torch.linalg.matrix_exp(x))
    assert missing == {"linalg_matrix_exp"}
    assert doubles == set()


def test_an_operator_that_mps_lacks_is_found_inside_a_composite_one() -> None:
    x, index = torch.zeros(4), torch.tensor([1])
    missing, _, operators = missing_on_mps(lambda: x.put(index, torch.ones(1)))
    assert "put_" not in operators  # the dispatch mode sees ``put``, which is composite and so itself allowed
    assert missing == {"put_"}


def test_a_float64_tensor_is_found() -> None:
    _, doubles, _ = missing_on_mps(lambda: torch.ones(2).double())
    assert doubles == {"_to_copy"}


def test_standing_is_read_from_the_table() -> None:
    assert standing("mm") == "kernel"
    assert standing("zeros_like") == "composite"
    assert standing("geqrf") == "lacking"
    assert standing("no_such_operator") == "lacking"

"""A training step: tokens per second and share of the machine's best matrix product.

Per shape and number of threads, one loop times in turn a 1024-cube sgemm, the step that training takes
(batch, hand-written gradients, AdamW), and the same step by autograd in float32 and in bfloat16, so that what
else the machine does meets all of them. FLOPs per token are 6 (12 L D^2 + V D) + 6 L T D, causal attention
counted at half.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measuring import cores
from benchmarks.trials import trial_run
from tune_dd import kernels
from tune_dd.device import open_device, processor_name
from tune_dd.regimes import ModelSpec
from tune_dd.training import TrialRun

GEMM = 1024


@dataclass(frozen=True)
class Case:
    model: str
    vocab_size: int
    batch_size: int
    context: int
    repeats: int

    @property
    def name(self) -> str:
        return f"{self.model} V{self.vocab_size} {self.batch_size}x{self.context}"


CASES = (
    Case("L2_H2_D64", 512, 16, 128, 31),
    Case("L4_H4_D128", 1024, 16, 128, 15),
    Case("L6_H6_D192", 2048, 16, 128, 9),
    Case("L12_H8_D320", 4096, 16, 128, 5),
    Case("L16_H8_D384", 4096, 8, 256, 5),
)


def case_run(case: Case, device: torch.device, *, autograd: bool = False, precision: str = "float32") -> TrialRun:
    return trial_run(
        ModelSpec.parse(case.model),
        device,
        vocab_size=case.vocab_size,
        batch_size=case.batch_size,
        context=case.context,
        readout_steps=(10 * case.repeats,),
        autograd=autograd,
        precision=precision,
    )


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(case: Case, n_threads: int) -> dict[str, Any]:
    device = open_device("cpu", n_threads)
    runs = {
        "step": case_run(case, device),
        "autograd": case_run(case, device, autograd=True),
        "bfloat16": case_run(case, device, precision="bfloat16"),
    }
    a, b = torch.randn(GEMM, GEMM), torch.randn(GEMM, GEMM)
    product = torch.empty(GEMM, GEMM)
    times: dict[str, list[float]] = {"sgemm": [], **{name: [] for name in runs}}
    for repeat in range(case.repeats + 1):
        found = {"sgemm": seconds(lambda: torch.mm(a, b, out=product))}
        for name, run in runs.items():
            found[name] = seconds(functools.partial(run.advance, run.step + 1))
        if repeat:  # the first of each allocates and warms up
            for name, value in found.items():
                times[name].append(value)
    median = {name: statistics.median(values) for name, values in times.items()}
    tokens = case.batch_size * case.context
    flops = tokens * runs["step"].spec.model.flops_per_token(case.vocab_size, case.context)
    peak = 2 * GEMM**3 / median["sgemm"]
    return {
        "case": case.name,
        "threads": n_threads,
        "sgemm_gflops": peak / 1e9,
        "tokens_per_second": tokens / median["step"],
        "share_of_sgemm": flops / median["step"] / peak,
        "speed_up_over_autograd": median["autograd"] / median["step"],
        "speed_up_over_bfloat16": median["bfloat16"] / median["step"],
        "step_seconds": times["step"],
    }


def run(*, quick: bool = False) -> dict[str, Any]:
    n_cores = cores()
    compiled = "compiled step" if kernels.load() else "no C compiler: step in torch's operations"
    print(f"{processor_name()}, {n_cores} cores, torch {torch.__version__}, {compiled}; medians")
    print(
        f"{'shape':28s}{'threads':>8s}{'sgemm GF/s':>12s}{'tokens/s':>10s}{'share':>8s}"
        f"{'x autograd':>12s}{'x bfloat16':>12s}"
    )
    rows = []
    for n_threads in sorted({1, n_cores}):
        for case in CASES[:1] if quick else CASES:
            row = measure(case, n_threads)
            rows.append(row)
            print(
                f"{row['case']:28s}{n_threads:8d}{row['sgemm_gflops']:12.0f}{row['tokens_per_second']:10.0f}"
                f"{row['share_of_sgemm']:8.1%}{row['speed_up_over_autograd']:12.2f}"
                f"{row['speed_up_over_bfloat16']:12.2f}",
                flush=True,
            )
    return {
        "processor": processor_name(),
        "cores": n_cores,
        "torch": torch.__version__,
        "compiled": bool(kernels.load()),
        "rows": rows,
    }

"""A trial on random tokens, for the benchmarks that need one without a corpus."""

from __future__ import annotations

import numpy as np
import torch

from tune_dd.regimes import ModelSpec, Protocol
from tune_dd.stream import evaluation_windows
from tune_dd.training import TrialData, TrialRun
from tune_dd.trial import Stage, TrialSpec


def trial_run(
    model: ModelSpec,
    device: torch.device,
    *,
    vocab_size: int = 512,
    batch_size: int = 16,
    context: int = 128,
    readout_steps: tuple[int, ...] = (32, 64, 96, 128),
    autograd: bool = False,
    precision: str = "float32",
) -> TrialRun:
    """A trial on random tokens at dropout 0.3; with ``autograd`` the path of an accelerator, taken on cpu."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, 65_536).astype(np.uint16)
    spec = TrialSpec(
        regime="benchmark",
        scale="pocket",
        corpus_hash="",
        tokenizer_hash="",
        validation_hash="",
        vocab_size=vocab_size,
        model=model,
        protocol=Protocol(batch_size, context, learning_rate=1e-3, warmup_steps=0, precision=precision),
        seed=0,
        condition="static_0.30",
        kind="static",
        stages=(Stage(len(tokens), 0.3, readout_steps),),
    )
    windows = evaluation_windows(tokens, context, context, salt="benchmark")
    data = TrialData(tokens, tokens, windows, np.ones(vocab_size, np.int64))
    return TrialRun(spec, data, device, as_accelerator=autograd)

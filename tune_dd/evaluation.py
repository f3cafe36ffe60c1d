"""Loss and bits per byte over fixed windows.

Bits per byte is derived from nanochat (MIT, Copyright (c) 2025 Andrej Karpathy; see LICENSE).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

TRAIN_EVAL_TOKENS = 16_384
EVAL_BATCH_TOKENS = 16_384  # of one batch: enough to keep an accelerator busy

Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


class TrainingDiverged(Exception):
    """A loss is NaN or infinite."""


@dataclass(frozen=True)
class Evaluation:
    """Totals over a set of windows.

    Attributes:
        loss: mean cross-entropy, nats per token.
        bpb: bits per UTF-8 byte; NaN where the targets hold no byte.
        tokens: how many target tokens.
    """

    loss: float
    bpb: float
    tokens: int


@torch.no_grad()
def evaluate(
    token_losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    batches: Iterable[Batch],
    token_bytes: npt.NDArray[np.int64],
    device: torch.device,
) -> Evaluation:
    """Loss and bits per byte over batches of windows.

    bpb = (nats of the targets that stand for bytes) / (ln 2 x their UTF-8 bytes). Special tokens have
    no bytes, and neither their loss nor their absence of bytes enters. Sums are float64 on the host,
    which MPS does not have.

    Args:
        token_losses: cross-entropy of every target, nats (B, T), from inputs and targets on the device.
        batches: pairs of inputs and targets, int64 (B, T).
        token_bytes: UTF-8 bytes of every token of the vocabulary, int64 (V,), 0 for special tokens.
    """
    nats = spelled_nats = 0.0
    tokens = n_bytes = 0
    for inputs, targets in batches:
        losses = token_losses(to_device(inputs, device), to_device(targets, device))
        host = losses.cpu().numpy().astype(np.float64)
        sizes = token_bytes[targets]
        nats += float(host.sum())
        spelled_nats += float(host[sizes > 0].sum())
        tokens += targets.size
        n_bytes += int(sizes.sum())
    return Evaluation(
        loss=nats / tokens,
        bpb=spelled_nats / (math.log(2.0) * n_bytes) if n_bytes else math.nan,
        tokens=tokens,
    )


def training_windows(
    tokens: npt.NDArray[np.uint16], unique_tokens: int, context: int, batch_size: int
) -> Iterator[Batch]:
    """Fixed windows of a training prefix: all of it up to 16,384 tokens, else so many, evenly spread.

    Windows overlap by a few tokens where the context does not divide the prefix.
    """
    last = unique_tokens - context - 1  # the last start whose targets still lie inside the prefix
    wanted = min(math.ceil((unique_tokens - 1) / context), TRAIN_EVAL_TOKENS // context)
    starts = np.linspace(0, last, max(1, wanted)).round().astype(np.int64)
    offsets = np.arange(context + 1)
    for chunk in np.split(starts, range(batch_size, len(starts), batch_size)):
        window = tokens[chunk[:, None] + offsets].astype(np.int64)
        yield window[:, :-1], window[:, 1:]


def to_device(array: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bfloat16 autocast where the protocol's precision asks for it, else one that does nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")

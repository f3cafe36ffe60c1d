"""Batches and evaluation windows, as pure functions of (seed, stage, step) over an array of tokens.

Offsets are computed from the raw output of a counter-based generator (Philox), which numpy keeps the
same in every version, and not from ``Generator.integers``, which it may change: the batches of a trial
are part of its result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tune_dd.errors import UserError

Tokens = npt.NDArray[np.uint16]
Indices = npt.NDArray[np.int64]


def sample_batch(
    tokens: Tokens, unique_tokens: int, batch_size: int, context: int, *, seed: int, stage: int, step: int
) -> tuple[Indices, Indices]:
    """Inputs and targets of one optimizer step: windows at uniformly random offsets in a prefix.

    A window is ``context + 1`` tokens that lie inside ``tokens[:unique_tokens]``; targets are the inputs
    shifted by one. Depends on nothing but the arguments, so two dropouts see the same batches and a
    continued trial sees the batches that it would have seen.

    Args:
        tokens: the train split, (n,), uint16, usually memory-mapped.
        unique_tokens: U, the prefix that may be sampled.
        seed, stage, step: each from 0 to 2^64 - 1.

    Returns:
        inputs and targets, each (batch_size, context), int64, C-contiguous.

    Raises:
        UserError: the prefix is longer than the split or does not fill one window.
    """
    if unique_tokens > len(tokens):
        raise UserError(
            f"a prefix of {unique_tokens} tokens is longer than the train split of {len(tokens)}: shorten it"
        )
    n_offsets = unique_tokens - context
    if n_offsets < 1:
        raise UserError(f"a prefix of {unique_tokens} tokens does not fill one window of {context} + 1: lengthen it")
    # The step is the counter's highest word, which no draw within a step can reach.
    raw = np.random.Philox(key=_words(seed, stage), counter=_words(0, 0, 0, step)).random_raw(batch_size)
    return _windows(tokens, _scale(raw, n_offsets), context)


@dataclass(frozen=True, eq=False)
class EvaluationWindows:
    """Fixed windows of an array of tokens, no two predicting the same token.

    Attributes:
        starts: (n,), int64, increasing; window i predicts tokens ``starts[i] + 1`` to
            ``starts[i] + context``.
        context: tokens predicted per window.
        hash: 16 hex digits over the offsets and the tokens in the windows.
    """

    starts: Indices = field(repr=False)
    context: int
    hash: str

    @property
    def n_tokens(self) -> int:
        """Predicted tokens in all windows."""
        return len(self.starts) * self.context

    def batches(self, tokens: Tokens, batch_size: int) -> Iterator[tuple[Indices, Indices]]:
        """Yield inputs and targets, each (at most batch_size, context), int64, in the order of ``starts``."""
        for first in range(0, len(self.starts), batch_size):
            yield _windows(tokens, self.starts[first : first + batch_size], self.context)


def evaluation_windows(tokens: Tokens, context: int, n_tokens: int, *, salt: int | str) -> EvaluationWindows:
    """Windows of about ``n_tokens`` predicted tokens, spread at random over all of ``tokens``.

    Spread windows give half the standard error of one contiguous stretch, since neighbouring text is
    alike. Where ``tokens`` holds no more than ``n_tokens`` the windows take in all of it, up to a
    remainder of less than one window.

    Args:
        tokens: (n,), uint16: the validation split, or a training prefix for the loss on it.
        salt: which of all spreads; the same salt on the same tokens gives the same windows.

    Raises:
        UserError: ``tokens`` does not fill one window, or ``n_tokens`` is less than one.
    """
    n_windows = min(n_tokens, len(tokens) - 1) // context
    if n_windows < 1:
        raise UserError(
            f"{min(n_tokens, len(tokens))} tokens do not fill one evaluation window of {context} + 1: "
            "give more text, more evaluation tokens or a shorter context"
        )
    # Uniform over all placements of n disjoint windows: sorted gaps, then the windows in between.
    key = hashlib.sha256(f"evaluation windows {salt}".encode()).digest()
    raw = np.random.Philox(key=np.frombuffer(key[:16], dtype="<u8").astype(np.uint64)).random_raw(n_windows)
    slack = len(tokens) - 1 - n_windows * context
    starts = np.sort(_scale(raw, slack + 1)) + np.arange(n_windows, dtype=np.int64) * context
    digest = hashlib.sha256(f"{context}\n".encode())
    digest.update(starts.astype("<i8").tobytes())
    for start in starts:
        digest.update(np.asarray(tokens[start : start + context + 1]).astype("<u2").tobytes())
    return EvaluationWindows(starts, context, digest.hexdigest()[:16])


def _windows(tokens: Tokens, starts: Indices, context: int) -> tuple[Indices, Indices]:
    # np.asarray drops the memmap subclass, whose indexing costs more than the gather itself.
    block = np.asarray(tokens)[starts[:, None] + np.arange(context + 1)]
    return block[:, :-1].astype(np.int64), block[:, 1:].astype(np.int64)


def _scale(raw: npt.NDArray[np.uint64], n: int) -> Indices:
    """Uniform integers in [0, n) from raw 64-bit words, by way of 53-bit fractions."""
    return ((raw >> np.uint64(11)).astype(np.float64) * (n * 2.0**-53)).astype(np.int64)


def _words(*values: int) -> npt.NDArray[Any]:
    return np.array(values, dtype=np.uint64)

"""How much a text surprises a bigram model: one number, counted without training anything.

Where dropout begins to pay depends on a text beyond its number of tokens, and between the texts that we measured it
follows this number and what the text repeats (docs/methodology.md, section 7).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# Tokens that are counted and judged, at most: the pocket scale's splits.
TRAIN_TOKENS, VALIDATION_TOKENS = 2_000_000, 200_000
# The loss falls with the tokens that were counted, so that texts are compared on one number of them: the largest of
# these that both have.
SIZES = (62_500, 125_000, 250_000, 500_000, 1_000_000, TRAIN_TOKENS)


def bigram_record(train: npt.NDArray[np.uint16], validation: npt.NDArray[np.uint16], vocab_size: int) -> dict[str, Any]:
    """What a manifest says: val_loss from the train_tokens counted, val_tokens judged, and ``by_train_tokens``, the
    loss from each of ``SIZES`` that the text has.
    """
    n = min(len(train), TRAIN_TOKENS)
    sizes = [size for size in SIZES if size <= n]
    losses = {size: bigram_loss(train[:size], validation, vocab_size) for size in {*sizes, n}}
    return {
        "val_loss": losses[n],
        "train_tokens": n,
        "val_tokens": min(len(validation), VALIDATION_TOKENS),
        "by_train_tokens": {str(size): losses[size] for size in sizes},
    }


def bigram_loss(train: npt.NDArray[np.uint16], validation: npt.NDArray[np.uint16], vocab_size: int) -> float:
    """Validation loss of a bigram model of the train split, nats per token.

    A token's probability given the one before it is interpolated with its own, by Witten and Bell's rule: with T
    distinct followers among n of the token before, ``(count + T p) / (n + T)``, p of the token alone with half
    a count added to each (Witten and Bell 1991, doi:10.1109/18.87000, method C).

    Args:
        train: (n,), n > 0; the first ``TRAIN_TOKENS`` are counted.
        validation: (m,), m > 1; the first ``VALIDATION_TOKENS`` are judged, the first of all given none before it.
    """
    counted = np.asarray(train[:TRAIN_TOKENS], dtype=np.int64)
    judged = np.asarray(validation[:VALIDATION_TOKENS], dtype=np.int64)
    alone = (np.bincount(counted, minlength=vocab_size) + 0.5) / (len(counted) + 0.5 * vocab_size)
    pairs, counts = np.unique((counted[:-1] << 16) | counted[1:], return_counts=True)
    followed = np.bincount(counted[:-1], minlength=vocab_size)
    followers = np.bincount(pairs >> 16, minlength=vocab_size)
    before, after = judged[:-1], judged[1:]
    wanted = (before << 16) | after
    at = np.minimum(np.searchsorted(pairs, wanted), max(len(pairs) - 1, 0))
    seen = np.where(pairs[at] == wanted, counts[at], 0) if len(pairs) else np.zeros(len(wanted))
    n, t = followed[before], followers[before]
    probability = np.where(n > 0, (seen + t * alone[after]) / np.maximum(n + t, 1), alone[after])
    return float(-np.log(probability).mean())

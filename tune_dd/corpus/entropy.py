"""How much a text still surprises whoever knows the token before: one number, counted without training anything.

Where dropout begins to pay depends on a text beyond its number of tokens, and between the texts that we measured it
follows this number (docs/methodology.md, section 4).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Tokens that are counted, at most: the estimate from counts rises with their number, so that texts are compared on
# one number of them. It is the pocket scale's train split.
SAMPLE_TOKENS = 2_000_000


def bigram_entropy(tokens: npt.NDArray[np.uint16]) -> float:
    """Conditional entropy of a token given the one before it, nats per token: H(pairs) - H(firsts), from counts.

    Args:
        tokens: (n,); the first ``SAMPLE_TOKENS`` of them are counted. 0 for fewer than two.
    """
    sample = np.asarray(tokens[:SAMPLE_TOKENS], dtype=np.int64)
    if len(sample) < 2:
        return 0.0
    pairs = np.unique((sample[:-1] << 16) | sample[1:], return_counts=True)[1]
    firsts = np.unique(sample[:-1], return_counts=True)[1]
    return _entropy(pairs) - _entropy(firsts)


def _entropy(counts: npt.NDArray[np.int64]) -> float:
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())

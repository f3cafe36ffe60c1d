"""How much of the validation text was already read in training, measured on the tokens as encoded.

The measure is the share of the validation split's 13-grams that occur anywhere in the train split: 13
successive words of one document, a word being a run of letters, digits and underscores, in lower case
(the measure of GPT-3's contamination study, arXiv 2005.14165, appendix C). Every occurrence counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

N_WORDS = 13
DESCRIPTION = f"share of {N_WORDS}-grams of validation words (runs of word characters, lower case) found in training"

_WORD = re.compile(r"\w+")
_CHUNK = 1 << 20  # tokens decoded at once
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word's bits are lost


def overlap_share(
    train: npt.NDArray[np.uint16], validation: npt.NDArray[np.uint16], spellings: list[bytes], bos: int
) -> float:
    """Share in [0, 1] of the validation split's 13-grams that occur in ``train``; 0 if it has none.

    Memory is bounded by the validation split: training text is read in pieces.

    Args:
        train, validation: tokens, (n,), each document after a ``bos``.
        spellings: the bytes of each token.
        bos: the token that begins a document.
    """
    parts = [_ngrams(text) for text in _texts(validation, spellings, bos)]
    wanted, counts = np.unique(np.concatenate(parts) if parts else np.zeros(0, np.uint64), return_counts=True)
    if not len(wanted):
        return 0.0
    seen = np.zeros(len(wanted), dtype=bool)
    for text in _texts(train, spellings, bos):
        grams = _ngrams(text)
        at = np.minimum(np.searchsorted(wanted, grams), len(wanted) - 1)
        seen[at[wanted[at] == grams]] = True
    return float(counts[seen].sum() / counts.sum())


def _texts(tokens: npt.NDArray[np.uint16], spellings: list[bytes], bos: int) -> Iterator[str]:
    """The text of each document, decoded by table: a tokenizer's own decoder is many times slower."""
    starts = np.flatnonzero(np.asarray(tokens) == bos)
    table = np.array(spellings, dtype=object)
    for first, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        for at in range(first, end, _CHUNK):
            yield b"".join(table[tokens[at : min(at + _CHUNK, end)]]).decode(errors="replace")


def _ngrams(text: str) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each 13-gram of ``text``, in order. Comparable within one process only."""
    words = _WORD.findall(text.lower())
    n = len(words) - N_WORDS + 1
    if n < 1:
        return np.zeros(0, dtype=np.uint64)
    hashes = np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)
    grams = np.zeros(n, dtype=np.uint64)
    for i in range(N_WORDS):
        grams = grams * _MULTIPLIER + hashes[i : i + n]
    return grams

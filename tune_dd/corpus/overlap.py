"""How much of the validation text was already read in training, measured on the tokens as encoded.

The measure is the share of the validation split's 13-grams that occur anywhere in the train split (after
GPT-3's contamination study, arXiv 2005.14165, appendix C): 13 successive words of one document, a word being
a run of letters, digits and underscores, with ASCII capitals as small letters. Every occurrence counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tune_dd.tokenizer import map_in_order

N_WORDS = 13
DESCRIPTION = f"share of the {N_WORDS}-grams of validation words (lower case, no punctuation) that occur in training"

_PIECE = 1 << 18  # tokens looked at together
_END = b"\0"  # stands for <|bos|> in the bytes, so that no 13-gram reaches over two documents
# Punctuation beyond ASCII that divides words; every other character beyond ASCII counts as a letter.
_MARKS = tuple(mark.encode() for mark in "“”‘’–—…\u00a0")

Tokens = npt.NDArray[np.uint16]
Hashes = npt.NDArray[np.uint64]


def overlap_share(
    train: Iterable[Tokens], validation: Iterable[Tokens], spellings: list[bytes], bos: int, n_workers: int = 1
) -> float:
    """Share in [0, 1] of the validation split's 13-grams that occur in ``train``; 0 if it has none.

    13-grams are compared by 64-bit hashes. Memory is bounded by the validation split and by one piece of
    the train split per thread.

    Args:
        train, validation: the tokens of each split in pieces of whole documents, each after a ``bos``.
        spellings: the bytes of each token.
        bos: the token that begins a document.
        n_workers: threads.
    """
    table = np.array(spellings, dtype=object)
    table[bos] = _END

    def ngrams(tokens: Tokens) -> Hashes:
        return hash_ngrams(b"".join(table[tokens]))

    wanted, counts = np.unique(np.concatenate([hash_ngrams(b""), *map(ngrams, validation)]), return_counts=True)
    if not len(wanted):
        return 0.0
    # Most of what is asked for is not there: a bitmap over 24 bits says so much sooner than a binary search.
    some = np.zeros(1 << 24, dtype=bool)
    some[_bucket(wanted)] = True

    def found(tokens: Tokens) -> npt.NDArray[np.int64]:
        grams = ngrams(tokens)
        grams = grams[some[_bucket(grams)]]
        at = np.minimum(np.searchsorted(wanted, grams), len(wanted) - 1)
        hits: npt.NDArray[np.int64] = at[wanted[at] == grams]
        return hits

    seen = np.zeros(len(wanted), dtype=bool)
    for at in map_in_order(found, train, n_workers):
        seen[at] = True
    return float(counts[seen].sum() / counts.sum())


def hash_ngrams(text: bytes) -> Hashes:
    """A 64-bit hash of each 13-gram of ``text``, UTF-8 in which NUL divides documents, in order, (n,).

    In numpy throughout, without the interpreter lock: four times as fast as splitting strings. A word's
    hash is the sum over its bytes of a random word for the byte times one for its place.
    """
    for mark in _MARKS:
        text = text.replace(mark, b" ")
    data = np.frombuffer(text, dtype=np.uint8)
    in_word = _BYTES[data] != 0
    starts = np.flatnonzero(in_word & ~np.concatenate(([False], in_word[:-1])))
    n = len(starts) - N_WORDS + 1
    if n < 1:
        return np.zeros(0, dtype=np.uint64)
    place = np.arange(len(data) - starts[0]) - np.repeat(starts - starts[0], np.diff(starts, append=len(data)))
    contributions = _BYTES[data[starts[0] :]] * _PLACES[place & (len(_PLACES) - 1)]
    words = np.add.reduceat(contributions, starts - starts[0])
    grams = np.zeros(n, dtype=np.uint64)
    for i in range(N_WORDS):
        grams = grams * _MULTIPLIER + words[i : i + n]
    document = np.cumsum(data == 0)[starts]
    within_one: Hashes = grams[document[:n] == document[N_WORDS - 1 :]]
    return within_one


def _byte_values(random: Hashes) -> Hashes:
    """A random word for each byte, 0 for what divides words, one for both cases of a letter."""
    values = np.zeros(256, dtype=np.uint64)
    for byte in range(256):
        if byte >= 128 or chr(byte).isalnum() or chr(byte) == "_":
            values[byte] = random[ord(chr(byte).lower()) if byte < 128 else byte] | np.uint64(1)
    return values


_RANDOM = np.random.Philox(key=13).random_raw(256 + 64 + 1)
_BYTES, _PLACES, _MULTIPLIER = _byte_values(_RANDOM[:256]), _RANDOM[256:320] | np.uint64(1), _RANDOM[320] | np.uint64(1)


def read_pieces(path: Path, bos: int) -> Iterator[Tokens]:
    """A file of raw tokens in pieces of whole documents, but for a document longer than a piece.

    Read and not memory-mapped: the pages of a map would count as this process's memory.
    """
    with open(path, "rb") as file:
        rest = np.zeros(0, dtype=np.uint16)
        while len(block := np.fromfile(file, dtype="<u2", count=_PIECE)):
            tokens = np.concatenate((rest, block))
            begins = np.flatnonzero(tokens[1:] == bos)
            end = 1 + int(begins[-1]) if len(begins) else len(tokens)
            yield tokens[:end]
            rest = tokens[end:]
    if len(rest):
        yield rest


def _bucket(hashes: Hashes) -> npt.NDArray[np.int64]:
    return (hashes >> np.uint64(40)).astype(np.int64)

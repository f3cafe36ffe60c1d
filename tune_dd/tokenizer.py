"""A byte-level BPE in nanochat's way: any text encodes, and decodes to the same text.

Derived from nanochat's ``nanochat/tokenizer.py`` (https://github.com/karpathy/nanochat), MIT License,
Copyright (c) 2025 Andrej Karpathy; the full notice stands in LICENSE. Derived are the split pattern and
the choice of trainer; of the special tokens only ``<|bos|>`` is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tune_dd.errors import UserError

# Set before the library is loaded, and kept: encoding has its own threads, and a later fork (Ray's) would
# otherwise make the library print a warning.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

BOS = "<|bos|>"
MIN_VOCAB, MAX_VOCAB = 257, 65_536

# GPT-4's pattern with numbers in one or two digits instead of one to three, so that a small vocabulary is
# not spent on numbers.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

# The trainer's time grows with the square of the longest word: 13 s for one of 100,000 letters.
LONGEST_WORD = 1000
_LONG_BLANK = re.compile(rf"\s{{{LONGEST_WORD},}}")
_LONG_WORD = re.compile(rf"(\S{{{LONGEST_WORD}}})")

Item = TypeVar("Item")
Result = TypeVar("Result")


def check_vocab_size(vocab_size: int) -> None:
    if not MIN_VOCAB <= vocab_size <= MAX_VOCAB:
        raise UserError(
            f"vocab_size {vocab_size} is outside {MIN_VOCAB} to {MAX_VOCAB:,}: the 256 bytes and {BOS} are "
            "needed, and tokens are stored in 16 bits"
        )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train on ``texts``; the same texts in the same order give the same tokenizer, on any number of cores.

    Raises:
        UserError: ``vocab_size`` is out of range, or the texts hold too few pairs to merge for it.
    """
    check_vocab_size(vocab_size)
    tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token=None, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=0,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[BOS],
    )
    with _library_threads():
        tokenizer.train_from_iterator(map(_break_long_words, texts), trainer)
    reached = tokenizer.get_vocab_size()
    if reached < vocab_size:
        raise UserError(
            f"the text supports a vocabulary of only {reached} tokens, not {vocab_size}: "
            f"give more text or a vocabulary of at most {reached}"
        )
    return _ready(tokenizer)


def load_tokenizer(text: str) -> Tokenizer:
    """A tokenizer from the text of its JSON file. Raises ValueError where that is not one."""
    try:
        return _ready(Tokenizer.from_str(text))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"not a tokenizer: {error}") from error


def bos_token(tokenizer: Tokenizer) -> int:
    """The number of ``<|bos|>``."""
    return int(tokenizer.get_vocab()[BOS])


def token_byte_counts(text: str) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of each token, (vocab_size,), 0 for ``<|bos|>``, from the text of a tokenizer's JSON file.

    The byte-level alphabet writes every byte as one character, so a token's length is its byte count, be
    it a whole character or a part of one. Raises ValueError where the text is not a tokenizer.
    """
    try:
        vocab: dict[str, int] = json.loads(text)["model"]["vocab"]
        counts = np.zeros(len(vocab), dtype=np.int64)
        for token, index in vocab.items():
            counts[index] = 0 if token == BOS else len(token)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"not a byte-level tokenizer: {error!r}") from error
    return counts


def token_spellings(text: str) -> list[bytes]:
    """The bytes that each token stands for, empty for ``<|bos|>``, from the text of a tokenizer's JSON file."""
    byte_of = {character: byte for byte, character in _byte_alphabet().items()}
    vocab: dict[str, int] = json.loads(text)["model"]["vocab"]
    spellings = [b""] * len(vocab)
    for token, index in vocab.items():
        if token != BOS:
            spellings[index] = bytes(byte_of[character] for character in token)
    return spellings


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> list[npt.NDArray[np.uint16]]:
    """Each document's tokens after a leading ``<|bos|>``. Releases the interpreter lock while it encodes."""
    bos = [bos_token(tokenizer)]
    return [np.array(bos + encoding.ids, dtype=np.uint16) for encoding in tokenizer.encode_batch_fast(texts)]


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], n_workers: int
) -> Generator[Result, None, None]:
    """Like ``map``, on ``n_workers`` threads, in order, with few items under way however many there are.

    Threads suffice: the library encodes without the interpreter lock, and two of them were measured at
    2.2 times one core's ``encode_batch``, as two processes were.
    """
    with ThreadPoolExecutor(n_workers, thread_name_prefix="tokenizer") as pool:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * n_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _ready(tokenizer: Tokenizer) -> Tokenizer:
    # A document that happens to contain the text "<|bos|>" is text: its bytes count and no document begins there.
    tokenizer.encode_special_tokens = True
    return tokenizer


def _break_long_words(text: str) -> str:
    """For training only: text such as DNA or base64 with its words cut, and long blanks made short."""
    text = _LONG_BLANK.sub("\n", text)
    if max(map(len, text.split()), default=0) <= LONGEST_WORD:
        return text
    return _LONG_WORD.sub(r"\1\n", text)


@contextlib.contextmanager
def _library_threads() -> Iterator[None]:
    """Let the library use its own threads: training has no other way to use all cores."""
    former = os.environ["TOKENIZERS_PARALLELISM"]
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = former


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte, which the byte-level pre-tokenizer uses."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}

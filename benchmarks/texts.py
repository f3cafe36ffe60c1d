"""Synthetic text of any length: made-up words with the frequencies of a natural text (Zipf), no two documents alike.

Without torch, as a process that prepares a corpus is, so that its memory is that process's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tune_dd.corpus import Corpus, prepare_corpus
from tune_dd.regimes import CorpusSource

VOCAB_SIZE = 512
SEPARATOR = "\n\n\n"
N_WORDS, N_SENTENCES, SENTENCES = 20_000, 20_000, 40  # words, sentences to choose from, sentences of a document


def documents(megabytes: float) -> Iterator[str]:
    """Documents of some 3.5 kB, in all so many megabytes, the same ones every time."""
    draw = np.random.default_rng(0)
    syllables = np.array(["ka", "lo", "mi", "ne", "po", "ru", "sha", "ti", "vu", "zo", "an", "er", "in", "st", "th"])
    words = np.array(["".join(draw.choice(syllables, draw.integers(1, 5))) for _ in range(N_WORDS)])
    weight = 1.0 / np.arange(1, N_WORDS + 1)
    chosen = draw.choice(words, (N_SENTENCES, 16), p=weight / weight.sum())
    sentences = [" ".join(line).capitalize() + ". " for line in chosen]
    written, number = 0, 0
    while written < megabytes * 1e6:
        text = f"{number} " + "".join(sentences[i] for i in draw.integers(0, N_SENTENCES, SENTENCES))
        yield text
        written, number = written + len(text) + len(SEPARATOR), number + 1


def write_source(path: Path, megabytes: float) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for text in documents(megabytes):
            file.write(text + SEPARATOR)


def build(source: Path, cache: Path) -> Corpus:
    """The corpus of a whole source, however long: built, or loaded where the cache is unchanged."""
    return prepare_corpus(
        CorpusSource(globs=(str(source),), separator=SEPARATOR),
        vocab_size=VOCAB_SIZE,
        train_tokens=2**40,
        validation_tokens=2**40,
        min_train_tokens=1,
        cache_dir=cache,
    )

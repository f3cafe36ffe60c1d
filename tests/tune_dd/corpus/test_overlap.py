"""The overlap measure against a plain reference: sets of tuples of words."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_dd.corpus import overlap
from tune_dd.corpus.overlap import N_WORDS, hash_ngrams, overlap_share, read_pieces
from tune_dd.tokenizer import BOS, encode_documents, token_spellings, train_tokenizer

TOKENIZER = train_tokenizer(["a b c d"], 257)
SPELLINGS = token_spellings(TOKENIZER.to_str())
BOS_ID = TOKENIZER.token_to_id(BOS)
WORDS = [f"word{i}" for i in range(40)]


def share(train: list[str], validation: list[str], n_workers: int = 1) -> float:
    return overlap_share(
        encode_documents(TOKENIZER, train), encode_documents(TOKENIZER, validation), SPELLINGS, BOS_ID, n_workers
    )


def reference(train: list[str], validation: list[str]) -> float:
    def grams(document: str) -> list[tuple[str, ...]]:
        words = re.findall(r"\w+", document.lower())
        return [tuple(words[i : i + N_WORDS]) for i in range(len(words) - N_WORDS + 1)]

    known = {gram for document in train for gram in grams(document)}
    asked = [gram for document in validation for gram in grams(document)]
    return sum(gram in known for gram in asked) / len(asked) if asked else 0.0


DOCUMENTS = st.lists(
    st.lists(st.sampled_from(["a", "b", "B", "é", "x_1", ".", ",\n", "“b”"]), min_size=8, max_size=60).map(" ".join),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(train=DOCUMENTS, validation=DOCUMENTS)
def test_agrees_with_the_reference(train: list[str], validation: list[str]) -> None:
    assert share(train, validation) == pytest.approx(reference(train, validation))


def test_case_and_punctuation_do_not_hide_a_copy_and_a_document_is_not_continued_by_the_next() -> None:
    text = " ".join(WORDS[:20])
    assert share([text.upper().replace(" ", ", ")], [text]) == 1.0
    assert share([" ".join(WORDS[:12]), " ".join(WORDS[12:20])], [text]) == 0.0
    assert share([" ".join(WORDS[:12] + WORDS[12:13])], [text]) == pytest.approx(1 / 8)


def test_a_text_too_short_for_a_13_gram_overlaps_nothing() -> None:
    assert share(["a b c"], ["a b c"]) == 0.0


def test_does_not_depend_on_pieces_or_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    documents = [" ".join(draw.choice(WORDS[:3], size=60)) for _ in range(40)]
    whole = share(documents[:30], documents[20:])
    assert whole == pytest.approx(reference(documents[:30], documents[20:]))
    files = (tmp_path / "train", tmp_path / "validation")
    for file, part in zip(files, (documents[:30], documents[20:]), strict=True):
        np.concatenate(encode_documents(TOKENIZER, part)).tofile(file)
    for piece in (400, 700, 1 << 20):
        monkeypatch.setattr(overlap, "_PIECE", piece)
        pieces = [read_pieces(file, BOS_ID) for file in files]
        assert overlap_share(*pieces, SPELLINGS, BOS_ID, n_workers=3) == whole


def test_words_that_differ_in_the_order_of_their_letters_differ() -> None:
    words = [f"{a}{b}" for a in "abcd" for b in "abcd"]
    forward, backward = (" ".join(words), " ".join(word[::-1] for word in words))
    assert not set(hash_ngrams(forward.encode())) & set(hash_ngrams(backward.encode()))

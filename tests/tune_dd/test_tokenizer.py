"""Any text encodes and decodes to itself, bytes are counted exactly, and training is reproducible."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests_support import REPOSITORY, synthetic_text

from tune_dd.errors import UserError
from tune_dd.tokenizer import (
    BOS,
    check_vocab_size,
    encode_documents,
    load_tokenizer,
    map_in_order,
    token_byte_counts,
    token_spellings,
    train_tokenizer,
)

DOCUMENTS = synthetic_text(60).split("\n\n")
TOKENIZER = train_tokenizer(DOCUMENTS, 400)
JSON = TOKENIZER.to_str()
COUNTS = token_byte_counts(JSON)
SPELLINGS = token_spellings(JSON)

# Hypothesis' text() has every code point but surrogates, which UTF-8 cannot hold.
TEXTS = st.one_of(
    st.text(max_size=200), st.lists(st.sampled_from([*DOCUMENTS[0].split(" "), BOS, "\n", "42"])).map(" ".join)
)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
@example(text="")
@example(text=BOS)
@example(text=f"a{BOS}{BOS} b")
@example(text="\0\r\n\u2028 日本語 🏳️‍🌈 ﷽")
@example(text="1234567 don't I'LL")
def test_text_survives_and_its_bytes_are_the_sum_of_its_tokens_bytes(text: str) -> None:
    (tokens,) = encode_documents(TOKENIZER, [text])
    assert tokens[0] == TOKENIZER.token_to_id(BOS)
    assert TOKENIZER.decode(tokens[1:].tolist(), skip_special_tokens=False) == text
    assert int(COUNTS[tokens].sum()) == len(text.encode())
    assert b"".join(SPELLINGS[token] for token in tokens) == text.encode()


def test_the_vocabulary_is_the_bytes_and_one_special_token_and_merges() -> None:
    assert TOKENIZER.get_vocab_size() == 400
    assert len(COUNTS) == 400
    assert COUNTS[TOKENIZER.token_to_id(BOS)] == 0
    assert sorted(s for s in SPELLINGS if len(s) == 1) == [bytes([b]) for b in range(256)]


def test_numbers_are_split_into_at_most_two_digits() -> None:
    tokenizer = train_tokenizer(["2024 " * 500 + "the cat"], 259)
    assert [tokenizer.id_to_token(i) for i in tokenizer.encode("2024").ids] == ["20", "24"]


def test_the_smallest_vocabulary_is_the_bytes_themselves() -> None:
    tokenizer = train_tokenizer(["hello"], 257)
    (tokens,) = encode_documents(tokenizer, ["né"])
    assert token_byte_counts(tokenizer.to_str())[tokens].tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("size", [-1, 256, 65_537])
def test_vocabularies_out_of_range_are_refused(size: int) -> None:
    with pytest.raises(UserError, match="outside 257 to 65,536"):
        check_vocab_size(size)


def test_a_vocabulary_that_the_text_cannot_fill_is_refused_with_the_size_it_can() -> None:
    with pytest.raises(UserError, match=r"vocabulary of only 261 tokens, not 1000: .* at most 261"):
        train_tokenizer(["hello"] * 3, 1000)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("unit", ["ACGTTGCA", " \t", "é-"])
def test_text_without_words_neither_hangs_the_training_nor_is_changed(unit: str) -> None:
    draw = random.Random(0)
    text = "".join(draw.choices(unit, k=200_000))
    tokenizer = train_tokenizer([text, *DOCUMENTS], 400)
    (tokens,) = encode_documents(tokenizer, [text])
    assert tokenizer.decode(tokens[1:].tolist()) == text


def test_training_gives_the_same_tokenizer_in_a_fresh_process_on_one_thread() -> None:
    code = (
        "import hashlib, sys; sys.path.insert(0, sys.argv[1]); from tests_support import synthetic_text; "
        "from tune_dd.tokenizer import train_tokenizer; "
        "print(hashlib.sha256(train_tokenizer(synthetic_text(60).split('\\n\\n'), 400).to_str().encode()).hexdigest())"
    )
    support = str(REPOSITORY / "tests")
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code, support], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout.strip() == hashlib.sha256(JSON.encode()).hexdigest()


def test_a_saved_tokenizer_is_the_same_and_treats_the_special_token_as_text() -> None:
    again = load_tokenizer(JSON)
    texts = [*DOCUMENTS[:5], f"x {BOS} y"]
    for here, there in zip(encode_documents(TOKENIZER, texts), encode_documents(again, texts), strict=True):
        np.testing.assert_array_equal(here, there)
        assert (here == TOKENIZER.token_to_id(BOS)).sum() == 1


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"model": {"vocab": {"a": 7}}}', '{"model": 3}'])
def test_what_is_not_a_tokenizer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        load_tokenizer(text)
    with pytest.raises(ValueError, match=r"not a|Expecting"):
        token_byte_counts(text)


@pytest.mark.parametrize("n_workers", [1, 3])
def test_mapping_keeps_order_and_holds_few_items(n_workers: int) -> None:
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for i in range(200):
            drawn += 1
            yield i

    names = set()

    def square(i: int) -> int:
        names.add(threading.current_thread().name)
        return i * i

    for done, value in enumerate(map_in_order(square, items(), n_workers)):
        assert value == done * done
        assert drawn - done <= 2 * n_workers + 2
    assert drawn == 200
    assert len(names) <= n_workers


def test_an_error_in_a_worker_arrives() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_in_order(lambda i: 1 // i, [1, 0, 2], 2))

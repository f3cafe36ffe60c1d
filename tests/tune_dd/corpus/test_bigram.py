"""The validation loss of a bigram model."""

from itertools import pairwise

import numpy as np
import pytest

from tune_dd.corpus.bigram import SIZES, TRAIN_TOKENS, VALIDATION_TOKENS, bigram_loss, bigram_record


def plain(train: list[int], validation: list[int], vocab_size: int) -> float:
    """The same, a token at a time."""
    losses = []
    for before, after in pairwise(validation):
        followers = [b for a, b in pairwise(train) if a == before]
        alone = (train.count(after) + 0.5) / (len(train) + 0.5 * vocab_size)
        types = len(set(followers))
        share = (followers.count(after) + types * alone) / (len(followers) + types) if followers else alone
        losses.append(-np.log(share))
    return float(np.mean(losses))


def test_it_is_witten_and_bell_s_interpolation() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 150):
        train, validation = rng.integers(9, size=size), rng.integers(12, size=40)
        expected = plain(train.tolist(), validation.tolist(), 12)
        assert bigram_loss(train.astype(np.uint16), validation.astype(np.uint16), 12) == pytest.approx(expected)
    high = np.array([65_535, 0, 65_535, 1, 65_535], dtype=np.uint16)
    expected = plain(high.tolist(), [65_535, 0, 1], 65_536)
    assert bigram_loss(high, high[[0, 1, 3]], 65_536) == pytest.approx(expected), "ids of all 16 bits are told apart"


def test_known_sources_have_their_entropies() -> None:
    rng = np.random.default_rng(0)

    def walk(n: int) -> np.ndarray:
        """Each token is the one before, or with probability 1/4 the next of 16."""
        return (np.cumsum(rng.random(n) < 0.25) % 16).astype(np.uint16)

    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert bigram_loss(walk(400_000), walk(100_000), 16) == pytest.approx(entropy, abs=5e-3)


def test_every_text_is_judged_by_as_many_tokens() -> None:
    rng = np.random.default_rng(1)
    train = rng.integers(4, size=TRAIN_TOKENS + 50_000).astype(np.uint16)
    validation = rng.integers(4, size=VALIDATION_TOKENS + 5_000).astype(np.uint16)
    cut = bigram_loss(train[:TRAIN_TOKENS], validation[:VALIDATION_TOKENS], 4)
    assert bigram_loss(train, validation, 4) == cut


def test_a_manifest_has_the_loss_at_every_number_of_tokens_that_texts_are_compared_on() -> None:
    rng = np.random.default_rng(2)
    train, validation = rng.integers(50, size=300_000).astype(np.uint16), rng.integers(50, size=900).astype(np.uint16)
    record = bigram_record(train, validation, 50)
    assert (record["train_tokens"], record["val_tokens"]) == (300_000, 900)
    assert record["val_loss"] == bigram_loss(train, validation, 50)
    assert record["by_train_tokens"] == {
        str(size): bigram_loss(train[:size], validation, 50) for size in (62_500, 125_000, 250_000)
    }
    assert SIZES[-1] == TRAIN_TOKENS
    assert bigram_record(train[:60_000], validation, 50)["by_train_tokens"] == {}

"""The conditional entropy of a token given the one before it."""

import numpy as np
import pytest

from tune_dd.corpus.entropy import SAMPLE_TOKENS, bigram_entropy


def test_known_sources_have_their_entropies() -> None:
    rng = np.random.default_rng(0)
    assert bigram_entropy(np.tile(np.array([3, 1, 2], dtype=np.uint16), 1_000)) == pytest.approx(0.0, abs=1e-6)
    drawn = rng.integers(8, size=200_000).astype(np.uint16)
    assert bigram_entropy(drawn) == pytest.approx(np.log(8), abs=1e-3)
    # Each token is the one before, or with probability 1/4 the next: H(1/4) nats whatever the marginal is.
    walk = (np.cumsum(rng.random(400_000) < 0.25) % 60_000).astype(np.uint16)
    assert bigram_entropy(walk % 16) == pytest.approx(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)), abs=2e-3)


def test_every_text_is_judged_by_as_many_tokens_and_none_needs_to_be_long() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(4, size=SAMPLE_TOKENS + 50_000).astype(np.uint16)
    assert bigram_entropy(tokens) == bigram_entropy(tokens[:SAMPLE_TOKENS])
    assert bigram_entropy(tokens[:1]) == 0.0
    high = np.array([65_535, 0, 65_535, 1], dtype=np.uint16)
    assert bigram_entropy(high) == pytest.approx(2 / 3 * np.log(2)), "ids of all 16 bits are told apart"

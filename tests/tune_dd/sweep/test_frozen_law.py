"""A law that is frozen for a run: what config.json keeps of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests_support import coefficients

from analysis.coefficients import Coefficients
from tune_dd.sweep.frozen_law import FrozenLaw


@pytest.mark.parametrize(
    "said",
    [
        "carried from pydocs by 15 trials on my_corpus (12 cells): U counts 0.79 [0.72, 1.15] times",
        "carried from pydocs by counts (bigram loss 3.6 there and 3.1 here): U counts 1.51 [1.06, 2.14] times",
    ],
)
def test_how_a_law_was_carried_is_recorded_in_its_own_words(said: str) -> None:
    fitted = Coefficients.from_dict(coefficients())
    carried = replace(fitted, carried_from="pydocs", notes=(said, "one model size"))
    record = FrozenLaw("law.json", "ab", carried, "law").record()
    assert (record["carried_from"], record["carried"]) == ("pydocs", said)
    assert FrozenLaw("law.json", "ab", fitted, "law").record()["carried"] == ""

"""A law that is frozen for a run: what config.json keeps of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests_support import coefficients

from analysis.bakeoff import as_now
from analysis.coefficients import Coefficients
from tune_dd.laws import FLOORED_SLOPE
from tune_dd.sweep.frozen_law import FrozenLaw


def test_what_the_fit_of_a_frozen_law_expected_is_recorded() -> None:
    law = {"law": "floored", "coefficients": {"B": 0.8, "C0": 0.0}, "draws": []}
    law |= {"intervals": {"B": [0.7, 0.9], "C0": [-0.1, 0.1]}, "expected": {"B": list(FLOORED_SLOPE)}}
    fitted = Coefficients.from_dict(coefficients(**law))

    def record(frozen: Coefficients) -> dict[str, Any]:
        written = json.dumps(FrozenLaw("law.json", "ab", frozen, "law").record())
        return json.loads(written)  # type: ignore[no-any-return]

    assert as_now(record(fitted))
    assert as_now(record(replace(fitted, law="floored_capped")))
    for former in ({"B": (0.74, 0.22)}, {}):
        assert not as_now(record(replace(fitted, expected=former)))
    assert as_now(record(Coefficients.from_dict(coefficients()))), "of the interaction form nothing is expected"
    for damaged in (None, [1], {"B": 1}):
        assert not as_now(record(fitted) | {"expected": damaged})


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

"""What a run's other files say: laws from elsewhere."""

from __future__ import annotations

from typing import Any

from analysis.companions import transfers


def test_a_law_s_way_to_the_text_is_told_as_it_was() -> None:
    law: dict[str, Any] = {"condition": "law", "source": "carried", "carried_from": "pydocs", "transfer": False}
    by_trials = "carried from pydocs by 15 trials on my_corpus (12 cells): U counts 0.79 [0.72, 1.15] times"
    (note,) = transfers([{"coefficients": [law | {"carried": by_trials}]}])
    assert note == f"Carried: the coefficients of condition law are {by_trials}."
    (old,) = transfers([{"coefficients": [law]}, {}])
    assert "carried from pydocs to this text; the run does not record how: the notes of carried do" in old
    assert "bigrams" not in old
    assert transfers([{"coefficients": [law | {"carried_from": "", "carried": ""}]}]) == []

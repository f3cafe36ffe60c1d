"""The law of a text of which nothing is known, and the answer that it gives where no coefficients are named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis import simulated
from analysis.__main__ import main
from analysis.advise import TYPICAL_FILE, advise, read_coefficients
from analysis.bakeoff import fit_texts, sort_runs
from analysis.coefficients import Coefficients, fit_law
from analysis.tables import load_experiment
from analysis.typical import ANY, typical
from tune_dd.errors import UserError
from tune_dd.laws import DEFAULT_LAW, LAWS

SLOPES = (0.6, 0.74, 0.9)
POINT = ["--params", "163840", "--unique-tokens", "16k", "--sampled-tokens", "262144"]


@pytest.fixture(scope="module")
def fitted() -> list[Coefficients]:
    return [
        fit_law(
            None,
            simulated.simulate_calibration(
                np.random.default_rng(number),
                law="floored",
                coefficients={"B": slope, "C0": 0.0},
                unique_tokens=(4_000, 8_000, 16_000 * (number + 1)),
            ),
            law="floored",
            n_bootstrap=20,
        )
        for number, slope in enumerate(SLOPES)
    ]


def test_it_is_the_mean_of_the_texts_and_its_interval_is_their_spread(fitted: list[Coefficients]) -> None:
    found = typical(fitted)
    slopes = [each.coefficients["B"] for each in fitted]
    assert found.coefficients["B"] == pytest.approx(np.mean(slopes))
    assert (found.regime, found.law, len(found.draws)) == (ANY, "floored", 3)
    assert Coefficients.from_dict(found.to_dict()) == found
    advice = advise(found, 163_840, [(16e3, 262_144)]).iloc[0]
    each = [float(one.predict(163_840, 16e3, 262_144)) for one in fitted]
    assert min(each) <= advice["low"] < advice["dropout"] < advice["high"] <= max(each)
    assert advice["high"] - advice["low"] > 0.9 * (max(each) - min(each))
    assert advice["inside"]
    assert {cell["unique_tokens"] for cell in found.cells} == {4_000, 8_000, 16_000, 32_000, 48_000}
    assert not advise(found, 163_840, [(64e3, 262_144)])["inside"].any()


def test_one_text_and_texts_of_several_forms_are_refused(fitted: list[Coefficients]) -> None:
    with pytest.raises(UserError, match="one text says nothing of texts in general"):
        typical(fitted[:1])
    with pytest.raises(UserError, match="of several forms"):
        typical([fitted[0], replace(fitted[1], law="floored_capped")])


def test_advice_without_coefficients_is_what_texts_have_on_average(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", *POINT]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "any text, P = 164k" in out
    assert "nothing was calibrated: this is what" in out
    assert "inside" in out
    expected = advise(read_coefficients(TYPICAL_FILE), 163_840, [(16e3, 262_144)]).iloc[0]
    assert f"{expected['dropout']:.3f}" in out
    assert 0.05 < expected["low"] < expected["dropout"] < expected["high"] < 0.4
    assert main(["advise", "--params", "31e6", *POINT[2:]]) == 0
    assert "OUTSIDE" in capsys.readouterr().out


def test_the_file_is_the_mean_of_the_saved_calibrations() -> None:
    saved = Path(__file__).parents[2] / "ray_results" / "saved"
    study = sort_runs([load_experiment([file.parent]) for file in sorted(saved.glob("**/metrics.jsonl"))])
    texts = fit_texts(study, law=DEFAULT_LAW)
    found, kept = typical(list(texts.values())), read_coefficients(TYPICAL_FILE)
    assert kept.law == DEFAULT_LAW
    assert len(kept.draws) == len(texts)
    for name in LAWS[DEFAULT_LAW].coefficients:
        assert found.coefficients[name] == pytest.approx(kept.coefficients[name], abs=1e-6)
    assert found.cells == kept.cells

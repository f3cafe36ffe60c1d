"""The law of a text of which nothing is known, and the answer that it gives where no coefficients are named."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from analysis import simulated
from analysis.__main__ import main
from analysis.advise import TYPICAL_FILE, advise, read_coefficients
from analysis.bakeoff import fit_texts, judge_cells, sort_runs
from analysis.coefficients import Coefficients, fit_law
from analysis.tables import load_experiment
from analysis.typical import ANY, typical
from analysis.verdict import TYPICAL, TYPICAL_PILOTED
from tune_dd.artifacts import write_json
from tune_dd.errors import UserError
from tune_dd.laws import DEFAULT_LAW, FLOORED_SLOPE, LAWS

SLOPES = (0.6, 0.74, 0.9)
POINT = ["--params", "163840", "--unique-tokens", "16k", "--sampled-tokens", "262144"]


@pytest.fixture(scope="module")
def fitted() -> list[Coefficients]:
    laws = [
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
    return [replace(law, regime=f"text{number}") for number, law in enumerate(laws)]


def test_it_is_the_mean_of_the_texts_and_its_interval_is_their_spread(fitted: list[Coefficients]) -> None:
    found = typical(fitted)
    slopes = [each.coefficients["B"] for each in fitted]
    assert found.coefficients["B"] == pytest.approx(np.mean(slopes))
    assert (found.regime, found.law, len(found.draws)) == (ANY, "floored", 60)
    assert found.expected == {"B": FLOORED_SLOPE}
    assert Coefficients.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    advice = advise(found, 163_840, [(16e3, 262_144)]).iloc[0]
    each = [float(one.predict(163_840, 16e3, 262_144)) for one in fitted]
    assert advice["low"] < min(each) < advice["dropout"] < max(each) < advice["high"]
    bare = typical([replace(one, draws=()) for one in fitted])
    assert [list(draw) for draw in bare.draws] == [list(one.coefficients.values()) for one in fitted]
    assert advice["inside"]
    assert {cell["unique_tokens"] for cell in found.cells} == {4_000, 8_000, 16_000, 32_000, 48_000}
    assert not advise(found, 163_840, [(64e3, 262_144)])["inside"].any()


def test_one_text_and_texts_of_several_forms_are_refused(fitted: list[Coefficients]) -> None:
    with pytest.raises(UserError, match="one text says nothing of texts in general"):
        typical(fitted[:1])
    with pytest.raises(UserError, match="of several forms"):
        typical([fitted[0], replace(fitted[1], law="floored_capped")])
    with pytest.raises(UserError, match="a text has several laws"):
        typical([fitted[0], replace(fitted[1], regime=fitted[0].regime)])


def test_a_judged_text_has_no_part_in_the_mean_that_judges_it(synthetic: ModuleType, tmp_path: Path) -> None:
    def judged(shift: int) -> pd.DataFrame:
        """Three texts, the last one's U counting for a ``shift`` of the others'."""
        runs = []
        for name, factor in (("owt", 1), ("pydocs", 1), ("tinystories", shift)):
            rows = synthetic.calibration(prefixes=(8_000, 16_000, 32_000), seeds=(0, 1), regime=name, corpus=name)
            for row in rows:
                row["val_loss"] += 0.1 * (factor - 1) * row["dropout"]  # less dropout is best there
            runs.append(synthetic.write_run(tmp_path / f"{name}{shift}", rows))
        cells = judge_cells(sort_runs([load_experiment([run]) for run in runs]), laws=("first_order",))
        return cells[cells["kind"].isin([TYPICAL, TYPICAL_PILOTED])].set_index("regime")

    every = judged(1), judged(3)
    assert all(set(found["fitted_on"]) == {ANY} for found in every)
    apart = every[1].loc["tinystories"].groupby("kind")["regret"]
    assert apart.size()[TYPICAL] == apart.size()[TYPICAL_PILOTED]
    assert apart.mean()[TYPICAL_PILOTED] < 0.9 * apart.mean()[TYPICAL]
    one, other = (found[found["kind"] == TYPICAL] for found in every)
    assert one.groupby(level=0).size().nunique() == 1, "every text once"
    same = [frame.loc["tinystories", "predicted"].to_numpy() for frame in (one, other)]
    np.testing.assert_array_equal(*same)
    assert (one.loc["owt", "predicted"].to_numpy() != other.loc["owt", "predicted"].to_numpy()).any()


def test_advice_without_coefficients_is_what_texts_have_on_average(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", *POINT]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "any text, P = 164k" in out
    assert re.search(r"these are the means of \d+ texts' coefficients", out)
    assert "nothing was trained on your text" in out
    assert "inside" in out
    expected = advise(read_coefficients(TYPICAL_FILE), 163_840, [(16e3, 262_144)]).iloc[0]
    assert f"{expected['dropout']:.3f}" in out
    assert 0.05 < expected["low"] < expected["dropout"] < expected["high"] < 0.4
    assert main(["advise", "--params", "31e6", *POINT[2:]]) == 0
    assert "OUTSIDE" in capsys.readouterr().out


def test_coefficients_of_a_former_fit_of_the_default_form_are_told_so(
    fitted: list[Coefficients], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    law = tmp_path / "coefficients.json"
    for expected, told in (({"B": FLOORED_SLOPE}, False), ({"B": (0.74, 0.22)}, True), ({}, True)):
        write_json(law, replace(fitted[0], expected=expected).to_dict())
        assert main(["advise", "--coefficients", str(law), *POINT]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert ("these coefficients were fitted when other values were expected of the floored law" in out) == told


def test_the_file_is_the_mean_of_the_saved_calibrations() -> None:
    saved = Path(__file__).parents[2] / "ray_results" / "saved"
    study = sort_runs([load_experiment([file.parent]) for file in sorted(saved.glob("**/metrics.jsonl"))])
    texts = fit_texts(study, law=DEFAULT_LAW)
    found, kept = typical(list(texts.values())), read_coefficients(TYPICAL_FILE)
    assert kept.law == DEFAULT_LAW
    assert len(kept.draws) == len(found.draws)
    for name in LAWS[DEFAULT_LAW].coefficients:
        assert found.coefficients[name] == pytest.approx(kept.coefficients[name], abs=1e-6)
    assert found.cells == kept.cells


def test_the_mean_of_texts_is_carried_by_trials_and_not_by_counts(
    synthetic: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pilot = str(synthetic.write_run(tmp_path / "pilot", synthetic.calibration(prefixes=(8_000, 16_000), seeds=(0, 1))))
    words = ["carry", pilot, "--out", str(tmp_path / "carried")]
    assert main([*words, "--by", "counts"]) == 2
    assert "the mean law of texts is of no one text: it is carried by trials" in capsys.readouterr().err
    assert not (tmp_path / "carried").exists()
    assert main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "carried from any text by" in out
    assert "the interval is what the texts differ by once each is scaled to these trials" in out
    assert "the texts' spread" not in out
    assert main(["carry", str(TYPICAL_FILE), "--out", str(tmp_path / "named"), pilot]) == 0
    assert read_coefficients(tmp_path / "carried") == read_coefficients(tmp_path / "named")
    assert main(["advise", "--coefficients", str(tmp_path / "carried"), *POINT]) == 0
    advised = " ".join(capsys.readouterr().out.split())
    assert "pydocs, P = 164k" in advised
    assert "nothing was trained" not in advised
    cache = tmp_path / ".cache" / "dropout_decay_own"
    assert main(["carry", str(cache), "--out", str(tmp_path / "none")]) == 2
    assert "dropout_decay_own is not there" in capsys.readouterr().err
    cache.mkdir(parents=True)
    assert main(["carry", str(cache), "--out", str(tmp_path / "none")]) == 2
    assert "name a pilot as TEXT, or RUN before it" in capsys.readouterr().err
    assert main(["carry", str(TYPICAL_FILE), str(cache), "--out", str(tmp_path / "none")]) == 2
    assert "RUN before it" not in capsys.readouterr().err

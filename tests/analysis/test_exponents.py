"""What texts share: exponents found again from simulated texts, and no text judged by itself."""

import re
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from analysis import exponents, exponents_command, simulated
from analysis.__main__ import main
from analysis.targets import make_targets, regret_floors
from tune_dd.laws import Floor, floored, get_law

SLOPES, CONSTANTS = (0.6, 0.75, 0.9), (0.06, 0.0, -0.05)


@pytest.fixture(scope="module")
def texts() -> dict[str, exponents.Text]:
    """Three texts of the floored law as it is registered, calibrated at two sizes and held out beyond them."""
    found = {}
    for number, (slope, constant) in enumerate(zip(SLOPES, CONSTANTS, strict=True)):
        rng = np.random.default_rng(number)
        law = {"law": "floored", "coefficients": {"B": slope, "C0": constant}}
        calibration = simulated.simulate_calibration(rng, n_params=(45_000, 163_840), **law)
        held = make_targets(
            None,
            simulated.simulate_calibration(
                rng, n_params=(917_504,), unique_tokens=(24_000, 48_000), sampled_tokens=(262_144, 524_288), **law
            ),
        )
        found[f"text{number}"] = exponents.Text(make_targets(None, calibration), held, regret_floors(held))
    return found


def test_exponents_are_found_again(texts: dict[str, exponents.Text]) -> None:
    shared = exponents.fit_shared(list(texts.values()), Floor().passes)
    assert shared.floor.onset_u == pytest.approx(Floor().onset_u, abs=0.08)
    assert shared.floor.onset_p == pytest.approx(Floor().onset_p, abs=0.08)
    assert shared.floor.slope_u == pytest.approx(Floor().slope_u, abs=0.08)
    np.testing.assert_allclose(shared.slopes, SLOPES, atol=0.1)
    assert shared.slope[0] == pytest.approx(0.74, abs=0.07)
    assert shared.slope[1] == pytest.approx(exponents.SPREAD * shared.slope[0])
    wrong = exponents.fit_shared(list(texts.values()), 8.0)
    assert wrong.cost > shared.cost


def test_a_text_is_judged_by_the_others_exponents(
    texts: dict[str, exponents.Text], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    fit_shared = exponents.fit_shared
    monkeypatch.setattr(
        exponents, "fit_shared", lambda own, passes: seen.append([id(text) for text in own]) or fit_shared(own, passes)
    )
    judged, floors = exponents.leave_one_out(texts, Floor().passes)
    assert seen == [[id(text) for other, text in texts.items() if other != name] for name in texts]
    assert set(floors) == set(texts)
    assert judged.groupby("text").size().to_dict() == dict.fromkeys(texts, 4)
    assert set(judged["kind"]) == {"larger P"}
    assert abs(judged["corrected"].mean()) < 0.003  # the form is true, and its exponents nearly
    worse = exponents.judge(texts, dict.fromkeys(texts, floored(Floor(onset_p=0.1))))
    assert worse["regret"].mean() > judged["regret"].mean() + 0.005


def test_the_joint_fit_loses_what_the_form_misses_and_no_more(texts: dict[str, exponents.Text]) -> None:
    shared = exponents.fit_shared(list(texts.values()), Floor().passes)
    joint = exponents.judge_joint(texts, shared)
    judged = exponents.judge(texts, dict.fromkeys(texts, floored(Floor())))
    assert joint[["text", "kind"]].equals(judged[["text", "kind"]])
    assert abs(joint["corrected"].mean()) < 0.003  # the form is true
    # Each text by its own coefficients: the first text's would cost the others.
    alike = replace(shared, slopes=np.full(3, shared.slopes[0]), constants=np.full(3, shared.constants[0]))
    others = exponents.judge_joint(texts, alike)
    first = joint["text"] == "text0"
    assert others["regret"][~first].mean() > joint["regret"][~first].mean() + 0.001
    assert others[first].equals(joint[first])


def test_the_registered_exponents_are_those_of_the_saved_runs() -> None:
    """Rounded from a fit to fewer texts than are saved now (docs/methodology.md)."""
    saved = Path(__file__).parents[2] / "ray_results" / "saved"
    texts = exponents.load_texts(sorted(path.parent for path in saved.glob("**/metrics.jsonl")))
    shared = exponents.fit_shared(list(texts.values()), Floor().passes)
    for name in exponents.EXPONENTS:
        assert getattr(shared.floor, name) == pytest.approx(getattr(Floor(), name), abs=0.06)
    assert shared.slope == pytest.approx(get_law("floored").expected["B"], abs=0.02)
    assert exponents.fit_shared(list(texts.values()), 0.0).cost > 1.1 * shared.cost


def test_the_command_prints_each_passes_exponents_and_means(
    texts: dict[str, exponents.Text], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exponents_command, "load_texts", lambda runs, seed: texts)
    assert main(["exponents", "anything", "--passes", "1,2.5"]) == 0
    out = capsys.readouterr().out
    assert "fitted to 3 texts together" in " ".join(out.split())
    assert re.search(r"\| +2\.5 \| 0\.\d{4} \| +0\.\d\d \(0\.\d\d-0\.\d\d\)", out)
    assert out.count("larger P (12)") == 2
    assert "fitted to the hold-outs too" in " ".join(out.split())
    assert re.search(r"text0 +\| +-?0\.\d{4} \(-?0\.\d{4}\)", out)
    assert main(["exponents", "anything", "--passes", "1"]) == 0
    assert "text0" not in capsys.readouterr().out, "only for the registered passes"


@pytest.mark.parametrize("passes", ["-1", "many", "inf", "1,,2", "1e308"])
def test_passes_that_are_none_are_one_line_and_exit_2(passes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exponents", "anything", f"--passes={passes}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --passes {passes}: give numbers of passes")


def test_saved_runs_of_three_texts_are_enough_and_of_two_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    saved = Path(__file__).parents[2] / "ray_results" / "saved"
    runs = {
        name: sorted(map(str, (saved / f"{name}-calibrate-pocket").glob("*")))
        for name in ("golang", "dictionary", "sqlitedoc")
    }
    assert main(["exponents", *runs["golang"], *runs["dictionary"]]) == 2
    assert "these runs calibrate dictionary, golang: name more runs" in capsys.readouterr().err
    assert main(["exponents", *chain.from_iterable(runs.values()), "--passes", "2.5"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"golang +\| +0\.\d{4} \(-?0\.\d{4}\)", out)
    assert "longer C (12)" in out
    assert main(["exponents", "--results", str(saved / "absent")]) == 2
    assert "no run below" in capsys.readouterr().err
    assert main(["exponents", *chain.from_iterable(runs.values()), "--seed", "-1"]) == 2
    assert "--seed -1: give 0 or more" in capsys.readouterr().err
    calibrations = [own[0] for own in runs.values()]  # the first run of each
    assert main(["exponents", *calibrations, "--passes", "2.5"]) == 0
    assert "Nothing is held out" in capsys.readouterr().out

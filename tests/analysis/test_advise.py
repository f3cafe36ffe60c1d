"""Advice: the law's own dropout, its interval, and a warning outside of what was calibrated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.advise import advise, in_form, parse_count, parse_stages, read_coefficients
from analysis.coefficients import Coefficients, fit_law
from analysis.report import analyse
from analysis.tables import load_experiment
from tune_dd.artifacts import write_json
from tune_dd.errors import UserError
from tune_dd.laws import DEFAULT_LAW, LAWS


@pytest.fixture(scope="module")
def file(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    table: pd.DataFrame = load_experiment([synthetic.write_run(folder, synthetic.calibration())]).table
    write_json(folder / "coefficients.json", fit_law(None, table, n_bootstrap=60).to_dict())
    return folder / "coefficients.json"


def test_counts_and_stages_as_people_write_them() -> None:
    assert [parse_count(text) for text in ("31e6", "4k", "2.5M", " 1G ", "65536")] == [31e6, 4e3, 2.5e6, 1e9, 65536]
    assert parse_stages("4k:65k,8k:131k") == [(4e3, 65e3), (8e3, 131e3)]
    for text in ("", "k", "-1", "0", "nan", "inf", "1e999", "4q"):
        with pytest.raises(UserError, match="not a positive count"):
            parse_count(text)
    with pytest.raises(UserError, match="of the form U:C"):
        parse_stages("4k,8k")
    with pytest.raises(UserError, match="must grow"):
        parse_stages("4k:131k,8k:131k")


def test_the_advice_is_the_laws(file: Path) -> None:
    coefficients = read_coefficients(file)
    advice = advise(coefficients, 163_840, [(4_000, 262_144), (8_000, 262_144)])
    expected = coefficients.predict(163_840, [4_000, 8_000], 262_144)
    np.testing.assert_array_equal(advice["dropout"], expected)
    assert (advice["low"] <= advice["dropout"]).all()
    assert (advice["dropout"] <= advice["high"]).all()
    assert advice["inside"].all()
    assert read_coefficients(file.parent).coefficients == coefficients.coefficients  # a run's folder will do


def test_outside_the_calibrated_cells_is_warned_of(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["advise", "--coefficients", str(file), "--params", "163840", "--stages", "4k:131k,8k:262k"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "OUTSIDE" not in out
    command[4] = "31e6"
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.count("OUTSIDE") == 2
    assert "Warning: 2 of 2 points lie outside the calibrated cells (P 164k, U 4k to 64k, C 65.5k to 262k)" in out


def refusal(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main(["advise", *command]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_bad_input_is_one_line(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--coefficients", str(file), "--params", "1e6"]
    assert "give --unique-tokens" in refusal(capsys, *common)
    assert "not both" in refusal(capsys, *common, "--stages", "4k:65k", "--unique-tokens", "4k")
    point = ["--params", "1e6", "--unique-tokens", "1k", "--sampled-tokens", "2k"]
    assert "is missing" in refusal(capsys, "--coefficients", str(tmp_path / "none.json"), *point)
    bad = tmp_path / "bad.json"
    for content, expected in (
        ("{", "is damaged"),
        ("[]", "is not a coefficients.json"),
        ("{}", "coefficients lack"),
        (json.dumps({**json.loads(file.read_text()), "schema": 9}), "schema 9"),
        (json.dumps({**json.loads(file.read_text()), "law": "cubic"}), "cubic"),
        (json.dumps({**json.loads(file.read_text()), "draws": 3}), "damaged"),
    ):
        bad.write_text(content)
        assert expected in refusal(capsys, "--coefficients", str(bad), *point)


def test_a_first_order_law_advises_too(synthetic: ModuleType, tmp_path: Path) -> None:
    table = load_experiment([synthetic.write_run(tmp_path, synthetic.calibration())]).table
    fitted: Coefficients = fit_law(None, table, law="first_order", n_bootstrap=20)
    a, b, c0 = (fitted.coefficients[name] for name in ("A", "B", "C0"))
    expected = a * np.log10(163_840 / 16_000) + b * np.log10(262_144 / 16_000) + c0
    assert 0.05 < expected < 0.6  # the clamp is not at work
    advice = advise(fitted, 163_840, [(16_000, 262_144)]).iloc[0]
    assert advice["dropout"] == pytest.approx(expected, rel=1e-12)
    assert advice["low"] < advice["dropout"] < advice["high"]


def test_no_scatter_is_not_called_scatter(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(file.read_text())
    point = ["--params", "163840", "--unique-tokens", "8k", "--sampled-tokens", "262k"]
    for discrepancy, expected in (
        (0.0, "no scatter of the cells about it beyond noise was found."),
        (0.0123, "'optimum in' adds the cells' scatter about it, 0.012 (standard deviation, in dropout)."),
    ):
        write_json(tmp_path / "coefficients.json", {**data, "discrepancy": discrepancy})
        assert main(["advise", "--coefficients", str(tmp_path), *point]) == 0
        assert expected in " ".join(capsys.readouterr().out.split())
    # One set of trials for the coefficients: how far cells scatter about the law nothing can tell.
    few = [cell for cell in data["cells"] if (cell["model"], cell["unique_tokens"]) == ("L2_H2_D64", 8_000)]
    write_json(tmp_path / "coefficients.json", {**data, "cells": few, "discrepancy": 0.0})
    assert main(["advise", "--coefficients", str(tmp_path), *point]) == 0
    assert "about it, so few of them cannot tell." in " ".join(capsys.readouterr().out.split())


def test_where_the_optimum_lies_has_the_cells_scatter_in_it(file: Path) -> None:
    fitted = replace(Coefficients.from_dict(json.loads(file.read_text())), discrepancy=0.05)
    row = advise(fitted, 163_840, [(8_000, 262_144)]).iloc[0]
    reach = 1.96 * 0.05
    assert row["optimum_low"] == pytest.approx(row["dropout"] - np.hypot(row["dropout"] - row["low"], reach), abs=1e-4)
    assert row["optimum_high"] == pytest.approx(
        row["dropout"] + np.hypot(row["high"] - row["dropout"], reach), abs=1e-4
    )
    none = advise(replace(fitted, discrepancy=0.0), 163_840, [(8_000, 262_144)]).iloc[0]
    assert none[["optimum_low", "optimum_high"]].tolist() == pytest.approx(none[["low", "high"]].tolist())
    far = advise(replace(fitted, discrepancy=3.0), 163_840, [(8_000, 262_144)]).iloc[0]
    assert (far["optimum_low"], far["optimum_high"]) == (fitted.p_min, fitted.p_max), "no further than the law goes"
    assert np.isnan(advise(replace(fitted, draws=()), 163_840, [(8_000, 262_144)]).iloc[0]["optimum_low"])


def test_a_run_without_a_law_is_told_from_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    point = ["--params", "163840", "--unique-tokens", "8k", "--sampled-tokens", "262k"]
    assert main(["advise", "--coefficients", str(tmp_path), *point]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path} has no coefficients.json: name a calibrate run" in line


def test_a_capped_form_holds_back_on_a_stream_and_not_in_a_cell(file: Path) -> None:
    values = {"A": 0.4, "B": 0.9, "C0": -4.8}
    draws = [list(values.values()), [0.4, 0.9, -4.7]]
    steep = {"law": "onset", "coefficients": values, "intervals": {name: [-5, 1] for name in values}, "draws": draws}
    data = {**json.loads(file.read_text()), **steep}
    onset = Coefficients.from_dict(data)
    capped = in_form(onset, "onset_capped")
    stages = [(4_000, 131_072), (16_000, 262_144)]
    free, held = advise(onset, 163_840, stages), advise(capped, 163_840, stages)
    assert free["dropout"][0] == 0.65
    assert held["dropout"][0] == held["low"][0] == held["high"][0] == 0.5
    assert held["dropout"][1] == free["dropout"][1] < 0.5
    assert advise(capped, 163_840, stages[:1])["dropout"][0] == 0.65, "one stage is a cell"


def test_advice_may_be_read_as_a_form_that_differs_on_streams_alone(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coefficients = read_coefficients(file)
    stages = [(4_000, 131_072), (16_000, 262_144)]
    plain = advise(coefficients, 163_840, stages)
    diluted = advise(in_form(coefficients, "interaction_diluted"), 163_840, stages)
    assert diluted["dropout"][0] == plain["dropout"][0]
    expected = coefficients.predict(163_840, 16_000, 131_072 / 4 + 131_072)
    assert diluted["dropout"][1] == pytest.approx(float(expected))
    assert diluted["sampled_tokens"].tolist() == [131_072, 262_144]
    command = ["advise", "--coefficients", str(file), "--params", "163840", "--stages", "4k:131072,16k:262144"]
    assert main([*command, "--law", "interaction_diluted"]) == 0
    assert f"{expected:.3f}" in capsys.readouterr().out
    assert main([*command, "--law", "odds"]) == 2
    assert "of the interaction law: fit it with" in capsys.readouterr().err


def test_advice_by_another_form_than_the_default_says_so_unless_it_was_asked_for(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    point = ["--params", "163840", "--unique-tokens", "8k", "--sampled-tokens", "262k"]
    told = f"are of the interaction law, and the hold-outs speak for {DEFAULT_LAW}"
    for more, expected in (([], True), (["--law", "interaction"], False)):
        assert main(["advise", "--coefficients", str(file), *point, *more]) == 0
        assert (told in " ".join(capsys.readouterr().out.split())) == expected
    data = json.loads(file.read_text())
    values = {"B": 0.7, "C0": -3.8}
    fitted = {"law": DEFAULT_LAW, "coefficients": values, "intervals": {name: [-5, 1] for name in values}, "draws": []}
    write_json(file, data | fitted)
    assert main(["advise", "--coefficients", str(file), *point]) == 0
    assert "speak for" not in capsys.readouterr().out


def test_advice_shows_what_speaks_for_the_law(
    synthetic: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = synthetic.write_run(tmp_path / "run", synthetic.calibration(prefixes=(4_000, 8_000, 16_000, 32_000)))
    analysis = analyse([run], report=False, n_bootstrap=40)
    assert analysis.coefficients is not None
    assert analysis.held_out is not None
    kept = read_coefficients(run)
    assert [row["regret_mean"] for row in kept.held_out] == [
        None if np.isnan(value) else value for value in analysis.held_out["regret_mean"]
    ]
    capsys.readouterr()
    assert main(["advise", "--coefficients", str(run), "--params", "163840", "--stages", "4k:131k"]) == 0
    out = capsys.readouterr().out
    assert "Regret of each law on cells left out" in out
    assert f"|{LAWS[DEFAULT_LAW].cells} * " in " ".join(out.split())
    best = analysis.held_out.query("holdout == 'cell' and law == 'interaction'").iloc[0]
    assert f"{best['regret_mean']:.3f} ({best['regret_max']:.3f})" in out

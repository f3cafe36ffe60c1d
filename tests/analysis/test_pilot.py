"""A law carried to another text by a few trials there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.advise import read_coefficients
from analysis.carry import scaled
from analysis.coefficients import Coefficients, fit_law
from analysis.misfit import widths
from analysis.pilot import DROPOUTS, SCALES, carry_by_trials, measure_scale, split
from analysis.robust import Problem
from analysis.tables import load_experiment
from analysis.targets import make_targets
from tune_dd.artifacts import read_json, write_json
from tune_dd.errors import UserError
from tune_dd.regimes import ModelSpec

INNER, MODELS = (4_000, 8_000, 16_000, 32_000), (ModelSpec(1, 2, 32), ModelSpec(2, 2, 64))
TRUTH = 2.0  # what U of the other text counts as


def table_of(folder: Path) -> pd.DataFrame:
    return load_experiment([folder]).table


@pytest.fixture(scope="module")
def here(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration with its law."""
    folder = tmp_path_factory.mktemp("here")
    rows = synthetic.calibration(prefixes=INNER, models=MODELS)
    synthetic.write_run(folder, rows, config=synthetic.text_config("pydocs", "docstrings", 3.6))
    law = fit_law(None, table_of(folder), law="separable", n_bootstrap=200)
    write_json(folder / "coefficients.json", law.to_dict())
    return folder


@pytest.fixture(scope="module")
def there(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration on a text whose U tokens are worth twice as many of the first one's."""
    folder = tmp_path_factory.mktemp("there")
    rows = synthetic.calibration(prefixes=[2 * u for u in INNER], models=MODELS, regime="owt", corpus="web")
    halved = [row | {"unique_tokens": row["unique_tokens"] // 2} for row in rows]
    return synthetic.write_run(folder, halved, config=synthetic.text_config("owt", "web", 3.6))


@pytest.fixture(scope="module")
def fitted(here: Path) -> Coefficients:
    return read_coefficients(here)


@pytest.mark.parametrize("law", ["saturating", "epochs", "interaction"])
def test_the_scale_measured_is_that_of_the_law_as_it_is_carried(law: str, here: Path, there: Path) -> None:
    fitted = fit_law(None, table_of(here), law=law, n_bootstrap=1)
    targets = make_targets(None, pilot_of(there))
    scale, _ = measure_scale(fitted, targets)
    own = targets.bounded(fitted.form.fit_max)
    cells = (own.n_params, own.unique_tokens, own.sampled_tokens)
    costs = {}
    for tried in SCALES:
        p = scaled(fitted, float(tried)).predict(*cells)
        problem = Problem(fitted.form.design(*cells), widths(own, fitted.discrepancy), 0.0, 0.65, fitted.form.link)
        costs[float(tried)] = float(problem.cost_of(p, own.z, own.side))
    assert costs[scale] == pytest.approx(min(costs.values()), rel=1e-6)


def pilot_of(there: Path, seed: int = 0) -> pd.DataFrame:
    table = table_of(there)
    largest = table["n_params"] == table["n_params"].max()
    return table[
        largest & (table["seed"] == seed) & table["dropout"].isin(DROPOUTS) & (table["unique_tokens"] < 32_000)
    ]


def test_a_calibration_is_split_into_a_pilot_and_the_cells_of_other_seeds(there: Path) -> None:
    table = table_of(there)
    found = split(table)
    assert found.pilot is not None
    assert {(fit.model, fit.unique_tokens) for fit in found.pilot.fits} == {
        ("L2_H2_D64", 4_000),
        ("L2_H2_D64", 8_000),
        ("L2_H2_D64", 16_000),
    }
    assert all(fit.n_seeds == 1 and tuple(fit.dropouts) == DROPOUTS for fit in found.pilot.fits)
    assert len(found.cells) == len(make_targets(None, table))
    assert all(fit.n_seeds == 2 for fit in found.cells.fits)
    for too_little in (
        table[table["seed"] == 0],
        table[table["dropout"] != 0.3],
        table[table["unique_tokens"] < 9_000],
    ):
        assert split(too_little).pilot is None
        assert len(split(too_little).cells) == len(make_targets(None, too_little))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fifteen_trials_measure_what_u_counts_as(fitted: Coefficients, there: Path, seed: int) -> None:
    rows = pilot_of(there, seed)
    assert rows["trial_id"].nunique() == 15
    scale, draws = measure_scale(fitted, make_targets(None, rows))
    assert abs(np.log10(scale / TRUTH)) < 0.12
    assert len(draws) == len(fitted.draws)
    low, high = np.quantile(draws, [0.005, 0.995])
    assert low < TRUTH < high
    assert 0.01 < np.log10(draws).std() < 0.15


def test_the_law_that_they_carry_says_of_u_what_the_law_says_of_its_multiple(fitted: Coefficients, there: Path) -> None:
    rows = pilot_of(there)
    carried = carry_by_trials(fitted, rows)
    scale, draws = measure_scale(fitted, make_targets(None, rows))
    cells = (163_840, np.array([3_000.0, 12_000.0]), 262_144)
    np.testing.assert_allclose(
        carried.predict(*cells), fitted.predict(cells[0], scale * cells[1], cells[2]), rtol=1e-9, atol=1e-12
    )
    for draw, own, one in zip(carried.draws, fitted.draws, draws, strict=True):
        there_and_here = (
            replace(law, coefficients=dict(zip(fitted.form.coefficients, values, strict=True)))
            for law, values in ((carried, draw), (fitted, own))
        )
        mine, other = there_and_here
        np.testing.assert_allclose(
            mine.predict(*cells), other.predict(cells[0], one * cells[1], cells[2]), rtol=1e-9, atol=1e-12
        )
    assert (carried.regime, carried.carried_from) == ("owt", "pydocs")
    assert (carried.tokenizer_hash, carried.corpus_hash) == ("web-tokenizer", "web-corpus")
    assert carried.notes[0].startswith("carried from pydocs by 15 trials on owt (12 cells): U counts")
    known = np.array([high - low for low, high in fitted.intervals.values()])
    assert (np.array([high - low for low, high in carried.intervals.values()]) > 0.9 * known).all()


def test_the_carried_law_is_better_on_the_other_seeds_than_the_law_as_it_is(fitted: Coefficients, there: Path) -> None:
    judged = split(table_of(there)).cells

    def regret(law: Coefficients) -> float:
        cells = judged.n_params, judged.unique_tokens, judged.sampled_tokens
        return float(np.mean([fit.regret(p) for fit, p in zip(judged.fits, law.predict(*cells), strict=True)]))

    assert regret(carry_by_trials(fitted, pilot_of(there))) < 0.5 * regret(fitted)


def test_what_the_trials_do_not_tell_is_said(fitted: Coefficients, there: Path) -> None:
    rows = pilot_of(there)
    rising = rows.assign(val_loss=4.0 + rows["dropout"])
    with pytest.raises(UserError, match=r"none of the 12 cells .* inside the grid.*, or carry the law of a RUN"):
        carry_by_trials(fitted, rising)
    few = rows[rows["dropout"].isin([0.0, 0.1, 0.3, 0.4])]
    told = carry_by_trials(fitted, few)
    assert "no interval holds the doubt about the scale" in told.notes[1]
    assert told.intervals.keys() == fitted.intervals.keys()
    alone = carry_by_trials(replace(fitted, draws=()), rows)
    assert not alone.draws
    far = carry_by_trials(fitted, rows.assign(unique_tokens=rows["unique_tokens"] // 40))
    assert "U counts 10.00" in far.notes[0]
    assert "no scale beyond a tenth or ten times was tried" in far.notes[1]
    assert SCALES[-1] == pytest.approx(10.0)


def test_the_command_takes_a_run_s_trials_or_its_counts(
    here: Path, there: Path, synthetic: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["carry", str(here), str(there), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "owt: carried from pydocs by 192 trials on owt (32 cells): U counts" in capsys.readouterr().out
    by_trials = read_coefficients(tmp_path / "out")
    assert not any("so far" in note for note in by_trials.notes)
    under_way = tmp_path / "under_way"
    under_way.mkdir()
    (under_way / "metrics.jsonl").write_bytes((there / "metrics.jsonl").read_bytes())
    write_json(under_way / "config.json", read_json(there / "config.json") | {"n_trials": 200})
    assert main(["carry", str(here), str(under_way), "--out", str(tmp_path / "out")]) == 0
    assert "the pilot has 192 of 200 planned trials so far: --resume it, and carry again" in capsys.readouterr().out
    assert main([*words, "--by", "counts", "--regime", "web"]) == 0
    assert "web: carried from pydocs by counts (bigram loss 3.600 there and 3.600 here" in capsys.readouterr().out
    assert read_coefficients(tmp_path / "out").coefficients != by_trials.coefficients
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((there / "config.json").read_bytes())
    assert main(["carry", str(here), str(bare), "--by", "trials", "--out", str(tmp_path / "none")]) == 2
    assert "is no run with read-outs: train a pilot on that text" in capsys.readouterr().err
    (bare / "chain.json").write_text('{"runs": {}}')
    assert main(["carry", str(here), str(bare), "--out", str(tmp_path / "none")]) == 2
    assert "has not come to its calibration" in capsys.readouterr().err
    stream = synthetic.write_run(tmp_path / "stream", synthetic.stream())
    assert main(["carry", str(here), str(stream), "--out", str(tmp_path / "none")]) == 2
    assert "has no cell of two fixed dropouts to tell a scale by: name a calibrate run" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()

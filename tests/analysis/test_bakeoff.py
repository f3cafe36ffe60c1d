"""Laws on hold-outs: which cells count as what, that the true form wins, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.bakeoff import ANOTHER, Place, Study, judge_cells, judge_streams, sort_runs, summarise_cells, winner
from analysis.cells import cell_rows
from analysis.coefficients import fit_law
from analysis.tables import load_experiment
from analysis.targets import make_targets
from tune_dd.regimes import ModelSpec

SMALL, LARGE = ModelSpec(1, 2, 32), ModelSpec(4, 4, 128)
LAW = {"condition": "law", "law": "interaction"}


@pytest.fixture(scope="module")
def runs(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    two = synthetic.POCKET_MODEL
    models = (SMALL, two)
    inner, readouts = (4_000, 8_000, 16_000, 32_000), synthetic.READOUTS[:3]
    written = {
        "here": (synthetic.calibration(prefixes=inner, readouts=readouts, models=models), None),
        "there": (
            synthetic.calibration(prefixes=inner, readouts=readouts, models=models, regime="owt", corpus="web"),
            None,
        ),
        "held": (
            synthetic.calibration(
                prefixes=(8_000, 64_000), models=(synthetic.POCKET_MODEL, LARGE), seeds=(7,), run_id="held"
            ),
            {"run_id": "held", "coefficients": [LAW]},
        ),
        "stream": (synthetic.stream(), {"run_id": "synthetic-stream", "coefficients": [LAW]}),
    }
    return {name: synthetic.write_run(folder / name, rows, config=config) for name, (rows, config) in written.items()}


@pytest.fixture(scope="module")
def study(runs: dict[str, Path]) -> Study:
    return sort_runs([load_experiment([run]) for run in runs.values()])


def own(tables: dict[Place, pd.DataFrame]) -> pd.DataFrame:
    (table,) = (rows for place, rows in tables.items() if place[0] == "pydocs")
    return table


def test_runs_are_sorted_by_whether_a_law_was_frozen_for_them(study: Study, runs: dict[str, Path]) -> None:
    assert [place[0] for place in study.calibrations] == ["owt", "pydocs"]
    assert [place[0] for place in study.holdouts] == ["pydocs"]
    assert [stream.laws for stream in study.streams] == [{"law": "interaction"}]
    together = sort_runs([load_experiment([runs["here"], runs["held"]])])
    assert {name: len(table) for name, table in together.calibrations.items()} == {
        name: len(table) for name, table in study.calibrations.items() if name[0] == "pydocs"
    }
    assert len(next(iter(together.holdouts.values()))) == len(next(iter(study.holdouts.values())))


def test_a_hold_out_that_some_forms_had_seen_is_left_out_unless_asked_for(
    runs: dict[str, Path], synthetic: ModuleType, tmp_path: Path
) -> None:
    rows = synthetic.calibration(prefixes=(16_000,), models=(LARGE,), seeds=(8,), run_id="later")
    config = {"run_id": "later", "coefficients": [LAW, {"condition": "law_onset", "law": "onset"}]}
    later = synthetic.write_run(tmp_path / "later", rows, config=config)
    experiments = [load_experiment([run]) for run in (runs["here"], runs["held"], later)]
    for every, expected in ((False, {"later"}), (True, {"held", "later"})):
        assert set(own(sort_runs(experiments, every=every).holdouts)["run_id"]) == expected


def test_every_held_out_cell_is_of_one_kind(study: Study) -> None:
    cells = judge_cells(study, laws=("constant", "interaction"))
    own = cells[(cells["law"] == "interaction") & (cells["fitted_on"] == "pydocs")]
    kinds = own[own["regime"] == "pydocs"].set_index(["model", "unique_tokens", "sampled_tokens"])["kind"]
    assert (kinds[LARGE.name] == "larger P").all()
    assert len(kinds[LARGE.name]) == 8
    assert kinds["L2_H2_D64", 8_000, 262_144] == kinds["L2_H2_D64", 64_000, 262_144] == "longer C"
    assert kinds["L2_H2_D64", 64_000, 65_536] == "larger U"
    assert ("L2_H2_D64", 8_000, 65_536) not in kinds.index, "calibrated: no hold-out"
    assert (own["kind"] == ANOTHER).sum() == 2 * 4 * 3
    assert not ((cells["kind"] == ANOTHER) & (cells["fitted_on"] == cells["regime"])).any()


def test_a_regret_is_that_of_the_frozen_law_in_the_cell(study: Study) -> None:
    table = cell_rows(own(study.calibrations))
    fitted = fit_law(None, table, law="first_order", n_bootstrap=1)
    held = make_targets(None, cell_rows(own(study.holdouts)))
    cells = judge_cells(study, laws=("first_order",)).query("kind == 'larger P' and fitted_on == 'pydocs'")
    for fit in held.fits:
        if fit.model == LARGE.name:
            cell = fit.n_params, fit.unique_tokens, fit.sampled_tokens
            row = cells.query("unique_tokens == @cell[1] and sampled_tokens == @cell[2]").iloc[0]
            assert row["predicted"] == pytest.approx(float(fitted.predict(*cell)))
            assert row["regret"] == pytest.approx(float(fit.regret(fitted.predict(*cell))))


def test_means_and_intervals_are_over_whole_blocks(study: Study) -> None:
    cells = judge_cells(study, laws=("constant", "interaction"))
    summary = summarise_cells(cells)
    assert list(dict.fromkeys(summary["kind"])) == ["larger P", "longer C", "larger U", ANOTHER]
    for _, rows in summary.groupby("kind"):
        assert rows["regret_mean"].is_monotonic_increasing
        assert rows["n_cells"].nunique() == 1
    row = summary.query("kind == @ANOTHER and law == 'interaction'").iloc[0]
    own = cells.query("kind == @ANOTHER and law == 'interaction'")
    assert row["regret_mean"] == pytest.approx(own["regret"].mean())
    assert row["n_blocks"] == 2 * 2 * 4
    assert row["low"] <= row["regret_mean"] <= row["high"]
    assert row["regret_max"] == own["regret"].max()


def test_a_stream_names_the_best_path_and_what_the_law_is_short_of_it(study: Study) -> None:
    (row,) = judge_streams(study, n_bootstrap=200).to_dict("records")
    assert (row["law"], row["best_path"], row["n_pairs"]) == ("interaction", "hold_35_then_decay", 5)
    rows = study.streams[0].table
    last = rows[rows["sampled_tokens"] == rows["sampled_tokens"].max()].pivot(
        index="seed", columns="condition", values="val_loss"
    )
    assert row["against_best"] == pytest.approx((last["law"] - last["hold_35_then_decay"]).mean())
    assert row["against_static"] < 0
    assert row["path"] == "0.43 0.34 0.21 0.10 0.05"


def test_a_law_wins_only_on_every_kind() -> None:
    kinds = ["larger P", "larger P", "longer C", "longer C"]
    cells = pd.DataFrame({"kind": kinds, "law": ["odds", "x_only"] * 2, "regret_mean": [0.01, 0.02] * 2})
    none = pd.DataFrame()
    assert winner(cells, none)[0] == "odds"
    streams = pd.DataFrame({"run": "r", "law": ["odds_diluted", "interaction"], "against_static": [-0.05, -0.03]})
    assert winner(cells, streams)[0] == "odds_diluted"
    assert winner(cells, streams.assign(against_static=[-0.01, -0.03]))[0] == "interaction"
    divided = cells.assign(regret_mean=[0.01, 0.02, 0.02, 0.01])
    assert winner(divided, streams)[0] == "interaction"
    assert "larger P: odds, longer C: x_only, streams: odds_diluted" in winner(divided, streams)[1]
    level = cells.assign(regret_mean=[0.01, 0.01001, 0.02, 0.01])
    assert winner(level, none)[0] == "x_only", "level on larger P, ahead on longer C"


def test_streams_are_compared_where_both_forms_ran() -> None:
    cells = pd.DataFrame({"kind": ["larger P"] * 2, "law": ["odds", "onset"], "regret_mean": [0.02, 0.01]})
    streams = pd.DataFrame(
        {
            "run": ["r", "r", "s", "s", "t", "t"],
            "law": ["odds", "onset", "odds", "onset", "interaction", "odds"],
            "against_static": [-0.01, -0.03, -0.02, -0.03, -0.09, -0.10],
        }
    )
    assert winner(cells, streams)[0] == "onset"
    circle = pd.DataFrame(
        {
            "run": ["r", "r", "s", "s", "t", "t"],
            "law": ["odds", "onset", "onset", "interaction", "interaction", "odds"],
            "against_static": [-0.03, -0.01] * 3,
        }
    )
    assert winner(cells, circle)[0] == "interaction"
    assert "streams: none" in winner(cells, circle)[1]


def test_a_law_that_knew_the_optima_would_be_charged_little(study: Study) -> None:
    cells = judge_cells(study, laws=("interaction", "constant"))
    floors = cells.groupby(["fitted_on", "regime", "model", "unique_tokens", "sampled_tokens"])["floor"]
    assert (floors.nunique() == 1).all(), "it belongs to the cell, not to the law"
    assert (cells["floor"] >= 0).all()
    summary = summarise_cells(cells).set_index(["kind", "law"])
    constant = summary.xs("constant", level="law").drop("larger U")  # where the one rate happens to be right
    assert (constant["floor_mean"] < constant["regret_mean"]).all()


def test_the_command_writes_what_it_prints(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(path) for path in runs.values()]
    assert main(["laws", *paths, "--bootstrap", "50", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    cells = pd.read_csv(tmp_path / "out" / "law_cells.csv")
    for row in cells.itertuples():
        assert f"{row.regret_mean:.3f}" in out
    assert json.loads((tmp_path / "out" / "law_cells.json").read_text())["law"] in out
    assert np.isfinite(pd.read_csv(tmp_path / "out" / "law_streams.csv")["against_best"]).all()
    assert main(["laws", str(runs["here"])]) == 2
    assert "nothing is held out" in capsys.readouterr().err
    assert main(["laws", str(runs["stream"])]) == 2
    assert "no calibrate or confirm run" in capsys.readouterr().err
    assert main(["laws", "--results", str(tmp_path / "none")]) == 2
    assert "no run below" in capsys.readouterr().err

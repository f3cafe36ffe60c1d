"""Laws on hold-outs: which cells count as what, that the true form wins, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.bakeoff import ANOTHER, PAIRED, Place, Study, judge_cells, judge_streams, sort_runs, summarise_cells
from analysis.cells import cell_rows
from analysis.coefficients import fit_law
from analysis.tables import load_experiment
from analysis.targets import make_targets
from analysis.verdict import CARRIED, PILOTED, winner
from tune_dd.errors import UserError
from tune_dd.laws import DEFAULT_LAW, FLOORED_SLOPE, LAWS
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


def test_forms_are_judged_where_the_default_form_was_frozen_whatever_else_was(
    runs: dict[str, Path], synthetic: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onset, odds = {"condition": "law_onset", "law": "onset"}, {"condition": "law_odds", "law": "odds"}
    default = {"condition": "law_default", "law": DEFAULT_LAW, "expected": {"B": list(FLOORED_SLOPE)}}
    frozen = {"with": [LAW, default], "with_more": [LAW, default, onset], "without": [LAW, onset, odds]}
    former_law = default | {"expected": {"B": [0.74, 0.22]}}  # a fit expected something else then
    frozen["before"] = [LAW, former_law]
    experiments = [load_experiment([runs["here"]])]
    for seed, (name, laws) in enumerate(frozen.items()):
        rows = synthetic.calibration(prefixes=(16_000,), models=(LARGE,), seeds=(seed,), run_id=name)
        config = {"run_id": name, "coefficients": laws}
        experiments.append(load_experiment([synthetic.write_run(tmp_path / name, rows, config=config)]))
    study = sort_runs(experiments)
    assert set(own(study.holdouts)["run_id"]) == {"with", "with_more"}
    assert list(study.frozen.values()) == [{"interaction", LAWS[DEFAULT_LAW].cells}]
    rows = synthetic.calibration(prefixes=(16_000,), models=(LARGE,), run_id="former")
    former = {"run_id": "former", "coefficients": [default | {"expected": {}}]}
    alone = synthetic.write_run(tmp_path / "former", rows, config=former)
    left = sort_runs([experiments[0], load_experiment([alone])])
    assert (len(left.holdouts), left.aside) == (0, 1)
    assert main(["laws", str(runs["here"]), str(alone)]) == 2
    told = capsys.readouterr().err
    assert "nothing is held out" in told
    assert "--every judges the 1 hold-out frozen for forms that are fitted otherwise now" in told
    assert main(["laws", str(runs["here"]), str(alone), "--every"]) == 0
    assert "larger P" in capsys.readouterr().out
    rows = synthetic.stream()
    config = {"run_id": rows[0]["run_id"], "coefficients": [LAW, former_law]}
    stream = synthetic.write_run(tmp_path / "stream", rows, config=config)
    for every, laws in ((False, {"interaction"}), (True, {"interaction", DEFAULT_LAW})):
        (found,) = sort_runs([experiments[0], load_experiment([stream])], every=every).streams
        assert set(found.laws.values()) == laws


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
    fitted = fit_law(None, table, law="interaction", n_bootstrap=1)
    held = make_targets(None, cell_rows(own(study.holdouts)))
    cells = judge_cells(study, laws=("interaction",)).query("kind == 'larger P' and fitted_on == 'pydocs'")
    for fit in held.fits:
        if fit.model == LARGE.name:
            cell = fit.n_params, fit.unique_tokens, fit.sampled_tokens
            row = cells.query("unique_tokens == @cell[1] and sampled_tokens == @cell[2]").iloc[0]
            assert row["predicted"] == pytest.approx(float(fitted.predict(*cell)))
            assert row["regret"] == pytest.approx(float(fit.regret(fitted.predict(*cell))))


def test_means_and_intervals_are_over_whole_blocks(study: Study) -> None:
    cells = judge_cells(study, laws=("constant", "interaction"))
    summary = summarise_cells(cells)
    assert list(dict.fromkeys(summary["kind"])) == ["larger P", "longer C", "larger U", ANOTHER, PILOTED]
    for _, rows in summary.groupby("kind"):
        assert rows["regret_mean"].is_monotonic_increasing
        assert rows["n_cells"].nunique() == 1
    row = summary.query("kind == @ANOTHER and law == 'interaction'").iloc[0]
    own = cells.query("kind == @ANOTHER and law == 'interaction'")
    assert row["regret_mean"] == pytest.approx(own["regret"].mean())
    assert row["n_blocks"] == 2 * 2 * 4, "two corpora, two models, four prefixes"
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


def regrets(**means: tuple[float, float]) -> pd.DataFrame:
    """Of each law on two kinds of hold-out, each difference from the reference known to .002."""
    rows = [
        {
            "kind": kind,
            "law": law,
            "regret_mean": mean,
            "less_low": mean - reference - 0.002,
            "less_high": mean - reference + 0.002,
        }
        for law, both in means.items()
        for kind, mean, reference in zip(("larger P", "longer C"), both, means["interaction"], strict=True)
    ]
    return pd.DataFrame(rows).sort_values(["kind", "regret_mean"], ignore_index=True)


def test_a_law_is_preferred_that_is_ahead_of_the_reference_and_behind_it_nowhere() -> None:
    none = pd.DataFrame()
    cells = regrets(interaction=(0.02, 0.02), odds=(0.01, 0.01), onset=(0.015, 0.015))
    assert winner(cells, none)[0] == "odds"
    assert "least mean on larger P: odds, longer C: odds)" in winner(cells, none)[1]
    divided = regrets(interaction=(0.02, 0.02), odds=(0.01, 0.03), onset=(0.015, 0.021))
    assert winner(divided, none)[0] == "onset", "not shown behind the reference on longer C, where odds is"
    assert winner(regrets(interaction=(0.02, 0.02), odds=(0.01, 0.03)), none)[0] == "interaction"
    assert winner(regrets(interaction=(0.02, 0.02), odds=(0.019, 0.019)), none)[0] == "interaction", "not shown ahead"
    for kind in (CARRIED, PILOTED):
        carried = cells.assign(kind=kind, less_low=0.1)
        assert winner(pd.concat([cells, carried]), none)[0] == "odds", "carried laws have no vote"


def test_on_streams_too_and_compared_where_both_ran() -> None:
    cells = regrets(interaction=(0.02, 0.02), odds=(0.01, 0.01), onset=(0.015, 0.015))

    def ended(*rows: tuple[str, str, float]) -> pd.DataFrame:
        return pd.DataFrame(rows, columns=["run", "law", "against_static"])

    ahead = ended(("r", "interaction", -0.03), ("r", "odds_diluted", -0.05))
    assert winner(cells, ahead)[0] == "odds_diluted"
    behind_there = ahead.assign(against_static=[-0.03, -0.01])
    assert winner(cells, behind_there)[0] == "onset", "ahead on cells too, and no stream has seen it"
    assert winner(cells[cells["law"] != "onset"], behind_there)[0] == "interaction"
    apart = ended(
        ("r", "odds", -0.01), ("r", "onset", -0.03), ("s", "odds", -0.02), ("s", "onset", -0.03), ("t", "odds", -0.10)
    )
    assert "streams: onset)" in winner(cells, apart)[1], "what odds did where onset was not run says nothing of the two"
    assert winner(cells, apart)[0] == "odds", "it leads on two kinds of cells, and streams are one kind"
    divided = regrets(interaction=(0.02, 0.02), odds=(0.01, 0.012), onset=(0.012, 0.01))
    assert winner(divided, apart)[0] == "onset", "level on cells: the streams decide"
    behind = regrets(interaction=(0.02, 0.02), odds=(0.01, 0.01), onset=(0.03, 0.01))
    assert winner(behind, apart)[0] == "odds"
    unseen = ended(("r", "interaction", -0.03), ("r", "separable", -0.05))
    assert winner(cells, unseen)[0] == "odds", "no stream has seen it: its cells alone decide"


def test_a_form_is_judged_where_it_was_frozen_and_against_the_reference_on_the_same_cells(study: Study) -> None:
    cells = judge_cells(study, laws=("interaction", "odds", "constant"))
    beyond = cells[cells["kind"] == "larger P"]
    assert set(beyond["law"]) == {"interaction", "constant"}, "odds was frozen for none of these runs"
    assert set(cells[cells["kind"] == ANOTHER]["law"]) == {"interaction", "odds", "constant"}
    summary = summarise_cells(cells).set_index(["kind", "law"])
    assert (summary.xs("interaction", level="law")[["less_reference", "less_low", "less_high"]] == 0).all(axis=None)
    row = summary.loc["larger P", "constant"]
    means = beyond.groupby("law")["regret"].mean()
    assert row["less_reference"] == pytest.approx(means["constant"] - means["interaction"])
    assert row["less_low"] < row["less_reference"] < row["less_high"]


def test_evidence_classes_are_not_mixed(synthetic: ModuleType, tmp_path: Path) -> None:
    rows = synthetic.calibration(prefixes=(8_000, 16_000), seeds=(0, 1))
    other = [row | {"evidence": "run", "device": "cuda"} for row in rows]
    runs = [synthetic.write_run(tmp_path / name, each) for name, each in (("a", rows), ("b", other))]
    with pytest.raises(UserError, match=r"these are .*rehearsal on cpu.*: name the runs of one"):
        sort_runs([load_experiment([run]) for run in runs])


def test_a_law_that_knew_the_optima_would_be_charged_little(study: Study) -> None:
    cells = judge_cells(study, laws=("interaction", "constant"))
    floors = cells.groupby(["fitted_on", "regime", "model", "unique_tokens", "sampled_tokens"])["floor"]
    assert (floors.nunique() == 1).all(), "it belongs to the cell, not to the law"
    assert (cells["floor"] >= 0).all()
    summary = summarise_cells(cells).set_index(["kind", "law"])
    constant = summary.xs("constant", level="law").drop("larger U")  # where the one rate happens to be right
    assert (constant["floor_mean"] < constant["regret_mean"]).all()
    less = summary["regret_mean"] - summary["floor_mean"]
    assert less.to_numpy() == pytest.approx(summary["corrected_mean"].to_numpy())
    assert (summary["corrected_low"] <= summary["corrected_mean"]).all()
    assert (summary["corrected_mean"] <= summary["corrected_high"]).all()
    own = cells.query("kind == @ANOTHER and law == 'constant'")
    less = (own["regret"] - own["floor"]).groupby([own["regime"], own["model"], own["unique_tokens"]]).mean()
    assert less.min() < summary.loc[(ANOTHER, "constant"), "corrected_low"], "the interval is that of the blocks' mean"


def test_the_command_writes_what_it_prints(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(path) for path in runs.values()]
    assert main(["laws", *paths, "--bootstrap", "50", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    cells = pd.read_csv(tmp_path / "out" / "law_cells.csv")
    for row in cells.itertuples():
        assert f"{row.regret_mean:.4f}" in out
        assert f"{row.corrected_mean:.4f}" in out
    written = json.loads((tmp_path / "out" / "law_cells.json").read_text())
    assert written["law"] in out
    assert {cell["kind"] for cell in written["cells"]} == set(cells["kind"]) - {*PAIRED}
    assert np.isfinite(pd.read_csv(tmp_path / "out" / "law_streams.csv")["against_best"]).all()
    assert main(["laws", str(runs["here"])]) == 2
    assert "nothing is held out" in capsys.readouterr().err
    assert main(["laws", str(runs["stream"])]) == 2
    assert "no calibrate or confirm run" in capsys.readouterr().err
    assert main(["laws", "--results", str(tmp_path / "none")]) == 2
    assert "no run below" in capsys.readouterr().err
    for wrong in (["--bootstrap", "0"], ["--seed", "-1"]):
        assert main(["laws", *paths, *wrong]) == 2
        assert f"{wrong[0]} {wrong[1]}: give" in capsys.readouterr().err

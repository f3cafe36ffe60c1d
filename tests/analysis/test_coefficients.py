"""Targets, robust fit, coefficients, hold-outs."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import robust, simulated, simulation
from analysis.advise import hull, inside_calibration
from analysis.coefficients import Coefficients, fit_law
from analysis.curves import coordinate
from analysis.holdout import leave_one_cell_out, leave_one_level_out, rivals
from analysis.optimum import select_models
from analysis.targets import make_targets, noise_correlation, target_draws
from tune_dd.errors import UserError
from tune_dd.laws import LAWS, get_law
from tune_dd.schedule import law_path

TRUE = simulated.TRUE_LAW


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return simulated.simulate_calibration(np.random.default_rng(0), coefficients=TRUE)


@pytest.fixture(scope="module")
def fitted(table: pd.DataFrame) -> Coefficients:
    return fit_law(select_models(table, n_bootstrap=200), table, n_bootstrap=400)


def test_known_coefficients_lie_within_their_intervals(fitted: Coefficients) -> None:
    for name, truth in TRUE.items():
        low, high = fitted.intervals[name]
        assert low < truth < high, (name, truth, low, high)
        assert low < fitted.coefficients[name] < high
    assert (fitted.rank, fitted.regime, fitted.law) == (4, "simulated", "interaction")
    assert 1 < fitted.condition_number < 100
    assert fitted.rmse < 0.03
    assert fitted.loo_regret is not None
    assert fitted.loo_regret < 0.01


def test_coverage_of_the_coefficients() -> None:
    """200 calibrations cover 95 to 97 % (docs/methodology.md); 24 must not fall far below."""
    found = simulation.coverage_of_coefficients(24, n_bootstrap=200, seed=5)
    assert (found["coverage"] >= 0.85).all(), found


@pytest.mark.parametrize(
    ("n_params", "unique_tokens"), [((163_840,), (8_000, 16_000)), (simulation.SIZES, (4_000, 8_000))]
)
def test_coverage_with_one_seed(n_params: tuple[int, ...], unique_tokens: tuple[int, ...]) -> None:
    """No replicate, and in the first design fewer blocks than coefficients: still no empty promise."""
    found = simulation.coverage_of_coefficients(
        16, n_params=n_params, unique_tokens=unique_tokens, n_seeds=1, n_bootstrap=100, seed=2
    )
    assert (found["coverage"] >= 0.75).all(), found


def test_noise_of_one_seed_is_found_from_the_curves() -> None:
    calibrations = [
        simulated.simulate_calibration(np.random.default_rng(i), coefficients=TRUE, n_seeds=1) for i in range(6)
    ]
    found = [make_targets(None, table) for table in calibrations]
    assert not any(targets.replicated for targets in found)
    assert np.mean([targets.fits[0].noise.sd for targets in found]) == pytest.approx(simulated.TRIAL_SD, rel=0.15)


def test_without_any_sign_of_noise_there_is_no_interval_and_json_says_null(table: pd.DataFrame) -> None:
    coarse = table[(table["seed"] == 0) & table["dropout"].isin([0.0, 0.2, 0.4, 0.6])]
    result = fit_law(None, coarse, n_bootstrap=50)
    assert np.isnan(list(result.intervals.values())).all()
    assert np.isnan(result.interval(163_840, [8_000, 16_000], 196_608)).all()
    assert np.isnan(result.covariance).all()
    assert "no intervals" in result.notes[0]
    text = json.dumps(result.to_dict(), sort_keys=True, allow_nan=False)
    assert json.loads(text)["intervals"]["A"] == [None, None]
    assert Coefficients.from_dict(json.loads(text)) == result


def test_a_file_with_the_contracts_keys_alone_is_read(fitted: Coefficients) -> None:
    extra = ("discrepancy", "draws", "n_bootstrap", "seed", "notes")
    bare = Coefficients.from_dict({name: value for name, value in fitted.to_dict().items() if name not in extra})
    assert bare.predict(163_840, 8_000, 196_608) == fitted.predict(163_840, 8_000, 196_608)
    assert np.isnan(bare.interval(163_840, 8_000, 196_608)).all()


def test_a_law_that_misses_has_wider_intervals_and_says_so() -> None:
    rng = np.random.default_rng(1)
    exact = fit_law(None, simulated.simulate_calibration(rng, coefficients=TRUE), n_bootstrap=200)
    off = fit_law(None, simulated.simulate_calibration(rng, coefficients=TRUE, miss=0.05), n_bootstrap=200)
    assert exact.discrepancy < 0.025 < off.discrepancy
    assert np.sqrt(off.covariance[0, 0]) > 1.3 * np.sqrt(exact.covariance[0, 0])


def test_predictions_hold_the_truth_and_take_arrays(fitted: Coefficients) -> None:
    p, u, c = 163_840, np.array([4_000, 8_000, 16_000]), 262_144
    truth = get_law("interaction").dropout(TRUE, p, u, c)
    low, high = fitted.interval(p, u, c)
    assert low.shape == high.shape == (3,)
    assert (low - 0.01 <= truth).all()
    assert (truth <= high + 0.01).all()
    np.testing.assert_allclose(fitted.predict(p, u, c), truth, atol=0.03)
    path = law_path(fitted.coefficients, p, [4_000, 8_000], [131_072, 262_144])
    assert path.dropouts == tuple(fitted.predict(p, [4_000, 8_000], [131_072, 262_144]))


def test_json_round_trip_is_exact_and_has_the_contracts_keys(fitted: Coefficients) -> None:
    text = json.dumps(fitted.to_dict(), sort_keys=True, allow_nan=False)
    assert Coefficients.from_dict(json.loads(text)) == fitted
    assert list(Coefficients.from_dict(json.loads(text)).coefficients) == ["A", "B", "D", "C0"]
    keys = "schema regime law coefficients intervals p_min p_max rank condition_number n_cells rmse loo_rmse loo_regret"
    assert set(keys.split()) | {"cells", "tokenizer_hash", "corpus_hash"} <= set(fitted.to_dict())
    assert {"weight", "target", "status"} <= set(fitted.cells[0])
    with pytest.raises(UserError, match="lack"):
        Coefficients.from_dict({"schema": 1})


def test_same_seed_same_digits(table: pd.DataFrame) -> None:
    again = [fit_law(None, table, n_bootstrap=50, seed=s) for s in (3, 3, 4)]
    assert again[0] == again[1]
    assert again[0].draws != again[2].draws


def test_weights_are_the_right_way_up(table: pd.DataFrame) -> None:
    """A sharp cell (narrow plateau, small error) must weigh more than a flat one, in start and robust fit."""
    targets = make_targets(None, table)
    curvature = [fit.quadratic.slope_and_curvature(fit.target)[1] for fit in targets.fits if fit.status == "interior"]
    assert np.corrcoef(np.log(curvature), np.log(targets.width[targets.point]))[0, 1] < -0.5
    points = np.flatnonzero(targets.point)
    plateau = np.array([targets.fits[i].plateau[-1] - targets.fits[i].plateau[0] for i in points])
    weights = targets.start_weight[points]
    assert np.corrcoef(np.log(weights), plateau)[0, 1] < -0.5
    # Two cells want 0.1 and 0.5 of a constant law: it goes to the one with the larger weight.
    design, dropout = np.ones((2, 1)), np.array([0.1, 0.5])
    start = robust.weighted_starts(design, dropout[None], np.array([[1 / 0.01**2, 1 / 0.1**2]]))
    assert start[0, 0] == pytest.approx(0.1, abs=0.01)
    problem = robust.Problem(design, np.array([0.01, 0.1]), 0.02, 0.65)
    side = np.zeros(2, dtype=np.int64)
    beta, _ = robust.fit(problem, dropout, side, np.ones(2), np.random.default_rng(0))
    assert abs(beta[0] - 0.1) < 0.05


def test_a_flat_cell_does_not_move_the_fit(table: pd.DataFrame) -> None:
    place = (table["model"] == "P45000") & (table["unique_tokens"] == 8_000)
    flat = table.copy()
    noise = np.random.default_rng(0).standard_normal(int(place.sum()))
    flat.loc[place, "val_loss"] = 4.4 + 0.021 * noise
    before, after = (fit_law(None, t, n_bootstrap=20) for t in (table[~place], flat))
    status = {c["status"] for c in after.cells if c["n_params"] == 45_000 and c["unique_tokens"] == 8_000}
    assert "no_signal" in status
    p = before.predict([163_840, 430_000], [8_000, 16_000], [262_144, 131_072])
    np.testing.assert_allclose(after.predict([163_840, 430_000], [8_000, 16_000], [262_144, 131_072]), p, atol=0.01)


def test_censored_cells_cost_on_one_side_only() -> None:
    problem = robust.Problem(np.ones((1, 1)), np.array([0.1]), 0.0, 0.65)
    z = coordinate(np.array([[0.2]]))
    for side, costly in ((-1, 0.4), (1, 0.05)):
        sides = np.full((1, 1), side, dtype=np.int64)
        costs = {p: problem.cost(np.array([[p]]), z, sides, np.ones((1, 1)))[0] for p in (0.05, 0.4)}
        assert costs[costly] > 0
        assert sum(costs.values()) == costs[costly]


def test_intervals_hold_the_doubt_about_what_is_expected() -> None:
    """A coefficient that its cells say little of is no surer than texts are alike."""
    table = simulated.simulate_calibration(
        np.random.default_rng(0), coefficients=TRUE, n_params=(163_840,), unique_tokens=(8_000, 16_000), n_seeds=1
    )
    fitted = fit_law(None, table, law="floored", n_bootstrap=300)
    low, high = fitted.intervals["B"]
    assert low < get_law("floored").expected["B"][0] < high
    assert high - low > 2 * get_law("floored").expected["B"][1]


def test_noise_correlation_between_readouts_is_recovered() -> None:
    for truth in (0.0, 0.8):
        table = simulated.simulate_calibration(np.random.default_rng(2), coefficients=TRUE, correlation=truth)
        targets = make_targets(None, table)
        assert noise_correlation(targets) == pytest.approx(truth, abs=0.12)
    draws, _ = target_draws(targets, 400, np.random.default_rng(0))
    inner = [i for i, p in enumerate(targets.dropout) if 0.15 < p < 0.45]
    np.testing.assert_allclose(draws[:, inner].std(axis=0), targets.sd[inner], rtol=0.6)
    # Read-outs of one prefix move together, prefixes do not.
    same = [(i, j) for i in inner for j in inner if i < j and targets.block[i] == targets.block[j]]
    other = [(i, j) for i in inner for j in inner if i < j and targets.block[i] != targets.block[j]]
    correlation = np.corrcoef(draws.T)
    assert np.mean([correlation[i, j] for i, j in same]) > np.mean([correlation[i, j] for i, j in other]) + 0.2


def test_censoring_is_found_again_on_each_draw(table: pd.DataFrame) -> None:
    targets = make_targets(None, table)
    _, side = target_draws(targets, 300, np.random.default_rng(0))
    moved = (side != targets.side).mean(axis=0)
    near = (targets.dropout < 0.08) | (targets.dropout > 0.55)
    assert (moved[near] > 0.02).any()
    assert (moved[near] < 0.98).all()
    middle = (targets.dropout > 0.25) & (targets.dropout < 0.4)
    assert middle.any()
    assert (moved[middle] == 0).all()


def test_every_registered_law_can_be_fitted(table: pd.DataFrame) -> None:
    for name, law in LAWS.items():
        result = fit_law(None, table, law=name, n_bootstrap=20)
        assert tuple(result.coefficients) == law.coefficients


def test_a_design_below_full_rank_is_refused_or_falls_back_and_says_so() -> None:
    rng = np.random.default_rng(0)
    one_ratio = pd.concat(
        [
            simulated.simulate_calibration(
                rng,
                coefficients=TRUE,
                n_params=(p,),
                unique_tokens=(p // 16, p // 8, p // 32),
                sampled_tokens=(2 * p,),
            )
            for p in (100_000, 200_000, 400_000)
        ]
    )
    with pytest.raises(UserError, match=r"rank 3 of 4 .* one P/C ratio") as caught:
        fit_law(None, one_ratio)
    assert "\n" not in str(caught.value)
    result = fit_law(None, one_ratio, law="separable", fallback="x_only", n_bootstrap=20)
    assert result.law == "x_only"
    assert "instead of separable" in result.notes[0]


def test_tables_that_no_law_can_come_from_are_refused(table: pd.DataFrame) -> None:
    flat = table.assign(val_loss=4.0 + table["dropout"] + 0.01 * np.sin(np.arange(len(table))))
    with pytest.raises(UserError, match=r"none of the .* cells has an interior optimum"):
        fit_law(None, flat)
    other = table.assign(regime="other")
    with pytest.raises(UserError, match="one regime"):
        fit_law(None, pd.concat([table, other]))
    mixed = table.assign(tokenizer_hash=np.where(table["n_params"] == 45_000, "a", "b"), corpus_hash="c")
    with pytest.raises(UserError, match="tokenizer_hash"):
        fit_law(None, mixed, n_bootstrap=10)
    with pytest.raises(UserError, match="no cell is left"):
        fit_law(select_models(table, n_bootstrap=10).iloc[:0], table)


def test_one_seed_gives_intervals_from_the_curves_scatter_and_says_so(table: pd.DataFrame) -> None:
    result = fit_law(None, table[table["seed"] == 0], n_bootstrap=100)
    assert "no replicates" in result.notes[0]
    assert all(low < high for low, high in result.intervals.values())


def test_what_full_rank_does_not_guard_against_is_said(table: pd.DataFrame, fitted: Coefficients) -> None:
    assert fitted.notes == ()
    few = table[
        (table["n_params"] == 163_840) & (table["unique_tokens"] < 32_000) & (table["sampled_tokens"] > 150_000)
    ]
    result = fit_law(None, few, n_bootstrap=20)
    assert result.rank == 4
    assert any(note.startswith("weakly determined: 6 interior cells for 4") for note in result.notes)
    assert any("one model size" in note for note in result.notes)


def test_the_phase_with_more_seeds_speaks_for_a_cell(table: pd.DataFrame) -> None:
    screen = table[table["seed"] == 0].assign(phase="screen")
    result = fit_law(None, pd.concat([table, screen]), n_bootstrap=10)
    assert {cell["phase"] for cell in result.cells} == {"calibrate"}


def test_hull_of_the_calibration(fitted: Coefficients) -> None:
    assert inside_calibration(fitted, 163_840, 8_000, 196_608)
    outside = inside_calibration(fitted, [917_000, 163_840, 163_840], [8_000, 64_000, 8_000], [196_608, 196_608, 10**6])
    assert not outside.any()
    # Each coordinate lies within its range, the point does not lie in the hull of a thinned design.
    cells = [c for c in fitted.cells if (c["n_params"] == 45_000) == (c["unique_tokens"] == 4_000)]
    thinned = Coefficients(**{**fitted.__dict__, "cells": tuple(cells)})
    assert not inside_calibration(thinned, 45_000, 32_000, 196_608)


def test_a_size_that_the_law_is_not_fitted_to_is_not_inside(fitted: Coefficients) -> None:
    assert fitted.sizes == {45_000, 163_840, 430_000}
    assert inside_calibration(fitted, [45_000, 163_840], 8_000, 196_608).all()
    cells = tuple(cell if cell["n_params"] == 163_840 else cell | {"start_weight": 0.0} for cell in fitted.cells)
    one = replace(fitted, cells=cells)
    assert one.sizes == {163_840}
    small = tuple(cell | {"start_weight": 0.0} if cell["n_params"] == 430_000 else cell for cell in fitted.cells)
    two = replace(fitted, cells=small)
    assert inside_calibration(two, [45_000, 100_000, 163_840, 430_000], 8_000, 196_608).tolist() == [True] * 3 + [False]
    assert hull(two).startswith("P 45k to 164k, ")
    assert inside_calibration(one, [45_000, 163_840, 164_500], 8_000, 196_608).tolist() == [False, True, True]


def test_leaving_a_cell_out_refits_without_it(table: pd.DataFrame) -> None:
    held = leave_one_cell_out(None, table)
    assert len(held) == 36
    assert (held["regret"] >= 0).all()
    i = 17
    row = held.iloc[i]
    rest = table[
        ~(
            (table["n_params"] == row["n_params"])
            & (table["unique_tokens"] == row["unique_tokens"])
            & (table["sampled_tokens"] == row["sampled_tokens"])
        )
    ]
    alone = fit_law(None, rest, n_bootstrap=10)
    expected = alone.predict(row["n_params"], row["unique_tokens"], row["sampled_tokens"])
    assert row["predicted"] == pytest.approx(float(expected), abs=2e-3)


def test_leaving_a_level_out(table: pd.DataFrame) -> None:
    held = leave_one_level_out(None, table, by="n_params")
    assert set(held["n_params"]) == {430_000}
    assert len(held) == 12
    smallest = leave_one_level_out(None, table, by="unique_tokens", level=4_000)
    assert set(smallest["unique_tokens"]) == {4_000}
    for by, words in (("n_params", "same n_params"), ("depth", "one of n_params")):
        with pytest.raises(UserError, match=words):
            leave_one_level_out(None, table[table["n_params"] == 45_000], by=by)


def test_rivals_rank_the_true_form_above_those_that_lack_a_variable(table: pd.DataFrame) -> None:
    found = rivals(None, table)
    assert set(found["holdout"]) == {"cell", "largest n_params", "largest unique_tokens", "largest sampled_tokens"}
    for _, group in found.groupby("holdout"):
        regret = group.set_index("law")["regret_mean"]
        assert regret["interaction"] < regret[["constant", "x_only", "y_only"]].min()
        assert regret.is_monotonic_increasing
    one_size = rivals(None, table[table["n_params"] == 163_840], laws=("first_order", "separable"))
    separable = one_size[one_size["law"] == "separable"]
    assert separable["regret_mean"].isna().all()
    assert (separable["note"] != "").all()


def test_an_odds_law_is_recovered_and_holds_its_truth() -> None:
    truth = {"a_P": 0.9, "a_U": -1.6, "a_C": 1.9, "C0": -8.8}
    table = simulated.simulate_calibration(np.random.default_rng(5), law="odds", coefficients=truth)
    fitted = fit_law(None, table, law="odds", n_bootstrap=300)
    assert fitted.law == "odds"
    spread = np.sqrt(np.diag(fitted.covariance))
    for (name, value), sd in zip(truth.items(), spread, strict=True):
        assert abs(fitted.coefficients[name] - value) < 3 * sd, name
    cells = pd.DataFrame(fitted.cells)
    true = get_law("odds").dropout(truth, cells["n_params"], cells["unique_tokens"], cells["sampled_tokens"])
    inside = (cells["status"] == "interior") & (true > 0.05) & (true < 0.55)
    assert inside.sum() >= 10
    assert np.abs(cells["law"] - true)[inside].max() < 0.06
    held_out = rivals(None, table)
    ahead = held_out[held_out["holdout"] == "cell"].iloc[0]
    assert ahead["law"] == "odds", "the form that the cells follow predicts them best"


def test_a_diluted_law_has_the_coefficients_of_the_one_that_it_dilutes(table: pd.DataFrame) -> None:
    plain, diluted = (fit_law(None, table, law=name, n_bootstrap=20) for name in ("odds", "odds_diluted"))
    assert diluted.law == "odds_diluted"
    assert diluted.coefficients == plain.coefficients
    assert diluted.draws == plain.draws

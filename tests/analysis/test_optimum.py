"""Cells, curves, optimum, plateau, status and improvement, on tables with a known answer."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import simulated, simulation
from analysis.cells import additive, cell_rows, make_cells, pool_noise
from analysis.curves import coordinate, fit_curve, from_coordinate, minimisers
from analysis.optimum import cell_fit, cell_fits, select_models, summarise
from tune_dd.errors import UserError

LAW = simulated.TRUE_LAW
SELECTION_COLUMNS = (
    "regime",
    "phase",
    "model",
    "n_params",
    "unique_tokens",
    "sampled_tokens",
    "n_seeds",
    "grid_optimum",
    "fitted_optimum",
    "cubic_optimum",
    "fitted_low",
    "fitted_high",
    "plateau_low",
    "plateau_high",
    "status",
    "improvement",
    "improvement_low",
    "improvement_high",
)
SUMMARY_COLUMNS = (
    "regime",
    "phase",
    "model",
    "n_params",
    "condition",
    "kind",
    "dropout",
    "stage",
    "readout",
    "unique_tokens",
    "sampled_tokens",
    "n_seeds",
    "train_loss_mean",
    "train_loss_std",
    "val_loss_mean",
    "val_loss_std",
    "val_bpb_mean",
    "val_bpb_std",
    "gap_mean",
    "gap_std",
)


def sweep(curve, *, dropouts=simulated.SEVEN_DROPOUTS, n_seeds=3, sd=simulated.TRIAL_SD, seed=0, **columns):
    """The table of one cell: seed effect 0.04, and ``sd`` of noise of a single trial."""
    rng = np.random.default_rng(seed)
    rows = []
    for s in range(n_seeds):
        common = 0.04 * rng.standard_normal()
        for p in dropouts:
            loss = float(curve(p)) + common + sd * rng.standard_normal()
            row = {
                "regime": "r",
                "phase": "calibrate",
                "model": "L2_H2_D64",
                "n_params": 163_840,
                "condition": f"static_{p:.2f}",
                "kind": "static",
                "seed": s,
                "stage": 0,
                "readout": 0,
                "unique_tokens": 8_000,
                "sampled_tokens": 262_144,
                "dropout": p,
                "train_loss": loss - 0.1,
                "val_loss": loss,
                "val_bpb": loss / 1.5,
                "gap": 0.1,
            }
            rows.append(row | columns)
    return pd.DataFrame(rows)


CURVE = simulated.CURVES["exponential 16k"]


def test_coverage_of_the_optimum_over_500_sweeps() -> None:
    found = simulation.coverage_of_optimum(500, n_bootstrap=300, seed=1)
    assert 0.93 <= found["coverage"].mean() <= 0.98
    # Every generating curve by itself, near the edge of the grid and far from it; 0.01 is its own error.
    assert found["coverage"].between(0.92, 0.98).all(), found
    assert found["improvement_coverage"].min() >= 0.95, found
    assert (found["bias"].abs() < 0.02).all(), found


def test_a_flat_curve_gives_no_signal_at_the_stated_level() -> None:
    assert 0.92 <= simulation.flat_rate(300, seed=2) <= 0.98
    flat = simulated.LossCurve(4.0, 0.0, 0.0, 0.0, 1.0)
    fit = cell_fit(sweep(flat, seed=1))
    assert fit.status == "no_signal"
    assert fit.improvement_low < 0 < fit.improvement_high


def test_monotone_curves_are_censored_on_their_side() -> None:
    rising = cell_fit(sweep(lambda p: 4 + p))
    assert (rising.status, rising.grid_optimum) == ("censored_low", 0.0)
    assert rising.improvement < 0
    assert rising.improvement_high < 0
    falling = cell_fit(sweep(lambda p: 4 - p))
    assert (falling.status, falling.grid_optimum) == ("censored_high", 0.6)
    assert falling.improvement_low > 0.4


def test_an_optimum_at_no_dropout_is_zero_exactly() -> None:
    p = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert from_coordinate(coordinate(p))[0] == 0.0
    np.testing.assert_allclose(from_coordinate(coordinate(p)), p, atol=1e-15)


def test_without_noise_a_curve_in_the_fitted_family_is_found_exactly() -> None:
    fit = cell_fit(sweep(lambda p: 4 + 3 * (np.sqrt(p + 0.1) - np.sqrt(0.37)) ** 2, sd=0.0))
    assert fit.fitted_optimum == pytest.approx(0.27, abs=1e-6)
    assert fit.cubic_optimum == pytest.approx(0.27, abs=1e-6)
    assert fit.quadratic is not None
    np.testing.assert_allclose(fit.quadratic.loss(fit.dropouts[1:6]), fit.levels[1:6], atol=1e-9)
    assert fit.regret(0.27) == pytest.approx(0.0, abs=1e-9)
    assert fit.regret(0.45) == pytest.approx(3 * (np.sqrt(0.55) - np.sqrt(0.37)) ** 2, abs=1e-6)


def test_an_asymmetric_curve_shows_in_the_cubics_disagreement() -> None:
    z = lambda p: np.sqrt(p + 0.1) - np.sqrt(0.35)  # noqa: E731
    symmetric = cell_fit(sweep(lambda p: 4 + 2 * z(p) ** 2, sd=0.0))
    asymmetric = cell_fit(sweep(lambda p: 4 + 2 * z(p) ** 2 - 5 * z(p) ** 3, sd=0.0))
    assert abs(symmetric.disagreement) < 1e-6
    assert abs(asymmetric.disagreement) > 0.005
    assert asymmetric.cubic_optimum == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("degree", [2, 3])
def test_minimisers_agree_with_a_fine_grid_search(degree: int) -> None:
    rng = np.random.default_rng(3)
    dropouts = np.array([0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    levels = CURVE(dropouts) + 0.05 * rng.standard_normal((50, 8))
    z = minimisers(levels, dropouts, np.full(8, 3.0), degree)
    for row, found in zip(levels, z, strict=True):
        curve = fit_curve(row, dropouts, np.full(8, 3.0), degree)
        grid = np.linspace(curve.low, curve.high, 20_001)
        assert curve.loss(max(found**2 - 0.1, 0)) <= curve.loss(grid).min() + 1e-9
        assert coordinate(curve.optimum) == pytest.approx(found, abs=1e-7)


def test_levels_and_noise_equal_a_two_way_analysis_of_variance() -> None:
    table = sweep(CURVE, seed=4)
    (cell,) = make_cells(table)
    wide = table.pivot(index="seed", columns="dropout", values="val_loss").to_numpy()
    np.testing.assert_allclose(cell.levels, wide.mean(axis=0))
    residuals = wide - wide.mean(axis=0) - wide.mean(axis=1, keepdims=True) + wide.mean()
    assert cell.df == 2 * 6
    assert cell.rss == pytest.approx((residuals**2).sum())
    noise = pool_noise([cell])[cell.key]
    f = 3 * ((wide.mean(axis=0) - wide.mean()) ** 2).sum() / 6 / noise.sd**2
    assert cell_fit(table).p_value == pytest.approx(stats.f.sf(f, 6, 12))


def test_missing_trials_shift_no_level() -> None:
    """A seed with a large effect loses dropouts: plain means would move by its effect, levels do not."""
    exact = sweep(CURVE, sd=0.0)
    exact.loc[exact["seed"] == 2, "val_loss"] += 5.0
    holes = exact.drop(exact.index[(exact["seed"] == 2) & exact["dropout"].isin([0.1, 0.2, 0.5])])
    fit = cell_fit(holes)
    np.testing.assert_allclose(fit.levels - fit.levels[0], CURVE(fit.dropouts) - CURVE(0.0), atol=1e-9)
    assert fit.counts.tolist() == [3, 2, 2, 3, 3, 2, 3]
    reference = np.linalg.lstsq(
        np.array([[s == i for i in range(3)] + [p == q for q in fit.dropouts[1:]] for s, p in
                  zip(holes["seed"], holes["dropout"], strict=True)], dtype=float),
        holes["val_loss"].to_numpy(), rcond=None)[0]  # fmt: skip
    np.testing.assert_allclose(fit.levels[1:] - fit.levels[0], reference[3:], atol=1e-9)


def test_covariance_root_is_that_of_least_squares_with_missing_trials() -> None:
    rng = np.random.default_rng(0)
    losses = rng.standard_normal((3, 5))
    losses[0, 1] = losses[2, 3] = np.nan
    table = sweep(CURVE, dropouts=(0.0, 0.1, 0.2, 0.3, 0.4))
    gone = ((table["seed"] == 0) & (table["dropout"] == 0.1)) | ((table["seed"] == 2) & (table["dropout"] == 0.3))
    (cell,) = make_cells(table[~gone])
    draws = []
    for _ in range(4000):
        noise = np.where(np.isnan(losses), np.nan, rng.standard_normal((3, 5)))
        levels, *_ = additive(noise)
        draws.append(levels - levels.mean())
    np.testing.assert_allclose(np.cov(np.array(draws).T), cell.root @ cell.root, atol=0.04)


def test_dropouts_that_share_no_seed_are_left_out_and_named() -> None:
    table = sweep(CURVE, n_seeds=2)
    split = table[
        ((table["seed"] == 0) & (table["dropout"] < 0.45)) | ((table["seed"] == 1) & (table["dropout"] > 0.45))
    ]
    (cell,) = make_cells(split)
    assert cell.dropped == (0.5, 0.6)
    assert cell.dropouts.tolist() == [0.0, 0.1, 0.2, 0.3, 0.4]


def test_a_parabola_that_misses_its_levels_says_so() -> None:
    """Once in a thousand by chance; and not where losses jump by more than they scatter."""
    by_chance = [cell_fit(sweep(CURVE, seed=seed), n_bootstrap=10).rough for seed in range(100)]
    assert np.mean(by_chance) <= 0.02
    jumps = sweep(lambda p: float(CURVE(p)) + 0.2 * (p == 0.3), seed=3)
    fit = cell_fit(jumps)
    assert fit.rough
    (note,) = fit.notes
    inside = (fit.dropouts >= fit.quadratic.low) & (fit.dropouts <= fit.quadratic.high)
    farthest = np.abs(fit.levels - fit.quadratic.loss(fit.dropouts))[inside].max()
    assert f"misses a level by {farthest:.3f} nats" in note
    assert note.endswith(f"add dropouts between {fit.quadratic.low:g} and {fit.quadratic.high:g}")
    assert not cell_fit(jumps[jumps["seed"] == 0]).rough  # nothing tells its noise
    three = cell_fit(jumps[jumps["dropout"].isin([0.2, 0.3, 0.4])])
    assert not three.rough  # a parabola goes through any three levels


def test_one_seed_says_what_it_cannot_say() -> None:
    fit = cell_fit(sweep(CURVE, n_seeds=1))
    assert np.isnan([fit.fitted_low, fit.fitted_high, fit.improvement_low, fit.p_value, fit.standard_error]).all()
    assert fit.plateau == ()
    assert "no interval" in " ".join(fit.notes)
    assert np.isfinite([fit.fitted_optimum, fit.improvement]).all()


def test_one_seed_borrows_the_noise_of_its_models_other_cells() -> None:
    table = pd.concat([sweep(CURVE, n_seeds=1), sweep(CURVE, unique_tokens=16_000, seed=1)], ignore_index=True)
    alone, other = cell_fits(table)
    assert alone.noise.borrowed
    assert alone.noise.df == other.noise.df == 12
    assert alone.noise.sd == other.noise.sd
    assert alone.fitted_low < alone.fitted_optimum < alone.fitted_high
    # One seed's level is noisier than three seeds'.
    assert alone.standard_error == pytest.approx(other.standard_error * np.sqrt(3))


def test_plateau_is_within_one_paired_standard_error_and_takes_a_margin() -> None:
    table = sweep(CURVE, seed=5)
    fit = cell_fit(table)
    error = fit.noise.sd * np.sqrt(2 / 3)
    assert fit.plateau_margin == pytest.approx(error)
    assert fit.plateau == tuple(fit.dropouts[fit.levels - fit.levels.min() <= error])
    wide = cell_fit(table, margin=10.0)
    assert wide.plateau == tuple(simulated.SEVEN_DROPOUTS)
    assert cell_fit(table, margin=0.0).plateau == (fit.grid_optimum,)


def test_uneven_grids_and_two_dropouts() -> None:
    uneven = cell_fit(sweep(CURVE, dropouts=(0.0, 0.05, 0.15, 0.2, 0.35, 0.6), sd=0.0))
    assert uneven.fitted_optimum == pytest.approx(CURVE.optimum, abs=0.03)
    two = cell_fit(sweep(CURVE, dropouts=(0.0, 0.2)))
    assert two.quadratic is None
    assert np.isnan(two.cubic_optimum)
    assert two.status == "censored_high"
    three = cell_fit(sweep(CURVE, dropouts=(0.0, 0.2, 0.5)))
    assert three.quadratic is not None
    assert three.cubic is None


def test_columns_of_the_contract_come_first_and_in_order() -> None:
    table = sweep(CURVE)
    assert list(select_models(table).columns[: len(SELECTION_COLUMNS)]) == list(SELECTION_COLUMNS)
    assert list(summarise(table).columns) == list(SUMMARY_COLUMNS)


def test_summary_is_mean_and_sample_standard_deviation() -> None:
    table = sweep(CURVE, seed=6)
    row = summarise(table).set_index("condition").loc["static_0.20"]
    values = table.loc[table["dropout"] == 0.2, "val_loss"]
    assert row["val_loss_mean"] == pytest.approx(values.mean())
    assert row["val_loss_std"] == pytest.approx(np.std(values, ddof=1))
    assert np.isnan(summarise(table[table["seed"] == 0])["val_loss_std"]).all()


def test_same_seed_same_digits_whatever_the_order_and_company_of_rows() -> None:
    table = sweep(CURVE, seed=7)
    more = pd.concat([table, sweep(CURVE, seed=8, unique_tokens=16_000)]).sample(frac=1, random_state=0)
    first = select_models(table, seed=3)
    pd.testing.assert_frame_equal(first, select_models(table, seed=3), check_exact=True)
    again = select_models(more, seed=3)
    pd.testing.assert_frame_equal(first, again[again["unique_tokens"] == 8_000].reset_index(drop=True))
    assert select_models(table, seed=4)["fitted_low"].item() != first["fitted_low"].item()


def test_streams_and_other_kinds_are_no_calibration_cells() -> None:
    table = sweep(CURVE)
    others = [
        sweep(CURVE, phase="stream"),
        sweep(CURVE, kind="law", condition="law").drop_duplicates("seed"),
        sweep(CURVE, stage=1, unique_tokens=64_000),
    ]
    both = pd.concat([table, *others], ignore_index=True)
    assert len(cell_rows(both)) == len(table)
    pd.testing.assert_frame_equal(select_models(both), select_models(table))
    with pytest.raises(UserError, match="no static trial"):
        select_models(others[0])


def test_bad_tables_are_refused_in_one_line() -> None:
    table = sweep(CURVE)
    infinite = table.copy()
    infinite.loc[4, "val_loss"] = np.inf
    cases = {
        "no rows": table.iloc[:0],
        "lacks the column 'dropout'": table.drop(columns="dropout"),
        "val_loss is inf": infinite,
        "twice": pd.concat([table, table.iloc[[3]]]),
        "one dropout only": table[table["dropout"] == 0.2],
    }
    for words, bad in cases.items():
        with pytest.raises(UserError, match=words) as caught:
            select_models(bad)
        assert "\n" not in str(caught.value)
    for margin in (-1.0, np.nan, np.inf):
        with pytest.raises(UserError, match=f"margin {margin}"):
            select_models(table, margin=margin)


def test_statistics_import_without_torch_and_ray() -> None:
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "ray"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import analysis.optimum, analysis.coefficients, analysis.comparison, analysis.holdout, analysis.simulation
"""
    subprocess.run([sys.executable, "-c", code], check=True)

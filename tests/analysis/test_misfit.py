"""How far a law misses, and what that does to the weight of each cell."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import robust, simulated
from analysis.misfit import discrepancy, freedom, problem_of
from analysis.targets import Targets, make_targets
from tune_dd.laws import get_law

LAW = get_law("interaction")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return simulated.simulate_calibration(np.random.default_rng(0), coefficients=simulated.TRUE_LAW)


@pytest.fixture(scope="module")
def targets(table: pd.DataFrame) -> Targets:
    return make_targets(None, table)


def test_residuals_are_charged_for_the_coefficients_fitted(table: pd.DataFrame, targets: Targets) -> None:
    blocks = len(set(targets.block[targets.point]))
    assert freedom(targets, 4) == pytest.approx(blocks / (blocks - 4))
    # Two blocks cannot tell four coefficients' misses: at least what the cells' number asks for.
    few = make_targets(None, table[(table["n_params"] == 163_840) & table["unique_tokens"].isin([8_000, 16_000])])
    n = int(few.point.sum())
    assert freedom(few, 4) == pytest.approx(n / (n - 4))
    assert freedom(few, 4) > 1.5


def test_discrepancy_is_what_noise_does_not_explain(targets: Targets) -> None:
    n = int(targets.point.sum())
    assert discrepancy(targets, np.zeros(n), 4) == 0.0
    missed = np.where(np.arange(n) % 2 == 0, 0.1, -0.1)
    expected = np.sqrt(0.01 * freedom(targets, 4) - np.mean(targets.sd[targets.point] ** 2))
    assert discrepancy(targets, missed, 4) == pytest.approx(expected)
    assert discrepancy(targets, missed[:4], 4) == 0.0, "four coefficients pass through four cells"


def test_a_law_that_misses_widens_its_cells_and_one_that_fits_hardly(targets: Targets) -> None:
    fits = problem_of(targets, LAW)
    missing = problem_of(targets, get_law("constant"))
    assert (missing.width > targets.width).all()
    inside = targets.point
    assert np.median(fits.width[inside] / targets.width[inside]) < 1.2
    assert np.median(missing.width[inside] / targets.width[inside]) > 2.0


def test_one_sharp_cell_that_a_law_misses_does_not_rule_the_others(targets: Targets) -> None:
    """One cell known ever more sharply, and .3 off any law of the others."""
    odd = int(np.flatnonzero(targets.point)[0])
    sharp = replace(
        targets,
        dropout=np.where(np.arange(len(targets)) == odd, targets.dropout[odd] + 0.3, targets.dropout),
        width=np.where(np.arange(len(targets)) == odd, targets.width / 50, targets.width),
    )
    others = targets.point & (np.arange(len(targets)) != odd)

    def error(problem: robust.Problem) -> float:
        rng = np.random.default_rng(0)
        beta, _ = robust.fit(problem, sharp.dropout, sharp.side, sharp.start_weight, rng)
        return float(np.sqrt(np.mean((problem.predict(problem.design @ beta) - targets.dropout)[others] ** 2)))

    widened = problem_of(sharp, LAW)
    assert error(widened) < 0.6 * error(replace(widened, width=sharp.width))


def test_cells_held_out_do_not_tell_the_misfit(targets: Targets) -> None:
    odd = int(np.flatnonzero(targets.point)[0])
    mask = (np.arange(len(targets)) != odd).astype(np.float64)
    moved = replace(targets, dropout=np.where(mask > 0, targets.dropout, 0.9))
    before, after = (problem_of(each, LAW, mask=mask).width[mask > 0] for each in (targets, moved))
    np.testing.assert_array_equal(before, after)
    few = np.zeros(len(targets))
    few[np.flatnonzero(targets.point)[:4]] = 1.0
    np.testing.assert_array_equal(problem_of(targets, LAW, mask=few).width, targets.width)

"""Robust regret: the least of its many minima, scipy's solution, and what is expected of a coefficient."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import differential_evolution, least_squares

from analysis import robust, simulated
from analysis.misfit import problem_of
from analysis.targets import Targets, make_targets
from tune_dd.laws import get_law

TRUE = simulated.TRUE_LAW


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return simulated.simulate_calibration(np.random.default_rng(0), coefficients=TRUE)


def targets_by_another_form(seed: int) -> Targets:
    """A calibration that most forms miss."""
    table = simulated.simulate_calibration(
        np.random.default_rng(seed),
        law="saturating",
        coefficients={"B": 1.1, "C0": -6.0},
        unique_tokens=(4_000, 8_000, 16_000, 32_000, 64_000),
        sampled_tokens=(65_536, 131_072, 262_144, 524_288),
    )
    return make_targets(None, table)


@pytest.mark.parametrize(("seed", "law"), [(0, "separable"), (1, "y_only"), (3, "y_only"), (0, "interaction")])
def test_a_fit_is_not_caught_in_a_corner(seed: int, law: str) -> None:
    """Of forms that miss the cells, where the clamp leaves many minima; scipy's global search knows the least."""
    targets = targets_by_another_form(seed)
    problem = problem_of(targets, get_law(law))
    weight = np.where(targets.point, targets.start_weight, 0.0)
    beta, cost = robust.fit(problem, targets.dropout, targets.side, weight, np.random.default_rng(0))
    reach = 3 * np.maximum(np.abs(beta), 1)
    found = differential_evolution(
        lambda x: problem.cost(x.T, targets.z[None], targets.side[None], np.ones((1, len(targets)))),
        list(zip(-reach, reach, strict=True)),
        vectorized=True,
        updating="deferred",
        popsize=60,
        maxiter=600,
        tol=1e-10,
        seed=0,
        polish=False,
    )
    assert cost == pytest.approx(found.fun, abs=1e-3)


@pytest.mark.parametrize("law", ["separable", "y_only", "interaction"])
def test_of_many_cells_few_starts_find_as_low_a_cost(law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cells of one table many times over, each with noise of its own."""
    targets = targets_by_another_form(0)
    few = problem_of(targets, get_law(law))
    times = robust.VERY_MANY // len(targets) + 1
    many = replace(few, design=np.tile(few.design, (times, 1)), width=np.tile(few.width, times))
    moved = np.random.default_rng(1).normal(0.0, 0.03, times * len(targets))
    dropout = np.clip(np.tile(targets.dropout, times) + moved, 0.0, 0.65)
    side = np.tile(targets.side, times)
    weight = np.tile(np.where(targets.point, targets.start_weight, 0.0), times)
    assert len(dropout) > robust.VERY_MANY
    _, quick = robust.fit(many, dropout, side, weight, np.random.default_rng(0))
    monkeypatch.setattr(robust, "VERY_MANY", len(dropout))
    monkeypatch.setattr(robust, "LEAST_STARTS", robust.STARTS)
    _, thorough = robust.fit(many, dropout, side, weight, np.random.default_rng(0))
    assert quick == pytest.approx(thorough, rel=2e-3)


@pytest.mark.parametrize("law", ["interaction", "odds"])
def test_robust_fit_agrees_with_scipy(table: pd.DataFrame, law: str) -> None:
    targets = make_targets(None, table)
    problem = problem_of(targets, get_law(law))
    beta, cost = robust.fit(problem, targets.dropout, targets.side, targets.start_weight, np.random.default_rng(0))

    def residuals(b: np.ndarray) -> np.ndarray:
        return problem.residuals(b[None], targets.z[None], targets.side[None])[0][0]

    best = min(
        (
            least_squares(residuals, start, loss="soft_l1", x_scale="jac", xtol=1e-12, ftol=1e-12)
            for start in robust.starts(
                problem.design,
                problem.link.predictor(targets.dropout),
                targets.start_weight,
                np.random.default_rng(1),
                20,
            )
        ),
        key=lambda result: result.cost,
    )
    # scipy's cost is half of ours.
    assert cost == pytest.approx(2 * best.cost, rel=1e-4)
    np.testing.assert_allclose(problem.design @ beta, problem.design @ best.x, atol=2e-3)


def test_a_fit_is_held_to_what_is_expected_of_a_coefficient(table: pd.DataFrame) -> None:
    """The least cost with the expectation in it is scipy's; few cells leave B where it is expected, many do not."""
    form = get_law("floored")
    mean, spread = form.expected["B"]
    targets = make_targets(None, table).bounded(form.fit_max)
    problem = problem_of(targets, form)
    fitted = robust.fit(problem, targets.dropout, targets.side, targets.start_weight, np.random.default_rng(0))

    def cost(beta: np.ndarray) -> float:
        cells = problem.cost(beta[None], targets.z[None], targets.side[None], np.ones((1, len(targets))))[0]
        return float(cells + 2 * (np.sqrt(1 + ((beta[0] - mean) / spread) ** 2) - 1))

    best = differential_evolution(cost, [(-5, 10), (-10, 10)], seed=0, tol=1e-10)
    assert fitted[1] == pytest.approx(best.fun, rel=1e-4)
    np.testing.assert_allclose(fitted[0], best.x, atol=2e-3)

    def slope(mask: np.ndarray, **changes: object) -> float:
        own = replace(problem, **changes)  # type: ignore[arg-type]
        rng = np.random.default_rng(0)
        return float(robust.fit(own, targets.dropout, targets.side, targets.start_weight, rng, mask)[0][0])

    every = np.ones(len(targets))
    two = np.isin(np.arange(len(targets)), np.flatnonzero(targets.point)[:2]).astype(np.float64)
    free = {"expected": None, "firmness": None}
    elsewhere = {"expected": np.array([2.0, 0.0])}
    assert slope(every, **elsewhere) == pytest.approx(slope(every, **free), abs=0.35)
    assert abs(slope(two, **elsewhere) - 2.0) < 0.5 * abs(slope(two, **free) - 2.0)

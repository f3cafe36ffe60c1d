"""Optima that a form is fitted to as bounds and not as targets."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import simulated, simulation
from analysis.coefficients import fit_law
from analysis.targets import make_targets
from tune_dd.errors import UserError
from tune_dd.laws import get_law

SATURATING = {"B": 1.1, "C0": -6.0}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return simulated.simulate_calibration(np.random.default_rng(0), coefficients=simulated.TRUE_LAW)


def test_a_saturating_law_is_recovered_from_the_optima_below_its_bound() -> None:
    table = simulated.simulate_calibration(np.random.default_rng(3), law="saturating", coefficients=SATURATING)
    fitted = fit_law(None, table, law="saturating", n_bootstrap=300)
    for name, (low, high) in fitted.intervals.items():
        assert low <= SATURATING[name] <= high, name
    targets = make_targets(None, table)
    below = targets.bounded(get_law("saturating").fit_max)
    assert fitted.n_cells == below.point.sum() < targets.point.sum()
    assert not below.start_weight[below.side != 0].any()


def test_what_lies_above_a_bound_asks_no_more_than_to_be_there(table: pd.DataFrame) -> None:
    """However far above it is; and without the bound it would matter."""
    targets = make_targets(None, table)
    over = targets.dropout > 0.45
    assert over.sum() >= 3
    bounded = targets.bounded(0.45)
    assert (bounded.dropout[over] == 0.45).all()
    assert (bounded.side[over] == 1).all()
    low = replace(targets, side=np.where(over, -1, targets.side))
    assert (low.bounded(0.45).dropout == targets.dropout).all(), "what bounds the law from above stays"
    far = replace(targets, dropout=np.where(over, 0.9, targets.dropout))
    fits = {
        (law, name): fit_law(None, table, law=law, n_bootstrap=1, targets=own).coefficients
        for law in ("saturating", "pinned")
        for name, own in (("as it is", targets), ("far", far))
    }
    assert fits["saturating", "as it is"] == fits["saturating", "far"]
    assert fits["pinned", "as it is"] != fits["pinned", "far"]


@pytest.mark.parametrize("n_seeds", [2, 3])
def test_a_regret_less_its_floor_is_what_a_law_truly_loses(n_seeds: int) -> None:
    found = simulation.bias_of_regret(60, n_seeds=n_seeds, misses=(-0.05, 0.0, 0.05)).set_index("miss")
    assert found.loc[0.0, "truth"] == 0
    assert found.loc[0.0, "regret"] > 0.001, "over fitted optima the truth itself is charged"
    assert found["corrected"].to_numpy() == pytest.approx(found["truth"].to_numpy(), abs=0.0012)
    assert found.loc[0.0, "corrected"] == pytest.approx(0, abs=0.0004)


def test_optima_that_all_lie_above_the_bound_are_one_clear_error(table: pd.DataFrame) -> None:
    targets = make_targets(None, table)
    high = replace(targets, dropout=np.full(len(targets), 0.6), side=np.zeros(len(targets), dtype=np.int64))
    with pytest.raises(UserError, match=r"above 0\.45.*larger prefixes"):
        fit_law(None, table, law="saturating", targets=high)

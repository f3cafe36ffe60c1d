"""Optima that a form is fitted to as bounds and not as targets."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import simulated, simulation
from analysis.coefficients import fit_law
from analysis.targets import Targets, check_rank, make_targets
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


def with_status(targets: Targets, status: str, *, interior: int) -> Targets:
    """Four of the cells, the first few interior and the others of this status."""
    fits = tuple(
        replace(fit, status="interior" if number < interior else status) for number, fit in enumerate(targets.fits[:4])
    )
    arrays = {
        name: value[:4] for name, value in vars(targets).items() if name != "fits" and not isinstance(value, bool)
    }
    return replace(targets, **{**arrays, "fits": fits, "point": np.arange(4) < interior})


@pytest.mark.parametrize(
    ("status", "interior", "message"),
    [
        (
            "censored_low",
            1,
            "the design of the saturating_capped law has rank 1 of 2 over 1 interior cell, since there is only 1 "
            "interior cell among 4: in 3 cells the lowest dropout tried did best: add smaller prefixes or later "
            "read-outs",
        ),
        (
            "censored_high",
            0,
            "none of the 4 cells has an interior optimum: in 4 cells the highest dropout tried did best: add higher "
            "--dropouts, or larger prefixes",
        ),
        (
            "no_signal",
            1,
            "the design of the saturating_capped law has rank 1 of 2 over 1 interior cell, since there is only 1 "
            "interior cell among 4: in 3 cells no dropout stands out from the noise: add --seeds, or smaller prefixes",
        ),
    ],
)
def test_too_few_interior_cells_say_what_would_bring_more(
    table: pd.DataFrame, status: str, interior: int, message: str
) -> None:
    targets = with_status(make_targets(None, table), status, interior=interior)
    with pytest.raises(UserError) as caught:
        check_rank(targets, get_law("saturating_capped"))
    assert str(caught.value) == message


def test_a_grid_without_0_is_told_to_have_it(table: pd.DataFrame) -> None:
    targets = with_status(make_targets(None, table), "censored_low", interior=1)
    fits = tuple(replace(fit, dropouts=fit.dropouts + 0.1) for fit in targets.fits)
    with pytest.raises(UserError, match="add lower --dropouts down to 0, or smaller prefixes"):
        check_rank(replace(targets, fits=fits), get_law("saturating_capped"))


def test_what_no_law_is_fitted_for_is_said_of_the_law_asked_for(table: pd.DataFrame) -> None:
    targets = with_status(make_targets(None, table), "censored_low", interior=1)
    with pytest.raises(UserError, match="of the saturating_capped law has rank 1 of 2") as caught:
        fit_law(None, table, law="saturating_capped", fallback="first_order", targets=targets)
    assert "first_order" not in str(caught.value)


def test_without_intervals_no_note_speaks_of_them() -> None:
    rng = np.random.default_rng(3)
    few = simulated.simulate_calibration(
        rng,
        law="saturating",
        coefficients=SATURATING,
        n_params=(163_840,),
        unique_tokens=(8_000,),
        dropouts=(0.0, 0.2, 0.4, 0.6),
        n_seeds=1,
    )
    notes = fit_law(None, few, law="saturating", n_bootstrap=20).notes
    assert any("so no intervals" in note for note in notes)
    assert any(note.startswith("weakly determined") and "do not rely on the coefficients" in note for note in notes)
    assert any(note.startswith("1 set of trials (one per model and prefix) for 2 coefficients") for note in notes)
    assert sum("interval" in note for note in notes) == 1

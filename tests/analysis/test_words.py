"""The answer claims no more than the intervals allow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from analysis.coefficients import fit_law
from analysis.figures import optimum_text
from analysis.tables import load_experiment
from analysis.terminal import best_text, optimum_interval
from analysis.words import answer, direction, law_sentence


def cells(*rows: dict[str, Any]) -> pd.DataFrame:
    base = {
        "regime": "pydocs",
        "phase": "calibrate",
        "model": "L2_H2_D64",
        "n_params": 163_840,
        "sampled_tokens": 262_144,
        "status": "interior",
        "grid_optimum": 0.2,
    }
    return pd.DataFrame([{**base, **row} for row in rows])


def cell(u: int, best: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"unique_tokens": u, "fitted_optimum": best, "fitted_low": low, "fitted_high": high, **more}


@pytest.mark.parametrize(
    ("ends", "verb"),
    [
        (((0.5, 0.45, 0.55), (0.1, 0.05, 0.15)), "falls from 0.50 [0.45, 0.55] at U = 4k to 0.10 [0.05, 0.15]"),
        (((0.1, 0.05, 0.15), (0.5, 0.45, 0.55)), "rises from"),
        (((0.3, 0.1, 0.5), (0.1, 0.0, 0.2)), "does not move clearly: from"),
        (
            ((0.5, float("nan"), float("nan")), (0.1, float("nan"), float("nan"))),
            "goes from 0.50 at U = 4k to 0.10 at U = 64k; 2 of 2 cells",
        ),
    ],
)
def test_a_move_is_claimed_only_where_intervals_part(ends: tuple[tuple[float, ...], ...], verb: str) -> None:
    assert verb in answer(cells(cell(4_000, *ends[0]), cell(64_000, *ends[1])))


def test_one_seed_says_that_it_cannot_say_how_sure() -> None:
    nan = float("nan")
    text = answer(cells(cell(4_000, 0.5, nan, nan), cell(64_000, 0.1, nan, nan)))
    assert text.endswith("; with one seed nothing says how sure this is.")


def test_a_censored_end_is_never_a_point() -> None:
    high = cell(4_000, 0.53, 0.49, 0.55, status="censored_high", grid_optimum=0.6)
    text = answer(cells(high, cell(64_000, 0.1, 0.05, 0.15)))
    assert "falls from at least 0.49 (censored: the highest tried, 0.6, did best) at U = 4k" in text
    assert "1 of 2 cells have their optimum inside the grid (1 at its high end)" in text
    low = [cell(u, 0.0, 0.0, 0.02, status="censored_low", grid_optimum=0.0) for u in (4_000, 64_000)]
    assert "tokens stays at the lowest tried, 0 (censored), from U = 4k to U = 64k" in answer(cells(*low))
    unsure = cell(4_000, 0.53, float("nan"), float("nan"), status="censored_high", grid_optimum=0.6)
    assert "goes from the highest tried, 0.6 (censored) at U = 4k" in answer(cells(unsure, cell(8_000, 0.1, 0, 0.2)))
    flat = cell(4_000, 0.5, 0.45, 0.55, status="no_signal")
    assert "does not move clearly: from nothing that stands out" in answer(cells(flat, cell(64_000, 0.1, 0.05, 0.15)))


def test_the_tables_bound_is_the_one_that_the_interval_supports() -> None:
    low, high = {"fitted_low": 0.02, "fitted_high": 0.07}, {"fitted_low": 0.49, "fitted_high": 0.55}
    rows: list[dict[Any, Any]] = [
        {"status": "censored_high", "grid_optimum": 0.6, **high},
        {"status": "censored_low", "grid_optimum": 0.05, **low},
        {"status": "censored_low", "grid_optimum": 0.0, **low},
        {"status": "interior", "grid_optimum": 0.5, "fitted_optimum": 0.52, **high},
    ]
    shown = [(best_text(row), optimum_interval(row)) for row in rows]
    assert shown == [(">=0.49", "-"), ("<=0.07", "-"), ("0", "[0.02, 0.07]"), ("0.52", "[0.49, 0.55]")]
    assert "at least 0.49" in optimum_text("censored_high", 0.53, 0.49, 0.55, 0.6)


PRIMARY = {"metric": "final_val_loss", "condition": "law", "baseline": "static_0.20", "primary": True}
PAIRED = {**PRIMARY, "method": "paired", "n_pairs": 5, "difference": -0.057, "p_welch": float("nan")}


def test_one_cell_and_the_stream() -> None:
    comparison = pd.DataFrame([{**PAIRED, "low": -0.08, "high": -0.03, "p_paired_t": 0.004}])
    text = answer(cells(cell(4_000, 0.5, 0.45, 0.55)), comparison)
    assert "at U = 4k unique and C = 262k sampled tokens is 0.50 [0.45, 0.55]" in text
    assert "law ends lower than static_0.20: final validation loss -0.0570 nats per token [-0.0800, -0.0300]" in text
    assert text.endswith("(5 seeds, paired t p = 0.004).")
    assert "ends higher than" in answer(cells(), comparison.assign(low=0.01, high=0.02))
    assert answer(cells()) == ""


@pytest.mark.parametrize("other", [{"high": 0.01}, {"p_paired_t": 0.08}, {"p_paired_t": float("nan")}])
def test_a_direction_needs_interval_and_test(other: dict[str, float]) -> None:
    comparison = pd.DataFrame([{**PAIRED, "low": -0.08, "high": -0.03, "p_paired_t": 0.004, **other}])
    assert "is not shown to differ from" in answer(cells(), comparison)


def test_a_stream_of_one_seed_or_of_unmatched_seeds_prints_no_nan() -> None:
    nan = float("nan")
    one = pd.DataFrame([{**PAIRED, "n_pairs": 1, "low": nan, "high": nan, "p_paired_t": nan}])
    text = answer(cells(), one)
    assert text == (
        "On the stream, law cannot be told from static_0.20: final validation loss -0.0570 nats per token "
        "over 1 seed, too few to say how sure this is."
    )
    welch = {**PAIRED, "method": "welch", "n_pairs": 0, "low": -0.1, "high": -0.01, "p_paired_t": nan, "p_welch": 0.02}
    text = answer(cells(), pd.DataFrame([welch]))
    assert "law ends lower than static_0.20" in text
    assert text.endswith("[-0.1000, -0.0100] (no seed matched, Welch's t p = 0.020).")


def test_the_law_warns_of_one_size_first_and_keeps_its_two_errors_apart(synthetic: ModuleType, tmp_path: Path) -> None:
    table = load_experiment([synthetic.write_run(tmp_path, synthetic.calibration())]).table
    law = fit_law(None, table, n_bootstrap=20)
    text = law_sentence(law)
    assert text.startswith("For models of P = 164k only, since one size cannot tell how dropout depends on P")
    assert f"off by {law.loo_rmse:.3f} in dropout (root mean square over the {law.n_cells} cells whose optimu" in text
    assert f"costs {law.loo_regret:.4f} nats per token more than the best one (mean over all 20 cells)" in text
    assert "other read-outs of the same trials stay in it" in text
    assert law.n_cells < 20
    second = tuple({**cell, "n_params": 2 * cell["n_params"]} for cell in law.cells)
    assert law_sentence(replace(law, cells=(*law.cells, *second))).startswith("The interaction law, p = ")


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        (-0.05, -0.01, 0.01, -1),
        (0.01, 0.05, 0.01, 1),
        (-0.05, -0.01, 0.06, 0),  # as Holm's adjustment may leave it
        (-0.05, 0.01, 0.01, 0),
        (-0.05, -0.01, float("nan"), 0),
        (float("nan"), float("nan"), 0.01, None),
    ],
)
def test_a_direction_is_told_by_its_sign(low: float, high: float, p: float, expected: int | None) -> None:
    assert direction({"low": low, "high": high}, p) == expected

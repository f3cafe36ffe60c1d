"""Simulated sweeps with a known answer: how often do the intervals cover it, and what is a law charged?

Run ``python -m analysis.simulation`` for the figures of docs/methodology.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.coefficients import fit_law
from analysis.comparison import compare
from analysis.simulated import (
    CURVES,
    EIGHT_DROPOUTS,
    SEVEN_DROPOUTS,
    STREAM,
    TRUE_LAW,
    LossCurve,
    simulate_calibration,
    simulate_cell,
    simulate_cells,
    simulate_stream,
)
from analysis.targets import make_targets, regret_floors
from tune_dd.law import P_MAX
from tune_dd.laws import get_law

# Sizes and prefixes of the simulated calibrations; read-outs are those of ``simulate_calibration``.
SIZES, PREFIXES = (45_000, 163_840, 430_000), (4_000, 8_000, 16_000, 32_000)
ONE_SEED_DESIGNS = (
    ((163_840,), (8_000, 16_000)),
    ((163_840,), PREFIXES),
    (SIZES, PREFIXES),
)


def coverage_of_optimum(
    n_sweeps: int = 500,
    *,
    dropouts: Sequence[float] = SEVEN_DROPOUTS,
    n_seeds: int = 3,
    n_bootstrap: int = 400,
    seed: int = 0,
) -> pd.DataFrame:
    """Per curve: the share of simulated sweeps whose 95 % interval holds the true optimum, the same for the
    improvement over p = 0, the fitted optimum's bias and standard deviation, the interval's mean width, and
    how often the status was interior and the parabola was said to miss its levels.
    """
    rows: list[dict[str, object]] = []
    for name, curve in CURVES.items():
        truth = curve.optimum
        gains = curve(0.0) - curve([p for p in dropouts if p > 0])
        rng = np.random.default_rng([seed, len(rows)])
        fits = [
            simulate_cell(curve, rng, dropouts=dropouts, n_seeds=n_seeds, n_bootstrap=n_bootstrap)
            for _ in range(n_sweeps)
        ]
        fitted = np.array([fit.fitted_optimum for fit in fits])
        rows.append(
            {
                "curve": name,
                "optimum": truth,
                "coverage": np.mean([fit.fitted_low <= truth <= fit.fitted_high for fit in fits]),
                "bias": fitted.mean() - truth,
                "sd": fitted.std(ddof=1),
                "cubic_bias": np.mean([fit.cubic_optimum for fit in fits]) - truth,
                "width": np.mean([fit.fitted_high - fit.fitted_low for fit in fits]),
                "improvement_coverage": np.mean(
                    [fit.improvement_low <= gains.max() <= fit.improvement_high for fit in fits]
                ),
                "interior": np.mean([fit.status == "interior" for fit in fits]),
                "rough": np.mean([fit.rough for fit in fits]),
                "sweeps": n_sweeps,
            }
        )
    return pd.DataFrame(rows)


def flat_rate(n_sweeps: int = 500, *, seed: int = 0) -> float:
    """The share of sweeps over a flat curve that are rightly called no_signal; nominal 0.95."""
    rng = np.random.default_rng(seed)
    flat = LossCurve(4.0, 0.0, 0.0, 0.0, 1.0)
    return float(np.mean([simulate_cell(flat, rng, n_bootstrap=10).status == "no_signal" for _ in range(n_sweeps)]))


def bias_of_regret(
    n_cells: int = 40, *, n_seeds: int = 2, misses: Sequence[float] = (-0.1, -0.05, 0.0, 0.05, 0.1), seed: int = 0
) -> pd.DataFrame:
    """What a law that misses the true optimum by so much is charged, nats per token, beside what it truly loses.

    Args:
        n_cells: of each curve.
        misses: law less true optimum, dropout; the law is held to [0, 0.65].

    Returns one row per miss, the mean over all cells of all curves: miss, truth (loss there over the true least),
    regret (over the fitted least), floor (``regret_floors``), corrected (regret less floor).
    """
    rng = np.random.default_rng([seed, n_seeds])
    rows = []
    for curve in CURVES.values():
        table = simulate_cells(curve, rng, n_cells=n_cells, n_seeds=n_seeds)
        cells = make_targets(None, table, seed=seed)
        floor = regret_floors(cells).mean()
        for miss in misses:
            law = np.clip(curve.optimum + miss, 0.0, P_MAX)
            regret = np.mean([fit.regret(law) for fit in cells.fits])
            truth = float(curve(law) - curve(curve.optimum))
            rows.append({"miss": miss, "truth": truth, "regret": regret, "floor": floor, "corrected": regret - floor})
    found = pd.DataFrame(rows).groupby("miss", as_index=False).mean()
    return found.assign(cells=n_cells * len(CURVES), seeds=n_seeds)


def coverage_of_coefficients(
    n_calibrations: int = 200,
    *,
    n_params: Sequence[int] = SIZES,
    unique_tokens: Sequence[int] = PREFIXES,
    n_seeds: int = 3,
    n_bootstrap: int = 300,
    miss: float = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Per coefficient, and for the law's dropout at the calibrated sizes and prefixes (``prediction``, at
    C = 196,608): the share of simulated calibrations whose 95 % interval holds the truth, and the spread.

    A prediction's truth is another one at each place, so its row has the root mean square error as ``sd``.
    """
    rng = np.random.default_rng(seed)
    p, u = (axis.ravel() for axis in np.meshgrid(n_params, unique_tokens))
    dropouts = get_law("interaction").dropout(TRUE_LAW, p, u, 196_608)
    fits, errors, held = [], [], []
    for number in range(n_calibrations):
        table = simulate_calibration(
            rng, coefficients=TRUE_LAW, n_params=n_params, unique_tokens=unique_tokens, n_seeds=n_seeds, miss=miss
        )
        fits.append(fit_law(None, table, n_bootstrap=n_bootstrap, seed=number))
        low, high = fits[-1].interval(p, u, 196_608)
        errors.append(fits[-1].predict(p, u, 196_608) - dropouts)
        held.append((low <= dropouts) & (dropouts <= high))
    rows: list[dict[str, object]] = []
    for name, truth in TRUE_LAW.items():
        values = np.array([fit.coefficients[name] for fit in fits])
        rows.append(
            {
                "coefficient": name,
                "truth": truth,
                "mean": values.mean(),
                "sd": values.std(ddof=1),
                "coverage": np.mean([fit.intervals[name][0] <= truth <= fit.intervals[name][1] for fit in fits]),
                "calibrations": n_calibrations,
            }
        )
    rows.append(
        {
            "coefficient": "prediction",
            "sd": np.sqrt(np.mean(np.square(errors))),
            "coverage": np.mean(held),
            "calibrations": n_calibrations,
        }
    )
    return pd.DataFrame(rows)


def level_of_comparison(n_streams: int = 300, *, n_seeds: int = 5, seed: int = 0) -> pd.DataFrame:
    """The share of streams, whose law is truly as good as the best static, that are declared different at 5 %."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(n_streams):
        table = simulate_stream(rng, n_seeds=n_seeds)
        table.loc[(table["condition"] == "law") & (table["stage"] == table["stage"].max()), "val_loss"] -= STREAM["law"]
        rows.append(compare(table, metrics=("final_val_loss",), n_bootstrap=400, seed=number).iloc[0])
    found = pd.DataFrame(rows)
    interval, test = (found["low"] > 0) | (found["high"] < 0), found["p_paired_t"] < 0.05
    shares = {"paired t": test, "bootstrap interval": interval, "both": interval & test}
    return pd.DataFrame(
        [
            {"rejects": name, "seeds": n_seeds, "share": value.mean(), "streams": n_streams}
            for name, value in shares.items()
        ]
    )


def coverage_of_comparison(n_streams: int = 300, *, n_seeds: int = 5, seed: int = 0) -> pd.DataFrame:
    """The share of simulated streams whose intervals of law less best static hold the truth."""
    rng = np.random.default_rng(seed)
    truth = STREAM["law"] - min(value for name, value in STREAM.items() if name.startswith("static"))
    rows = []
    for number in range(n_streams):
        table = simulate_stream(rng, n_seeds=n_seeds)
        rows.append(compare(table, metrics=("final_val_loss",), n_bootstrap=400, seed=number).iloc[0])
    found = pd.DataFrame(rows)
    return pd.DataFrame(
        [
            {
                "interval": name,
                "seeds": n_seeds,
                "coverage": ((found[low] <= truth) & (truth <= found[high])).mean(),
                "width": (found[high] - found[low]).mean(),
                "bias": found["difference"].mean() - truth,
                "streams": n_streams,
            }
            for name, low, high in (("bootstrap", "low", "high"), ("paired t", "t_low", "t_high"))
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Coverage of the intervals on simulated sweeps.")
    parser.add_argument("--sweeps", type=int, default=500)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--calibrations", type=int, default=200)
    parser.add_argument("--streams", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    pd.set_option("display.width", 160)
    grids = {"7 dropouts": SEVEN_DROPOUTS, "8 dropouts": EIGHT_DROPOUTS}
    for name, dropouts in grids.items():
        print(f"Optimum, {name}, 3 seeds, {options.sweeps} sweeps a curve")
        print(coverage_of_optimum(options.sweeps, dropouts=dropouts, seed=options.seed).round(4).to_string(index=False))
    print(f"Flat curve called no_signal: {flat_rate(options.sweeps, seed=options.seed):.3f}")
    for n_seeds in (2, 3):
        print(f"What a law is charged for missing the optimum, {n_seeds} seeds, nats per token")
        result = bias_of_regret(options.cells, n_seeds=n_seeds, seed=options.seed)
        print(result.round(4).to_string(index=False))
    for miss in (0.0, 0.03):
        print(f"Coefficients, {options.calibrations} calibrations, the law missing by {miss} a block")
        result = coverage_of_coefficients(options.calibrations, miss=miss, seed=options.seed)
        print(result.round(4).to_string(index=False))
    for sizes, prefixes in ONE_SEED_DESIGNS:
        print(f"One seed, {len(sizes)} sizes, {len(prefixes)} prefixes, {options.calibrations} calibrations")
        result = coverage_of_coefficients(
            options.calibrations, n_params=sizes, unique_tokens=prefixes, n_seeds=1, seed=options.seed
        )
        print(result.round(4).to_string(index=False))
    for n_seeds in (3, 5):
        print(f"A law as good as the best static, {n_seeds} seeds, called different at 5 %")
        level = level_of_comparison(options.streams, n_seeds=n_seeds, seed=options.seed)
        print(level.round(4).to_string(index=False))
        result = coverage_of_comparison(options.streams, n_seeds=n_seeds, seed=options.seed)
        print(f"Law less best static, {n_seeds} seeds")
        print(result.round(4).to_string(index=False))


if __name__ == "__main__":
    main()

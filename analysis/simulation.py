"""Simulated sweeps with a known answer: how often do the intervals cover it?

Run ``python -m analysis.simulation`` for the figures of docs/methodology.md. The noise is that measured on
pocket runs: 0.040 nats common to all dropouts of a seed, and 0.021 of a single trial besides (0.030 between
two dropouts of one seed).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from analysis.cells import decompose, pool_noise
from analysis.coefficients import fit_law
from analysis.comparison import compare
from analysis.optimum import CellFit, fit_cell
from tune_dd.laws import Array, get_law

SEED_SD, TRIAL_SD = 0.040, 0.030 / np.sqrt(2)
SEVEN_DROPOUTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


@dataclass(frozen=True)
class LossCurve:
    """loss(p) = a + b p + c p^2 + d s(p): what dropout costs, and what it saves in overfitting.

    s(p) is exp(-p/t) (``exponential``) or t/(p + t) (``hyperbolic``).
    """

    a: float
    b: float
    c: float
    d: float
    t: float
    saving: str = "exponential"

    def __call__(self, dropout: ArrayLike) -> Array:
        p = np.asarray(dropout, dtype=np.float64)
        saved = np.exp(-p / self.t) if self.saving == "exponential" else self.t / (p + self.t)
        return np.asarray(self.a + self.b * p + self.c * p**2 + self.d * saved)

    @property
    def optimum(self) -> float:
        """Its minimiser on [0, 0.65]."""
        found = minimize_scalar(lambda p: float(self(p)), bounds=(0.0, 0.65), method="bounded", options={"xatol": 1e-7})
        return float(found.x)


# Least-squares fits of both families (b, c, d at least 0) to the three-seed means of pocket runs at U = 4k,
# 8k, 16k, 32k, 64k and C = 262k; they pass within 0.022, 0.009, 0.005, 0.012, 0.012 nats of them.
CURVES: dict[str, LossCurve] = {
    "exponential 4k": LossCurve(4.4984, 2.1123, 0.0000, 3.4280, 0.3641),
    "exponential 8k": LossCurve(5.1375, 0.0000, 0.4380, 0.7760, 0.1249),
    "exponential 16k": LossCurve(4.4374, 0.0000, 0.8830, 0.2447, 0.1407),
    "exponential 32k": LossCurve(4.1495, 0.1335, 0.7444, 0.0263, 0.0577),
    "exponential 64k": LossCurve(3.9898, 0.0607, 1.0537, 0.0192, 0.0300),
    "hyperbolic 4k": LossCurve(-2.0366, 4.3824, 0.0000, 9.9637, 0.8475, "hyperbolic"),
    "hyperbolic 8k": LossCurve(4.2203, 0.9715, 0.1084, 1.6943, 0.2248, "hyperbolic"),
    "hyperbolic 16k": LossCurve(4.2808, 0.0468, 0.9659, 0.4018, 0.2080, "hyperbolic"),
    "hyperbolic 32k": LossCurve(4.1247, 0.1867, 0.7049, 0.0508, 0.0953, "hyperbolic"),
    "hyperbolic 64k": LossCurve(3.9863, 0.0692, 1.0473, 0.0226, 0.0200, "hyperbolic"),
}


def simulate_cell(
    curve: LossCurve,
    rng: np.random.Generator,
    *,
    dropouts: Sequence[float] = SEVEN_DROPOUTS,
    n_seeds: int = 3,
    n_bootstrap: int = 400,
) -> CellFit:
    """One simulated cell, analysed."""
    p = np.tile(dropouts, n_seeds)
    seed = np.repeat(np.arange(n_seeds), len(dropouts))
    loss = curve(p) + SEED_SD * rng.standard_normal(n_seeds)[seed] + TRIAL_SD * rng.standard_normal(len(p))
    cell = decompose(("simulated", "calibrate", "L2_H2_D64", 163_840, 8_000, 262_144), seed, p, loss)
    return fit_cell(cell, pool_noise([cell])[cell.key], None, n_bootstrap, int(rng.integers(2**31)))


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
    how often the status was interior.
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
                "sweeps": n_sweeps,
            }
        )
    return pd.DataFrame(rows)


def flat_rate(n_sweeps: int = 500, *, seed: int = 0) -> float:
    """The share of sweeps over a flat curve that are rightly called no_signal; nominal 0.95."""
    rng = np.random.default_rng(seed)
    flat = LossCurve(4.0, 0.0, 0.0, 0.0, 1.0)
    return float(np.mean([simulate_cell(flat, rng, n_bootstrap=10).status == "no_signal" for _ in range(n_sweeps)]))


def simulate_calibration(
    rng: np.random.Generator,
    *,
    law: str = "interaction",
    coefficients: Mapping[str, float],
    n_params: Sequence[int] = (45_000, 163_840, 430_000),
    unique_tokens: Sequence[int] = (4_000, 8_000, 16_000, 32_000),
    sampled_tokens: Sequence[int] = (131_072, 196_608, 262_144),
    dropouts: Sequence[float] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    n_seeds: int = 3,
    correlation: float = 0.5,
    miss: float = 0.0,
) -> pd.DataFrame:
    """A calibrate table whose cells' optima follow a law.

    The curves are of the exponential family with c = 0.9, t = 0.14 as at U = 16k, and d such that the
    minimum lies where the law says.

    Args:
        correlation: of one trial's noise between its read-outs.
        miss: standard deviation, in dropout, by which the optimum of each (P, U) block misses the law.
    """
    form = get_law(law)
    rows = []
    for p_count in n_params:
        for prefix in unique_tokens:
            off = miss * rng.standard_normal()
            common = rng.standard_normal((n_seeds, len(dropouts)))
            for readout, sampled in enumerate(sampled_tokens):
                optimum = float(np.clip(form.dropout(coefficients, p_count, prefix, sampled) + off, 0.0, 0.65))
                curve = curve_with_optimum(optimum)
                own = rng.standard_normal((n_seeds, len(dropouts)))
                noise = TRIAL_SD * (np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own)
                losses = curve(dropouts) + SEED_SD * rng.standard_normal((n_seeds, 1)) + noise
                for seed in range(n_seeds):
                    for p, loss in zip(dropouts, losses[seed], strict=True):
                        rows.append(
                            {
                                "regime": "simulated",
                                "phase": "calibrate",
                                "model": f"P{p_count}",
                                "n_params": p_count,
                                "condition": f"static_{p:.2f}",
                                "kind": "static",
                                "seed": seed,
                                "stage": 0,
                                "readout": readout,
                                "unique_tokens": prefix,
                                "sampled_tokens": sampled,
                                "dropout": p,
                                "val_loss": loss,
                            }
                        )
    return pd.DataFrame(rows)


def curve_with_optimum(optimum: float) -> LossCurve:
    """A curve of the exponential family with its minimum at ``optimum``."""
    c, t = 0.9, 0.14
    return LossCurve(4.4, 0.0, c, 2 * c * optimum * t * float(np.exp(optimum / t)), t)


# The interaction law fitted to pocket runs of three sizes, rounded.
TRUE_LAW = {"A": 0.20, "B": 0.15, "D": 0.06, "C0": -0.25}


# Sizes and prefixes of the simulated calibrations; read-outs are those of ``simulate_calibration``.
SIZES, PREFIXES = (45_000, 163_840, 430_000), (4_000, 8_000, 16_000, 32_000)
ONE_SEED_DESIGNS = (
    ((163_840,), (8_000, 16_000)),
    ((163_840,), PREFIXES),
    (SIZES, PREFIXES),
)


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


# Final losses of a pocket stream over the best static's, nats, and the noise of one trial there.
STREAM = {
    "law": -0.057,
    "static_0.15": 0.008,
    "static_0.20": 0.0,
    "static_0.25": 0.015,
    "static_0.30": 0.023,
    "reversed_law": 0.097,
}
STREAM_SD = 0.017


def simulate_stream(rng: np.random.Generator, *, n_seeds: int = 5, n_stages: int = 5) -> pd.DataFrame:
    """A stream table whose conditions differ by ``STREAM`` at the end, and by half of it before."""
    rows = []
    for seed in range(n_seeds):
        common = SEED_SD * rng.standard_normal()
        for condition, effect in STREAM.items():
            kind = "static" if condition.startswith("static") else "law" if condition == "law" else "anchor_decay"
            for stage in range(n_stages):
                left = n_stages - 1 - stage
                loss = 3.876 + common + effect * (0.5 if left else 1.0) + 0.3 * left
                loss += STREAM_SD * rng.standard_normal()
                rows.append(
                    {
                        "regime": "simulated",
                        "phase": "stream",
                        "model": "L2_H2_D64",
                        "n_params": 163_840,
                        "condition": condition,
                        "kind": kind,
                        "seed": seed,
                        "stage": stage,
                        "readout": 0,
                        "unique_tokens": 4_000 * 2**stage,
                        "sampled_tokens": 131_072 * (stage + 1),
                        "dropout": 0.2,
                        "val_loss": loss,
                        "val_bpb": loss / np.log(2) / 2.2,
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
    parser.add_argument("--calibrations", type=int, default=200)
    parser.add_argument("--streams", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    pd.set_option("display.width", 160)
    grids = {"7 dropouts": SEVEN_DROPOUTS, "8 dropouts": (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)}
    for name, dropouts in grids.items():
        print(f"Optimum, {name}, 3 seeds, {options.sweeps} sweeps a curve")
        print(coverage_of_optimum(options.sweeps, dropouts=dropouts, seed=options.seed).round(4).to_string(index=False))
    print(f"Flat curve called no_signal: {flat_rate(options.sweeps, seed=options.seed):.3f}")
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

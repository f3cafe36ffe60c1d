"""Simulated cells, calibrations and streams, whose answer is known.

The noise is that measured on pocket runs: 0.040 nats common to all dropouts of a seed, and 0.021 of a single trial
besides (0.030 between two dropouts of one seed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from analysis.cells import decompose, pool_noise
from analysis.optimum import CellFit, fit_cell
from tune_dd.law import Array
from tune_dd.laws import get_law

SEED_SD, TRIAL_SD = 0.040, 0.030 / np.sqrt(2)
SEVEN_DROPOUTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
EIGHT_DROPOUTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


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


def simulate_calibration(
    rng: np.random.Generator,
    *,
    law: str = "interaction",
    coefficients: Mapping[str, float],
    n_params: Sequence[int] = (45_000, 163_840, 430_000),
    unique_tokens: Sequence[int] = (4_000, 8_000, 16_000, 32_000),
    sampled_tokens: Sequence[int] = (131_072, 196_608, 262_144),
    dropouts: Sequence[float] = EIGHT_DROPOUTS,
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
    rows: list[dict[str, object]] = []
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
                rows += _cell_rows(losses, dropouts, p_count, prefix, sampled, readout)
    return pd.DataFrame(rows)


def simulate_cells(
    curve: LossCurve,
    rng: np.random.Generator,
    *,
    n_cells: int,
    dropouts: Sequence[float] = EIGHT_DROPOUTS,
    n_seeds: int = 2,
) -> pd.DataFrame:
    """A calibrate table of cells that share a curve; they are told apart by P, which stands for nothing."""
    rows: list[dict[str, object]] = []
    for number in range(n_cells):
        noise = TRIAL_SD * rng.standard_normal((n_seeds, len(dropouts)))
        losses = curve(dropouts) + SEED_SD * rng.standard_normal((n_seeds, 1)) + noise
        rows += _cell_rows(losses, dropouts, 100_000 + number, 8_000, 262_144, 0)
    return pd.DataFrame(rows)


def _cell_rows(
    losses: Array, dropouts: Sequence[float], n_params: int, unique_tokens: int, sampled_tokens: int, readout: int
) -> list[dict[str, object]]:
    """One row per seed and dropout; ``losses`` is (seeds, dropouts)."""
    return [
        {
            "regime": "simulated",
            "phase": "calibrate",
            "model": f"P{n_params}",
            "n_params": n_params,
            "condition": f"static_{p:.2f}",
            "kind": "static",
            "seed": seed,
            "stage": 0,
            "readout": readout,
            "unique_tokens": unique_tokens,
            "sampled_tokens": sampled_tokens,
            "dropout": p,
            "val_loss": loss,
        }
        for seed, own in enumerate(losses)
        for p, loss in zip(dropouts, own, strict=True)
    ]


def curve_with_optimum(optimum: float) -> LossCurve:
    """A curve of the exponential family with its minimum at ``optimum``."""
    c, t = 0.9, 0.14
    return LossCurve(4.4, 0.0, c, 2 * c * optimum * t * float(np.exp(optimum / t)), t)


# The interaction law fitted to pocket runs of three sizes, rounded.
TRUE_LAW = {"A": 0.20, "B": 0.15, "D": 0.06, "C0": -0.25}

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

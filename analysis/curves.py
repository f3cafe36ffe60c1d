"""Loss against dropout as a polynomial around the minimum, in a coordinate fixed beforehand.

Coordinate ``z = sqrt(p + 0.1)``: it stretches the low end, where real curves fall steeply, so that a
quadratic and a cubic agree there. Window: the quadratic takes the five grid dropouts around the best
one, the cubic seven (fewer at the edge of the grid are made up on the other side). Coordinate and windows
were chosen on simulated sweeps (docs/methodology.md) and are not to be tuned on the data at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tune_dd.law import Array

SHIFT = 0.1
QUADRATIC_WINDOW, CUBIC_WINDOW = 5, 7


def coordinate(dropout: ArrayLike) -> Array:
    """z = sqrt(p + 0.1)."""
    return np.asarray(np.sqrt(np.asarray(dropout, dtype=np.float64) + SHIFT))


def from_coordinate(z: ArrayLike) -> Array:
    """p = z^2 - 0.1, at least 0, and 0 exactly where only rounding keeps it from that."""
    p = np.asarray(z, dtype=np.float64) ** 2 - SHIFT
    return np.asarray(np.where(p < 1e-12, 0.0, p))


@dataclass(frozen=True)
class Curve:
    """A fitted polynomial: loss(p) = sum_j coefficients[j] z^j, z = sqrt(p + 0.1), in nats per token.

    Attributes:
        coefficients: ascending powers of z; three for a quadratic, four for a cubic.
        low, high: the dropouts that bound the window it was fitted on.
        optimum: its minimiser within the window.
    """

    coefficients: tuple[float, ...]
    low: float
    high: float
    optimum: float

    def loss(self, dropout: ArrayLike) -> Array:
        return np.asarray(np.polynomial.polynomial.polyval(coordinate(dropout), np.array(self.coefficients)))

    def covers(self, dropout: ArrayLike) -> NDArray[np.bool_]:
        """Whether a dropout lies in the window."""
        p = np.asarray(dropout, dtype=np.float64)
        return np.asarray((p >= self.low) & (p <= self.high))

    def slope_and_curvature(self, dropout: float) -> tuple[float, float]:
        """First and half the second derivative with respect to z there, nats."""
        z = float(coordinate(dropout))
        _, linear, square, *rest = self.coefficients
        cube = rest[0] if rest else 0.0
        return linear + z * (2 * square + 3 * cube * z), square + 3 * cube * z

    @property
    def minimum(self) -> float:
        return float(self.loss(self.optimum))


@dataclass(frozen=True)
class _Window:
    solver: Array  # (degree + 1, k): levels -> coefficients in t = (z - centre) / half
    expand: Array  # (degree + 1, degree + 1): those -> coefficients in z
    start: int
    size: int
    centre: float
    half: float


@lru_cache(maxsize=4096)
def _windows(dropouts: tuple[float, ...], counts: tuple[float, ...], degree: int) -> tuple[_Window, ...]:
    size = min(QUADRATIC_WINDOW if degree == 2 else CUBIC_WINDOW, len(dropouts))
    z, root = coordinate(dropouts), np.sqrt(counts)
    windows = []
    for start in range(len(dropouts) - size + 1):
        inside, weight = z[start : start + size], root[start : start + size]
        centre, half = (inside[0] + inside[-1]) / 2, (inside[-1] - inside[0]) / 2
        powers = np.vander((inside - centre) / half, degree + 1, increasing=True)
        solver = np.linalg.pinv(powers * weight[:, None]) * weight
        line = np.polynomial.Polynomial([-centre / half, 1 / half])
        expand = np.zeros((degree + 1, degree + 1))
        for power in range(degree + 1):
            expand[: power + 1, power] = (line**power).coef
        windows.append(_Window(solver, expand, start, size, float(centre), float(half)))
    return tuple(windows)


def can_fit(n_dropouts: int, degree: int) -> bool:
    return n_dropouts > degree


def minimisers(levels: Array, dropouts: Array, counts: Array, degree: int) -> Array:
    """Fit every row and find its minimum within the window around its best grid dropout.

    Args:
        levels: (B, P) losses.
        dropouts, counts: (P,) increasing rates, and the seeds behind each as weights.
        degree: 2 or 3; P must exceed it.

    Returns:
        The minimisers' coordinates z, (B,).
    """
    best = levels.argmin(axis=1)
    windows = _windows(tuple(dropouts), tuple(counts), degree)
    size = windows[0].size
    starts = np.clip(best - size // 2, 0, len(dropouts) - size)
    b = np.empty((degree + 1, len(levels)))
    for window in windows:
        chosen = np.flatnonzero(starts == window.start)
        if len(chosen):
            b[:, chosen] = (levels[chosen, window.start : window.start + size] @ window.solver.T).T
    centre, half = np.array([(window.centre, window.half) for window in windows]).T
    return np.asarray(centre[starts] + half[starts] * _minimise(b))


def _minimise(b: Array) -> Array:
    """Minimiser on [-1, 1] of each column of ascending coefficients (3 or 4, B)."""
    # The stationary point with positive curvature, in the form that does not cancel; for a quadratic it is
    # the vertex. Where there is none the smaller end of the interval is the minimum.
    constant, linear, square = b[:3]
    cubic = b[3] if len(b) == 4 else np.zeros_like(square)
    discriminant = square**2 - 3 * cubic * linear
    below = square + np.sqrt(np.maximum(discriminant, 0.0))
    inside = (discriminant > 0) & (below > 0)
    # With b2 < 0 this root loses digits, but then the minimum lies far outside the window's middle.
    stationary = np.where(inside, -linear / np.where(inside, below, 1.0), 1.0)
    stationary = np.clip(stationary, -1.0, 1.0)
    best = constant + stationary * (linear + stationary * (square + stationary * cubic))
    low = constant - (linear - (square - cubic))
    high = constant + (linear + (square + cubic))
    return np.asarray(np.where(low < best, np.where(high < low, 1.0, -1.0), np.where(high < best, 1.0, stationary)))


def fit_curve(levels: Array, dropouts: Array, counts: Array, degree: int) -> Curve:
    """The curve of one cell, on the window around its best grid dropout."""
    windows = _windows(tuple(dropouts), tuple(counts), degree)
    size = windows[0].size
    start = int(np.clip(levels.argmin() - size // 2, 0, len(dropouts) - size))
    window = windows[start]
    b = window.solver @ levels[start : start + size]
    z = window.centre + window.half * _minimise(b[:, None])[0]
    low, high = float(dropouts[start]), float(dropouts[start + size - 1])
    optimum = min(max(float(from_coordinate(z)), low), high)
    return Curve(tuple((window.expand @ b).tolist()), low, high, optimum)

"""Robust regret: the fit of a law's coefficients to targets, for one data set or thousands at once.

Minimised is ``sum_i m_i * 2 (sqrt(1 + u_i^2) - 1)`` with ``u_i = (z(p_i) - z*_i) / width_i``, ``p_i`` the
law's clamped dropout in cell i and z = sqrt(p + 0.1). Since a cell's fitted loss is quadratic in z around
its optimum and ``width_i`` is where it has risen by one paired standard error, ``u_i^2`` is the regret in
standard errors: this is the soft-L1 loss of regret. Censored cells cost on one side only. A coefficient of which
something is expected costs as one more cell does, ``u = (coefficient - mean) / sd``: cells that speak against it win.

Solved by Gauss-Newton on the reweighted problem with Levenberg-Marquardt damping, vectorised over
problems, because a bootstrap refits thousands of times. scipy.optimize.least_squares(loss="soft_l1")
solves the same problem one at a time, and a test holds the two together.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.curves import SHIFT, coordinate
from tune_dd.law import IDENTITY, Array, Link

Sides = NDArray[np.int64]
MAX_ITERATIONS = 60
# A problem is solved when a step gains less than this share of its cost.
TOLERANCE = 1e-8
# Starts of a fit, and how often it is begun anew around the best. In all but two of the 154 fits of eleven forms to the
# calibrations of fourteen texts the cost is then within .001 of the least that eighteen times as many starts and
# Nelder-Mead find; from nine starts and no second round it is not in 34.
STARTS, ROUNDS = 100, 2
# The more cells, the smaller each corner of the cost is beside the whole: of MANY_CELLS fewer starts do, of VERY_MANY a
# few and no second round. On 1,120 simulated cells the 88 fits of a report then cost at most .02 % more.
MANY_CELLS, VERY_MANY, LEAST_STARTS = 100, 500, 9
# Problems solved together: 250 problems of 2,000 cells take 4 MB per array.
CHUNK = 250


@dataclass(frozen=True)
class Problem:
    """What all problems of a batch share.

    Attributes:
        design: (n, k).
        width: (n,) in z.
        p_min, p_max, link: the law's clamp and its link.
        expected: (k,) what the coefficients are on other texts, on average; None where nothing is expected.
        firmness: (k,) one over the standard deviation of that; 0 for a coefficient of which nothing is expected.
    """

    design: Array
    width: Array
    p_min: float
    p_max: float
    link: Link = IDENTITY
    expected: Array | None = None
    firmness: Array | None = None

    def predict(self, raw: Array) -> Array:
        """The law's dropout from its linear predictor, of any shape."""
        return np.asarray(np.clip(self.link.rate(raw), self.p_min, self.p_max))

    def residuals(self, beta: Array, z: Array, side: Sides | Array) -> tuple[Array, Array]:
        """u and du/draw, both (B, n), for coefficients (B, k), targets and sides (B, n)."""
        raw = beta @ self.design.T
        rate = self.link.rate(raw)
        p = np.clip(rate, self.p_min, self.p_max)
        u, root, idle = self._misses(p, z, side)
        gradient = np.where((rate == p) & ~idle, 0.5 / (root * self.width) * self.link.slope(raw), 0.0)
        return u, gradient

    def cost(self, beta: Array, z: Array, side: Sides | Array, mask: Array) -> Array:
        """(B,) soft-L1 regret."""
        return self.cost_of(self.predict(beta @ self.design.T), z, side, mask)

    def cost_of(self, p: Array, z: Array, side: Sides | Array, mask: Array | float = 1.0) -> Array:
        """Soft-L1 regret of the law's dropouts, summed over the last axis, that of the cells; all broadcast."""
        u, _, _ = self._misses(p, z, side)
        return np.asarray((mask * 2.0 * (np.sqrt(1.0 + u**2) - 1.0)).sum(axis=-1))

    def surprise(self, beta: Array, expected: Array) -> Array:
        """(B,) what coefficients (B, k) cost beside what is expected of them, (B, k)."""
        v = (beta - expected) * self.firm
        return np.asarray((2.0 * (np.sqrt(1.0 + v**2) - 1.0)).sum(axis=1))

    @property
    def firm(self) -> Array:
        """(k,) the firmness, 0 where nothing is expected."""
        return np.zeros(self.design.shape[1]) if self.firmness is None else self.firmness

    def _misses(self, p: Array, z: Array, side: Sides | Array) -> tuple[Array, Array, NDArray[np.bool_]]:
        """u, z(p) and where u counts as 0, since a censored-low cell (-1) asks nothing of a law below its edge."""
        root = np.sqrt(p + SHIFT)
        u = (root - z) / self.width
        idle = side * u > 0
        np.copyto(u, 0.0, where=idle)
        return u, root, idle


def minimise(
    problem: Problem, start: Array, z: Array, side: Sides, mask: Array, expected: Array | None = None
) -> tuple[Array, Array]:
    """Local minima from given starts.

    Args:
        start: (B, k).
        z: (B, n) targets.
        side: (B, n) -1 censored low, 0 a target, +1 censored high.
        mask: (B, n) weight of each cell in each problem, 0 or 1 (0 leaves a cell out).
        expected: (B, k) expected coefficients of each problem, in the place of the problem's own.

    Returns:
        Coefficients (B, k) and costs (B,).
    """

    if expected is None:
        expected = np.zeros_like(start) if problem.expected is None else np.tile(problem.expected, (len(start), 1))

    def part(first: int) -> tuple[Array, Array]:
        own = slice(first, first + CHUNK)
        return _minimise(problem, start[own], z[own], side[own], mask[own], expected[own])

    # Side by side: numpy holds no interpreter lock while it computes on arrays of this size.
    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(part, range(0, len(start), CHUNK)))
    return np.concatenate([beta for beta, _ in parts]), np.concatenate([cost for _, cost in parts])


def _minimise(
    problem: Problem, start: Array, z: Array, side: Sides, mask: Array, expected: Array
) -> tuple[Array, Array]:
    # Columns of one length, so that the damping means the same for each coefficient.
    scale = np.linalg.norm(problem.design, axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    design = problem.design / scale
    k = design.shape[1]
    outer = (design[:, :, None] * design[:, None, :]).reshape(len(design), k * k)
    scaled = replace(problem, design=design, firmness=problem.firm / scale)
    beta, expected = start * scale, expected * scale
    cost = scaled.cost(beta, z, side, mask) + scaled.surprise(beta, expected)
    damping = np.full(len(beta), 1e-3)
    active = np.arange(len(beta))
    firm = scaled.firm
    sign: Array = side.astype(np.float64)  # once: it is multiplied at every step
    own = z, sign, mask  # of the active problems
    towards = expected
    for _ in range(MAX_ITERATIONS):
        u, gradient = scaled.residuals(beta[active], *own[:2])
        weight = own[2] / np.sqrt(1.0 + u**2)
        hessian = ((weight * gradient**2) @ outer).reshape(-1, k, k)
        slope = (weight * gradient * u) @ design
        if firm.any():
            away = beta[active] - towards
            pull = firm**2 / np.sqrt(1.0 + (away * firm) ** 2)
            hessian += pull[:, :, None] * np.eye(k)
            slope += pull * away
        diagonal = np.einsum("bii->bi", hessian)
        ridge = damping[active, None] * diagonal + 1e-10 * (1.0 + diagonal.max(axis=1, keepdims=True))
        step = np.linalg.solve(hessian + ridge[:, :, None] * np.eye(k), slope[:, :, None])[:, :, 0]
        trial = beta[active] - step
        trial_cost = scaled.cost(trial, *own) + scaled.surprise(trial, towards)
        better = trial_cost <= cost[active]
        moved = active[better]
        beta[moved], gain = trial[better], cost[moved] - trial_cost[better]
        cost[moved] = trial_cost[better]
        damping[active] = np.where(better, damping[active] * 0.2, damping[active] * 8.0)
        finished = np.zeros(len(active), dtype=bool)
        finished[better] = gain <= TOLERANCE * (cost[moved] + 1e-3)
        finished |= damping[active] > 1e9
        if finished.all():
            break
        if finished.any():
            active = active[~finished]
            own = z[active], sign[active], mask[active]
            towards = expected[active]
    return beta / scale, cost


def weighted_starts(design: Array, predictor: Array, weight: Array) -> Array:
    """Weighted linear least squares: (B, k) minimisers of sum_i weight_bi (predictor_bi - design_i . beta_b)^2."""
    n, k = design.shape
    outer = (design[:, :, None] * design[:, None, :]).reshape(n, k * k)
    normal = (weight @ outer).reshape(-1, k, k)
    right = (weight * predictor) @ design
    return np.asarray(np.einsum("bij,bj->bi", np.linalg.pinv(normal, hermitian=True), right))


def starts(design: Array, predictor: Array, weight: Array, rng: np.random.Generator, n_random: int) -> Array:
    """Starting points (n_random + 3, k): weighted, unweighted, a constant, and spread around the first."""
    inside = weight > 0
    first = weighted_starts(design, predictor[None], weight[None])[0]
    plain = weighted_starts(design, predictor[None], inside[None].astype(np.float64))[0]
    constant = np.zeros(design.shape[1])
    constant[-1] = np.average(predictor[inside], weights=weight[inside])  # the last column is the constant
    spread = np.linalg.pinv((design * weight[:, None]).T @ design, hermitian=True)
    spread *= max(float(np.average((predictor - design @ first) ** 2, weights=weight)), 1e-4) * weight.mean()
    random = rng.multivariate_normal(first, 9.0 * len(design) * spread, n_random, method="svd")
    return np.concatenate([np.stack([first, plain, constant]), random])


def fit(
    problem: Problem,
    dropout: Array,
    side: Sides,
    weight: Array,
    rng: np.random.Generator,
    mask: Array | None = None,
) -> tuple[Array, float]:
    """The least minimum found: coefficients (k,) and cost. ``mask`` (n,) leaves cells out.

    Every cell that the law's clamp or a censored optimum lets go of is a corner of the cost, so it has many local
    minima, and Gauss-Newton stops at corners too. Hence many starts, half of them spread three times as wide, and then
    some around the best so far, at distances of all sizes (iterated local search).
    """
    mask = np.ones(len(dropout)) if mask is None else mask
    target = coordinate(dropout)

    def solve(begin: Array) -> tuple[Array, float]:
        shape = (len(begin), 1)
        beta, cost = minimise(problem, begin, np.tile(target, shape), np.tile(side, shape), np.tile(mask, shape))
        least = int(cost.argmin())
        return beta[least], float(cost[least])

    n_cells = len(dropout)
    n_random = max(LEAST_STARTS, STARTS * MANY_CELLS // max(n_cells, MANY_CELLS))
    begin = starts(problem.design, problem.link.predictor(dropout), weight * mask, rng, n_random)
    away = begin[-n_random:] - begin[0]
    begin[-n_random // 2 :] += 2.0 * away[-n_random // 2 :]
    best, least = solve(begin)
    for _ in range(ROUNDS if n_cells <= VERY_MANY else 0):
        size = 10.0 ** rng.uniform(-2.0, 0.0, (2 * n_random, 1))
        near, cost = solve(best + size * away[rng.integers(n_random, size=2 * n_random)])
        if cost < least:
            best, least = near, cost
    return best, least

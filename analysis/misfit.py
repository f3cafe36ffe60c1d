"""How far a law misses its cells beyond their noise, and the problem of fitting it with that counted."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from analysis import robust
from analysis.targets import Targets, design_of
from tune_dd.law import P_MAX, Array, Law


def freedom(targets: Targets, k: int) -> float:
    """What residual variances are multiplied by since k coefficients were fitted: G / (G - k), G the blocks
    with interior cells, since read-outs of one block err together. Where there are not more blocks than
    coefficients, n / (n - k) over the n interior cells, which is the least it can be.
    """
    n, blocks = int(targets.point.sum()), len(np.unique(targets.block[targets.point]))
    by_cells = n / (n - k)
    return max(by_cells, blocks / (blocks - k)) if blocks > k else by_cells


def discrepancy(targets: Targets, errors: Array, k: int) -> float:
    """Method of moments: what the interior cells' squared distance from the law exceeds their variance by.

    Args:
        errors: law less target of the interior cells, dropout.
        k: coefficients fitted to them.

    Returns a standard deviation in dropout, 0 where noise explains the distance.
    """
    if len(errors) <= k:
        return 0.0
    excess = np.mean(errors**2) * freedom(targets, k) - np.mean(targets.sd[targets.point] ** 2)
    return float(np.sqrt(max(float(excess), 0.0)))


def problem_of(targets: Targets, law: Law, *, seed: int = 0, mask: Array | None = None) -> robust.Problem:
    """The fit of a law to targets: each cell's width is that of its noise and of the law's misfit together.

    A law that misses its cells by more than their noise would otherwise be ruled by the few sharpest, and what
    it says of all others with it. The misfit is ``discrepancy`` of a first fit with the noise's widths alone.

    Args:
        mask: (n,) 0 for cells that are held out: they do not tell the misfit either.
    """
    means, spreads = np.array([law.expected.get(name, (0.0, math.inf)) for name in law.coefficients]).T
    problem = robust.Problem(
        design_of(targets, law), targets.width, law.p_min, P_MAX, law.link, expected=means, firmness=1.0 / spreads
    )
    if mask is not None:
        targets = replace(targets, point=targets.point & (mask > 0))
    k = len(law.coefficients)
    if targets.point.sum() <= k:
        return problem
    weight = np.where(targets.point, targets.start_weight, 0.0)
    beta, _ = robust.fit(problem, targets.dropout, targets.side, weight, np.random.default_rng([seed, 4]), mask)
    errors = problem.predict(problem.design @ beta) - targets.dropout
    misfit = discrepancy(targets, errors[targets.point], k)
    return replace(problem, width=widths(targets, misfit))


def widths(targets: Targets, misfit: float) -> Array:
    """(n,) each cell's width in z: that of its noise and of a law's misfit (standard deviation, dropout) together."""
    return np.hypot(targets.width, misfit / (2.0 * targets.z))  # dz = dp / (2 z)

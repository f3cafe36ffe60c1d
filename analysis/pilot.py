"""A law carried to another text by a pilot: a few trials there measure what U of that text counts as.

The scale (``analysis.carry``) is one number, and is fitted as coefficients are: it is the one with the least robust
regret (``analysis.robust``) over the cells of the trials, the law's own coefficients held.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import robust
from analysis.carry import scaled
from analysis.coefficients import LEVEL, Coefficients
from analysis.curves import coordinate
from analysis.misfit import widths
from analysis.targets import Targets, bounded, make_targets, target_draws
from analysis.typical import SPREAD
from tune_dd.errors import UserError
from tune_dd.law import Array, Law

# The scales that are tried: two decades, a fiftieth of a decade apart.
SCALES = np.power(10.0, np.linspace(-1.0, 1.0, 101))
# Ours: what of a calibration is a pilot. The five dropouts are those that --adaptive begins with.
N_PREFIXES, DROPOUTS = 3, (0.0, 0.1, 0.3, 0.4, 0.6)
# What the interval of a mean of texts is once it is carried: each of its draws has a scale of its own.
SCALED = "the interval is what the texts differ by once each is scaled to these trials"


def carry_by_trials(fitted: Coefficients, table: pd.DataFrame, *, seed: int = 0) -> Coefficients:
    """A law as one of the text that the rows of ``table`` are of.

    The intervals hold the doubt about the scale that comes of the trials' noise.

    Raises:
        UserError: the trials do not tell the scale; or as ``make_targets``.
    """
    targets = make_targets(None, table, seed=seed)
    scale, scales = measure_scale(fitted, targets, seed=seed)
    regime, n_trials = targets.fits[0].regime, table["trial_id"].nunique()
    low, high = interval_of(scales)
    doubt = f" [{low:.2f}, {high:.2f}]" if len(scales) else ""
    notes = [
        f"carried from {fitted.regime} by {n_trials} trials on {regime} ({len(targets)} cells): U counts {scale:.2f}"
        f"{doubt} times"
    ]
    if scale in (SCALES[0], SCALES[-1]):
        notes.append("no scale beyond a tenth or ten times was tried: the two texts may be further apart than that")
    if not len(scales):
        notes.append("nothing tells the noise of these trials: no interval holds the doubt about the scale")
    return replace(
        scaled(fitted, scale, scales if len(scales) else None),
        regime=regime,
        tokenizer_hash=str(table["tokenizer_hash"].iloc[0]),
        corpus_hash=str(table["corpus_hash"].iloc[0]),
        carried_from=fitted.regime,
        notes=(*notes, *(SCALED if note == SPREAD else note for note in fitted.notes)),
    )


def measure_scale(fitted: Coefficients, targets: Targets, *, seed: int = 0) -> tuple[float, Array]:
    """The scale of ``SCALES`` at which a law has the least robust regret on the targets, and draws of it.

    Returns:
        The scale; and (B,) one for each of the law's own draws, on targets drawn anew: empty where the law has no draws
        or nothing tells the noise of the targets.

    Raises:
        UserError: no cell has an optimum that the law's form is fitted to.
    """
    form = fitted.form
    own = targets.bounded(form.fit_max)
    if not own.point.any():
        raise UserError(
            f"none of the {len(targets)} cells of these trials has an optimum that the {form.name} law is fitted to (0 "
            f"to {form.fit_max:g}, inside the grid): train on other prefixes or for longer, or carry the law of a "
            "RUN --by counts"
        )
    # As the carried law will say it: what a form knows of passes over the text does not scale.
    cells = form.design(own.n_params, own.unique_tokens, own.sampled_tokens)
    design = np.stack([cells @ change for change in _changes(form)])
    # Weighed as the law's own cells were.
    problem = robust.Problem(design[0], widths(own, fitted.discrepancy), fitted.p_min, fitted.p_max, form.link)

    def best(betas: Array, z: Array, side: NDArray[np.int64]) -> Array:
        costs = [problem.cost_of(problem.predict(betas @ at_scale.T), z, side) for at_scale in design]
        return np.asarray(SCALES[np.argmin(costs, axis=0)])

    scale = best(form.vector(fitted.coefficients)[None], own.z[None], own.side[None])[0]
    if not fitted.draws or not all(fit.noise.known for fit in targets.fits):
        return float(scale), np.empty(0)
    dropout, side = target_draws(targets, len(fitted.draws), np.random.default_rng([seed, 5]))
    dropout, side = bounded(dropout, side, form.fit_max)
    return float(scale), best(np.array(fitted.draws), coordinate(np.clip(dropout, 0.0, 1.0)), side)


@functools.cache  # the same for every pair of texts
def _changes(form: Law) -> Array:
    """What each of ``SCALES`` does to a form's coefficients, (S, k, k)."""
    return np.stack([form.change_of_scale(float(scale)) for scale in SCALES])


def interval_of(scales: Array) -> tuple[float, float]:
    """The 95 % interval of a scale by its draws; NaN where there are none."""
    if not len(scales):
        return np.nan, np.nan
    low, high = np.quantile(scales, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Split:
    """The cells of a text's calibration as another text's law is judged on them.

    Attributes:
        pilot: those of the trials that a pilot is; None where the calibration has none to spare.
        cells: those of the seeds that the pilot does not have; all where there is no pilot.
    """

    pilot: Targets | None
    cells: Targets


def split(table: pd.DataFrame, *, seed: int = 0) -> Split:
    """Set a calibration's pilot apart: of the first seed the largest model, its smallest prefixes, five dropouts."""
    first = table["seed"].min()
    rest = table[table["seed"] != first]
    rows = table[(table["seed"] == first) & (table["n_params"] == table["n_params"].max())]
    prefixes = sorted(rows["unique_tokens"].unique())[:N_PREFIXES]
    near = np.isclose(rows["dropout"].to_numpy()[:, None], DROPOUTS).any(axis=1)
    rows = rows[rows["unique_tokens"].isin(prefixes) & near]
    if rest.empty or len(prefixes) < N_PREFIXES or rows["dropout"].nunique() < len(DROPOUTS):
        return Split(None, make_targets(None, table, seed=seed))
    return Split(make_targets(None, rows, seed=seed), make_targets(None, rest, seed=seed))

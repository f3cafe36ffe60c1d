"""The registry of dropout laws: a form is added here, and fit, schedule, advise and report understand it.

A law gives the dropout of a model of P parameters that has drawn C tokens from a prefix of U unique ones:
``p = clamp(p_min, p_max, link(sum_j coefficient_j * column_j(P, U, C)))``, linear in its coefficients up to the
link. The reference is the *interaction* form ``A x + B y + D x y + C0`` with the pressures ``x = log10(P/U)`` and
``y = log10(C/U)`` (DOI 10.5281/zenodo.20616633), whose link is the identity.

The *odds* form is ours: a power law ``p / (1 - p) = 10^c0 P^a_P U^a_U C^a_C``. The odds are the variance that
multiplicative dropout noise adds to an activation, relative to its square; as a power law they tend to 0 and never
reach it, where a form linear in p runs into the clamp.

The *onset* form is ours too: ``p = (10k / U) (A log10(P/U) + B log10(C) + C0)``. Dropout begins to pay once C
passes an onset, ``C* = 10^(-C0/B) (U/P)^(A/B)``: the training that a model takes to overfit a prefix is a power of U/P.
Beyond it dropout grows with log10(C/C*), at a slope that falls as 1/U, as the best ridge penalty per sample does.
The *pinned* form is the onset with its two exponents held to what all our texts share: the onset is at
``(U/P)^0.42`` and the slope falls as ``U^-0.85``. A calibration gives it the slope and the onset's place, no more.
Before the onset it gives no dropout at all, where the other forms give the least of their clamp.
The *saturating* form is the pinned one bent: optima rise ever less towards a highest rate, where a form linear in p
goes straight on into its clamp. It takes that clamp's end for its asymptote, and is fitted to the optima below
``fit_max``: of those above it a fit asks no more than that the law be there too.
The *epochs* form is the saturating one with C counted from the end of the second pass over the prefix on: text that was
read once or twice does a larger model no harm, however soon the other forms would have its onset.

On a stream, C counts every draw alike, also those from earlier, smaller prefixes. The *diluted* forms are the same
laws, fitted to the same cells, but weigh a draw from the prefix U_s at a stage of prefix U_t by ``U_s / U_t``, or
*half diluted* by its root: what repeated a part of the text presses less than what repeats the whole. The *capped*
forms give at most 1/2, where the noise has the variance of what it acts on: early stages of a stream would have more
for their own sake, but what they learn serves the later ones.

Since ``x - y = log10(P/C)``, cells that all share one P/C ratio give the interaction form a design of
rank 3 at most: a calibration needs two ratios.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tune_dd.errors import UserError

Array = NDArray[np.float64]

# The clamp of the reference study: below 0.02 dropout is not worth its noise, above 0.65 nothing was measured.
P_MIN, P_MAX = 0.02, 0.65
REFERENCE_LAW = "interaction"  # the form of the reference study, and the baseline of every comparison of forms
# What is fitted unless another form is named: what the hold-outs speak for (`analysis laws`).
DEFAULT_LAW = "saturating_capped"
# What they speak for beyond so many times the largest calibrated model (docs/laws.md).
FAR, FAR_LAW = 6, "epochs_capped"
# Ours: exponents of the pinned form, from one fit to five texts, P of 45k to 2.9M, C to 1M (docs/methodology.md).
PINNED_ONSET, PINNED_SLOPE = 0.42, 0.85
# Ours: what the saturating form is fitted to as a bound, not a target. Chosen on cells of nine texts; .40 does as well.
SATURATING_FIT_MAX = 0.45
# Ours: passes over a prefix that the epochs form does not count. Chosen on cells of four texts (docs/methodology.md).
FREE_EPOCHS = 2.0
# Ours: what the name of a diluted form ends with, and its exponent.
DILUTIONS = {"_half_diluted": 0.5, "_diluted": 1.0}


@dataclass(frozen=True)
class Link:
    """What takes the linear predictor to a dropout rate: strictly increasing, with its inverse and slope.

    Attributes:
        rate: predictor -> dropout.
        predictor: dropout in (0, 1) -> predictor; rates at an end are taken as close to it.
        slope: predictor -> d rate / d predictor.
    """

    rate: Callable[[Array], Array]
    predictor: Callable[[Array], Array]
    slope: Callable[[Array], Array]


IDENTITY = Link(lambda raw: raw, lambda p: p, np.ones_like)


def _odds_rate(raw: Array) -> Array:
    """10^raw / (1 + 10^raw), without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * np.log(10.0) * raw)))


def _odds_slope(raw: Array) -> Array:
    rate = _odds_rate(raw)
    return np.asarray(np.log(10.0) * rate * (1.0 - rate))


def _log_odds(p: Array) -> Array:
    inside = np.clip(p, 1e-3, 1.0 - 1e-3)
    return np.asarray(np.log10(inside / (1.0 - inside)))


ODDS = Link(_odds_rate, _log_odds, _odds_slope)
# A clamp at P_MAX without its corner: straight where p is small.
SATURATION = Link(
    lambda raw: P_MAX * np.tanh(raw / P_MAX),
    lambda p: P_MAX * np.arctanh(np.clip(p / P_MAX, -0.999, 0.999)),
    lambda raw: 1.0 - np.tanh(raw / P_MAX) ** 2,
)


@dataclass(frozen=True)
class Law:
    """One functional form.

    Attributes:
        name: as given to ``--law`` and recorded in coefficients.json.
        coefficients: names, one per design column, in order; the last one's is that of the constant.
        columns: (log10 P, log10 U, log10 C), arrays of one shape -> that many columns of that shape, the last one 1.
        formula: the form as a reader writes it.
        link: from the linear predictor to the rate.
        scale: log10 U -> what every column is multiplied by, above 0; None for 1.
        dilution: on a stream, a draw from the prefix U_s counts ``(U_s / U_t)^dilution`` at a stage of prefix U_t.
        free_epochs: C is counted from so many passes over the prefix on: ``max(C - free_epochs U, 1)`` tokens.
        p_min: the least that the form gives.
        fit_max: an optimum above it bounds the law from below in a fit, and is no target.
        stream_max: the most that the form gives at a stage of a stream of several stages.
        cells: name of the form that is fitted: another one for a form that differs on streams alone.
    """

    name: str
    coefficients: tuple[str, ...]
    columns: Callable[[Array, Array, Array], tuple[Array, ...]]
    formula: str
    link: Link = IDENTITY
    scale: Callable[[Array], Array] | None = None
    dilution: float = 0.0
    free_epochs: float = 0.0
    p_min: float = P_MIN
    fit_max: float = 1.0
    stream_max: float = P_MAX
    cells: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", self.cells or self.name)

    def along(self, unique_tokens: Sequence[float], sampled_tokens: Sequence[float]) -> tuple[float, ...]:
        """C of each stage of a stream as the law counts it, tokens.

        Args:
            unique_tokens: U_t of each stage.
            sampled_tokens: C_t by the end of each stage, cumulative.

        Returns:
            ``sum_s (C_s - C_{s-1}) (U_s / U_t)^dilution`` over s up to t: C_t itself without dilution.
        """
        if self.dilution == 0:
            return tuple(float(c) for c in sampled_tokens)
        drawn = [later - earlier for earlier, later in pairwise((0, *sampled_tokens))]
        return tuple(
            math.fsum(drawn[s] * (unique_tokens[s] / unique_tokens[t]) ** self.dilution for s in range(t + 1))
            for t in range(len(unique_tokens))
        )

    def at_most(self, n_stages: int, p_max: float) -> float:
        """The upper clamp along so many stages; one stage is a cell, and has the coefficients' own."""
        return min(p_max, self.stream_max) if n_stages > 1 else p_max

    def design(self, n_params: ArrayLike, unique_tokens: ArrayLike, sampled_tokens: ArrayLike) -> Array:
        """The design matrix: the broadcast shape of the arguments, with one last axis of coefficients.

        Raises:
            UserError: a quantity is not positive and finite.
        """
        logs = []
        for name, value in (
            ("n_params", n_params),
            ("unique_tokens", unique_tokens),
            ("sampled_tokens", sampled_tokens),
        ):
            array = np.asarray(value, dtype=np.float64)
            if not np.all(np.isfinite(array) & (array > 0)):
                raise UserError(f"{name} must be positive and finite: the law takes its logarithm")
            logs.append(np.log10(array))
        log_p, log_u, log_c = np.broadcast_arrays(*logs)
        if self.free_epochs:
            log_c = np.log10(np.maximum(10.0**log_c - self.free_epochs * 10.0**log_u, 1.0))
        columns = np.stack(self.columns(log_p, log_u, log_c), axis=-1)
        return columns if self.scale is None else columns * self.scale(log_u)[..., None]

    def predictor_of(self, dropout: float) -> float:
        """The linear predictor at which the law gives that dropout."""
        return float(self.link.predictor(np.asarray(dropout, dtype=np.float64)))

    def vector(self, coefficients: Mapping[str, float]) -> Array:
        """The coefficients as a vector in the law's order.

        Raises:
            UserError: a coefficient is missing, unknown or not finite.
        """
        if set(coefficients) != set(self.coefficients):
            raise UserError(
                f"law {self.name} has the coefficients {', '.join(self.coefficients)}, not "
                f"{', '.join(coefficients) or 'none'}: give exactly those"
            )
        vector = np.array([coefficients[name] for name in self.coefficients], dtype=np.float64)
        if not np.all(np.isfinite(vector)):
            raise UserError(f"law {self.name}: a coefficient is not finite: fit it again")
        return vector

    def carried(self, coefficients: Mapping[str, float], unique_scale: float) -> dict[str, float]:
        """The coefficients that say of U unique tokens what these say of ``unique_scale * U``.

        Raises:
            UserError: the scale is not positive and finite, or the form has no such coefficients.
        """
        change = self.change_of_scale(unique_scale)
        return dict(zip(self.coefficients, (change @ self.vector(coefficients)).tolist(), strict=True))

    def change_of_scale(self, unique_scale: float) -> Array:
        """The matrix (k, k) that ``carried`` multiplies coefficients by, from designs on a grid of cells.

        Columns are polynomials in logarithms, and the scale is a power: such a change is exact. Free epochs are passes
        over the text, whatever its tokens count as.
        """
        if self.free_epochs:
            return replace(self, free_epochs=0.0).change_of_scale(unique_scale)
        p, u, c = (np.power(10.0, grid).ravel() for grid in np.meshgrid([4, 5, 7], [3, 4.5, 7], [4, 6, 9]))
        here, there = self.design(p, u, c), self.design(p, np.multiply(unique_scale, u), c)
        change = np.asarray(np.linalg.lstsq(here, there, rcond=None)[0], dtype=np.float64)
        if not np.allclose(here @ change, there, rtol=1e-6, atol=1e-9 * np.abs(there).max()):
            raise UserError(f"law {self.name} has no coefficients for another unit of U: use a form of logarithms")
        return change

    def dropout(
        self,
        coefficients: Mapping[str, float],
        n_params: ArrayLike,
        unique_tokens: ArrayLike,
        sampled_tokens: ArrayLike,
        *,
        p_min: float | None = None,
        p_max: float = P_MAX,
    ) -> Array:
        """The law's dropout, clamped to [p_min, p_max], by default from the form's own least rate on.

        Shape: the broadcast shape of the arguments.
        """
        raw = self.predictor(coefficients, n_params, unique_tokens, sampled_tokens)
        return np.asarray(np.clip(self.link.rate(raw), self.p_min if p_min is None else p_min, p_max))

    def predictor(
        self,
        coefficients: Mapping[str, float],
        n_params: ArrayLike,
        unique_tokens: ArrayLike,
        sampled_tokens: ArrayLike,
    ) -> Array:
        """The linear predictor, before link and clamp; shape: the broadcast shape of the arguments."""
        design = self.design(n_params, unique_tokens, sampled_tokens)
        # Summed column by column, not by a matrix product, whose last digit depends on how many points are
        # asked for at once: a dropout is part of a trial's content hash.
        raw = np.zeros(design.shape[:-1])
        for column, value in enumerate(self.vector(coefficients)):
            raw = raw + value * design[..., column]
        return np.asarray(raw)


def _ones(like: Array) -> Array:
    return np.ones_like(like)


def _capped(law: Law) -> Law:
    return replace(law, name=f"{law.name}_capped", formula=f"{law.formula}, at most 1/2 on streams", stream_max=0.5)


def _diluted(law: Law) -> tuple[Law, ...]:
    return tuple(
        replace(law, name=law.name + suffix, formula=f"{law.formula}, C diluted on streams", dilution=exponent)
        for suffix, exponent in DILUTIONS.items()
    )


_INTERACTION = Law(
    "interaction",
    ("A", "B", "D", "C0"),
    lambda p, u, c: (p - u, c - u, (p - u) * (c - u), _ones(p)),
    "A x + B y + D x y + C0, x = log10(P/U), y = log10(C/U)",
)
_ONSET = Law(
    "onset",
    ("A", "B", "C0"),
    lambda p, u, c: (p - u, c, _ones(p)),
    "(10k/U) (A x + B log10(C) + C0), x = log10(P/U)",
    scale=lambda u: 10.0 ** (4.0 - u),
)
_PINNED = Law(
    "pinned",
    ("B", "C0"),
    lambda p, u, c: (c + PINNED_ONSET * (p - u), _ones(p)),
    f"(10k/U)^{PINNED_SLOPE} (B (log10(C) + {PINNED_ONSET} x) + C0), x = log10(P/U)",
    scale=lambda u: 10.0 ** (PINNED_SLOPE * (4.0 - u)),
    p_min=0.0,
)
_SATURATING = replace(
    _PINNED,
    name="saturating",
    formula=f"{P_MAX} tanh(q / {P_MAX}), q = {_PINNED.formula}",
    link=SATURATION,
    fit_max=SATURATING_FIT_MAX,
    cells="saturating",
)
_EPOCHS = replace(
    _SATURATING,
    name="epochs",
    formula=f"{_SATURATING.formula}, C less {FREE_EPOCHS:g} U",
    free_epochs=FREE_EPOCHS,
    cells="epochs",
)
_ODDS = Law(
    "odds",
    ("a_P", "a_U", "a_C", "C0"),
    lambda p, u, c: (p, u, c, _ones(p)),
    "log10(p/(1-p)) = a_P log10(P) + a_U log10(U) + a_C log10(C) + C0",
    link=ODDS,
)
LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        _INTERACTION,
        *_diluted(_INTERACTION),
        _ODDS,
        *_diluted(_ODDS),
        _ONSET,
        *_diluted(_ONSET),
        _capped(_ONSET),
        _PINNED,
        _capped(_PINNED),
        _SATURATING,
        _capped(_SATURATING),
        _EPOCHS,
        _capped(_EPOCHS),
        Law(
            "first_order",
            ("A", "B", "C0"),
            lambda p, u, c: (p - u, c - u, _ones(p)),
            "A x + B y + C0, x = log10(P/U), y = log10(C/U)",
        ),
        Law(
            "separable",
            ("a_P", "a_U", "a_C", "C0"),
            lambda p, u, c: (p, u, c, _ones(p)),
            "a_P log10(P) + a_U log10(U) + a_C log10(C) + C0",
        ),
        Law("x_only", ("A", "C0"), lambda p, u, c: (p - u, _ones(p)), "A x + C0, x = log10(P/U)"),
        Law("y_only", ("B", "C0"), lambda p, u, c: (c - u, _ones(p)), "B y + C0, y = log10(C/U)"),
        Law("constant", ("C0",), lambda p, u, c: (_ones(p),), "C0"),
    )
}


def get_law(name: str) -> Law:
    """Raises UserError for a name that is not registered."""
    if name not in LAWS:
        raise UserError(f"law {name!r} is not one of {', '.join(LAWS)}")
    return LAWS[name]


def rank_and_condition(
    law: Law, n_params: ArrayLike, unique_tokens: ArrayLike, sampled_tokens: ArrayLike
) -> tuple[int, float]:
    """Rank and condition number of a law's design over cells; a plan prints them before anything runs.

    The columns are centred on the constant and scaled to unit length first, so that the condition number
    does not depend on the units of P, U and C. Infinite where the rank falls short.
    """
    design = law.design(n_params, unique_tokens, sampled_tokens).reshape(-1, len(law.coefficients))
    return design_rank(design)


def design_rank(design: Array) -> tuple[int, float]:
    """Rank and condition number of a design (cells, coefficients) whose last column is the constant, times a scale."""
    design = design / design[:, -1:]  # a row's scale changes no rank, and the rest takes out the constant
    slopes = design[:, :-1] - design[:, :-1].mean(axis=0)
    # A column that does not vary is rounding error after centring: it must not be scaled up to unit length.
    spread = np.linalg.norm(slopes, axis=0)
    varies = spread > 1e-9 * np.maximum(np.linalg.norm(design[:, :-1], axis=0), 1.0)
    slopes = np.where(varies, slopes / np.where(varies, spread, 1.0), 0.0)
    singular: Any = np.linalg.svd(slopes, compute_uv=False)
    rank = 1 + int(np.sum(singular > 1e-6))
    if rank < design.shape[1]:
        return rank, float("inf")
    return rank, float(singular[0] / singular[-1]) if len(singular) else 1.0

"""One form of dropout law: what turns P, U, C and coefficients into a dropout rate.

A law gives the dropout of a model of P parameters that has drawn C tokens from a prefix of U unique ones:
``p = clamp(p_min, p_max, link(sum_j coefficient_j * column_j(P, U, C)))``, linear in its coefficients up to the
link. The forms that there are: ``tune_dd.laws``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tune_dd.errors import UserError

Array = NDArray[np.float64]

# The clamp of the reference study: below 0.02 dropout is not worth its noise, above 0.65 nothing was measured.
P_MIN, P_MAX = 0.02, 0.65


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
        expected: coefficient -> what it is on other texts, on average, and with what standard deviation a fit
            expects that of its own.
        carried_as: the form whose coefficients change with the unit of U as this one's do; None for itself.
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
    expected: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)
    carried_as: Law | None = None
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

        Columns are polynomials in logarithms, and the scale is a power: such a change is exact. A form that counts
        passes over the text has no such change: it takes that of the form that it is ``carried_as``, so that free
        epochs stay what they are, and an onset moves as a whole, the passes under it too.
        """
        if self.carried_as is not None:
            return self.carried_as.change_of_scale(unique_scale)
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

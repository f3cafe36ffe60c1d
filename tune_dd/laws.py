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
The *floored* form measures C by its onset, ``q = (10k/U)^0.65 (B log10(C/C*) + C0)`` with
``C* = 100k (U/10k)^0.3 (100k/P)^0.6 + 2.5 U``: the training that it takes to overfit a prefix falls with the model's
size, but no model is spared some passes over the text. Its exponents are from one fit to seventeen texts, and where a
calibration says little of its slope B, a fit holds that to what longer training has shown of other texts.

On a stream, C counts every draw alike, also those from earlier, smaller prefixes. The *diluted* forms are the same
laws, fitted to the same cells, but weigh a draw from the prefix U_s at a stage of prefix U_t by ``U_s / U_t``, or
*half diluted* by its root: what repeated a part of the text presses less than what repeats the whole. The *capped*
forms give at most 1/2, where the noise has the variance of what it acts on: early stages of a stream would have more
for their own sake, but what they learn serves the later ones.

Since ``x - y = log10(P/C)``, cells that all share one P/C ratio give the interaction form a design of
rank 3 at most: a calibration needs two ratios.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tune_dd.errors import UserError
from tune_dd.law import ODDS, P_MAX, SATURATION, Array, Law

REFERENCE_LAW = "interaction"  # the form of the reference study, and the baseline of every comparison of forms
# What is fitted unless another form is named: what the hold-outs speak for (`analysis laws`).
DEFAULT_LAW = "floored_capped"
# Ours: exponents of the pinned form, from one fit to five texts, P of 45k to 2.9M, C to 1M (docs/methodology.md).
PINNED_ONSET, PINNED_SLOPE = 0.42, 0.85
# Ours: what the saturating form is fitted to as a bound, not a target. Chosen on cells of nine texts; .40 does as well.
SATURATING_FIT_MAX = 0.45
# Ours: passes over a prefix that the epochs form does not count. Chosen on cells of four texts (docs/methodology.md).
FREE_EPOCHS = 2.0
# Ours: the slope of the floored form on texts whose longer training was measured, and the standard deviation that a
# fit expects of it (.10 is measured over eleven texts; docs/methodology.md).
FLOORED_SLOPE = (0.88, 0.15)
# Ours: what the name of a diluted form ends with, and its exponent.
DILUTIONS = {"_half_diluted": 0.5, "_diluted": 1.0}


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
    carried_as=_SATURATING,
    cells="epochs",
)


@dataclass(frozen=True)
class Floor:
    """What all texts share in the floored form: four numbers of ours, rounded from one fit to all that was measured on
    seventeen texts, the passes taken from a grid (``python -m analysis exponents`` makes it anew, of all there are).

    Attributes:
        onset_u, onset_p: exponents of U and 1/P in the training that a model takes to overfit a prefix.
        passes: over the prefix, that training takes besides, however large the model.
        slope_u: exponent of 1/U in the slope.
    """

    onset_u: float = 0.30
    onset_p: float = 0.60
    passes: float = 2.5
    slope_u: float = 0.65

    def learned(self, p: Array, u: Array) -> Array:
        """log10 of the tokens that a model of P = 10^p takes to overfit U = 10^u, passes left out."""
        return 5.0 + self.onset_u * (u - 4.0) - self.onset_p * (p - 5.0)

    def onset(self, p: Array, u: Array) -> Array:
        """log10 of the tokens from which on dropout pays."""
        return np.asarray(np.log10(10.0 ** self.learned(p, u) + self.passes * 10.0**u))


def floored(floor: Floor, slope: tuple[float, float] | None = None) -> Law:
    """The floored form with such exponents: ``slope`` is what B is expected to be and its standard deviation."""
    form = replace(
        _SATURATING,
        name="floored",
        columns=lambda p, u, c: (c - floor.onset(p, u), _ones(p)),
        formula=(
            f"{P_MAX} tanh(q / {P_MAX}), q = (10k/U)^{floor.slope_u:g} (B log10(C/C*) + C0), "
            f"C* = 100k (U/10k)^{floor.onset_u:g} (100k/P)^{floor.onset_p:g} + {floor.passes:g} U"
        ),
        scale=lambda u: 10.0 ** (floor.slope_u * (4.0 - u)),
        expected={} if slope is None else {"B": slope},
        cells="floored",
    )
    return replace(form, carried_as=replace(form, columns=lambda p, u, c: (c - floor.learned(p, u), _ones(p))))


_FLOORED = floored(Floor(), FLOORED_SLOPE)
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
        _FLOORED,
        _capped(_FLOORED),
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

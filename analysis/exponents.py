"""What all texts share in the floored form, fitted to what was measured on all: ``python -m analysis exponents``.

A calibration gives a law two numbers, how steep it is and where it begins. How these change with P and U no single
calibration tells beyond its own sizes, so a form has exponents that are the same for every text. Here those of the
floored form (``tune_dd.laws.Floor``) are fitted to the cells of all texts at once, calibrations and hold-outs, each
text with a slope and an onset of its own; and judged on each text's hold-outs by a fit that had none of that text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from analysis import robust
from analysis.bakeoff import kind_beyond, sort_runs
from analysis.misfit import problem_of, widths
from analysis.report import calibration_rows
from analysis.tables import load_experiment
from analysis.targets import Targets, check_rank, make_targets, regret_floors
from tune_dd.errors import UserError
from tune_dd.law import Array, Law
from tune_dd.laws import Floor, floored

# What is fitted, of the attributes of Floor.
EXPONENTS = tuple(field.name for field in fields(Floor) if field.name != "passes")
# What any law misses its cells by, dropout: it joins their widths, so that the sharpest cells do not rule the fit.
MISFIT = 0.02
# Standard deviation that B of another text is expected to have, as a share of B: over the texts whose longer training
# was measured it is .11, and each of those is an estimate.
SPREAD = 0.17


@dataclass(frozen=True)
class Text:
    """One text's cells: those that its law is fitted to, and those it is held to."""

    calibration: Targets
    held: Targets | None
    floors: Array

    @property
    def parts(self) -> tuple[Targets, ...]:
        """All cells that there are."""
        return (self.calibration,) if self.held is None else (self.calibration, self.held)

    @property
    def longer(self) -> bool:
        """Whether longer training than the calibration's was measured: what a slope is told by."""
        most = self.calibration.sampled_tokens.max()
        return self.held is not None and bool((self.held.sampled_tokens > most).any())


@dataclass(frozen=True)
class Shared:
    """A joint fit.

    Attributes:
        floor: the exponents.
        slopes, constants: (texts,) each text's B and C0, in their order.
        longer: (texts,) whether longer training than its calibration's was measured.
        cost: of the fit.
    """

    floor: Floor
    slopes: Array
    constants: Array
    longer: NDArray[np.bool_]
    cost: float

    @property
    def told(self) -> Array:
        """The slopes that longer training has told; all, where it was measured of fewer than two texts."""
        return self.slopes[self.longer] if self.longer.sum() > 1 else self.slopes

    @property
    def slope(self) -> tuple[float, float]:
        """What B of another text is expected to be, and with what standard deviation.

        The geometric mean over the texts whose longer training was measured: there a slope shows, and what a
        calibration alone says of it hangs on the few cells beyond the onset.
        """
        mean = float(np.exp(np.log(self.told).mean()))
        return mean, SPREAD * mean


def load_texts(runs: Sequence[Path], *, seed: int = 0) -> dict[str, Text]:
    """Every text of these runs that has a calibration among them, by regime, but for those too poor to fit the form to.

    Raises:
        UserError: they are of several evidence classes or devices, hold no calibration, hold one text at two scales or
            under two tokenizers, or are of fewer than three texts.
    """
    study = sort_runs([load_experiment([run]) for run in runs], every=True)
    texts = {}
    for place, table in study.calibrations.items():
        if place[0] in texts:
            raise UserError(f"{place[0]} is calibrated at several scales or vocabularies: name the runs of one")
        calibration = make_targets(None, calibration_rows(table)[0], seed=seed)
        try:
            check_rank(calibration.bounded(floored(Floor()).fit_max), floored(Floor()))
        except UserError:
            continue  # its cells do not determine a law of its own
        held = study.holdouts.get(place)
        targets = None if held is None else make_targets(None, calibration_rows(held)[0], seed=seed)
        floors = np.empty(0) if targets is None else regret_floors(targets)
        texts[place[0]] = Text(calibration, targets, floors)
    if len(texts) < 3:
        raise UserError(
            "what texts share is told by three or more, and these runs calibrate "
            f"{', '.join(texts) or 'none'}: name more runs"
        )
    return texts


def fit_shared(texts: Sequence[Text], passes: float) -> Shared:
    """Exponents for all texts and a slope and a constant for each, by least squares of the robust regret.

    The cells of a text weigh together as much as those of any other.
    """
    form = floored(Floor(passes=passes))
    problems, targets = [], []
    for text in texts:
        own = [part.bounded(form.fit_max) for part in text.parts]
        targets.append(own)
        width = np.concatenate([widths(part, MISFIT) for part in own])
        problems.append(robust.Problem(np.empty((len(width), 2)), width, form.p_min, 1.0, form.link))
    z = [np.concatenate([part.z for part in own]) for own in targets]
    side = [np.concatenate([part.side for part in own]) for own in targets]
    start = [_start(text, form) for text in texts]

    def residuals(x: Array) -> Array:
        law = floored(Floor(passes=passes, **dict(zip(EXPONENTS, x[: len(EXPONENTS)].tolist(), strict=True))))
        each = x[len(EXPONENTS) :].reshape(-1, 2)
        found = []
        for number, own in enumerate(targets):
            design = np.concatenate(
                [law.design(part.n_params, part.unique_tokens, part.sampled_tokens) for part in own]
            )
            beta = np.array([np.exp(each[number, 0]), each[number, 1]])
            problem = replace(problems[number], design=design)
            u = problem.residuals(beta[None], z[number][None], side[number][None])[0][0]
            # The root of the soft-L1 loss, with its sign: what least squares then minimises is that loss.
            root = np.sign(u) * np.sqrt(2.0 * (np.sqrt(1.0 + u**2) - 1.0))
            found.append(root / np.sqrt(len(u)))
        return np.concatenate(found)

    own_text = np.repeat(np.arange(len(z)), [len(part) for part in z])
    sparsity = np.ones((len(own_text), len(EXPONENTS) + 2 * len(z)))
    sparsity[:, len(EXPONENTS) :] = np.repeat(own_text[:, None] == np.arange(len(z)), 2, axis=1)
    default = Floor()
    begin = np.concatenate(
        [[getattr(default, name) for name in EXPONENTS], *([np.log(slope), constant] for slope, constant in start)]
    )
    result = least_squares(residuals, begin, jac_sparsity=sparsity, max_nfev=300)
    exponents = dict(zip(EXPONENTS, result.x[: len(EXPONENTS)].tolist(), strict=True))
    each = result.x[len(EXPONENTS) :].reshape(-1, 2)
    longer = np.array([text.longer for text in texts])
    return Shared(Floor(passes=passes, **exponents), np.exp(each[:, 0]), each[:, 1], longer, float(result.cost))


def _start(text: Text, form: Law) -> tuple[float, float]:
    slope, constant = fit_text(text.calibration, form).values()
    return max(slope, 0.1), constant


def fit_text(calibration: Targets, form: Law, *, seed: int = 0) -> dict[str, float]:
    """A form's coefficients of one text, fitted to its calibration as ``analysis.coefficients.fit_law`` does."""
    targets = calibration.bounded(form.fit_max)
    rng = np.random.default_rng([seed, 1])
    problem = problem_of(targets, form, seed=seed)
    beta, _ = robust.fit(problem, targets.dropout, targets.side, targets.start_weight, rng)
    return dict(zip(form.coefficients, beta.tolist(), strict=True))


def judge(
    texts: Mapping[str, Text], forms: Mapping[str, Law], known: Mapping[str, Mapping[str, float]] | None = None
) -> pd.DataFrame:
    """Each text's law, of its own form, on its own hold-outs.

    Args:
        known: each text's coefficients; by default they are fitted to its calibration.

    Returns one row per held-out cell beyond the calibration: text, kind, regret and corrected (less the floor), nats
    per token.
    """
    rows = []
    for name, text in texts.items():
        if text.held is None:
            continue
        form = forms[name]
        coefficients = fit_text(text.calibration, form) if known is None else known[name]
        for fit, floor in zip(text.held.fits, text.floors, strict=True):
            cell = (fit.n_params, fit.unique_tokens, fit.sampled_tokens)
            if (kind := kind_beyond(text.calibration, *cell)) is not None:
                regret = float(fit.regret(form.dropout(coefficients, *cell)))
                rows.append((name, kind, regret, regret - floor))
    return pd.DataFrame(rows, columns=["text", "kind", "regret", "corrected"])


def leave_one_out(texts: Mapping[str, Text], passes: float) -> tuple[pd.DataFrame, dict[str, Floor]]:
    """``judge`` of every text by exponents and an expected slope of the others, and those exponents."""
    forms, floors = {}, {}
    for name in texts:
        shared = fit_shared([text for other, text in texts.items() if other != name], passes)
        forms[name], floors[name] = floored(shared.floor, shared.slope), shared.floor
    return judge(texts, forms), floors


def judge_joint(texts: Mapping[str, Text], shared: Shared) -> pd.DataFrame:
    """``judge`` of every text by the joint fit itself, whose coefficients are fitted to the held-out cells too.

    What is left is the form's own misfit; what a law loses beyond that, its calibration did not tell it.
    """
    own = zip(texts, shared.slopes.tolist(), shared.constants.tolist(), strict=True)
    known = {name: {"B": slope, "C0": constant} for name, slope, constant in own}
    return judge(texts, dict.fromkeys(texts, floored(shared.floor)), known)

"""The law of a text of which nothing is known: what the texts that were calibrated have on average.

Its interval is the texts' spread, each with the doubt about its own. It is what ``python -m analysis advise`` answers
by where no coefficients are named: ``typical_law.json`` holds it, of our texts (``python -m analysis laws --out
FOLDER`` writes it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.coefficients import KEPT_DRAWS, LEVEL, Coefficients
from analysis.coefficients_check import CELL
from tune_dd.errors import UserError

ANY = "any text"
SPREAD = "the interval is the texts' spread"  # a note


def typical(fitted: Sequence[Coefficients]) -> Coefficients:
    """The mean of texts' coefficients; of draws as many from each text, of cells those of any.

    Args:
        fitted: laws of one form, one per text.

    Raises:
        UserError: fewer than two texts, one text twice, or laws of several forms.
    """
    if len(fitted) < 2:
        raise UserError("one text says nothing of texts in general: calibrate another")
    if len({each.law for each in fitted}) > 1:
        raise UserError("the texts' laws are of several forms: fit one form to all")
    if len({each.regime for each in fitted}) < len(fitted):
        raise UserError("a text has several laws, at other scales or vocabularies: name the runs of one")
    form = fitted[0].form
    each = np.array([[one.coefficients[name] for name in form.coefficients] for one in fitted])
    share = max(KEPT_DRAWS // len(fitted), 1)
    draws = np.concatenate([one.draws[:share] or [row] for one, row in zip(fitted, each.tolist(), strict=True)])
    ends = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T.tolist()
    places = sorted({tuple(cell[name] for name in CELL) for one in fitted for cell in one.cells})
    return replace(
        fitted[0],
        regime=ANY,
        coefficients=dict(zip(form.coefficients, each.mean(axis=0).tolist(), strict=True)),
        intervals={name: (low, high) for name, (low, high) in zip(form.coefficients, ends, strict=True)},
        draws=tuple(tuple(row) for row in draws.tolist()),
        n_bootstrap=len(draws),
        n_cells=sum(one.n_cells for one in fitted),
        rmse=float(np.sqrt(np.mean([one.rmse**2 for one in fitted]))),
        discrepancy=float(np.sqrt(np.mean([one.discrepancy**2 for one in fitted]))),
        loo_rmse=None,
        loo_regret=None,
        cells=tuple(dict(zip(CELL, place, strict=True)) for place in places),
        tokenizer_hash="",
        corpus_hash="",
        held_out=(),
        notes=(f"these are the means of {len(fitted)} texts' coefficients", SPREAD),
    )

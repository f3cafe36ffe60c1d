"""A law of one text as a law of another, of which no more is known than what was counted.

Between the texts that we measured, one number is most of the difference: a law calibrated on one holds on most
others if U of that other text is multiplied by a scale of its own. A dozen of small trials there measure it
(``analysis.pilot``). Without them it is foretold by what was counted when both were tokenized (``analysis.foretell``).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from analysis.coefficients import LEVEL, Coefficients
from analysis.foretell import Text, compared, foretold_decades, interval, is_guess
from tune_dd.law import Array


def carry(fitted: Coefficients, calibrated: Text, other: Text, *, seed: int = 0) -> Coefficients:
    """The law of one text as a law of another whose scale is foretold by their counts.

    The intervals hold the doubt about the scale: its draws are log-normal with the spread of the rule.

    Raises:
        UserError: their losses do not compare.
    """
    decades, rule = foretold_decades(calibrated, other)
    drawn = decades + rule.spread * np.random.default_rng([seed, 6]).standard_normal(len(fitted.draws))
    scale, here, there = 10.0**decades, *compared(calibrated, other)
    low, high = interval(decades, rule)
    notes = [
        f"carried from {calibrated.regime} by counts (bigram loss {here:.3f} there and {there:.3f} here, nats per "
        f"token; share of validation repeated from training {calibrated.overlap:.3f} there and {other.overlap:.3f} "
        f"here): U counts {scale:.2f} [{low:.2f}, {high:.2f}] times, by the rule of {len(rule.regimes)} other texts; "
        "nothing was trained on this text"
    ]
    if is_guess(rule, calibrated, other):
        (least, most), (_, repeated) = rule.losses, rule.overlaps
        sizes = " or ".join(map(str, sorted(rule.vocab_sizes)))
        notes.append(
            f"the rule was made on texts of bigram loss {least:.2f} to {most:.2f} that repeat up to {repeated:.2f}, at "
            f"a vocabulary of {sizes}: these texts lie outside, and their scale is a guess"
        )
    return replace(
        scaled(fitted, scale, 10.0**drawn),
        regime=other.regime,
        tokenizer_hash=other.tokenizer_hash,
        corpus_hash=other.corpus_hash,
        carried_from=calibrated.regime,
        notes=(*notes, *fitted.notes),
    )


def scaled(fitted: Coefficients, scale: float, scales: Array | None = None) -> Coefficients:
    """What a law says of U, as coefficients that say it of ``U / scale``, with its draws and cells.

    Args:
        scales: (B,) the scale of each of the law's draws, where the scale is in doubt too.
    """
    form = fitted.form
    draws, intervals = np.array(fitted.draws), fitted.intervals
    if len(draws):
        known, each = np.unique(np.broadcast_to(scale if scales is None else scales, len(draws)), return_inverse=True)
        changes = np.array([form.change_of_scale(float(one)) for one in known])
        draws = np.einsum("bij,bj->bi", changes[each], draws)
        ends = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0).T.tolist()
        intervals = {name: (low, high) for name, (low, high) in zip(form.coefficients, ends, strict=True)}
    return replace(
        fitted,
        coefficients=form.carried(fitted.coefficients, scale),
        intervals=intervals,
        draws=tuple(tuple(draw) for draw in draws.tolist()),
        cells=tuple(cell | {"unique_tokens": cell["unique_tokens"] / scale} for cell in fitted.cells),
        held_out=(),
    )

"""What one text is to another, and a law carried to a text that nothing was trained on.

Between the texts that we measured, one number is the difference: a law calibrated on one of them holds on another
if U of that other text is multiplied by a scale of its own. A dozen of small trials there measure it
(``analysis.pilot``). Without them it is foretold by the validation loss b of a bigram model
(``tune_dd.corpus.bigram``), which is counted when a text is tokenized: ``log10(scale) = 0.36 (b of the calibrated
text - b of the other)``. A text that surprises less counts for more. Of four texts that the rule was not made on it was
off by a tenth of a decade or more on two: a start, and no more (docs/methodology.md, section 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.coefficients import LEVEL, Coefficients
from tune_dd.errors import UserError
from tune_dd.laws import Array

# Ours, decades of U per nat: the slope over seven texts (docs/methodology.md, section 7), whose bigram losses lay
# between these at this vocabulary. Of four texts looked at later it told two; one that it missed lies far below them.
BIGRAM_SLOPE = 0.36
MEASURED_LOSSES, MEASURED_VOCABULARY = (2.96, 3.97), 512


@dataclass(frozen=True)
class Text:
    """A tokenized text.

    Attributes:
        regime: its name.
        losses: tokens counted -> validation loss of the bigram model of so many of its tokens, nats per token.
        vocab_size, tokenizer_hash, corpus_hash: as in config.json.
    """

    regime: str
    losses: Mapping[int, float]
    vocab_size: int
    tokenizer_hash: str
    corpus_hash: str


def text_of(config: Mapping[str, Any]) -> Text | None:
    """The text that a run was trained on, from its config.json; None where its bigrams were not counted yet."""
    data = config.get("data") or {}
    counted = (data.get("manifest") or {}).get("bigram")
    if counted is None:
        return None
    losses = {int(tokens): float(loss) for tokens, loss in counted.get("by_train_tokens", {}).items()}
    return Text(
        regime=str(config["regime"]["name"]),
        losses=losses | {int(counted["train_tokens"]): float(counted["val_loss"])},
        vocab_size=int(data["manifest"]["settings"]["vocab_size"]),
        tokenizer_hash=str(data["tokenizer_hash"]),
        corpus_hash=str(data["corpus_hash"]),
    )


def comparable(calibrated: Text, other: Text) -> bool:
    """Whether both texts are under one size of vocabulary, and were counted on some one number of tokens."""
    return calibrated.vocab_size == other.vocab_size and bool(calibrated.losses.keys() & other.losses.keys())


def compared(calibrated: Text, other: Text) -> tuple[float, float]:
    """The two texts' losses on the largest number of tokens that both were counted on, nats per token.

    Raises:
        UserError: there is none, or their vocabularies differ in size.
    """
    if not comparable(calibrated, other):
        raise UserError(
            f"the bigram losses of {_told(calibrated)} and of {_told(other)} do not compare: tokenize both with one "
            "size of vocabulary, and 62,500 training tokens or more of each"
        )
    most = max(calibrated.losses.keys() & other.losses.keys())
    return calibrated.losses[most], other.losses[most]


def _told(text: Text) -> str:
    return f"{text.regime} (vocabulary {text.vocab_size:,}, {max(text.losses):,} tokens counted)"


def loss_difference(calibrated: Text, other: Text) -> float:
    """Of the bigram losses, the calibrated text's less the other's, nats per token."""
    here, there = compared(calibrated, other)
    return here - there


def unique_scale(calibrated: Text, other: Text) -> float:
    """What U of the other text is multiplied by under a law of the calibrated one.

    Raises:
        UserError: their losses do not compare.
    """
    return float(10.0 ** (BIGRAM_SLOPE * loss_difference(calibrated, other)))


def carry(fitted: Coefficients, calibrated: Text, other: Text) -> Coefficients:
    """The law of one text as a law of another whose scale is foretold by their bigrams.

    Raises:
        UserError: their losses do not compare.
    """
    scale = unique_scale(calibrated, other)
    here, there = compared(calibrated, other)
    notes = [
        f"carried from {calibrated.regime} by bigram loss ({here:.3f} there and {there:.3f} here, nats per token): U "
        f"counts {scale:.2f} times; nothing was trained on this text, and the intervals hold no doubt about that scale"
    ]
    low, high = MEASURED_LOSSES
    if other.vocab_size != MEASURED_VOCABULARY or not low <= min(here, there) <= max(here, there) <= high:
        notes.append(
            f"the scale was measured between bigram losses of {low:g} and {high:g} at a vocabulary of "
            f"{MEASURED_VOCABULARY}: these texts lie outside, and their scale is a guess"
        )
    return replace(
        scaled(fitted, scale),
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

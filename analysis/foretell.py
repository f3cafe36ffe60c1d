"""What U of one text counts as under the law of another, foretold by what is counted when both are tokenized.

Two counts tell most of it. A text that surprises a bigram model less (``tune_dd.corpus.bigram``) counts for more, and
so does one that repeats itself: of which more of the validation text's 13-grams stand in the training text too
(``tune_dd.corpus.overlap``). From the calibrated text to another

    log10(scale) = per_nat (b_calibrated - b_other) + per_root (sqrt(v_other) - sqrt(v_calibrated)),

b the bigram model's validation loss in nats per token, v the share repeated. The two numbers are least squares over the
pairs of the texts of ``measured_texts.json``, whose scales were measured by a calibration each, with bigrams counted on
as many tokens as the pair's. A pair is always foretold by the rule of the *other* texts: where either of the two is
among the measured ones, it is fitted without it. The root and the two counts were chosen on fourteen of those texts
(docs/methodology.md, section 7).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np

from analysis.coefficients import LEVEL
from tune_dd.errors import UserError
from tune_dd.law import Array

LEAST_TEXTS = 5  # that a rule is fitted to: without two of them three pairs are left for two numbers
LEAST_TOKENS = 62_500  # the fewest that the bigrams of the measured texts were counted on


@dataclass(frozen=True)
class Text:
    """A tokenized text.

    Attributes:
        regime: its name.
        losses: tokens counted -> validation loss of the bigram model of so many of its tokens, nats per token.
        overlap: share of its validation text's 13-grams that occur in its training text, in [0, 1].
        vocab_size, tokenizer_hash, corpus_hash: as in config.json.
    """

    regime: str
    losses: Mapping[int, float]
    overlap: float
    vocab_size: int
    tokenizer_hash: str
    corpus_hash: str


@dataclass(frozen=True)
class MeasuredText:
    """A text whose scale a calibration has measured.

    Attributes:
        text: what was counted of it.
        decades: log10 of what its U counts as, the mean text's being 0.
    """

    text: Text
    decades: float


@dataclass(frozen=True)
class Rule:
    """A scale from two counts.

    Attributes:
        per_nat: decades of U per nat of bigram loss.
        per_root: decades of U per unit of the root of the share repeated.
        spread: decades by which a pair of texts that the rule was not fitted to was off, root mean square.
        regimes: the texts that it was fitted to.
        losses, overlaps: the least and the largest of what was counted of them.
        vocab_sizes: those that they were counted under.
    """

    per_nat: float
    per_root: float
    spread: float
    regimes: frozenset[str]
    losses: tuple[float, float]
    overlaps: tuple[float, float]
    vocab_sizes: frozenset[int]


def text_of(config: Mapping[str, Any]) -> Text | None:
    """The text that a run was trained on, from its config.json; None where its counts were not taken yet."""
    data = config.get("data") or {}
    manifest = data.get("manifest") or {}
    counted, overlap = manifest.get("bigram"), manifest.get("validation_overlap")
    if counted is None or overlap is None:
        return None
    losses = {int(tokens): float(loss) for tokens, loss in counted.get("by_train_tokens", {}).items()}
    return Text(
        regime=str(config["regime"]["name"]),
        losses=losses | {int(counted["train_tokens"]): float(counted["val_loss"])},
        overlap=float(overlap),
        vocab_size=int(manifest["settings"]["vocab_size"]),
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
            f"size of vocabulary, and {LEAST_TOKENS:,} training tokens or more of each"
        )
    most = common_tokens(calibrated, other)
    return calibrated.losses[most], other.losses[most]


def common_tokens(calibrated: Text, other: Text) -> int:
    """The largest number of tokens that both texts' bigrams were counted on; there has to be one."""
    return max(calibrated.losses.keys() & other.losses.keys())


def _told(text: Text) -> str:
    return f"{text.regime} (vocabulary {text.vocab_size:,}, {max(text.losses):,} tokens counted)"


def counts(calibrated: Text, other: Text) -> Array:
    """(2,) how the texts differ in bigram loss and in the root of the share repeated, as a scale goes with both.

    Raises:
        UserError: their losses do not compare.
    """
    here, there = compared(calibrated, other)
    return np.array([here - there, np.sqrt(other.overlap) - np.sqrt(calibrated.overlap)])


def foretold_decades(calibrated: Text, other: Text) -> tuple[float, Rule]:
    """log10 of what U of the other text is multiplied by under a law of the calibrated one, and the rule that says so.

    A text counts as itself, without any doubt.

    Raises:
        UserError: their losses do not compare.
    """
    differences = counts(calibrated, other)
    rule = rule_without(frozenset({calibrated.regime, other.regime}), common_tokens(calibrated, other))
    if calibrated.corpus_hash == other.corpus_hash != "":
        return 0.0, replace(rule, spread=0.0)
    return float(differences @ np.array([rule.per_nat, rule.per_root])), rule


def interval(decades: float, rule: Rule) -> tuple[float, float]:
    """The 95 % interval of the scale that a rule foretells, by the normal distribution of its spread."""
    low, high = (10.0 ** (decades + side * NormalDist().inv_cdf((1 + LEVEL) / 2) * rule.spread) for side in (-1, 1))
    return low, high


def is_guess(rule: Rule, calibrated: Text, other: Text) -> bool:
    """Whether a pair lies outside what the rule was fitted to."""
    (least_loss, most_loss), (_, most_overlap) = rule.losses, rule.overlaps
    losses = compared(calibrated, other)
    return (
        not least_loss <= min(losses) <= max(losses) <= most_loss
        or max(calibrated.overlap, other.overlap) > most_overlap
        or calibrated.vocab_size not in rule.vocab_sizes
        or common_tokens(calibrated, other) < LEAST_TOKENS
    )


@functools.cache
def rule_without(regimes: frozenset[str], tokens: int) -> Rule:
    """The rule fitted to the measured texts but for those of these names, bigrams counted on at most so many tokens."""
    most = max(tokens, LEAST_TOKENS)
    cut = [
        replace(each, text=replace(each.text, losses=losses))
        for each in measured_texts()
        if each.text.regime not in regimes
        and (losses := {counted: loss for counted, loss in each.text.losses.items() if counted <= most})
    ]
    rule = fit_rule(cut)
    assert rule is not None, "the measured texts are many and compare"
    return rule


def fit_rule(measured: Sequence[MeasuredText]) -> Rule | None:
    """Least squares over the pairs of measured texts; the spread by pairs left out with both their texts.

    Over pairs without an intercept is over texts with one, but that losses are compared as ``compared`` does. None of
    fewer than ``LEAST_TEXTS`` texts, or where too few of their pairs compare.
    """
    pairs = [pair for pair in combinations(measured, 2) if comparable(pair[0].text, pair[1].text)]
    fitted = {each.text.regime: each.text for pair in pairs for each in pair}
    if len(fitted) < LEAST_TEXTS:
        return None
    design = np.array([counts(first.text, second.text) for first, second in pairs])
    decades = np.array([second.decades - first.decades for first, second in pairs])
    names = np.array([[each.text.regime for each in pair] for pair in pairs])
    errors = []
    for own, at, truth in zip(names, design, decades, strict=True):
        rest = ~np.isin(names, own).any(axis=1)
        if np.linalg.matrix_rank(design[rest]) < design.shape[1]:
            return None
        errors.append(truth - at @ _least_squares(design[rest], decades[rest]))
    per_nat, per_root = _least_squares(design, decades)
    losses = [text.losses[max(text.losses)] for text in fitted.values()]
    overlaps = [text.overlap for text in fitted.values()]
    return Rule(
        per_nat=float(per_nat),
        per_root=float(per_root),
        spread=float(np.sqrt(np.mean(np.square(errors)))),
        regimes=frozenset(fitted),
        losses=(min(losses), max(losses)),
        overlaps=(min(overlaps), max(overlaps)),
        vocab_sizes=frozenset(text.vocab_size for text in fitted.values()),
    )


def _least_squares(design: Array, values: Array) -> Array:
    return np.asarray(np.linalg.lstsq(design, values, rcond=None)[0])


@functools.cache
def measured_texts() -> tuple[MeasuredText, ...]:
    """The texts that the rule is fitted to, as ``analysis.texts.measure`` found them in the saved calibrations."""
    file = resources.files("analysis") / "measured_texts.json"
    return tuple(
        MeasuredText(
            text=Text(
                regime=row["regime"],
                losses={int(tokens): float(loss) for tokens, loss in row["bigram_losses"].items()},
                overlap=float(row["overlap"]),
                vocab_size=int(row["vocab_size"]),
                tokenizer_hash="",
                corpus_hash="",
            ),
            decades=float(row["decades"]),
        )
        for row in json.loads(file.read_text())
    )


def record(measured: Sequence[MeasuredText]) -> list[dict[str, Any]]:
    """What ``measured_texts.json`` holds of them."""
    return [
        {
            "regime": each.text.regime,
            "vocab_size": each.text.vocab_size,
            "bigram_losses": {str(tokens): loss for tokens, loss in sorted(each.text.losses.items())},
            "overlap": each.text.overlap,
            "decades": each.decades,
        }
        for each in measured
    ]

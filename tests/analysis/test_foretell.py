"""What U of one text counts as under the law of another, by what was counted of both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis import foretell
from analysis.bakeoff import judge_texts, sort_runs
from analysis.foretell import (
    LEAST_TOKENS,
    MeasuredText,
    Text,
    comparable,
    compared,
    fit_rule,
    foretold_decades,
    is_guess,
    measured_texts,
    record,
    rule_without,
)
from analysis.tables import load_experiment
from analysis.texts import measure
from tune_dd.artifacts import METRICS
from tune_dd.corpus.bigram import SIZES
from tune_dd.errors import UserError

SAVED = Path(__file__).parents[2] / "ray_results" / "saved"
HERE = Text("here", {500_000: 3.9, 2_000_000: 3.6}, 0.04, 512, "docstrings-tokenizer", "docstrings-corpus")
THERE = replace(HERE, regime="there", losses={2_000_000: 3.1}, overlap=0.25, corpus_hash="web-corpus")


def invented(n: int, noise: float, seed: int = 0) -> list[MeasuredText]:
    """Texts whose scales follow .2 decades per nat and .3 per root of the share repeated, but for noise."""
    rng = np.random.default_rng(seed)
    texts = []
    for number, (loss, overlap, error) in enumerate(
        zip(rng.uniform(2.5, 4.0, n), rng.uniform(0.0, 0.5, n), rng.normal(0.0, noise, n), strict=True)
    ):
        text = replace(HERE, regime=f"text{number}", losses={2_000_000: loss}, overlap=overlap)
        texts.append(MeasuredText(text, float(-0.2 * loss + 0.3 * np.sqrt(overlap) + error)))
    return texts


def test_the_rule_of_texts_that_follow_one_is_found() -> None:
    rule = fit_rule(invented(8, 0.0))
    assert rule is not None
    assert (rule.per_nat, rule.per_root) == (pytest.approx(0.2), pytest.approx(0.3))
    assert rule.spread == pytest.approx(0.0, abs=1e-9)
    assert rule.vocab_sizes == {512}


def test_its_spread_is_what_it_misses_of_texts_that_it_was_not_fitted_to() -> None:
    """Two independent errors make up a pair's, and the doubt about two slopes adds a little."""
    found = [rule.spread for seed in range(20) if (rule := fit_rule(invented(14, 0.05, seed))) is not None]
    assert len(found) == 20
    assert 0.05 * np.sqrt(2) < np.mean(found) < 0.05 * 2.0
    rule_of_all = fit_rule(invented(7, 0.05, seed=3))
    assert rule_of_all is not None
    texts = invented(7, 0.05, seed=3)
    missed = []
    for i, first in enumerate(texts):
        for second in texts[i + 1 :]:
            rule = fit_rule([each for each in texts if each not in (first, second)])
            assert rule is not None
            counted = foretell.counts(first.text, second.text)
            missed.append(second.decades - first.decades - counted @ np.array([rule.per_nat, rule.per_root]))
    assert rule_of_all.spread == pytest.approx(float(np.sqrt(np.mean(np.square(missed)))))


def test_a_text_counts_for_more_that_surprises_less_or_repeats_itself() -> None:
    rule = rule_without(frozenset(), 2_000_000)
    decades, used = foretold_decades(HERE, THERE)
    assert used == rule, "neither text is among the measured ones"
    assert decades == pytest.approx(rule.per_nat * 0.5 + rule.per_root * 0.3)
    assert foretold_decades(THERE, HERE)[0] == pytest.approx(-decades)
    itself, sure = foretold_decades(HERE, replace(HERE, regime="same"))
    assert (itself, sure.spread) == (0.0, 0.0), "a text counts as itself"
    like_it, unsure = foretold_decades(HERE, replace(HERE, regime="like it", corpus_hash="another"))
    assert (like_it, unsure.spread) == (0.0, rule.spread)
    assert rule.per_nat > 0.05
    assert rule.per_root > 0.05


def test_a_measured_text_is_foretold_by_the_rule_of_the_others() -> None:
    first, second = measured_texts()[:2]
    _, rule = foretold_decades(first.text, second.text)
    names = {each.text.regime for each in measured_texts()}
    assert rule.regimes == names - {first.text.regime, second.text.regime}
    assert foretold_decades(first.text, THERE)[1].regimes == names - {first.text.regime}


def test_losses_compare_on_the_largest_number_of_tokens_that_both_were_counted_on() -> None:
    small = replace(THERE, losses={500_000: 3.95, 700_000: 3.8})
    assert compared(HERE, small) == (3.9, 3.95)
    for other in (replace(THERE, vocab_size=4_096), replace(THERE, losses={700_000: 3.6})):
        assert not comparable(HERE, other)
        with pytest.raises(UserError, match="do not compare: tokenize both with one size of vocabulary"):
            foretold_decades(HERE, other)


def test_texts_unlike_the_measured_ones_are_a_guess() -> None:
    rule = rule_without(frozenset(), 2_000_000)
    assert not is_guess(rule, HERE, THERE)
    assert is_guess(rule, HERE, replace(THERE, losses={2_000_000: 2.0}))
    assert is_guess(rule, HERE, replace(THERE, overlap=0.9))
    assert is_guess(rule, *(replace(text, vocab_size=4_096) for text in (HERE, THERE)))


def test_few_tokens_are_judged_by_what_few_tokens_of_the_measured_texts_told() -> None:
    """The fewer tokens a bigram model is counted on, the more it loses, and the less it tells."""
    few = rule_without(frozenset(), 62_500)
    assert few.losses[0] > rule_without(frozenset(), 2_000_000).losses[0] + 0.5
    assert few.spread > rule_without(frozenset(), 2_000_000).spread
    first, second = (replace(each, losses={62_500: each.losses[62_500]}) for each in map(measured, ("owt", "jscode")))
    _, rule = foretold_decades(first, second)
    assert rule == rule_without(frozenset({"owt", "jscode"}), 62_500)
    assert not is_guess(rule, first, second)
    assert min(SIZES) == LEAST_TOKENS, "what a manifest holds and what the rule knows"
    fewer = replace(THERE, losses={20_000: 4.0}), replace(HERE, losses={20_000: 4.1})
    assert is_guess(foretold_decades(*fewer)[1], *fewer), "no measured text was counted on so few"


def measured(regime: str) -> Text:
    return next(each.text for each in measured_texts() if each.text.regime == regime)


def test_texts_that_do_not_compare_make_no_rule() -> None:
    texts = invented(8, 0.05)
    apart = [replace(each, text=replace(each.text, losses={n: 3.0})) for n, each in enumerate(texts)]
    assert fit_rule(apart) is None
    assert fit_rule(texts[:4]) is None
    alike = [replace(each, text=replace(each.text, overlap=0.04)) for each in texts]
    assert fit_rule(alike) is None, "nothing tells what repetition does"


def test_the_measured_texts_are_what_the_saved_calibrations_say() -> None:
    names = {each.text.regime for each in measured_texts()}
    runs = sorted(path.parent for path in SAVED.glob(f"**/{METRICS}"))
    runs = [run for run in runs if json.loads((run / "config.json").read_text())["regime"]["name"] in names]
    study = sort_runs([load_experiment([run]) for run in runs])
    found = record(measure(judge_texts(study), study.texts))
    kept = record(measured_texts())
    assert [each["regime"] for each in found] == [each["regime"] for each in kept]
    for mine, saved in zip(found, kept, strict=True):
        assert mine["decades"] == pytest.approx(saved["decades"], abs=1e-6)
        assert {**mine, "decades": 0} == {**saved, "decades": 0}

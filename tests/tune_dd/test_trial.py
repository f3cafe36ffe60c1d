from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from tune_dd.builtin_regimes import POCKET
from tune_dd.errors import UserError
from tune_dd.regimes import ModelSpec
from tune_dd.trial import Stage, TrialSpec, format_dropout, short_count


def spec(**changes) -> TrialSpec:
    base = TrialSpec(
        regime="tinystories",
        scale="full",
        corpus_hash="c",
        tokenizer_hash="t",
        validation_hash="v",
        vocab_size=4096,
        model=ModelSpec(12, 8, 320),
        protocol=POCKET.protocol,
        seed=3,
        condition="static_0.30",
        kind="static",
        stages=(Stage(500_000, 0.3, (32, 64)),),
    )
    return replace(base, **changes)


def test_the_name_says_what_the_trial_is() -> None:
    assert spec().name == "tinystories-L12_H8_D320-U500k-p0.30-s3"
    stream = spec(kind="law", condition="law", stages=(Stage(1000, 0.4, (8,)), Stage(2000, 0.1, (16,))))
    assert stream.name == "tinystories-L12_H8_D320-stream2-law-s3"


def test_the_id_depends_on_content_alone_and_on_all_of_it() -> None:
    assert spec().trial_id == spec().trial_id
    others = [
        spec(regime="owt"),
        spec(corpus_hash="d"),
        spec(tokenizer_hash="d"),
        spec(validation_hash="d"),
        spec(vocab_size=512),
        spec(model=ModelSpec(12, 8, 384)),
        spec(protocol=replace(POCKET.protocol, learning_rate=1e-3)),
        spec(seed=4),
        spec(stages=(Stage(500_000, 0.31, (32, 64)),)),
        spec(stages=(Stage(500_000, 0.3, (32, 65)),)),
        spec(stages=(Stage(400_000, 0.3, (32, 64)),)),
    ]
    ids = {s.trial_id for s in others}
    assert len(ids) == len(others)
    assert spec().trial_id not in ids


def test_a_spec_survives_json_with_its_id() -> None:
    stream = spec(kind="law", condition="law", stages=(Stage(1000, 0.4, (8,)), Stage(2000, 1 / 3, (16, 20))))
    back = TrialSpec.from_dict(json.loads(json.dumps(stream.to_dict())))
    assert back == stream
    assert back.trial_id == stream.trial_id


@pytest.mark.parametrize("dropout", [-0.1, 1.0, math.nan])
def test_a_dropout_outside_its_range_is_refused(dropout: float) -> None:
    with pytest.raises(UserError, match="outside"):
        Stage(1000, dropout, (1,))


@pytest.mark.parametrize("steps", [(), (2, 1), (1, 1)])
def test_readouts_must_increase(steps: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="increasing"):
        Stage(1000, 0.1, steps)


@pytest.mark.parametrize(
    "stages",
    [
        (),
        (Stage(2000, 0.1, (4,)), Stage(1000, 0.1, (8,))),
        (Stage(1000, 0.1, (8,)), Stage(2000, 0.1, (8, 16))),
    ],
)
def test_stages_must_grow_and_advance(stages: tuple[Stage, ...]) -> None:
    with pytest.raises(UserError):
        spec(stages=stages)


def test_counts_and_rates_are_written_as_people_do() -> None:
    assert [short_count(n) for n in (500, 4_000, 1_000_000, 2_500_000, 262_144)] == [
        "500",
        "4k",
        "1M",
        "2500k",
        "262144",
    ]
    assert [format_dropout(p) for p in (0.0, 0.3, 0.125, 1 / 3)] == ["0.00", "0.30", "0.125", "0.333333"]

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from tune_dd.builtin_regimes import POCKET, REGIMES
from tune_dd.corpus.build import SAMPLE_CHARACTERS
from tune_dd.errors import UserError
from tune_dd.regimes import ModelSpec, Protocol, Regime, Scale, evidence_class


def test_parameter_counts_are_the_definition_s() -> None:
    assert ModelSpec(16, 8, 384).n_params(4096) == 31_457_280
    assert ModelSpec(12, 8, 320).n_params(4096) == 17_367_040
    assert ModelSpec(2, 2, 64).n_params(512) == 163_840


def test_flops_per_token() -> None:
    # 6 (12 L D^2 + V D) + 6 L T D, by hand for L2 D64 V512 T128
    assert ModelSpec(2, 2, 64).flops_per_token(512, 128) == 6 * (12 * 2 * 64**2 + 512 * 64) + 6 * 2 * 128 * 64


def test_models_parse_and_print() -> None:
    assert ModelSpec.parse("L12_H8_D320").name == "L12_H8_D320"
    with pytest.raises(UserError, match="of the form"):
        ModelSpec.parse("12x8")
    with pytest.raises(UserError, match="do not divide"):
        ModelSpec.parse("L2_H3_D64")
    with pytest.raises(UserError, match="odd"):
        ModelSpec.parse("L2_H2_D6")


def test_reference_regimes_are_those_of_the_study() -> None:
    owt = REGIMES["owt"].scale("full")
    assert (owt.models, owt.vocab_size) == ((ModelSpec(16, 8, 384),), 4096)
    assert owt.prefixes == (250_000, 500_000, 1_000_000, 2_000_000, 4_000_000)
    for name in ("tinystories", "wikitext103"):
        assert REGIMES[name].scale("full").models == (ModelSpec(12, 8, 320),)
        assert REGIMES[name].scale("full").prefixes == (500_000, 1_000_000, 2_000_000, 4_000_000)
    assert all(r.scale("pocket") == POCKET for r in REGIMES.values())


def test_the_extrapolation_is_the_full_scale_at_the_deepest_model_and_one_prefix_further() -> None:
    for name in ("owt", "tinystories", "wikitext103"):
        full, longer = REGIMES[name].scale("full"), REGIMES[name].scale("full-8m")
        assert longer.models == (ModelSpec(20, 8, 448),)
        assert longer.prefixes == (*full.prefixes, 8_000_000)
        assert longer.readouts[:-1] == full.readouts
        assert len(longer.readouts) == len(longer.prefixes)
        assert (longer.steps_of_stream, longer.protocol) == (full.steps_of_stream, full.protocol)
        assert longer.seeds == (0, 1, 2)
        assert len(longer.stream_seeds) == 3
        assert not {*longer.stream_seeds} & {*longer.seeds}
        # One tokenizer: the text that it learns from must not depend on which of the two is encoded.
        assert 2 * min(full.train_tokens, longer.train_tokens) >= SAMPLE_CHARACTERS
        for path in longer.anchors.values():
            assert path[-1] == path[-2]
    assert "full-8m" not in REGIMES["pydocs"].scales


def test_every_reason_is_of_a_field_that_there_is() -> None:
    known = {f.name for f in fields(Scale)} | {"everything", "corpus.validation_fraction"}
    known |= {f"protocol.{f.name}" for f in fields(Protocol)}
    for regime in REGIMES.values():
        for scale in regime.scales.values():
            assert scale.ours
            assert set(scale.ours) <= known
            assert all(scale.ours.values())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"vocab_size": 256}, "vocab_size"),
        ({"vocab_size": 65_537}, "vocab_size"),
        ({"prefixes": (8_000, 4_000)}, "prefixes"),
        ({"prefixes": (100,)}, "prefixes"),
        ({"readouts": ()}, "readouts"),
        ({"dropouts": (0.1, 1.0)}, "dropout"),
        ({"dropouts": (float("nan"),)}, "dropout"),
        ({"dropouts": (0.1, 0.1)}, "duplicates"),
        ({"anchors": {"slow": (float("nan"),) * len(POCKET.prefixes_of_stream)}}, "anchors slow: dropout nan"),
        ({"anchors": {"slow": (1.5,) * len(POCKET.prefixes_of_stream)}}, "anchors slow: dropout 1.5"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"models": ()}, "models"),
        ({"models": (ModelSpec(1, 2, 32),) * 2}, "models has L1_H2_D32 twice"),
        ({"calibration_models": (ModelSpec(1, 2, 32),) * 2}, "calibration_models has L1_H2_D32 twice"),
        ({"screen_models": (ModelSpec(1, 2, 32),) * 2}, "screen_models has L1_H2_D32 twice"),
        ({"train_tokens": 1_000}, "train_tokens"),
        ({"eval_tokens": 10**9}, "eval_tokens"),
    ],
)
def test_a_scale_names_the_field_that_is_wrong(changes: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        replace(POCKET, **changes)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"weight_decay": float("inf")}, "weight_decay"),
        ({"warmdown_fraction": float("nan")}, "warmdown_fraction"),
        ({"betas": (0.9, float("nan"))}, "betas"),
        ({"rate_schedule": "cosine"}, "rate_schedule"),
        ({"precision": "float16"}, "precision"),
        ({"betas": (0.9, 1.0)}, "betas"),
    ],
)
def test_a_protocol_names_the_field_that_is_wrong(changes: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        replace(POCKET.protocol, **changes)


def test_a_protocol_survives_a_dict() -> None:
    from dataclasses import asdict

    assert Protocol.from_dict(asdict(POCKET.protocol)) == POCKET.protocol


def test_a_regime_name_cannot_leave_its_folder() -> None:
    for name in ("../x", "a/b", "", "A", "x" * 41, "a b"):
        with pytest.raises(UserError, match="regime name"):
            Regime(name, "t", REGIMES["owt"].corpus, {})


def test_evidence_classes() -> None:
    assert evidence_class("full", "mps") == "evidence"
    assert evidence_class("full", "cuda") == "run"
    assert evidence_class("pocket", "mps") == "rehearsal"

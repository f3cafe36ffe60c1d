"""The built-in regimes: values of the reference study, and ours where it leaves something open.

What the study (DOI 10.5281/zenodo.20616633) gives is used as it is. Every field that it leaves open is chosen
here and listed in ``Scale.ours`` with its reason, so that config.json says so too.
"""

from __future__ import annotations

from dataclasses import replace

from tune_dd.regimes import CorpusSource, ModelSpec, Protocol, Regime, Scale

K, M = 1_000, 1_000_000

# Settled beforehand on the docstring corpus: the optimum is seen to fall as U grows, for every seed
# tried, in about three minutes of one core. At C = 66k it is still 0 everywhere.
POCKET = Scale(
    vocab_size=512,
    models=(ModelSpec(2, 2, 64),),
    protocol=Protocol(batch_size=16, context=128, learning_rate=1e-2, warmup_steps=20),
    prefixes=(4 * K, 8 * K, 16 * K, 32 * K),
    readouts=(65_536, 131_072, 196_608, 262_144),
    dropouts=(0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    seeds=(0, 1, 2),
    train_tokens=2 * M,
    validation_tokens=200 * K,
    eval_tokens=65_536,
    calibration_models=(ModelSpec(1, 2, 32), ModelSpec(2, 2, 64)),
    screen_models=(ModelSpec(1, 2, 32), ModelSpec(2, 2, 64), ModelSpec(3, 4, 96)),
    stream_prefixes=(4 * K, 8 * K, 16 * K, 32 * K, 64 * K),
    stream_steps=64,
    stream_dropouts=(0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4),
    anchors={"hold_35_then_decay": (0.35, 0.40, 0.34, 0.10, 0.02), "mild_35_to_06": (0.35, 0.30, 0.22, 0.12, 0.06)},
    search_points=30,
    ours={"everything": "a pocket scale is a rehearsal of ours, of which the study has none"},
)

# --quick: the same cells on one seed and the dropouts that decide them, 24 trials.
QUICK_DROPOUTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
QUICK_SEEDS = (0,)

_FULL_PROTOCOL = Protocol(batch_size=32, context=256, learning_rate=1e-3, warmup_steps=100)
_FULL_OURS = {
    "protocol.batch_size": "32 x 256 = 8,192 tokens a step: an epoch over the smallest prefix is some thirty steps",
    "protocol.context": "256: scores and their values are a twentieth of a step's work at width 384",
    "protocol.learning_rate": "1e-3 for every size: one rate, so that a size's optimum is not that of its own rate; "
    "not tuned",
    "protocol.warmup_steps": "100, a tenth of the shortest stage or less",
    "protocol.rate_schedule": "constant: a rate that needs no end of the run lets one trial feed several cells",
    "protocol.betas": "0.9, 0.95, customary for small transformers",
    "protocol.weight_decay": "0, so that dropout is the only regulariser",
    "protocol.precision": "float32: on mps and cpu the sums are then comparable",
    "readouts": "the ends of the stream's stages, so that static cells and stages meet at the same C",
    "dropouts": "0 to 0.6: the study's schedules use 0.02 to 0.39, and an optimum must lie inside the grid to be seen",
    "stream_dropouts": "the static grid",
    "seeds": "three for static grids; the study's five are the stream's",
    "stream_seeds": "10 to 14, none of the static grid's: a law is not judged on seeds it was fitted on",
    "search_points": "three times the 10 random points that the sampler begins with, and as many again",
    "eval_tokens": "262,144 of the 500,000 validation tokens, in fixed windows",
    "calibration_models": "the model and the next smaller size, which costs less than a larger one; one size alone "
    "cannot tell P from a constant",
    "screen_models": "heads, and the width of L20: the study names its depth, and its ladder adds 64 a step",
    "corpus.validation_fraction": "a tenth of the documents, by the hash of their content",
}
_FULL_DROPOUTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
_SPLIT_OURS = {
    "train_tokens": "5.0M as in owt: beyond the largest prefix nothing of it is trained on",
    "validation_tokens": "0.5M as in owt",
}

# The ladder of the reference study.
_L20 = ModelSpec(20, 8, 448)
_LADDER = (ModelSpec(8, 8, 256), ModelSpec(12, 8, 320), ModelSpec(16, 8, 384), _L20)


def _full(
    model: ModelSpec,
    prefixes: tuple[int, ...],
    steps_per_stage: int,
    *,
    anchors: dict[str, tuple[float, ...]],
    ours: dict[str, str],
) -> Scale:
    """A full scale whose static read-outs stand at the ends of the stream's stages."""
    return Scale(
        vocab_size=4096,
        models=(model,),
        protocol=_FULL_PROTOCOL,
        prefixes=prefixes,
        readouts=_stage_ends(len(prefixes), steps_per_stage),
        dropouts=_FULL_DROPOUTS,
        seeds=(0, 1, 2),
        train_tokens=5 * M,
        validation_tokens=500 * K,
        eval_tokens=262_144,
        calibration_models=(_LADDER[_LADDER.index(model) - 1], model),
        screen_models=_LADDER,
        stream_steps=steps_per_stage,
        anchors=anchors,
        ours=_FULL_OURS | ours,
    )


def _stage_ends(n_stages: int, steps_per_stage: int) -> tuple[int, ...]:
    return tuple(steps_per_stage * _FULL_PROTOCOL.tokens_per_step * (stage + 1) for stage in range(n_stages))


def _extrapolation(full: Scale) -> Scale:
    """The regime at L20 and to 8M tokens: a hold-out for the law that was fitted at full scale.

    Same protocol, tokenizer and validation text as the full scale, one prefix and one stage more. For owt that is
    more than the study's train split of 5.0M; the file has room: web text takes some 3.5 bytes a token at this
    vocabulary, so 8M tokens beside the held-out tenth are about 31 MB of text, and the file has 30 MB compressed.
    """
    prefixes = (*full.prefixes, 8 * M)
    return replace(
        full,
        models=(_L20,),
        prefixes=prefixes,
        readouts=_stage_ends(len(prefixes), full.stream_steps),
        train_tokens=8 * M,
        calibration_models=(),
        screen_models=(),
        stream_seeds=(10, 11, 12),
        anchors={f"{name}_held": (*path, path[-1]) for name, path in full.anchors.items()},
        ours=full.ours
        | {
            "models": "8 heads and width 448: the study names the depth, and its ladder adds 4 layers and 64 of width",
            "train_tokens": "8M, the largest prefix: nothing beyond it would be trained on. For owt the study's 5.0M "
            "is the split of its 4M runs; the 8M prefix needs more of the same file",
            "anchors": "the full scale's paths with their last value held for the stage at 8M, hence their names",
            "seeds": "0, 1, 2: the study has three here",
            "stream_seeds": "10, 11, 12, none of the static grid's",
            "calibration_models": "L20 alone: it is held out, and the law comes from the full scale's sizes",
            "screen_models": "L20 alone: there is nothing to choose",
        },
    )


# For the regimes whose schedules the study does not print.
_OUR_ANCHORS: dict[str, tuple[float, ...]] = {
    "hold_30_then_decay": (0.30, 0.30, 0.10, 0.02),
    "mild_30_to_08": (0.30, 0.22, 0.14, 0.08),
}

_OWT_FULL = _full(
    ModelSpec(16, 8, 384),
    (250 * K, 500 * K, 1 * M, 2 * M, 4 * M),
    1000,
    anchors={
        "reference_interaction": (0.39, 0.32, 0.23, 0.14, 0.07),
        "hold_30_then_decay": (0.30, 0.30, 0.20, 0.10, 0.02),
        "mild_30_to_08": (0.30, 0.24, 0.18, 0.12, 0.08),
    },
    ours={},
)
_TINYSTORIES_FULL = _full(
    ModelSpec(12, 8, 320),
    (500 * K, 1 * M, 2 * M, 4 * M),
    2000,
    anchors={
        "reference_interaction": (0.18, 0.14, 0.08, 0.04),
        "smooth_low": (0.16, 0.11, 0.07, 0.05),
        "baseabc": (0.25, 0.19, 0.10, 0.02),
    },
    ours=_SPLIT_OURS,
)
_WIKITEXT103_FULL = _full(
    ModelSpec(12, 8, 320),
    (500 * K, 1 * M, 2 * M, 4 * M),
    2000,
    anchors=_OUR_ANCHORS,
    ours=_SPLIT_OURS
    | {
        "prefixes": "those of tinystories: the study names only 4M",
        "stream_steps": "2,000 as for tinystories, which has the same model",
        "anchors": "the study prints none: owt's two hand-made paths, shortened to four stages",
    },
)
_PYDOCS_FULL = replace(
    _WIKITEXT103_FULL, ours={"everything": "the study has no such regime: wikitext103's scale on another text"}
)

_OWT = Regime(
    name="owt",
    title="OpenWebText10K",
    corpus=CorpusSource(globs=("data/openwebtext10k/*.parquet",)),
    scales={"full": _OWT_FULL, "full-8m": _extrapolation(_OWT_FULL), "pocket": POCKET},
)
_TINYSTORIES = Regime(
    name="tinystories",
    title="TinyStories",
    corpus=CorpusSource(globs=("data/tinystories/*.parquet",)),
    scales={"full": _TINYSTORIES_FULL, "full-8m": _extrapolation(_TINYSTORIES_FULL), "pocket": POCKET},
)
_WIKITEXT103 = Regime(
    name="wikitext103",
    title="WikiText-103",
    corpus=CorpusSource(globs=("data/wikitext103_raw/*.parquet",), form="wikitext"),
    scales={"full": _WIKITEXT103_FULL, "full-8m": _extrapolation(_WIKITEXT103_FULL), "pocket": POCKET},
)
_PYDOCS = Regime(
    name="pydocs",
    title="Python docstrings",
    corpus=CorpusSource(kind="pydocs"),
    scales={"full": _PYDOCS_FULL, "pocket": POCKET},
)

REGIMES: dict[str, Regime] = {r.name: r for r in (_OWT, _TINYSTORIES, _WIKITEXT103, _PYDOCS)}

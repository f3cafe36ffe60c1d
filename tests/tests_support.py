"""What tests share: a specification and a row to vary, a synthetic text, a tiny regime."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search_spaces.schedule_coefficients import ScheduleSpace
from tune_dd import artifacts
from tune_dd.corpus import load_corpus
from tune_dd.regimes import VALIDATION_SALT, ModelSpec, Protocol
from tune_dd.stream import evaluation_windows
from tune_dd.sweep.__main__ import main
from tune_dd.trial import Stage, TrialSpec

REPOSITORY = Path(__file__).resolve().parents[1]

# Of a program that must run where neither can be imported: what it begins with.
REFUSE_TORCH_AND_RAY = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'ray'):
            raise ImportError(f'{name} is refused here')
sys.meta_path.insert(0, Refuse())
"""

TINY_REGIME = """
name = "tiny"
[corpus]
globs = ["text.txt"]
separator = "\\n\\n"
[scales.full]
vocab_size = 300
models = ["L1_H2_D16"]
prefixes = [400, 800]
readouts = [640, 1280]
dropouts = [0.0, 0.2]
seeds = [0]
train_tokens = 4000
validation_tokens = 1000
eval_tokens = 512
[scales.full.protocol]
batch_size = 4
context = 16
learning_rate = 1e-2
warmup_steps = 3
"""


def synthetic_text(n_documents: int, seed: int = 0) -> str:
    """Documents of made-up words with some order in them, divided by blank lines; not all ASCII."""
    draw = random.Random(seed)
    syllables = ["ka", "lo", "mi", "né", "po", "ru", "sha", "ti", "vu", "zö"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(120)]
    documents = []
    for number in range(n_documents):
        sentences = [" ".join(draw.choices(words, k=draw.randint(4, 9))).capitalize() + "." for _ in range(6)]
        documents.append(f"{number} " + " ".join(sentences))
    return "\n\n".join(documents)


def search_space(**fields: Any) -> ScheduleSpace:
    """A search by TPE over the ends of a law's path; the stream, its seeds, the law and ``points`` are given."""
    default = {"space": "ends", "static": 0.2, "static_source": "as given", "sampler": "tpe"}
    return ScheduleSpace(**default | {"objective": "final", "search_seed": 0, "batch": 1} | fields).begun()


def assert_refused(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The sweep refuses a command in one line that holds the message, exit code 2, and begins no run in this folder."""
    before = sorted(Path.cwd().glob("ray_results/*/*"))
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert sorted(Path.cwd().glob("ray_results/*/*")) == before


def wait_until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """What the condition gives once it is true; fails the test if that takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def spec(**changes: Any) -> TrialSpec:
    base = TrialSpec(
        regime="tiny",
        scale="full",
        corpus_hash="c",
        tokenizer_hash="t",
        validation_hash="v",
        vocab_size=300,
        model=ModelSpec(1, 2, 16),
        protocol=Protocol(batch_size=4, context=16, learning_rate=1e-2, warmup_steps=3),
        seed=0,
        condition="static_0.20",
        kind="static",
        stages=(Stage(400, 0.2, (10, 20)),),
    )
    return replace(base, **changes)


def on_text(trial: TrialSpec, cache: Path) -> TrialSpec:
    """The trial with the hashes of a cache of vocabulary 300."""
    corpus = load_corpus(cache, 300)
    windows = evaluation_windows(corpus.validation, 16, 512, salt=VALIDATION_SALT)
    return replace(
        trial,
        corpus_hash=corpus.corpus_hash,
        tokenizer_hash=corpus.tokenizer_hash,
        validation_hash=windows.hash,
    )


def row(**changes: Any) -> dict[str, Any]:
    defaults: dict[type, Any] = {int: 1, float: 0.5, str: "x"}
    return {name: defaults[kind] for name, kind in artifacts.COLUMNS.items()} | changes


def coefficients(**changes: Any) -> dict[str, Any]:
    """What coefficients.json holds, of a law that gives the tiny regime's stream the path .41, .13 (about)."""
    exact = {"A": 0.5, "B": 0.4, "D": 0.0, "C0": -0.4}
    cells = [
        {"n_params": 12_672, "unique_tokens": u, "sampled_tokens": c} for u in (400, 800) for c in (640, 1280, 2560)
    ]
    return {
        "schema": 1,
        "regime": "tiny",
        "law": "interaction",
        "coefficients": exact,
        "intervals": {name: [value - 0.1, value + 0.1] for name, value in exact.items()},
        "p_min": 0.02,
        "p_max": 0.65,
        "rank": 4,
        "condition_number": 10.0,
        "n_cells": 6,
        "rmse": 0.01,
        "loo_rmse": None,
        "loo_regret": None,
        "cells": cells,
        "tokenizer_hash": "t",
        "corpus_hash": "c",
        "discrepancy": 0.0,
        "draws": [[0.5, 0.4, 0.0, -0.4 + shift] for shift in (-0.02, 0.0, 0.02)],
        "n_bootstrap": 3,
        "seed": 0,
        "notes": [],
    } | changes


def prepare_law(folder: Path) -> None:
    """The tiny regime, its cache, and coefficients fitted under its tokenizer (law.json) and another (other.json)."""
    from tune_dd.corpus import prepare_corpus
    from tune_dd.regime_file import load_regime

    (folder / "text.txt").write_text(synthetic_text(120), encoding="utf-8")
    (folder / "tiny.toml").write_text(TINY_REGIME, encoding="utf-8")
    regime = load_regime(folder / "tiny.toml")
    corpus = prepare_corpus(
        regime.corpus,
        vocab_size=300,
        train_tokens=4000,
        validation_tokens=1000,
        min_train_tokens=800,
        cache_dir=folder / ".cache" / "dropout_decay_tiny",
        show_progress=False,
    )
    law = coefficients(tokenizer_hash=corpus.tokenizer_hash)
    (folder / "law.json").write_text(json.dumps(law))
    (folder / "other.json").write_text(json.dumps(coefficients()))
    (folder / "elsewhere.json").write_text(json.dumps(law | {"regime": "owt"}))

"""Every full-scale model taken through its first steps on cpu, a journal, and a resume in a fresh process."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests_support import REPOSITORY

from tune_dd import artifacts, journal
from tune_dd.builtin_regimes import REGIMES
from tune_dd.corpus import Corpus, prepare_corpus
from tune_dd.regimes import VALIDATION_SALT, CorpusSource, ModelSpec
from tune_dd.stream import evaluation_windows
from tune_dd.trial import RunContext, Stage, TrialSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SCALE = REGIMES["owt"].scale("full-8m")
MODELS = [model.name for model in REGIMES["owt"].scale("full").screen_models]
EVAL_TOKENS = 512  # a read-out of the whole split would take longer than the steps

# Argument: a trial, a run and the step to stop after (0: none), as JSON. Whether it finished and its rows come out.
PROGRAM = """
import json, sys
from tune_dd import artifacts
from tune_dd.trainable import Heartbeat, run_trial
from tune_dd.trial import RunContext, TrialSpec

given = json.loads(sys.argv[1])
run, rows = RunContext(**given["run"]), []
beat = Heartbeat.beat

def beat_and_stop(self, step, **more):
    beat(self, step, **more)
    if step == given["stop_after"] > 0:
        (run.live / artifacts.STOP).touch()

Heartbeat.beat = beat_and_stop
finished = run_trial(TrialSpec.from_dict(given["trial"]), run, rows.append)
print(json.dumps({"finished": finished, "rows": rows}))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Made-up words, enough of them for the full vocabulary."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 9))) for _ in range(20_000)]
    documents = [" ".join(draw.choices(words, k=300)) for _ in range(300)]
    (folder / "text.txt").write_text("\n\n\n".join(documents))
    return prepare_corpus(
        CorpusSource(globs=(str(folder / "text.txt"),)),
        vocab_size=SCALE.vocab_size,
        train_tokens=100_000,
        validation_tokens=5_000,
        min_train_tokens=10_000,
        cache_dir=folder / "cache",
    )


def trial(corpus: Corpus, model: str) -> TrialSpec:
    """One read-out after the first step and one after the second."""
    windows = evaluation_windows(corpus.validation, SCALE.protocol.context, EVAL_TOKENS, salt=VALIDATION_SALT)
    return TrialSpec(
        regime="owt",
        scale="full",
        corpus_hash=corpus.corpus_hash,
        tokenizer_hash=corpus.tokenizer_hash,
        validation_hash=windows.hash,
        vocab_size=SCALE.vocab_size,
        model=ModelSpec.parse(model),
        protocol=replace(SCALE.protocol, warmup_steps=1),  # from the first step on at the full rate
        seed=0,
        condition="static_0.30",
        kind="static",
        stages=(Stage(1_000, 0.3, (1, 2)),),
    )


def run_trial(corpus: Corpus, spec: TrialSpec, folder: Path, *, stop_after: int = 0) -> dict:
    """In a process of its own."""
    run = RunContext(
        folder=str(folder),
        cache_folder=str(corpus.folder),
        run_id="test",
        phase="calibrate",
        device="cpu",
        n_threads=1,
        eval_tokens=EVAL_TOKENS,
        keep_weights=True,
    )
    for path in (run.journals, run.live):
        path.mkdir(parents=True, exist_ok=True)
    (run.live / artifacts.STOP).unlink(missing_ok=True)
    given = json.dumps({"trial": spec.to_dict(), "run": run.to_dict(), "stop_after": stop_after})
    command = [sys.executable, "-c", PROGRAM, given]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("model", MODELS)
def test_first_steps_a_journal_and_a_resume(corpus: Corpus, tmp_path: Path, model: str) -> None:
    spec = trial(corpus, model)
    whole = run_trial(corpus, spec, tmp_path / "whole")
    begun = run_trial(corpus, spec, tmp_path / "resumed", stop_after=1)
    path = journal.journal_path(tmp_path / "resumed" / artifacts.JOURNALS, spec.trial_id)
    stopped = journal.read_journal(path)
    assert (stopped.step, stopped.finished, stopped.has_weights) == (1, False, True)
    resumed = run_trial(corpus, spec, tmp_path / "resumed")
    assert (whole["finished"], begun["finished"], resumed["finished"]) == (True, False, True)
    assert len(whole["rows"]) == len(resumed["rows"]) == 2

    def results(rows: list[dict]) -> list[dict]:
        return [{k: v for k, v in row.items() if k not in artifacts.TIMING_COLUMNS} for row in rows]

    assert results(resumed["rows"]) == results(whole["rows"])
    assert whole["rows"][1]["train_loss"] < whole["rows"][0]["train_loss"]
    _, there = journal.load_journal(path)
    _, expected = journal.load_journal(journal.journal_path(tmp_path / "whole" / artifacts.JOURNALS, spec.trial_id))
    assert there.keys() == expected.keys()
    assert sum(tensor.numel() for name, tensor in there.items() if name.startswith("model/")) == spec.n_params
    for name, tensor in expected.items():
        assert torch.equal(there[name], tensor), name

"""Trials that begin alike: trained once, with the rows and weights that each would have had alone."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_support import on_text, spec, synthetic_text

from tune_dd import artifacts, journal, trainable
from tune_dd.artifacts import TIMING_COLUMNS
from tune_dd.corpus import prepare_corpus
from tune_dd.regimes import CorpusSource
from tune_dd.snapshots import FOLDER, Sharing, find, kept_weights, longer_than, path_key
from tune_dd.trial import RunContext, Stage, TrialSpec


def stream(condition: str, *dropouts: float, **changes: Any) -> TrialSpec:
    stages = tuple(Stage(400 * (t + 1), p, (12 * (t + 1),)) for t, p in enumerate(dropouts))
    return spec(condition=condition, kind="anchor_decay", stages=stages, **changes)


PATHS = {
    "a": (0.3, 0.3, 0.1),
    "b": (0.3, 0.3, 0.0),
    "c": (0.3, 0.1, 0.1),
    "twin": (0.3, 0.3, 0.1),
    "d": (0.0, 0.3, 0.1),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    (folder / "text.txt").write_text(synthetic_text(120), encoding="utf-8")
    source = CorpusSource(globs=(str(folder / "text.txt"),), separator="\n\n")
    prepare_corpus(
        source,
        vocab_size=300,
        train_tokens=4000,
        validation_tokens=1000,
        min_train_tokens=2000,
        cache_dir=folder / "c",
        show_progress=False,
    )
    return folder / "c"


def context(folder: Path, cache: Path) -> RunContext:
    for name in ("journals", "live"):
        (folder / name).mkdir(parents=True)
    return RunContext(str(folder), str(cache), "run", "stream", "cpu", 1, 512, keep_weights=True)


def train(run: RunContext, specs: list[TrialSpec], sharing: Sharing | None) -> dict[str, int]:
    """Train one after the other; returns the steps that each trained itself."""
    trained = {}
    for trial in specs:
        steps = []
        beat = trainable.Heartbeat.beat

        def count(self: Any, step: int, *, force: bool = False, steps: list[int] = steps, beat: Any = beat) -> None:
            steps.append(step) if not force else None
            beat(self, step, force=force)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainable.Heartbeat, "beat", count)
            everybody = {user for users in sharing.users.values() for user in users} if sharing else set()
            save_steps = sharing.save_steps(trial.trial_id, everybody) if sharing else []
            starts = sharing.starts(trial.trial_id) if sharing else []
            assert trainable.run_trial(trial, run, lambda row: None, save_steps=save_steps, starts=starts)
        trained[trial.condition] = len(steps)
    return trained


def outcome(run: RunContext, trial: TrialSpec) -> tuple[list[str], list[Any], dict[str, torch.Tensor]]:
    found, tensors = journal.load_journal(journal.journal_path(run.journals, trial.trial_id))
    rows = [json.dumps({k: v for k, v in row.items() if k not in TIMING_COLUMNS}) for row in found.rows]
    return rows, found.counters["trace"], tensors


def test_shared_trials_equal_unshared_ones_bit_for_bit_and_train_less(cache: Path, tmp_path: Path) -> None:
    specs = [on_text(stream(name, *path), cache) for name, path in PATHS.items()]
    sharing = Sharing.of(specs)
    alone, together = context(tmp_path / "alone", cache), context(tmp_path / "together", cache)
    assert train(alone, specs, None) == dict.fromkeys(PATHS, 36)
    assert train(together, specs, sharing) == {"a": 36, "b": 12, "c": 24, "twin": 0, "d": 36}
    assert sharing.shared_steps == 36 * 5 - (36 + 12 + 24 + 36)
    for trial in specs:
        rows, trace, tensors = outcome(alone, trial)
        shared_rows, shared_trace, shared_tensors = outcome(together, trial)
        assert shared_rows == rows
        assert shared_trace == trace
        assert shared_tensors.keys() == tensors.keys()
        assert all(torch.equal(shared_tensors[name], tensor) for name, tensor in tensors.items())


def test_a_damaged_snapshot_is_trained_again(cache: Path, tmp_path: Path) -> None:
    specs = [on_text(stream(name, *PATHS[name]), cache) for name in "ab"]
    sharing = Sharing.of(specs)
    run = context(tmp_path, cache)
    train(run, specs[:1], sharing)
    (snapshot,) = (tmp_path / FOLDER).iterdir()
    data = bytearray(snapshot.read_bytes())
    data[-5] ^= 1
    snapshot.write_bytes(bytes(data))
    assert train(run, specs[1:], sharing) == {"b": 36}
    assert journal.load_journal(snapshot)[0].step == 24, "it is made anew, whole"
    alone = context(tmp_path / "alone", cache)
    train(alone, specs[1:], None)
    assert outcome(run, specs[1])[0] == outcome(alone, specs[1])[0]


def test_longer_read_outs_go_on_from_kept_weights(cache: Path, tmp_path: Path) -> None:
    short = on_text(spec(stages=(Stage(400, 0.2, (10, 20)),)), cache)
    longer = replace(short, stages=(Stage(400, 0.2, (30,)),))
    run, alone = context(tmp_path / "run", cache), context(tmp_path / "alone", cache)
    train(run, [short], None)
    journals = {short.trial_id: journal.read_journal(journal.journal_path(run.journals, short.trial_id))}
    starts = longer_than(longer, kept_weights([short, longer], journals), {20, 30})
    assert starts == [f"journals/{short.trial_id}.safetensors"]
    steps: list[int] = []
    assert trainable.run_trial(longer, run, lambda row: steps.append(row["steps"]), starts=starts)
    train(alone, [longer], None)
    assert steps == [30]
    assert outcome(run, longer)[0] == outcome(alone, longer)[0]
    other = replace(longer, seed=1)
    assert longer_than(other, kept_weights([short], journals), {20}) == []


def test_a_read_out_that_nobody_made_is_trained_for(cache: Path, tmp_path: Path) -> None:
    """Weights of a later step are kept, and the read-out before it cannot be made from them."""
    short = on_text(spec(stages=(Stage(400, 0.2, (10, 20)),)), cache)
    between = replace(short, stages=(Stage(400, 0.2, (15, 30)),))
    run, alone = context(tmp_path / "run", cache), context(tmp_path / "alone", cache)
    train(run, [short], None)
    start = f"journals/{short.trial_id}.safetensors"
    assert find(run, between, [start]) is None
    assert find(run, replace(short, stages=(Stage(400, 0.2, (20, 30)),)), [start]) is not None
    steps: list[int] = []
    assert trainable.run_trial(between, run, lambda row: steps.append(row["steps"]), starts=[start])
    train(alone, [between], None)
    assert steps == [15, 30]
    assert outcome(run, between)[0] == outcome(alone, between)[0]


def test_what_decides_a_state_decides_the_key() -> None:
    base = stream("a", 0.3, 0.2)
    assert path_key(base, 12) == path_key(replace(base, condition="x", kind="law"), 12)
    assert path_key(base, 12) == path_key(stream("b", 0.3, 0.1), 12)
    assert path_key(base, 24) != path_key(stream("b", 0.3, 0.1), 24)
    assert path_key(base, 12) != path_key(base, 24)
    for changes in ({"seed": 1}, {"corpus_hash": "x"}, {"validation_hash": "x"}):
        assert path_key(base, 12) != path_key(replace(base, **changes), 12)
    warm = replace(base.protocol, rate_schedule="warmdown")
    short, long = stream("a", 0.3, 0.2, protocol=warm), stream("a", 0.3, 0.2, 0.1, protocol=warm)
    assert path_key(short, 12) != path_key(long, 12)


def test_a_snapshot_lives_as_long_as_a_trial_may_start_from_it(tmp_path: Path) -> None:
    specs = {name: stream(name, *path) for name, path in PATHS.items()}
    sharing = Sharing.of(specs.values())
    ids = {name: trial.trial_id for name, trial in specs.items()}
    assert sharing.save_steps(ids["d"], set(ids.values())) == []
    assert sharing.save_steps(ids["a"], set(ids.values())) == [12, 24, 36]
    assert sharing.save_steps(ids["a"], {ids["c"]}) == [12]
    folder = tmp_path / FOLDER
    folder.mkdir()
    for key in sharing.users:
        (folder / f"{key}.safetensors").touch()
    first = folder / f"{path_key(specs['a'], 12)}.safetensors"
    second = folder / f"{path_key(specs['a'], 24)}.safetensors"
    sharing.drop_unneeded(tmp_path, {ids["c"]: 0, ids["b"]: 0, ids["twin"]: 12})
    assert sorted(folder.iterdir()) == sorted([first, second])
    sharing.drop_unneeded(tmp_path, {ids["c"]: 0, ids["b"]: 24})
    assert list(folder.iterdir()) == [first]
    sharing.drop_unneeded(tmp_path, {})
    assert not folder.exists()


def test_kills_inside_every_write_lose_nothing_that_is_shared(cache: Path, tmp_path: Path) -> None:
    """Attempt after attempt is killed inside its second write, at each of the points of one in turn."""
    specs = [on_text(stream(name, *PATHS[name]), cache) for name in ("a", "b", "c", "twin")]
    sharing = Sharing.of(specs)
    run, alone = context(tmp_path / "run", cache), context(tmp_path / "alone", cache)
    train(alone, specs, None)

    def steps() -> dict[str, int]:
        paths = {s.trial_id: journal.journal_path(run.journals, s.trial_id) for s in specs}
        found = {i: journal.read_journal(path) if path.exists() else None for i, path in paths.items()}
        return {i: past.step if past else 0 for i, past in found.items() if not (past and past.finished)}

    kills = 0
    while left := steps():
        assert kills < 100
        sharing.drop_unneeded(tmp_path / "run", left)
        pid = os.fork()
        if pid == 0:
            try:
                countdown = itertools.count(6 + kills % 5, -1)
                artifacts.reach = lambda point, left=countdown: os._exit(9) if next(left) == 1 else None
                for trial in specs:
                    if trial.trial_id in left:
                        save_steps = sharing.save_steps(trial.trial_id, set(left))
                        starts = sharing.starts(trial.trial_id)
                        trainable.run_trial(trial, run, lambda row: None, save_steps=save_steps, starts=starts)
            finally:
                os._exit(0)
        kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert kills >= 8
    sharing.drop_unneeded(tmp_path / "run", {})
    assert not (tmp_path / "run" / FOLDER).exists()
    for trial in specs:
        assert outcome(run, trial)[0] == outcome(alone, trial)[0]
        assert all(torch.equal(outcome(run, trial)[2][n], t) for n, t in outcome(alone, trial)[2].items())

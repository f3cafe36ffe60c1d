"""Kills a bare search (no Ray) again and again inside its journal's writes and at random times.

Run as a program: it trains the unbroken search itself and then forks a child for every attempt, so that
a kill costs a fraction of a second. Prints one JSON object. The sequence of kills is a pure function of the seed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

from search_spaces.static_dropout import DataIdentity, StaticGrid, trials
from tune_dd import artifacts, journal, trainable
from tune_dd.corpus import prepare_corpus
from tune_dd.regimes import VALIDATION_SALT, CorpusSource, ModelSpec, Protocol, Scale
from tune_dd.stream import evaluation_windows
from tune_dd.trial import RunContext, TrialSpec

POINTS = ("before_temp", "half_written", "before_rename", "after_rename", "after_sync")
trainable._HEARTBEAT_SECONDS = 0.0  # every step, so that the work done twice is counted exactly
SCALE = Scale(
    vocab_size=300,
    models=(ModelSpec(1, 2, 16),),
    protocol=Protocol(batch_size=4, context=16, learning_rate=1e-2, warmup_steps=3),
    prefixes=(400, 800),
    readouts=(1280, 2560, 3840),
    dropouts=(0.0, 0.1, 0.2, 0.3),
    seeds=(0, 1),
    train_tokens=4000,
    validation_tokens=900,
    eval_tokens=512,
)


def search(run: RunContext, specs: list[TrialSpec]) -> None:
    """Train what is not finished, one after the other."""
    for spec in specs:
        path = journal.journal_path(run.journals, spec.trial_id)
        if not path.exists() or not journal.read_journal(path).finished:
            trainable.run_trial(spec, run, lambda row: None)


def attempt(run: RunContext, specs: list[TrialSpec], fault: tuple[str, int] | float | None) -> bool:
    """One child that searches until it is done or killed: at a point's n-th reach, or after seconds."""
    pid = os.fork()
    if pid == 0:
        try:
            if isinstance(fault, tuple):
                point, count = fault
                seen = [0]

                def reach(name: str) -> None:
                    seen[0] += name == point
                    if name == point and seen[0] == count:
                        os.kill(os.getpid(), signal.SIGKILL)

                artifacts.reach = reach
            search(run, specs)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    if isinstance(fault, float):
        time.sleep(fault)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("an attempt failed by itself")
    return os.WIFEXITED(status)


def rows_of(run: RunContext, specs: list[TrialSpec]) -> list[str]:
    rows = []
    for spec in specs:
        for row in journal.load_journal(journal.journal_path(run.journals, spec.trial_id))[0].rows:
            rows.append(json.dumps({k: v for k, v in row.items() if k not in artifacts.TIMING_COLUMNS}))
    return rows


def check_disk(run: RunContext) -> None:
    """Whatever the moment of a kill, every journal there is can be read to the last byte."""
    for path in run.journals.glob(f"*{journal.SUFFIX}"):
        journal.load_journal(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--points", type=int, required=True)
    args = parser.parse_args()
    source = CorpusSource(globs=(str(args.folder / "text.txt"),), separator="\n\n")
    corpus = prepare_corpus(
        source,
        vocab_size=SCALE.vocab_size,
        train_tokens=SCALE.train_tokens,
        validation_tokens=SCALE.validation_tokens,
        min_train_tokens=SCALE.prefixes[-1],
        cache_dir=args.folder / "cache",
    )
    windows = evaluation_windows(corpus.validation, 16, SCALE.eval_tokens, salt=VALIDATION_SALT)
    data = DataIdentity(corpus.corpus_hash, corpus.tokenizer_hash, windows.hash)
    grid = StaticGrid.of_scale(SCALE)
    specs = trials([grid], regime="tiny", scale_name="full", scale=SCALE, data=data)

    def new_run(name: str) -> RunContext:
        folder = args.folder / name
        for part in (artifacts.JOURNALS, artifacts.LIVE):
            (folder / part).mkdir(parents=True)
        return RunContext(str(folder), str(args.folder / "cache"), "run", "calibrate", "cpu", 1, SCALE.eval_tokens)

    unbroken = new_run("unbroken")
    began = time.monotonic()
    # In this process, so that the children inherit what a first trial loads and warms up.
    search(unbroken, specs)
    whole_seconds = time.monotonic() - began
    expected = rows_of(unbroken, specs)

    draw = random.Random(args.seed)
    hits: Counter[str] = Counter()
    lost = twice = changed = redone = searches = 0
    while sum(hits.values()) < args.points:
        run = new_run(f"broken{searches}")
        searches += 1
        while True:
            fault: tuple[str, int] | float | None = None
            if sum(hits.values()) < args.points:
                if draw.random() < 0.7:
                    fault = (draw.choice(POINTS), draw.randint(1, 12))
                else:
                    fault = draw.uniform(0.0, whole_seconds / 3)
            if attempt(run, specs, fault):
                break
            hits[fault[0] if isinstance(fault, tuple) else "random time"] += 1
            check_disk(run)
        found = rows_of(run, specs)
        counted = Counter(found)
        lost += len(set(expected) - set(found))
        twice += sum(n - 1 for n in counted.values())
        changed += len(set(found) - set(expected))
        for spec in specs:
            kept = journal.read_journal(journal.journal_path(run.journals, spec.trial_id))
            redone += int(kept.counters["redone_steps"])
    planned = searches * sum(spec.total_steps for spec in specs)
    print(
        json.dumps(
            {
                "kill points": sum(hits.values()),
                "by point": dict(sorted(hits.items())),
                "searches": searches,
                "rows expected": searches * len(expected),
                "rows lost": lost,
                "rows twice": twice,
                "rows changed": changed,
                "trained over planned steps": round((planned + redone) / planned, 3),
            }
        )
    )


if __name__ == "__main__":
    main()

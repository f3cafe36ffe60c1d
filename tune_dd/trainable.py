"""One trial: train to each read-out, journal it, report its row.

Nothing here knows Ray: a bare loop over ``run_trial`` gives the same rows as a search, where
``tune_dd/sweep/worker.py`` hands it to Tune. A trial that was interrupted goes on from its journal; since a batch
and a dropout mask depend on seed, stage and step alone, its rows are those of a trial that was never stopped.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_dd import artifacts, device, journal, snapshots
from tune_dd.corpus import Corpus, load_corpus
from tune_dd.errors import UserError
from tune_dd.evaluation import TrainingDiverged
from tune_dd.regimes import VALIDATION_SALT, evidence_class
from tune_dd.stream import evaluation_windows
from tune_dd.training import TrialData, TrialRun
from tune_dd.trial import RunContext, TrialSpec

_HEARTBEAT_SECONDS = 0.5


class Heartbeat:
    """A small file that says how far a running trial is: for the progress line and to find a hang."""

    def __init__(self, run: RunContext, spec: TrialSpec) -> None:
        self._path = run.live / f"{spec.trial_id}.json"
        self._past = self._path.with_suffix(".past")  # of an attempt that was killed with everything else
        self._stop = run.live / artifacts.STOP
        self._next = 0.0

    def last_step(self) -> int:
        """The step that an earlier, killed attempt is known to have reached; 0 if there was none."""
        steps = [0]
        for path in (self._path, self._past):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                steps.append(int(json.loads(path.read_text())["step"]))
        return max(steps)

    def beat(self, step: int, *, force: bool = False) -> None:
        now = time.monotonic()
        if now < self._next and not force:
            return
        self._next = now + _HEARTBEAT_SECONDS
        content = {"host": socket.gethostname(), "pid": os.getpid(), "step": step}
        temp = self._path.with_suffix(f".{os.getpid()}.tmp")
        with contextlib.suppress(OSError):  # progress is not worth failing for: the journal is what counts
            temp.write_text(json.dumps(content))
            os.replace(temp, self._path)
            self._past.unlink(missing_ok=True)

    def should_stop(self) -> bool:
        return self._stop.exists()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
            self._past.unlink(missing_ok=True)


class Aside:
    """Does one thing at a time beside the training.

    The way of a journal to the disk and of its row to Tune is mostly waiting.

    Use as a context manager: at its end what was begun is done.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="aside")
        self._begun: Future[None] | None = None

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def begin(self, work: Callable[[], None]) -> None:
        """Begin once what was begun before is done. Raises what that raised."""
        self.finish()
        self._begun = self._thread.submit(work)

    def look(self) -> None:
        """Raise what the work has raised, if it has."""
        if self._begun is not None and self._begun.done():
            self.finish()

    def finish(self) -> None:
        """Wait for what was begun. Raises what it raised."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.result()


def run_trial(
    spec: TrialSpec,
    run: RunContext,
    report: Callable[[dict[str, Any]], None],
    *,
    save_steps: Sequence[int] = (),
    starts: Sequence[str] = (),
) -> bool:
    """Train one trial from its journal to its end, or until the run is asked to stop.

    A read-out is journalled, and then reported, while the training goes on: the state is copied first, so that what
    is written is that of its step. A failing write ends the trial before its next step.

    Args:
        report: called with each row once it is on disk, those of an earlier attempt first. From a thread of its own.
        save_steps: read-out steps at which to leave a snapshot for trials that go the same way so far.
        starts: files in the run's folder to start from where there is no journal, the best first.

    Returns:
        Whether the trial is finished; if not, its journal holds the step it was stopped at.

    Raises:
        UserError: something the user must mend (a full disk, a missing cache). The search should stop.
        DeviceMiscomputes: the device's process should end with the trial.
        Exception: whatever the trial raised otherwise; it concerns this trial alone.
    """
    heartbeat = Heartbeat(run, spec)
    heartbeat_step = heartbeat.last_step()
    heartbeat.beat(0, force=True)
    if heartbeat.should_stop():
        heartbeat.close()
        return False
    finished = _finished_rows(spec, run)
    if finished is not None:
        for row in finished:
            report(row)
        heartbeat.close()
        return True
    data = _trial_data(run.cache_folder, spec.vocab_size, spec.protocol.context, run.eval_tokens)
    _check_identity(spec, data)
    torch_device = device.open_device(run.device, run.n_threads)
    device.reset_peak_memory(torch_device)
    trial = TrialRun(spec, data.trial_data, torch_device)
    rows, redone_steps = _resume(spec, run, trial, heartbeat_step, starts)
    for row in rows:
        report(row)
    heartbeat.beat(trial.step, force=True)
    trial.check_device()  # of a trial that goes on: a new one has nothing to look at

    def save(aside: Aside, report_last: bool = False) -> None:
        tensors, counters = trial.state()
        step, done = trial.step, list(rows)
        at_readout = bool(done) and done[-1]["steps"] == step

        def write() -> None:
            journal.write_journal(
                run.journals,
                spec,
                step=step,
                rows=done,
                counters={**counters, "redone_steps": redone_steps},
                tensors={} if len(done) == spec.n_readouts and not run.keep_weights else tensors,
            )
            if step in save_steps and at_readout:
                snapshots.save(run, spec, step, done, counters, tensors)
            if report_last:
                report(done[-1])

        aside.begin(write)

    readouts = [(s, r, step) for s, stage in enumerate(spec.stages) for r, step in enumerate(stage.readout_steps)]
    with Aside() as aside:

        def should_stop() -> bool:
            aside.look()
            return heartbeat.should_stop()

        if len(rows) == spec.n_readouts:  # another trial of the same path has been to the end
            save(aside)
        for stage_index, readout_index, step in readouts[len(rows) :]:
            reached = trial.advance(step, should_stop=should_stop, on_step=heartbeat.beat)
            trial.check_device()  # before anything is kept of what a device that errs has trained
            if not reached:
                save(aside)
                aside.finish()
                heartbeat.close()
                return False
            measured = trial.read_out()
            if not all(math.isfinite(measured[name]) for name in ("train_loss", "val_loss", "val_bpb")):
                raise TrainingDiverged(f"the loss is not finite at step {step}")
            rows.append(_row(spec, run, trial, stage_index, readout_index, measured, torch_device))
            save(aside, report_last=True)
            heartbeat.beat(trial.step, force=True)
        aside.finish()
    heartbeat.close()
    return True


def _finished_rows(spec: TrialSpec, run: RunContext) -> list[dict[str, Any]] | None:
    """Rows of a journal that is already whole: its worker died between writing it and telling Tune."""
    try:
        past = journal.read_journal(journal.journal_path(run.journals, spec.trial_id))
    except (FileNotFoundError, journal.DamagedJournal):
        return None
    return past.rows if past.finished else None


def _resume(
    spec: TrialSpec, run: RunContext, trial: TrialRun, heartbeat_step: int, starts: Sequence[str]
) -> tuple[list[dict[str, Any]], int]:
    """Rows of the trial's journal and the steps that a kill made it repeat, having loaded its state."""
    path = journal.journal_path(run.journals, spec.trial_id)
    try:
        past, tensors = journal.load_journal(path)
    except FileNotFoundError:
        return _begin(spec, run, trial, heartbeat_step, starts)
    except journal.DamagedJournal:
        journal.set_aside(path)  # the supervisor sees it lie there and says so
        return _begin(spec, run, trial, heartbeat_step, starts)
    trial.load_state(tensors, past.counters)
    redone = int(past.counters.get("redone_steps", 0)) + max(0, heartbeat_step - past.step)
    return list(past.rows), redone


def _begin(
    spec: TrialSpec, run: RunContext, trial: TrialRun, heartbeat_step: int, starts: Sequence[str]
) -> tuple[list[dict[str, Any]], int]:
    """The same for a trial without a journal, which starts where another one that went its way has been."""
    found = snapshots.find(run, spec, starts)
    if found is None:
        return [], heartbeat_step
    past, tensors, rows = found
    trial.load_state(tensors, past.counters)
    return rows, max(0, heartbeat_step - past.step)


@dataclass(frozen=True)
class _LoadedData:
    corpus: Corpus
    trial_data: TrialData


@functools.lru_cache(maxsize=2)  # one worker runs many trials of one corpus
def _trial_data(cache_folder: str, vocab_size: int, context: int, eval_tokens: int) -> _LoadedData:
    corpus = load_corpus(Path(cache_folder), vocab_size, verify=False)
    windows = evaluation_windows(corpus.validation, context, eval_tokens, salt=VALIDATION_SALT)
    return _LoadedData(corpus, TrialData(corpus.train, corpus.validation, windows, corpus.token_bytes))


def _check_identity(spec: TrialSpec, data: _LoadedData) -> None:
    found = (data.corpus.corpus_hash, data.corpus.tokenizer_hash, data.trial_data.windows.hash)
    if found != (spec.corpus_hash, spec.tokenizer_hash, spec.validation_hash):
        raise UserError(
            f"the corpus cache {data.corpus.folder} is not the one this run was planned on: "
            "resume the run, which builds that again, or start a new one"
        )


def _row(
    spec: TrialSpec,
    run: RunContext,
    trial: TrialRun,
    stage_index: int,
    readout_index: int,
    measured: dict[str, Any],
    torch_device: Any,
) -> dict[str, Any]:
    sampled = spec.sampled_tokens(trial.step)
    stage = spec.stages[stage_index]
    return {
        "schema": artifacts.SCHEMA,
        "run_id": run.run_id,
        "trial_id": spec.trial_id,
        "trial_name": spec.name,
        "regime": spec.regime,
        "phase": run.phase,
        "scale": spec.scale,
        "evidence": evidence_class(spec.scale, run.device),
        "model": spec.model.name,
        "n_params": spec.n_params,
        "vocab_size": spec.vocab_size,
        "context": spec.protocol.context,
        "batch_size": spec.protocol.batch_size,
        "seed": spec.seed,
        "condition": spec.condition,
        "kind": spec.kind,
        "stage": stage_index,
        "readout": readout_index,
        "unique_tokens": stage.unique_tokens,
        "sampled_tokens": sampled,
        "steps": trial.step,
        "dropout": stage.dropout,
        "learning_rate": measured["learning_rate"],
        "train_loss": measured["train_loss"],
        "val_loss": measured["val_loss"],
        "val_bpb": measured["val_bpb"],
        "gap": measured["val_loss"] - measured["train_loss"],
        "val_tokens": measured["val_tokens"],
        "corpus_hash": spec.corpus_hash,
        "tokenizer_hash": spec.tokenizer_hash,
        "validation_hash": spec.validation_hash,
        "device": run.device,
        "device_name": device.device_name(torch_device),
        "train_seconds": trial.train_seconds,
        "tokens_per_second": sampled / max(trial.train_seconds, 1e-9),
        "peak_memory_bytes": device.peak_memory_bytes(torch_device),
    }

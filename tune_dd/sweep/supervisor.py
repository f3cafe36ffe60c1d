"""Runs a planned search to its end: starts the scheduler process, watches it, ends it.

The process that the user sees has no Ray in it. It reads the journals, shows the
progress, keeps the tables up to date and answers signals at once, whatever Ray is doing.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_dd import artifacts, journal
from tune_dd.corpus.cache import CacheFiles, held
from tune_dd.errors import UserError
from tune_dd.snapshots import Sharing, kept_weights, longer_than
from tune_dd.sweep.plan import Plan
from tune_dd.sweep.progress import Progress
from tune_dd.sweep.ray_process import RayProcess
from tune_dd.sweep.runs import RunFolder, clear_disposable
from tune_dd.sweep.state import SearchState
from tune_dd.sweep.suggestions import Suggestions
from tune_dd.trial import TrialSpec

_POLL_SECONDS = 0.25
_SLEEP_SECONDS = 5.0  # a turn of the watch that took longer means that this process did not run
_ROUNDS = 3
_STOP_SECONDS = 6.0  # what the running trials get to save after a first signal
_START_SECONDS = 180.0  # Ray starts in some 3 s; a loaded machine may take long
_TABLE_SECONDS = 5.0
_PROBE_BYTES = 2**18
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Outcome:
    """How a search ended.

    Attributes:
        specs: its trials, those among them that were suggested as it went.
        planned: how many it was to have.
        crashed: trial_id -> reason.
        signal: what stopped it, or None.
    """

    specs: tuple[TrialSpec, ...]
    planned: int
    finished: int
    crashed: dict[str, str]
    signal: int | None


class Supervisor:
    """One search from its journals to its end.

    Args:
        ray: the scheduler process, started or not.
        hang_seconds: a trial that has not moved for so long is given up.
        suggestions: where its trials come about as it goes.
        when_draining: called once, as soon as a device is idle, or where there is but one at its last trial.
    """

    def __init__(
        self,
        run: RunFolder,
        plan: Plan,
        context: dict[str, Any],
        state: SearchState,
        progress: Progress,
        ray: RayProcess,
        *,
        hang_seconds: float,
        suggestions: Suggestions | None = None,
        when_draining: Callable[[], None] = lambda: None,
    ) -> None:
        self.run, self.plan, self.context = run, plan, context
        self.state, self.progress, self.ray = state, progress, ray
        self.hang_seconds, self.suggestions = hang_seconds, suggestions
        self._when_draining: Callable[[], None] | None = when_draining
        self._signals: list[int] = []
        self._next_table = 0.0
        self._sharing = Sharing.of(state.specs.values())
        # Unfinished trials that the scheduler was sent; None once it was told that no more will come.
        self._fed: set[str] | None = None

    def search(self) -> Outcome:
        """Train what is not finished.

        Raises:
            UserError: the search cannot go on (Ray went away, the disk is full); what is done is kept.
        """
        # What the caller set to be ignored stays so: nohup its SIGHUP, a shell's background its SIGINT.
        heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, self._on_signal) for number in heard}
        try:
            self.state.verify()
            # Once is enough, unless a journal was found damaged after its trial had been finished.
            for _ in range(_ROUNDS):
                self._suggest()
                unfinished = self.state.unfinished
                if not unfinished or self._signals:
                    break
                try:
                    with held(self._cache):
                        self._start(unfinished)
                        with self.progress:
                            self._watch()
                finally:
                    self._end_ray()
                self.state.refresh()
        finally:
            self._end_ray()  # started early, it may not have been needed
            for number, handler in previous.items():
                signal.signal(number, handler)
        self.state.refresh()
        self.state.write_tables()
        self._drop_snapshots()
        if not self.state.unfinished:
            shutil.rmtree(self.run.live, ignore_errors=True)
        return Outcome(
            specs=tuple(self.state.specs.values()),
            planned=self.state.n_planned,
            finished=len(self.state.finished),
            crashed=dict(self.state.crashes),
            signal=self._signals[0] if self._signals else None,
        )

    @property
    def _cache(self) -> CacheFiles:
        return CacheFiles(Path(self.context["cache_folder"]), self.plan.scale.vocab_size)

    @property
    def _all_ended(self) -> bool:
        """Whether every trial is finished or crashed; what its worker still tells Tune, nobody waits for."""
        return not self.state.unfinished

    def _end_ray(self) -> None:
        if self._all_ended:
            self.ray.let_go()  # the report need not wait for it
        else:
            self.ray.end()

    def _on_signal(self, number: int, frame: Any) -> None:
        self._signals.append(number)

    def _start(self, unfinished: list[TrialSpec]) -> None:
        trial_resources = {"cpu": 1}
        if self.plan.device == "mps":
            trial_resources["mps"] = 1  # a key that Tune does not know is a resource of ours
        elif self.plan.device == "cuda":
            trial_resources["gpu"] = 1
        clear_disposable(self.run)
        try:
            self.run.live.mkdir(exist_ok=True)
        except OSError as error:
            raise artifacts.storage_error(self.run.live, error) from None
        self.ray.start(self.plan)
        self._fed = set()
        self.ray.search(
            self.run,
            {
                "trial_resources": trial_resources,
                "experiment": "tune",
                "storage": str(self.run.ray),
                "run": self.context,
                # None: they are sent one after the other.
                "trials": self._trials(unfinished) if self.suggestions is None else None,
            },
        )

    def _suggest(self) -> None:
        if self.suggestions is not None and self.suggestions.more(self.state):
            self._sharing = Sharing.of(self.state.specs.values())

    def _feed(self) -> bool:
        """Send the scheduler the trials that it has not got, and word of the end; whether there was something.

        A trial that is unfinished again, its journal having been damaged, is sent again.
        """
        if self.suggestions is None or self._fed is None:
            return False
        self._suggest()
        unfinished = self.state.unfinished
        new = [spec for spec in unfinished if spec.trial_id not in self._fed]
        lines: list[Any] = self._trials(new)
        if not unfinished:
            lines.append(None)
        self.ray.send(lines)
        self._fed = {spec.trial_id for spec in unfinished} if unfinished else None
        return bool(lines)

    def _trials(self, specs: Sequence[TrialSpec]) -> list[dict[str, Any]]:
        """What the scheduler is to run, and what each trial shares with others."""
        every = tuple(self.state.specs.values())
        kept = kept_weights(every, self.state.journals)
        steps = {spec.total_steps for spec in every} if kept else set()
        waiting = {spec.trial_id for spec in self.state.unfinished}
        return [
            {
                "id": spec.trial_id,
                "name": spec.name,
                "spec": spec.to_dict(),
                "save_steps": self._sharing.save_steps(spec.trial_id, waiting),
                "starts": longer_than(spec, kept, steps) + self._sharing.starts(spec.trial_id),
            }
            for spec in specs
        ]

    def _drop_snapshots(self) -> None:
        steps = {
            spec.trial_id: self.state.journals[spec.trial_id].step if spec.trial_id in self.state.journals else 0
            for spec in self.state.unfinished
        }
        self._sharing.drop_unneeded(self.run.path, steps)

    def _watch(self) -> None:
        started = turn = time.monotonic()
        ready = False
        last_sign = started
        while True:
            changed = self.state.refresh()
            now = time.monotonic()
            if now - turn > _SLEEP_SECONDS:
                self.state.forgive(now - turn)
                started, last_sign = started + now - turn, last_sign + now - turn
            turn = now
            if self._feed() or changed or self.state.live:
                last_sign = now
            if changed and now >= self._next_table:
                self.state.write_tables()
                self._drop_snapshots()
                # Rewriting a large table may never take more than a small share of the time.
                self._next_table = time.monotonic() + max(_TABLE_SECONDS, 50 * (time.monotonic() - now))
            self.progress.update(self.state)
            if self._signals:
                self._stop()
                return
            self._end_hung_trials(now)
            if self._when_draining is not None and len(self.state.unfinished) < max(self.plan.n_devices, 2):
                self._when_draining()
                self._when_draining = None
            if self._all_ended:
                return
            with contextlib.suppress(queue.Empty):
                event = self.ray.events.get(timeout=_POLL_SECONDS)
                if event["event"] == "ready":
                    ready = True
                elif event["event"] == "trial_failed":
                    self._on_trial_failed(event)
                elif event["event"] == "failed":
                    raise UserError(
                        f"{event['message']}; what is done is kept: go on with {self.progress.resume_command}"
                    )
                elif event["event"] == "done":
                    return
                elif event["event"] == "ended":
                    self._check_disk()
                    raise UserError(
                        f"the scheduler process died (see {self.run.log}); what is done is kept: "
                        f"go on with {self.progress.resume_command}"
                    )
            if not ready and now - started > _START_SECONDS:
                raise UserError(f"Ray did not start in {_START_SECONDS:.0f} s (see {self.run.log}): try again")
            idle = max(self.hang_seconds, _START_SECONDS)
            if ready and now - last_sign > idle:
                raise UserError(
                    f"no trial has started for {idle:.0f} s (see {self.run.log}); what is done is "
                    f"kept: go on with {self.progress.resume_command}"
                )

    def _check_disk(self) -> None:
        """Raises UserError if nothing can be written: Ray fails at it in ways of its own, before any trial does."""
        probe = self.run.live / "probe"
        artifacts.write_atomic(probe, bytes(_PROBE_BYTES))
        probe.unlink()

    def _on_trial_failed(self, event: dict[str, Any]) -> None:
        spec = self.state.specs[event["trial_id"]]
        if event["kind"] == "user":
            raise UserError(event["message"])
        self.state.retire(spec.trial_id)
        if event["final"] and not journal.crash_path(self.run.journals, spec.trial_id).exists():
            memory = "memory" in event["message"].lower() and "oom" in event["message"].lower()
            reason = "its worker was killed, for memory or from outside" if memory else "its worker died"
            journal.record_crash(self.run.journals, spec, f"{reason}: {event['message']}", 0)

    def _end_hung_trials(self, now: float) -> None:
        """A trial that has not moved for long is recorded as crashed and its worker killed."""
        for trial_id, beat in list(self.state.live.items()):
            if trial_id in self.state.specs and now - beat.changed > self.hang_seconds:
                reason = f"hung: no progress for {self.hang_seconds:.0f} s at step {beat.step}"
                journal.record_crash(self.run.journals, self.state.specs[trial_id], reason, beat.step)
                self.state.retire(trial_id)
                # A Mac that has moved to another network may have another name.
                here = self.ray.is_local or beat.host == socket.gethostname()
                if here and _is_ray_worker(beat.pid):
                    with contextlib.suppress(OSError):
                        os.kill(beat.pid, signal.SIGKILL)

    def _stop(self) -> None:
        """After a first signal the running trials save where they are; a second one ends at once."""
        with contextlib.suppress(OSError):
            (self.run.live / artifacts.STOP).touch()
        self.progress.say("stopping: the running trials save where they are (again to stop at once)")
        deadline = time.monotonic() + _STOP_SECONDS
        grace = time.monotonic() + 2 * _POLL_SECONDS  # a trial just being started shows itself by then
        while time.monotonic() < deadline and len(self._signals) == 1:
            time.sleep(_POLL_SECONDS / 5)
            self.state.refresh()
            if not self.state.live and time.monotonic() > grace:
                return


def _is_ray_worker(pid: int) -> bool:
    """Whether a pid is a worker of Ray's still: it may have died, and its number be someone else's by now."""
    found = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True)
    return found.stdout.startswith("ray::")

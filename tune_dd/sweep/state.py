"""What is known of a running search: the journals (what is done) and the live files (what goes on)."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tune_dd import artifacts, journal
from tune_dd.sweep.runs import RunFolder
from tune_dd.trial import TrialSpec, format_dropout

_DAMAGED = f"*{journal.SUFFIX}.damaged-*"


@dataclass(frozen=True)
class LiveTrial:
    """A running trial as its last heartbeat told. ``changed``: monotonic time of its last new step."""

    host: str
    pid: int
    step: int
    changed: float


def finished_ids(run: RunFolder) -> set[str]:
    """Trials whose journals say that they are finished."""
    found = set()
    for path in run.journals.glob(f"*{journal.SUFFIX}"):
        with contextlib.suppress(journal.DamagedJournal, FileNotFoundError):
            if journal.read_journal(path).finished:
                found.add(path.name.removesuffix(journal.SUFFIX))
    return found


def ended_trials(run: RunFolder, *, crashed: bool) -> set[str]:
    """trial_ids of the journals that are finished, with ``crashed`` also of the crashes; nothing is set aside."""
    return finished_ids(run) | (set(journal.read_crashes(run.journals)) if crashed else set())


class SearchState:
    """The run's trials and how far each is. Reads again only the files that changed.

    Attributes:
        specs: trial_id -> the trials known so far, in plan order.
        n_planned: how many there will be.
    """

    def __init__(
        self, run: RunFolder, specs: Sequence[TrialSpec], tell: Callable[[str], None], n_planned: int | None = None
    ) -> None:
        self.run = run
        self.specs = {spec.trial_id: spec for spec in specs}
        self.n_planned = len(self.specs) if n_planned is None else n_planned
        self.journals: dict[str, journal.Journal] = {}
        self.crashes: dict[str, str] = {}  # trial_id -> reason
        self.live: dict[str, LiveTrial] = {}
        self._stamps: dict[str, tuple[int, int]] = {}
        self._tell = tell
        self._set_aside = {path.name for path in run.journals.glob(_DAMAGED)}  # told by an earlier command

    def refresh(self) -> bool:
        """Read what changed on disk; True if a journal did. What is damaged is set aside and told once."""
        changed = False
        self.crashes = journal.read_crashes(self.run.journals)
        for path in self.run.journals.glob(f"*{journal.SUFFIX}"):
            trial_id = path.name.removesuffix(journal.SUFFIX)
            if trial_id not in self.specs:
                continue
            try:
                stat = path.stat()
                stamp = (stat.st_mtime_ns, stat.st_size)
                if self._stamps.get(trial_id) == stamp:
                    continue
                self.journals[trial_id] = journal.read_journal(path)
                self._stamps[trial_id] = stamp
                changed = True
            except FileNotFoundError:
                continue
            except journal.DamagedJournal:
                journal.set_aside(path)
                changed = True
        self._tell_damaged()
        self._refresh_live()
        return changed

    def add(self, specs: Sequence[TrialSpec]) -> None:
        """Trials that have become known."""
        self.specs.update({spec.trial_id: spec for spec in specs})

    def verify(self) -> None:
        """Read the weights of every unfinished journal once, so that damage is found before Ray starts."""
        for trial_id, found in self.journals.items():
            path = journal.journal_path(self.run.journals, trial_id)
            if found.has_weights:
                try:
                    journal.load_journal(path)
                except journal.DamagedJournal:
                    journal.set_aside(path)
        self._tell_damaged()

    def _tell_damaged(self) -> None:
        """Say once what was set aside, here or by a worker, and forget what it held."""
        for path in self.run.journals.glob(_DAMAGED):
            if path.name in self._set_aside:
                continue
            self._set_aside.add(path.name)
            trial_id = path.name.split(".")[0]
            if not journal.journal_path(self.run.journals, trial_id).exists():
                self.journals.pop(trial_id, None)
                self._stamps.pop(trial_id, None)
            name = self.specs[trial_id].name if trial_id in self.specs else trial_id
            self._tell(f"the journal of {name} was damaged: set aside as {path.name}, its trial is redone")

    def forgive(self, seconds: float) -> None:
        """Nobody ran for so long (the machine slept, or was stopped): no trial's stillness counts it."""
        self.live = {i: replace(beat, changed=beat.changed + seconds) for i, beat in self.live.items()}

    def retire(self, trial_id: str) -> None:
        """The trial's worker is gone: its heartbeat says no more than how far it had come."""
        with contextlib.suppress(OSError):
            beat = self.run.live / f"{trial_id}.json"
            beat.replace(beat.with_suffix(".past"))
        self.live.pop(trial_id, None)

    def _refresh_live(self) -> None:
        now = time.monotonic()
        live = {}
        for path in self.run.live.glob("*.json"):
            try:
                beat = json.loads(path.read_text())
                host, pid, step = str(beat["host"]), int(beat["pid"]), int(beat["step"])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # being replaced, or left by a kill: the journal is what counts
            former = self.live.get(path.stem)
            same = former is not None and former.step == step and former.pid == pid
            live[path.stem] = LiveTrial(host, pid, step, former.changed if same and former else now)
        self.live = live

    def is_finished(self, trial_id: str) -> bool:
        return trial_id in self.journals and self.journals[trial_id].finished

    @property
    def finished(self) -> set[str]:
        return {trial_id for trial_id, found in self.journals.items() if found.finished}

    @property
    def unfinished(self) -> list[TrialSpec]:
        """Trials still to be trained: neither finished nor crashed, in plan order."""
        done = self.finished
        return [s for i, s in self.specs.items() if i not in done and i not in self.crashes]

    @property
    def steps_done(self) -> int:
        steps = {trial_id: found.step for trial_id, found in self.journals.items()}
        for trial_id, beat in self.live.items():
            steps[trial_id] = max(steps.get(trial_id, 0), beat.step)
        return sum(n for trial_id, n in steps.items() if trial_id not in self.crashes)

    @property
    def steps_planned(self) -> int:
        """Optimizer steps of all trials that are not given up; those to come are as long as the known ones."""
        known = sum(spec.total_steps for i, spec in self.specs.items() if i not in self.crashes)
        longest = max((spec.total_steps for spec in self.specs.values()), default=0)
        return known + (self.n_planned - len(self.specs)) * longest

    def rows(self) -> list[dict[str, Any]]:
        """The result table: the union of the journals, in plan order."""
        return [row for trial_id in self.specs if trial_id in self.journals for row in self.journals[trial_id].rows]

    def write_tables(self) -> None:
        """metrics.jsonl and trace.jsonl, whole.

        Raises:
            UserError: the folder cannot be written or the disk is full.
        """
        artifacts.write_rows(self.run.path / artifacts.METRICS, self.rows())
        lines = []
        for trial_id in self.specs:
            if trial_id in self.journals:
                for step, loss in self.journals[trial_id].counters.get("trace", []):
                    lines.append(json.dumps({"trial_id": trial_id, "step": step, "train_loss": loss}) + "\n")
        artifacts.write_text_atomic(self.run.path / artifacts.TRACE, "".join(lines))

    def best_per_cell(self) -> list[tuple[str, int, int, str, float, int]]:
        """(model, U, C, dropout or schedule, mean val_loss, trials) of the lowest mean so far in each cell.

        A cell's conditions are compared on the seeds that all that were tried share.
        """
        cells: dict[tuple[str, int, int], dict[str, dict[int, float]]] = {}
        for row in self.rows():
            key = (row["model"], row["unique_tokens"], row["sampled_tokens"])
            name = format_dropout(row["dropout"]) if row["kind"] == "static" else row["condition"]
            cells.setdefault(key, {}).setdefault(name, {})[row["seed"]] = row["val_loss"]
        best = []
        for (model, unique, sampled), tried in sorted(cells.items()):
            shared = set.intersection(*(set(seeds) for seeds in tried.values()))
            means = {name: sum(seeds[s] for s in shared) / len(shared) for name, seeds in tried.items() if shared}
            if means:
                name = min(means, key=lambda n: means[n])
                n_trials = sum(len(seeds) for seeds in tried.values())
                best.append((model, unique, sampled, name, means[name], n_trials))
        return best

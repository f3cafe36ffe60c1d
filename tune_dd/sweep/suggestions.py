"""The points of a search as the run goes on: what was suggested, what comes next, and the file that records it.

The journals say what each point came to, and the space what follows from that. ``suggestions.json`` records what
followed, before its trials start, so that a point once suggested stays what it is, even if a crashed trial before it
is later taken up again. Lost, the file is made again from the journals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from search_spaces.space import Outcome, Setting, SuggestingSpace
from tune_dd import artifacts
from tune_dd.errors import UserError
from tune_dd.journal import SUFFIX, set_aside
from tune_dd.sweep.runs import RunFolder
from tune_dd.sweep.state import SearchState
from tune_dd.trial import TrialSpec


class Suggestions:
    """The points of one run.

    Attributes:
        points: those suggested so far, in order.
        told: what else followed from what was measured.
        n_trials: how many trials there are in all; None while more may follow.
    """

    def __init__(self, run: RunFolder, space: SuggestingSpace, setting: Setting, tell: Callable[[str], None]) -> None:
        self.space = space
        self._path, self._journals, self._setting = run.path / artifacts.SUGGESTIONS, run.journals, setting
        self._trial_ids: dict[int, list[str]] = {}
        self.told: Mapping[str, Any] = {}
        self.n_trials: int | None = None
        self._written: dict[str, Any] | None = None
        self.points = self._read(tell)

    @property
    def specs(self) -> tuple[TrialSpec, ...]:
        """The trials of the points so far, in the order they are run."""
        return tuple(spec for point in self.points for spec in self.space.trials_of(point, self._setting))

    def more(self, state: SearchState) -> bool:
        """Suggest every point whose turn has come and add its trials to the state; whether there was one.

        A batch's turn comes when every trial of the points before it is finished or has crashed. The points are
        on disk before this returns.

        Raises:
            UserError: the file cannot be written.
        """
        before = len(self.points)
        while True:
            known = len(self.points)
            self._suggest_batch(state)
            if len(self.points) == known:
                break
            state.refresh()  # where suggestions were lost their journals are there already
        if self.n_trials is not None:
            state.n_planned = self.n_trials
        self._write()
        return len(self.points) > before

    def _suggest_batch(self, state: SearchState) -> None:
        index = len(self.points)
        needed = self.space.needed(index)
        if needed is None:
            self.n_trials = len(self.specs)
            return
        if not all(self._ended(point, state) for point in self.points[:needed]):
            self.n_trials = None
            return
        following = self.space.following(
            index, [(point, self._outcome(point, state)) for point in self.points[:needed]]
        )
        self.told = following.told
        self.n_trials = None if following.points else len(self.specs)
        for point in following.points:
            self.points.append(point)
            state.add(self.space.trials_of(point, self._setting))

    def _ids(self, point: Any) -> list[str]:
        if point.index not in self._trial_ids:
            self._trial_ids[point.index] = [spec.trial_id for spec in self.space.trials_of(point, self._setting)]
        return self._trial_ids[point.index]

    def _ended(self, point: Any, state: SearchState) -> bool:
        return all(state.is_finished(trial_id) or trial_id in state.crashes for trial_id in self._ids(point))

    def _outcome(self, point: Any, state: SearchState) -> Outcome:
        ids = self._ids(point)
        if not all(state.is_finished(trial_id) for trial_id in ids):
            return None
        return [state.journals[trial_id].rows for trial_id in ids]

    def _read(self, tell: Callable[[str], None]) -> list[Any]:
        """The recorded points, or those known beforehand where nothing (or nothing whole) is recorded."""
        if not self._path.exists():
            if any(self._journals.glob(f"*{SUFFIX}")):
                tell(f"{self._path.name} is missing: the points are suggested again from the journals")
            return list(self.space.known)
        try:
            return self._checked(artifacts.read_json(self._path))
        except (UserError, KeyError, TypeError, ValueError):
            aside = set_aside(self._path).name
            tell(
                f"{self._path.name} was damaged: set aside as {aside}, the points are suggested again from the journals"
            )
            return list(self.space.known)

    def _checked(self, data: Any) -> list[Any]:
        """Raises ValueError for what is not this search's."""
        if data["checksum"] != artifacts.checksum(data) or data["search"] != self.space.identity():
            raise ValueError("altered, or of another search")
        points = [self.space.read_point(point) for point in data["points"]]
        if [point.index for point in points] != list(range(len(points))) or len(points) < len(self.space.known):
            raise ValueError("points are missing")
        self.told = {name: value for name, value in data.items() if name not in sealed(self.space, [])}
        self._written = data
        return points[: self.space.points]  # more where the config is older than the record

    def _write(self) -> None:
        """The record, where it is not there as it should be."""
        body = sealed(self.space, self.points, told=self.told, n_trials=self.n_trials)
        if body != self._written or not self._path.exists():
            artifacts.write_json(self._path, body)
            self._written = body


def sealed(
    space: SuggestingSpace, points: Sequence[Any], *, told: Mapping[str, Any] | None = None, n_trials: int | None = None
) -> dict[str, Any]:
    """What suggestions.json holds. ``n_trials``: of the whole search, once it is known."""
    body = {
        "schema": artifacts.SCHEMA,
        "search": space.identity(),
        **space.record(),
        "n_trials": n_trials,
        **(told or {}),
        "points": [point.to_dict() for point in points],
    }
    return body | {"checksum": artifacts.checksum(body)}

"""The points of a search as the run goes on: what was suggested, what comes next, and the file that records it.

The journals say what each point came to, and the space what follows from that. ``suggestions.json`` records what
followed, before its trials start, so that a point once suggested stays what it is, even if a crashed trial before it
is later taken up again. Lost, the file is made again from the journals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from analysis.companions import SUGGESTIONS
from search_spaces.schedule_coefficients import Point, ScheduleSpace
from search_spaces.space import Setting
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
    """

    def __init__(self, run: RunFolder, space: ScheduleSpace, setting: Setting, tell: Callable[[str], None]) -> None:
        self.space = space
        self._path, self._journals, self._setting = run.path / SUGGESTIONS, run.journals, setting
        self._trial_ids: dict[int, list[str]] = {}
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
        if len(self.points) > before or not self._path.exists():
            self._write()
        return len(self.points) > before

    def _suggest_batch(self, state: SearchState) -> None:
        index = len(self.points)
        first = self.space.first_of_batch(index)
        if index >= self.space.points or not all(self._ended(point, state) for point in self.points[:first]):
            return
        earlier = [(point, self._value(point, state)) for point in self.points[:first]]
        for following in range(index, min(first + self.space.batch, self.space.points)):
            self.points.append(self.space.suggest(following, earlier))
            state.add(self.space.trials_of(self.points[-1], self._setting))

    def _ids(self, point: Point) -> list[str]:
        if point.index not in self._trial_ids:
            self._trial_ids[point.index] = [spec.trial_id for spec in self.space.trials_of(point, self._setting)]
        return self._trial_ids[point.index]

    def _ended(self, point: Point, state: SearchState) -> bool:
        return all(state.is_finished(trial_id) or trial_id in state.crashes for trial_id in self._ids(point))

    def _value(self, point: Point, state: SearchState) -> float | None:
        """The point's objective; None where a trial of it crashed."""
        ids = self._ids(point)
        if not all(state.is_finished(trial_id) for trial_id in ids):
            return None
        return self.space.value([[row["val_loss"] for row in state.journals[i].rows] for i in ids])

    def _read(self, tell: Callable[[str], None]) -> list[Point]:
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

    def _checked(self, data: Any) -> list[Point]:
        """Raises ValueError for what is not this search's."""
        if data["checksum"] != artifacts.checksum(data) or data["search"] != self.space.identity():
            raise ValueError("altered, or of another search")
        points = [Point.from_dict(point) for point in data["points"]]
        if [point.index for point in points] != list(range(len(points))) or len(points) < len(self.space.known):
            raise ValueError("points are missing")
        return points[: self.space.points]  # more where the config is older than the record

    def _write(self) -> None:
        artifacts.write_json(self._path, sealed(self.space, self.points))


def sealed(space: ScheduleSpace, points: Sequence[Point]) -> dict[str, Any]:
    """What suggestions.json holds."""
    body = {
        "schema": artifacts.SCHEMA,
        "search": space.identity(),
        "space": space.space,
        "law": space.law.name,
        "sampler": space.sampler,
        "objective": space.objective,
        "search_seed": space.search_seed,
        "seeds": list(space.seeds),
        "batch": space.batch,
        "bounds": {name: list(ends) for name, ends in space.bounds().items()},
        "points": [point.to_dict() for point in points],
    }
    return body | {"checksum": artifacts.checksum(body)}

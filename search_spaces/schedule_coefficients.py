"""The law's coefficients searched directly on a locked stream, point after point, by Optuna.

A *point* is one schedule on the stream of one model; its trials are one per seed, the same seeds for every
point. The first two points are the fitted law and the best fixed dropout, so that a search can only add to
what is known. Points come in batches, so that several devices stay busy: a point is suggested from all points
of the batches before its own, by a sampler of its own, so the sequence is a pure function of the search's seed
and of what those points came to, whatever was interrupted and in whatever order trials ended.

Two parametrisations of the same schedules. ``ends``: the dropouts at the first and last stage; the law's own
path is stretched and shifted to them, which is the same law with coefficients (s A, s B, s D, s C0 + shift).
``coefficients``: the law's coefficients themselves, each in a range around its fitted value.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from search_spaces.locked_stream import on_one_stream, stages_of
from search_spaces.samplers import SAMPLERS, sample
from search_spaces.space import Following, Outcome, Setting
from tune_dd.errors import UserError
from tune_dd.law import Array, Law
from tune_dd.laws import get_law
from tune_dd.regimes import MIN_SEARCH_POINTS, ModelSpec, Scale, check_increasing, check_seeds
from tune_dd.trial import TrialSpec, short_count

ENDS, COEFFICIENTS = "ends", "coefficients"
SPACES = (ENDS, COEFFICIENTS)
OBJECTIVES = ("final", "trajectory")
FITTED, STATIC, SAMPLED = "fitted", "static", "sampled"  # a point's role
FIRST, LAST = "p_first", "p_last"  # the parameters of ``ends``
# What is added to the dropout of a form whose columns are all scaled, in which no schedule would be fixed without it.
OFFSET = "offset"
# A path whose ends differ by less has no shape that could be stretched to other ends (dropout).
_LEAST_RISE = 0.01
# ``coefficients``: beyond the stretch from the fitted value to that of a fixed dropout (0; its rate for the
# constant) a range reaches half that stretch further on either side, or so far as moves the path by 0.1.
_WIDENING, _REACH = 0.5, 0.1


@dataclass(frozen=True)
class Point:
    """One schedule of a search.

    Attributes:
        index: from 0, in the order of suggestion.
        role: ``fitted``, ``static`` or ``sampled``.
        params: what the sampler sees, by name.
        coefficients: the law's, by name, and ``offset`` where the form has none of a column of ones: the path is
            that law's, held to its clamp.
        dropouts: the path, one rate per stage.
    """

    index: int
    role: str
    params: dict[str, float]
    coefficients: dict[str, float]
    dropouts: tuple[float, ...]

    @property
    def condition(self) -> str:
        return f"search_{self.index:03d}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"dropouts": list(self.dropouts), "condition": self.condition}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Point:
        return cls(data["index"], data["role"], data["params"], data["coefficients"], tuple(data["dropouts"]))


@dataclass(frozen=True)
class StartingLaw:
    """The fitted law, read along one stream of a model of ``n_params`` parameters.

    Attributes:
        prefixes, sampled_tokens: U of each stage and C by its end.
    """

    name: str
    coefficients: dict[str, float]
    p_min: float
    p_max: float
    n_params: int
    prefixes: tuple[int, ...]
    sampled_tokens: tuple[int, ...]

    @property
    def form(self) -> Law:
        return get_law(self.name)

    @property
    def names(self) -> tuple[str, ...]:
        """The coefficients in order, that of a column of ones last: a fixed dropout is one of the schedules."""
        return self.form.coefficients + (() if self.form.scale is None else (OFFSET,))

    @property
    def fitted(self) -> dict[str, float]:
        """The fitted law as one of the schedules: without an offset."""
        return dict.fromkeys(self.names, 0.0) | self.coefficients

    @property
    def constant(self) -> str:
        """Name of the coefficient of the column of ones."""
        return self.names[-1]

    def path(self, coefficients: Mapping[str, float]) -> tuple[float, ...]:
        """The dropout of each stage, clamped."""
        return self._read(coefficients, self.p_min, self.p_max)

    @property
    def counted(self) -> tuple[float, ...]:
        """C by the end of each stage as the law counts it."""
        return self.form.along(self.prefixes, self.sampled_tokens)

    def shape(self) -> tuple[float, ...]:
        """The fitted law's path without its clamp."""
        return self._read(self.fitted, -math.inf, math.inf)

    def columns(self) -> Array:
        """(stages, coefficients) design of the stream."""
        design = self.form.design(self.n_params, self.prefixes, self.counted)
        return design if self.form.scale is None else np.column_stack([design, np.ones(len(design))])

    def predictor(self, coefficients: Mapping[str, float]) -> Array:
        """(stages,) the linear predictor along the stream."""
        own = {name: coefficients[name] for name in self.form.coefficients}
        raw = self.form.predictor(own, self.n_params, self.prefixes, self.counted)
        return raw if self.form.scale is None else raw + coefficients[OFFSET]

    def stretched(self, first: float, last: float) -> dict[str, float]:
        """Coefficients whose unclamped path is the fitted one, mapped so that it begins and ends as given.

        Mapped where the law is linear: in its predictor, which for most forms is the dropout itself.
        """
        shape = self.predictor(self.fitted)
        begin, end = self.form.predictor_of(first), self.form.predictor_of(last)
        factor = (end - begin) / float(shape[-1] - shape[0])
        moved = {name: factor * value for name, value in self.fitted.items()}
        return moved | {self.constant: moved[self.constant] + (begin - factor * float(shape[0]))}

    def fixed(self, dropout: float) -> dict[str, float]:
        """Coefficients of the same dropout at every stage."""
        return dict.fromkeys(self.names, 0.0) | {self.constant: self.form.predictor_of(dropout)}

    def _read(self, coefficients: Mapping[str, float], low: float, high: float) -> tuple[float, ...]:
        path = np.clip(self.form.link.rate(self.predictor(coefficients)), low, high)
        return tuple(float(value) for value in path)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"prefixes": list(self.prefixes), "sampled_tokens": list(self.sampled_tokens)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> StartingLaw:
        lists = {name: tuple(data[name]) for name in ("prefixes", "sampled_tokens")}
        return cls(**{**data, **lists})


@dataclass(frozen=True, kw_only=True)
class ScheduleSpace:
    """Schedules of one law's form x seeds on one model's stream, suggested as the search goes.

    Attributes:
        model, prefixes, stage_steps, seeds: as in ``StreamGrid``; every point is trained with every seed.
        law: the fitted law on this stream.
        space: ``ends`` or ``coefficients``.
        static: the fixed dropout that is tried as the second point, and where it was found, in words.
        sampler: ``tpe`` or ``gp``.
        objective: ``final`` or ``trajectory``: what is minimised, as ``analysis.comparison.outcomes`` defines it.
        search_seed: of the sampler.
        points: schedules in all.
        batch: points suggested at a time, from the points of the batches before.
        known: the fitted law and the fixed dropout as points. Stored, since a trial's content hash holds its
            dropouts to the last digit, which another machine may compute otherwise.
    """

    model: ModelSpec
    prefixes: tuple[int, ...]
    stage_steps: int
    seeds: tuple[int, ...]
    law: StartingLaw
    space: str
    static: float
    static_source: str
    sampler: str
    objective: str
    search_seed: int
    points: int
    batch: int
    known: tuple[Point, ...] = ()

    def __post_init__(self) -> None:
        check_increasing("prefixes", self.prefixes)
        check_seeds("seeds", self.seeds)
        if self.stage_steps < 1:
            raise UserError(f"--stage-steps {self.stage_steps} must be at least 1")
        if self.points < MIN_SEARCH_POINTS:
            raise UserError(f"--points {self.points}: give at least {MIN_SEARCH_POINTS}; two are known beforehand")
        if self.search_seed < 0:
            raise UserError(f"--search-seed {self.search_seed} must not be negative")
        for name, value, allowed in (
            ("space", self.space, SPACES),
            ("sampler", self.sampler, SAMPLERS),
            ("objective", self.objective, OBJECTIVES),
        ):
            if value not in allowed:
                raise UserError(f"--{name} {value!r} is not one of {', '.join(allowed)}")
        if not self.law.p_min <= self.static <= self.law.p_max:
            raise UserError(
                f"--static {self.static:g} lies outside [{self.law.p_min:g}, {self.law.p_max:g}], to which the law "
                "holds every schedule: give a rate inside"
            )

    def begun(self) -> ScheduleSpace:
        """The space with its known points.

        Raises:
            UserError: the law's path cannot be stretched (``ends``).
        """
        shape = self.law.shape()
        if self.space == ENDS and abs(shape[-1] - shape[0]) < _LEAST_RISE:
            stages = f"{len(shape)} stage{'s' if len(shape) > 1 else ''}"
            raise UserError(
                f"--space ends: the law's path begins and ends at the same dropout ({shape[0]:.3g}, {stages}), so "
                "there is nothing to stretch: give --space coefficients"
            )
        fitted, fixed = self.law.fitted, self.law.fixed(self.static)
        if self.space == ENDS:
            params = ({FIRST: shape[0], LAST: shape[-1]}, {FIRST: self.static, LAST: self.static})
        else:
            params = (dict(fitted), dict(fixed))
        known = (
            Point(0, FITTED, params[0], dict(fitted), self.law.path(fitted)),
            Point(1, STATIC, params[1], fixed, self.law.path(fixed)),
        )
        return replace(self, known=known)

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        return (self.model,)

    @property
    def n_later(self) -> int:
        return (self.points - len(self.known)) * len(self.seeds)

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Range of each parameter, in the order in which they are drawn; all hold both known points.

        ``ends`` are the ends of the unclamped path: beyond the clamp only where the fitted law's are.
        """
        law = self.law
        if self.space == ENDS:
            ends = self.known[0].params.values()
            low, high = min(law.p_min, *ends), max(law.p_max, *ends)
            return {FIRST: (low, high), LAST: (low, high)}
        fixed, ranges = law.fixed(self.static), {}
        slope = law.form.link.slope(np.asarray(law.form.predictor_of(self.static)))
        reach = _REACH / float(slope)
        for column, name in zip(law.columns().T, law.names, strict=True):
            value = law.fitted[name]
            moves = 1.0 if name == law.constant else float(np.ptp(column))
            margin = max(_WIDENING * abs(value - fixed[name]), reach / moves if moves > 0 else 0.0)
            ranges[name] = (min(value, fixed[name]) - margin, max(value, fixed[name]) + margin)
        return ranges

    def first_of_batch(self, index: int) -> int:
        """The first point of a point's batch: those before it are what the point is suggested from."""
        return index // self.batch * self.batch

    def needed(self, n_points: int) -> int | None:
        return None if n_points >= self.points else self.first_of_batch(n_points)

    def following(self, n_points: int, earlier: Sequence[tuple[Point, Outcome]]) -> Following:
        """The rest of the batch that begins with the first point not among ``earlier``."""
        values = [
            (point, None if trials is None else self.value([[row["val_loss"] for row in rows] for rows in trials]))
            for point, trials in earlier
        ]
        end = min(self.first_of_batch(n_points) + self.batch, self.points)
        return Following([self.suggest(index, values) for index in range(n_points, end)], {})

    def suggest(self, index: int, earlier: Sequence[tuple[Point, float | None]]) -> Point:
        """The point of that index.

        Args:
            earlier: the points before its batch, in order, each with its value (``value``), or None where a
                trial of it crashed.
        """
        if [point.index for point, _ in earlier] != list(range(self.first_of_batch(index))):
            raise ValueError(f"point {index} is suggested from all points before its batch and no other")
        if index < len(self.known):
            return self.known[index]
        known = [(point.params, value) for point, value in earlier]
        params = sample(self.bounds(), known, self.sampler, self.search_seed, index)
        chosen = self.law.stretched(params[FIRST], params[LAST]) if self.space == ENDS else dict(params)
        return Point(index, SAMPLED, params, chosen, self.law.path(chosen))

    def value(self, losses: Sequence[Sequence[float]]) -> float:
        """What is minimised: mean over seeds of the objective, nats per token.

        Args:
            losses: for each seed the validation loss at the end of each stage.
        """
        final = self.objective == "final"
        per_seed = [stages[-1] if final else math.fsum(stages) / len(stages) for stages in losses]
        return math.fsum(per_seed) / len(per_seed)

    def trials_of(self, point: Point, setting: Setting) -> list[TrialSpec]:
        """A point's trials, one per seed."""
        stages = stages_of(self, point.dropouts)
        return [setting.trial(self.model, seed, point.condition, "law", stages) for seed in self.seeds]

    def read_point(self, data: dict[str, Any]) -> Point:
        return Point.from_dict(data)

    def record(self) -> dict[str, Any]:
        return {
            "space": self.space,
            "law": self.law.name,
            "sampler": self.sampler,
            "objective": self.objective,
            "search_seed": self.search_seed,
            "seeds": list(self.seeds),
            "batch": self.batch,
            "bounds": {name: list(ends) for name, ends in self.bounds().items()},
        }

    def identity(self) -> str:
        """Content hash of all that decides a suggestion beside what was measured, 16 hex digits."""
        text = json.dumps({k: v for k, v in self.to_dict().items() if k != "points"}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def union(self, other: ScheduleSpace) -> ScheduleSpace:
        """The space with the points of the larger one.

        Raises:
            UserError: the other differs in more than that.
        """
        mine, its = self.to_dict(), other.to_dict()
        for name in mine:
            if name != "points" and mine[name] != its[name]:
                raise UserError(f"--{name.replace('_', '-')} makes another search: start a new run for it")
        return replace(self, points=max(self.points, other.points))

    def on_scale(self, scale: Scale) -> Scale:
        return on_one_stream(self, scale)

    def described(self) -> list[tuple[str, str]]:
        ranges = ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in self.bounds().items())
        what = {"final": "final validation loss", "trajectory": "mean of the stages' last validation losses"}
        at_a_time = "one point at a time" if self.batch == 1 else f"{self.batch} points at a time"
        return [
            ("stages U", " ".join(short_count(n) for n in self.prefixes) + f" tokens, {self.stage_steps:,} steps each"),
            (FITTED, " ".join(f"{p:.3g}" for p in self.law.path(self.law.fitted))),
            (STATIC, f"{self.static:g}, {self.static_source}"),
            ("searched", f"{ranges} ({self.law.name} law, --space {self.space})"),
            ("sampler", f"{self.sampler}, seed {self.search_seed}: {self.points} points, {at_a_time}"),
            ("objective", f"{what[self.objective]}, mean over seeds {' '.join(map(str, self.seeds))}"),
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.name,
            "prefixes": list(self.prefixes),
            "stage_steps": self.stage_steps,
            "seeds": list(self.seeds),
            "law": self.law.to_dict(),
            "space": self.space,
            "static": self.static,
            "static_source": self.static_source,
            "sampler": self.sampler,
            "objective": self.objective,
            "search_seed": self.search_seed,
            "points": self.points,
            "batch": self.batch,
            "known": [point.to_dict() for point in self.known],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ScheduleSpace:
        fields = dict(data)
        fields["model"] = ModelSpec.parse(data["model"])
        fields["law"] = StartingLaw.from_dict(data["law"])
        fields["known"] = tuple(Point.from_dict(point) for point in data["known"])
        return cls(**{**fields, "prefixes": tuple(data["prefixes"]), "seeds": tuple(data["seeds"])})

    @classmethod
    def trials(cls, spaces: Sequence[ScheduleSpace], setting: Setting) -> list[TrialSpec]:
        """The trials that are known beforehand: those of the fitted law and of the fixed dropout."""
        return [spec for point in spaces[-1].known for spec in spaces[-1].trials_of(point, setting)]

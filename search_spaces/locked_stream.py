"""The locked stream: one model, every schedule from scratch through all prefixes, several seeds.

Weights and optimizer are carried from stage to stage; only the prefix and the dropout change. The
schedules are fixed before anything is trained, the law's by coefficients fitted elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from typing import Protocol as Interface

from search_spaces.space import Setting
from tune_dd.errors import UserError
from tune_dd.regimes import ModelSpec, Protocol, Scale, check_increasing, check_seeds
from tune_dd.schedule import Schedule, anchors, linear_decay, reversed_path, static
from tune_dd.trial import Stage, TrialSpec, format_dropout, short_count

# A condition names files and folders, so it holds nothing that could lead elsewhere.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}")


@dataclass(frozen=True)
class StreamGrid:
    """Schedules x seeds on one model's stream.

    Attributes:
        model: the one model that is trained.
        prefixes: U of each stage, tokens, increasing.
        stage_steps: optimizer steps of each stage; it is read out at its end.
        schedules: one dropout per stage each, under distinct names. Two of the same path are two conditions.
        seeds: the same for every schedule, so that they are paired.
    """

    model: ModelSpec
    prefixes: tuple[int, ...]
    stage_steps: int
    schedules: tuple[Schedule, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        check_increasing("prefixes", self.prefixes)
        check_seeds("seeds", self.seeds)
        if self.stage_steps < 1:
            raise UserError(f"--stage-steps {self.stage_steps} must be at least 1")
        names = [schedule.condition for schedule in self.schedules]
        for name in names:
            if not _NAME.fullmatch(name):
                raise UserError(f"condition {name!r} must be letters, digits and _ . + -, at most 60: rename it")
            if names.count(name) > 1:
                raise UserError(f"two conditions are named {name}: give one of them another name")
        for schedule in self.schedules:
            if len(schedule.dropouts) != len(self.prefixes):
                raise UserError(
                    f"condition {schedule.condition}: {len(schedule.dropouts)} dropouts for {len(self.prefixes)} "
                    "stages: give one per prefix"
                )
        if not any(schedule.kind == "static" for schedule in self.schedules):
            raise UserError("the stream has no fixed dropout to compare with: give --dropouts such as 0,0.1,0.2,0.3")

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        return (self.model,)

    @property
    def n_later(self) -> int:
        return 0

    def sampled_tokens(self, protocol: Protocol) -> tuple[int, ...]:
        """C by the end of each stage."""
        return sampled_tokens(len(self.prefixes), self.stage_steps, protocol)

    def union(self, other: StreamGrid) -> StreamGrid:
        """The grid with the schedules and seeds of both.

        Raises:
            UserError: the other is another stream, or has another path under a name of this one.
        """
        for name, option in (("model", "--models"), ("prefixes", "--prefixes"), ("stage_steps", "--stage-steps")):
            if getattr(self, name) != getattr(other, name):
                raise UserError(f"{option} makes another stream: start a new run for it")
        merged = {schedule.condition: schedule for schedule in self.schedules}
        for schedule in other.schedules:
            if merged.setdefault(schedule.condition, schedule) != schedule:
                raise UserError(f"the run has a condition {schedule.condition} of another path: give it another name")
        return replace(self, schedules=tuple(merged.values()), seeds=tuple(dict.fromkeys((*self.seeds, *other.seeds))))

    def on_scale(self, scale: Scale) -> Scale:
        return replace(on_one_stream(self, scale), stream_seeds=self.seeds)

    def described(self) -> list[tuple[str, str]]:
        fixed = [schedule for schedule in self.schedules if schedule.kind == "static"]
        paths = [
            (schedule.condition, " ".join(f"{p:.3g}" for p in schedule.dropouts))
            for schedule in self.schedules
            if schedule.kind != "static"
        ]
        return [
            ("stages U", " ".join(short_count(n) for n in self.prefixes) + f" tokens, {self.stage_steps:,} steps each"),
            ("fixed p", " ".join(format_dropout(schedule.dropouts[0]) for schedule in fixed)),
            *paths,
            ("seeds", " ".join(map(str, self.seeds))),
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.name,
            "prefixes": list(self.prefixes),
            "stage_steps": self.stage_steps,
            "schedules": [asdict(schedule) | {"dropouts": list(schedule.dropouts)} for schedule in self.schedules],
            "seeds": list(self.seeds),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> StreamGrid:
        return cls(
            ModelSpec.parse(data["model"]),
            tuple(data["prefixes"]),
            data["stage_steps"],
            tuple(Schedule(s["condition"], s["kind"], tuple(s["dropouts"])) for s in data["schedules"]),
            tuple(data["seeds"]),
        )

    @classmethod
    def trials(cls, spaces: Sequence[StreamGrid], setting: Setting) -> list[TrialSpec]:
        """One seed of every schedule comes before the next, so that an interrupted search has whole pairs."""
        specs: dict[str, TrialSpec] = {}
        for grid in spaces:
            for seed in grid.seeds:
                for schedule in grid.schedules:
                    stages = stages_of(grid, schedule.dropouts)
                    spec = setting.trial(grid.model, seed, schedule.condition, schedule.kind, stages)
                    specs.setdefault(spec.trial_id, spec)
        return list(specs.values())


class OneStream(Interface):
    """What a space says of its one stream."""

    @property
    def models(self) -> tuple[ModelSpec, ...]: ...

    @property
    def prefixes(self) -> tuple[int, ...]: ...

    @property
    def stage_steps(self) -> int: ...

    @property
    def seeds(self) -> tuple[int, ...]: ...


def stages_of(space: OneStream, dropouts: Sequence[float]) -> tuple[Stage, ...]:
    """The stream's stages under a dropout each, read out at their ends."""
    return tuple(
        Stage(prefix, dropout, ((number + 1) * space.stage_steps,))
        for number, (prefix, dropout) in enumerate(zip(space.prefixes, dropouts, strict=True))
    )


def on_one_stream(space: OneStream, scale: Scale) -> Scale:
    """The scale with the stream's values; what there is of its anchors is among the space's schedules."""
    return replace(
        scale,
        models=space.models,
        prefixes=space.prefixes,
        seeds=space.seeds,
        stream_prefixes=space.prefixes,
        stream_steps=space.stage_steps,
        anchors={},
        train_tokens=max(scale.train_tokens, space.prefixes[-1]),
    )


def sampled_tokens(n_stages: int, stage_steps: int, protocol: Protocol) -> tuple[int, ...]:
    """C by the end of each stage."""
    return tuple((stage + 1) * stage_steps * protocol.tokens_per_step for stage in range(n_stages))


def make_schedules(
    n_stages: int, laws: Sequence[Schedule], dropouts: Sequence[float], by_hand: Mapping[str, Sequence[float]]
) -> tuple[Schedule, ...]:
    """Every condition of a stream.

    The first law's path comes with two controls of its own: the same rates in the opposite order, and a
    straight line between its ends.

    Raises:
        UserError: a path by hand has not one dropout per stage.
    """
    first = laws[0]
    controls = (reversed_path(first), linear_decay(first.dropouts[0], first.dropouts[-1], n_stages))
    fixed = (static(dropout, n_stages) for dropout in dropouts)
    written = (anchors(name, path, n_stages) for name, path in by_hand.items())
    return (*laws, *fixed, *controls, *written)

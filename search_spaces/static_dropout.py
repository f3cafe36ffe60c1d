"""The static-dropout grid: every dropout on every prefix, model and seed, read out along C."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from search_spaces.space import DataIdentity, Setting
from tune_dd.regimes import ModelSpec, Scale, check_dropouts, check_increasing
from tune_dd.trial import Stage, TrialSpec, format_dropout, short_count, static_condition

__all__ = ["DataIdentity", "StaticGrid", "param_space", "readout_steps", "static_trial", "trials"]


@dataclass(frozen=True)
class StaticGrid:
    """A full factorial of models, prefixes (U), dropouts and seeds; ``readouts`` are values of C in tokens."""

    models: tuple[ModelSpec, ...]
    prefixes: tuple[int, ...]
    readouts: tuple[int, ...]
    dropouts: tuple[float, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        check_increasing("prefixes", self.prefixes)
        check_increasing("readouts", self.readouts)
        check_dropouts(self.dropouts)

    @property
    def n_later(self) -> int:
        return 0

    @classmethod
    def of_scale(cls, scale: Scale) -> StaticGrid:
        """The calibrate phase's grid."""
        models = scale.calibration_models or scale.models
        return cls(models, scale.prefixes, scale.readouts, scale.dropouts, scale.seeds)

    def on_scale(self, scale: Scale) -> Scale:
        return replace(
            scale,
            models=self.models,
            prefixes=self.prefixes,
            readouts=self.readouts,
            dropouts=self.dropouts,
            seeds=self.seeds,
            train_tokens=max(scale.train_tokens, self.prefixes[-1]),
            # The regime's sizes, its stream and its anchors stay what they are whatever grid is chosen here.
            calibration_models=scale.calibration_models or scale.models,
            screen_models=scale.screen_models or scale.models,
            stream_prefixes=scale.prefixes_of_stream,
            stream_steps=scale.steps_of_stream,
        )

    def described(self) -> list[tuple[str, str]]:
        return [
            ("prefixes U", " ".join(short_count(n) for n in self.prefixes) + " tokens"),
            ("read-outs C", " ".join(short_count(n) for n in self.readouts) + " tokens"),
            ("dropouts", " ".join(format_dropout(p) for p in self.dropouts)),
            ("seeds", " ".join(map(str, self.seeds))),
        ]

    def union(self, other: StaticGrid) -> StaticGrid:
        """The grid with the values of both on every axis."""
        return StaticGrid(
            models=tuple(dict.fromkeys(self.models + other.models)),
            prefixes=tuple(sorted({*self.prefixes, *other.prefixes})),
            readouts=tuple(sorted({*self.readouts, *other.readouts})),
            dropouts=tuple(sorted({*self.dropouts, *other.dropouts})),
            seeds=tuple(dict.fromkeys(self.seeds + other.seeds)),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "models": [model.name for model in self.models],
            "prefixes": list(self.prefixes),
            "readouts": list(self.readouts),
            "dropouts": list(self.dropouts),
            "seeds": list(self.seeds),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> StaticGrid:
        return cls(
            tuple(ModelSpec.parse(name) for name in data["models"]),
            tuple(data["prefixes"]),
            tuple(data["readouts"]),
            tuple(data["dropouts"]),
            tuple(data["seeds"]),
        )

    @classmethod
    def trials(cls, spaces: Sequence[StaticGrid], setting: Setting) -> list[TrialSpec]:
        return trials(
            spaces, regime=setting.regime, scale_name=setting.scale_name, scale=setting.scale, data=setting.data
        )


def readout_steps(readouts: Sequence[int], tokens_per_step: int) -> tuple[int, ...]:
    """Optimizer steps at which C reaches each read-out, rounded up to a whole step, without repeats."""
    return tuple(sorted({math.ceil(readout / tokens_per_step) for readout in readouts}))


def trials(
    grids: Sequence[StaticGrid], *, regime: str, scale_name: str, scale: Scale, data: DataIdentity
) -> list[TrialSpec]:
    """The trials of a grid and of those that extend it, in the order they are run.

    One seed of everything comes before the next, so that an interrupted search has whole curves. A later
    grid adds only what the earlier ones lack: where a combination was read out before, its new trial is
    read out at the new values of C alone, and what is done stays as it is.
    """
    setting = Setting(regime, scale_name, scale, data)
    covered: dict[tuple[int, ModelSpec, int, float], set[int]] = {}
    specs = []
    for grid in grids:
        steps = readout_steps(grid.readouts, scale.protocol.tokens_per_step)
        for seed, model, prefix, dropout in itertools.product(grid.seeds, grid.models, grid.prefixes, grid.dropouts):
            done = covered.setdefault((seed, model, prefix, dropout), set())
            new = tuple(step for step in steps if step not in done)
            if not new:
                continue
            done.update(new)
            specs.append(_trial(setting, model, prefix, dropout, seed, new))
    return specs


def static_trial(
    setting: Setting, model: ModelSpec, prefix: int, dropout: float, seed: int, readouts: Sequence[int]
) -> TrialSpec:
    """The trial of a grid that nothing extends, ``readouts`` in tokens."""
    steps = readout_steps(readouts, setting.scale.protocol.tokens_per_step)
    return _trial(setting, model, prefix, dropout, seed, steps)


def _trial(
    setting: Setting, model: ModelSpec, prefix: int, dropout: float, seed: int, steps: tuple[int, ...]
) -> TrialSpec:
    return setting.trial(model, seed, static_condition(dropout), "static", (Stage(prefix, dropout, steps),))


def param_space(unfinished: Sequence[dict[str, Any]], run: dict[str, Any]) -> dict[str, Any]:
    """The Tune parameter space of the given trials ({id, name, spec} each): Tune runs them in this order."""
    from ray import tune

    return {"trial": tune.grid_search(list(unfinished)), "run": run}

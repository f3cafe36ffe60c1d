"""The static-dropout grid: every dropout on every prefix, model and seed, read out along C."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tune_dd.regimes import ModelSpec, Scale, check_dropouts, check_increasing
from tune_dd.trial import Stage, TrialSpec, static_condition


@dataclass(frozen=True)
class DataIdentity:
    """Content hashes of what the trials are trained and judged on."""

    corpus_hash: str
    tokenizer_hash: str
    validation_hash: str


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

    @classmethod
    def of_scale(cls, scale: Scale) -> StaticGrid:
        return cls(scale.models, scale.prefixes, scale.readouts, scale.dropouts, scale.seeds)

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
            specs.append(
                TrialSpec(
                    regime=regime,
                    scale=scale_name,
                    corpus_hash=data.corpus_hash,
                    tokenizer_hash=data.tokenizer_hash,
                    validation_hash=data.validation_hash,
                    vocab_size=scale.vocab_size,
                    model=model,
                    protocol=scale.protocol,
                    seed=seed,
                    condition=static_condition(dropout),
                    kind="static",
                    stages=(Stage(prefix, dropout, new),),
                )
            )
    return specs


def param_space(unfinished: Sequence[dict[str, Any]], run: dict[str, Any]) -> dict[str, Any]:
    """The Tune parameter space of the given trials ({id, name, spec} each): Tune runs them in this order."""
    from ray import tune

    return {"trial": tune.grid_search(list(unfinished)), "run": run}

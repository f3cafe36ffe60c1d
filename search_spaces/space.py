"""What every phase's search space offers, so that planning, resuming and extending know no phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

from tune_dd.regimes import ModelSpec, Scale
from tune_dd.trial import Stage, TrialSpec


@dataclass(frozen=True)
class DataIdentity:
    """Content hashes of what the trials are trained and judged on."""

    corpus_hash: str
    tokenizer_hash: str
    validation_hash: str


@dataclass(frozen=True)
class Setting:
    """What all trials of a run share."""

    regime: str
    scale_name: str
    scale: Scale
    data: DataIdentity

    def trial(
        self, model: ModelSpec, seed: int, condition: str, kind: str, stages: tuple[Stage, ...], **changes: Any
    ) -> TrialSpec:
        return TrialSpec(
            regime=self.regime,
            scale=self.scale_name,
            corpus_hash=self.data.corpus_hash,
            tokenizer_hash=self.data.tokenizer_hash,
            validation_hash=self.data.validation_hash,
            vocab_size=self.scale.vocab_size,
            model=model,
            protocol=self.scale.protocol,
            seed=seed,
            condition=condition,
            kind=kind,
            stages=stages,
            **changes,
        )


class Space(Protocol):
    """A phase's search space: immutable, stored in config.json, and added to by ``--extend``."""

    @property
    def models(self) -> tuple[ModelSpec, ...]: ...

    @property
    def prefixes(self) -> tuple[int, ...]: ...

    @property
    def seeds(self) -> tuple[int, ...]: ...

    @property
    def n_later(self) -> int:
        """Trials beside those of ``trials`` that will be known only as the search goes."""
        ...

    def union(self, other: Any) -> Self:
        """The space with what both hold. Raises UserError where the other does not fit."""
        ...

    def on_scale(self, scale: Scale) -> Scale:
        """The scale with this space's values, so that it validates as a whole."""
        ...

    def described(self) -> list[tuple[str, str]]:
        """(label, text) lines of the printed plan."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``from_dict`` of it is equal."""
        ...

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self: ...

    @classmethod
    def trials(cls, spaces: Sequence[Any], setting: Setting) -> list[TrialSpec]:
        """The trials of a space and of those that extend it that are known beforehand, in the order they are run."""
        ...


# Of a point whose trials have ended: the rows of each, or None where one crashed.
Outcome = Sequence[Sequence[Mapping[str, Any]]] | None


class Following(NamedTuple):
    """What is to be tried next.

    Attributes:
        points: in order; none where the search is over.
        told: what else follows from what was measured, for suggestions.json.
    """

    points: Sequence[Any]
    told: Mapping[str, Any]


class SuggestingSpace(Space, Protocol):
    """A space whose trials are chosen as the search goes, as *points* of one trial or more, batch after batch.

    A batch is a pure function of what the points before it came to.
    """

    @property
    def known(self) -> tuple[Any, ...]:
        """The points known beforehand, the first ones."""
        ...

    @property
    def points(self) -> int:
        """Points at most."""
        ...

    def needed(self, n_points: int) -> int | None:
        """How many of the first points must have ended before those after ``n_points`` can be chosen; None where
        there are no more."""
        ...

    def following(self, n_points: int, earlier: Sequence[tuple[Any, Outcome]]) -> Following:
        """The batch after the first ``n_points``, from the points that it needs, in order."""
        ...

    def trials_of(self, point: Any, setting: Setting) -> list[TrialSpec]: ...

    def read_point(self, data: dict[str, Any]) -> Any:
        """The point of its ``to_dict``. Raises KeyError or TypeError for what is none."""
        ...

    def record(self) -> dict[str, Any]:
        """What suggestions.json says of the space, for whoever reads it."""
        ...

    def identity(self) -> str:
        """Content hash of all that decides a suggestion beside what was measured, 16 hex digits."""
        ...

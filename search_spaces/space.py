"""What every phase's search space offers, so that planning, resuming and extending know no phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

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

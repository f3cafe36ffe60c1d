"""What one trial is: its full specification, its readable name and its content hash.

Vocabulary used in every module: a *trial* trains one model with one seed through one or more
*stages*; a stage is a training prefix of the corpus (``unique_tokens``) and the dropout held on it;
a *read-out* evaluates the model at a given step. A static trial has one stage, a stream has several.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tune_dd.artifacts import JOURNALS, LIVE
from tune_dd.errors import UserError
from tune_dd.regimes import ModelSpec, Protocol

KINDS = ("static", "anchor_decay", "law")


def short_count(n: int) -> str:
    """A token count as people write it: 500000 -> ``500k``, 4000000 -> ``4M``, 262144 -> ``262144``."""
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if n >= unit and n % unit == 0:
            return f"{n // unit}{letter}"
    return str(n)


@dataclass(frozen=True)
class Stage:
    """One stage of a stream.

    Attributes:
        unique_tokens: U, the stage may sample from the first U tokens of the train split.
        dropout: active rate, in [0, 1).
        readout_steps: optimizer steps, counted over all stages, at which to read out, increasing;
            the last one ends the stage.
    """

    unique_tokens: int
    dropout: float
    readout_steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout {self.dropout} is outside [0, 1): give rates such as 0, 0.1, 0.3")
        if not self.readout_steps or list(self.readout_steps) != sorted(set(self.readout_steps)):
            raise UserError(f"read-out steps {self.readout_steps} must be increasing and not empty")

    @property
    def end_step(self) -> int:
        return self.readout_steps[-1]


@dataclass(frozen=True)
class TrialSpec:
    """Everything that determines a trial's numbers, and nothing that does not.

    ``condition`` and ``kind`` name the dropout schedule (``static_0.30``, ``law``, ...). ``seed``
    fixes the initialisation and the batch order whatever the dropout, so trials of one seed are paired.
    """

    regime: str
    scale: str
    corpus_hash: str
    tokenizer_hash: str
    validation_hash: str
    vocab_size: int
    model: ModelSpec
    protocol: Protocol
    seed: int
    condition: str
    kind: str
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"kind {self.kind!r} is not one of {', '.join(KINDS)}")
        if not self.stages:
            raise UserError(f"trial {self.condition!r} has no stage")
        prefixes = [stage.unique_tokens for stage in self.stages]
        if prefixes != sorted(set(prefixes)):
            raise UserError(f"prefixes {prefixes} must increase from stage to stage")
        starts = [0, *(stage.end_step for stage in self.stages)]
        if any(s.readout_steps[0] <= start for s, start in zip(self.stages, starts, strict=False)):
            raise UserError(f"trial {self.condition!r}: a stage must end after it begins")

    @property
    def n_params(self) -> int:
        return self.model.n_params(self.vocab_size)

    @property
    def total_steps(self) -> int:
        return self.stages[-1].end_step

    @property
    def n_readouts(self) -> int:
        return sum(len(stage.readout_steps) for stage in self.stages)

    def sampled_tokens(self, step: int) -> int:
        """C after ``step`` optimizer steps."""
        return step * self.protocol.tokens_per_step

    @cached_property
    def trial_id(self) -> str:
        """Content hash of the whole specification, 16 hex digits."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """Readable name: ``tinystories-L12_H8_D320-U500k-p0.30-s3``."""
        stage = self.stages[0]
        if len(self.stages) == 1:
            middle = f"U{short_count(stage.unique_tokens)}-p{format_dropout(stage.dropout)}"
        else:
            middle = f"stream{len(self.stages)}-{self.condition}"
        return f"{self.regime}-{self.model.name}-{middle}-s{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only; ``from_dict`` gives back an equal specification."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrialSpec:
        fields = dict(data)
        fields["model"] = ModelSpec(**fields["model"])
        fields["protocol"] = Protocol.from_dict(fields["protocol"])
        fields["stages"] = tuple(
            Stage(s["unique_tokens"], s["dropout"], tuple(s["readout_steps"])) for s in fields["stages"]
        )
        return cls(**fields)


def format_dropout(p: float) -> str:
    """Two decimals where they suffice (``0.30``), as many as needed otherwise (``0.125``)."""
    return f"{p:.2f}" if round(p, 2) == p else f"{p:.6f}".rstrip("0")


def static_condition(p: float) -> str:
    return f"static_{format_dropout(p)}"


@dataclass(frozen=True)
class RunContext:
    """What all trials of a run share. Paths are absolute: Tune changes the working directory."""

    folder: str
    cache_folder: str
    run_id: str
    phase: str
    device: str
    n_threads: int
    eval_tokens: int
    keep_weights: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def journals(self) -> Path:
        return Path(self.folder, JOURNALS)

    @property
    def live(self) -> Path:
        return Path(self.folder, LIVE)

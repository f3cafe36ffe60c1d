"""What a regime and its scales are, as frozen dataclasses that validate themselves.

A *regime* is everything under which dropout coefficients are assumed to hold: corpus family,
tokenizer, architecture family, optimizer and learning-rate protocol. A *scale* is a size at which a
regime is run: ``full`` (the study), ``full-8m`` (its extrapolation to the deepest model and 8M tokens) or
``pocket`` (a rehearsal that any machine finishes in minutes). The values are in ``builtin_regimes``.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tune_dd.errors import UserError

SCALES = ("full", "full-8m", "pocket")
RATE_SCHEDULES = ("constant", "warmdown")
PRECISIONS = ("float32", "bfloat16")
MAX_SEED = 2**63 - 1  # tables hold seeds in 64 bits with a sign
MIN_SEARCH_POINTS = 3  # the fitted law, the best fixed dropout, and one that is searched
VALIDATION_SALT = "validation"  # of the fixed evaluation windows, so that they are the same for every trial


@dataclass(frozen=True)
class ModelSpec:
    """A transformer's shape. Named ``L12_H8_D320``: layers, heads, width."""

    n_layer: int
    n_head: int
    n_embd: int

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise UserError(f"model {name}={getattr(self, name)} must be at least 1")
        if self.n_embd % self.n_head:
            raise UserError(
                f"model {self.name}: {self.n_head} heads do not divide the width {self.n_embd}; "
                "choose a width that is a multiple of the heads"
            )
        if self.n_embd // self.n_head % 2:
            raise UserError(
                f"model {self.name}: head width {self.n_embd // self.n_head} is odd, and rotary "
                "positions need an even one; change the heads or the width"
            )

    @property
    def name(self) -> str:
        return f"L{self.n_layer}_H{self.n_head}_D{self.n_embd}"

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        found = re.fullmatch(r"L(\d+)_H(\d+)_D(\d+)", text.strip())
        if not found:
            raise UserError(f"model {text!r} is not of the form L12_H8_D320 (layers, heads, width)")
        return cls(*(int(group) for group in found.groups()))

    def n_params(self, vocab_size: int) -> int:
        """P = 12 L D^2 + 2 V D: untied embedding and head, no biases, no norm parameters, MLP 4x."""
        return 12 * self.n_layer * self.n_embd**2 + 2 * vocab_size * self.n_embd

    def flops_per_token(self, vocab_size: int, context: int) -> int:
        """Training FLOPs (forward and backward) per token: 6 (12 L D^2 + V D) + 6 L T D."""
        dense = 12 * self.n_layer * self.n_embd**2 + vocab_size * self.n_embd
        return 6 * dense + 6 * self.n_layer * context * self.n_embd


@dataclass(frozen=True)
class Protocol:
    """How a model is trained: part of the regime, since the rate and a warm-down move the optimum.

    Attributes:
        batch_size, context: sequences a step and tokens a sequence.
        learning_rate: peak rate of AdamW.
        warmup_steps: linear warm-up from 0.
        rate_schedule: ``constant`` after the warm-up (one run feeds several read-outs), or
            ``warmdown``: linear to zero over the last ``warmdown_fraction`` of the trial.
        precision: ``float32``, or ``bfloat16`` autocast.
    """

    batch_size: int
    context: int
    learning_rate: float
    warmup_steps: int
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    rate_schedule: str = "constant"
    warmdown_fraction: float = 0.4
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name in ("batch_size", "context"):
            if getattr(self, name) < 1:
                raise UserError(f"protocol {name}={getattr(self, name)} must be at least 1")
        if not 0 < self.learning_rate < 10:
            raise UserError(f"protocol learning_rate={self.learning_rate} must lie between 0 and 10")
        if self.warmup_steps < 0:
            raise UserError(f"protocol warmup_steps={self.warmup_steps} must not be negative")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise UserError(f"protocol betas={self.betas} must be two numbers in [0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"protocol weight_decay={self.weight_decay} must be finite and not negative")
        if self.rate_schedule not in RATE_SCHEDULES:
            raise UserError(f"protocol rate_schedule={self.rate_schedule!r} is not one of {', '.join(RATE_SCHEDULES)}")
        if not 0 < self.warmdown_fraction <= 1:
            raise UserError(f"protocol warmdown_fraction={self.warmdown_fraction} must lie in (0, 1]")
        if self.precision not in PRECISIONS:
            raise UserError(f"protocol precision={self.precision!r} is not one of {', '.join(PRECISIONS)}")

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.context

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Protocol:
        fields = dict(data)
        if "betas" in fields:
            fields["betas"] = tuple(fields["betas"])
        return cls(**fields)


@dataclass(frozen=True)
class Scale:
    """One size of a regime.

    Attributes:
        vocab_size: tokenizer vocabulary, 257 to 65,536.
        models: models that the calibrate phase trains.
        prefixes: U of each training prefix, tokens, increasing.
        readouts: C at which a static trial is read out, tokens, increasing; each is rounded up to
            a whole optimizer step.
        dropouts, seeds: the static grid.
        train_tokens, validation_tokens: what is encoded of each split, at most.
        eval_tokens: tokens of the fixed validation windows behind ``val_loss``.
        calibration_models: models that the calibrate phase trains; ``models`` if empty. A law that is to
            hold for other sizes wants at least two.
        screen_models: the ladder of sizes that the screen phase compares; ``models`` if empty.
        stream_prefixes: U of each stage of the stream; ``prefixes`` if empty.
        stream_steps: optimizer steps of a stage; 0 for so many that the stream ends at the last read-out.
        stream_dropouts: the stream's fixed dropouts; ``dropouts`` if empty.
        stream_seeds: none of ``seeds``, so that no coefficient was fitted on what it is judged by.
        anchors: name -> one dropout per stage of the stream, paths written down by hand.
        search_points: schedules that the search phase tries.
        ours: field -> reason, for what the reference study leaves open and is chosen here.
    """

    vocab_size: int
    models: tuple[ModelSpec, ...]
    protocol: Protocol
    prefixes: tuple[int, ...]
    readouts: tuple[int, ...]
    dropouts: tuple[float, ...]
    seeds: tuple[int, ...]
    train_tokens: int
    validation_tokens: int
    eval_tokens: int
    calibration_models: tuple[ModelSpec, ...] = ()
    screen_models: tuple[ModelSpec, ...] = ()
    stream_prefixes: tuple[int, ...] = ()
    stream_steps: int = 0
    stream_dropouts: tuple[float, ...] = ()
    stream_seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    anchors: dict[str, tuple[float, ...]] = field(default_factory=dict, hash=False)
    search_points: int = 60
    ours: dict[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not 257 <= self.vocab_size <= 65_536:
            raise UserError(
                f"vocab_size {self.vocab_size} is outside 257 to 65,536: the 256 bytes and <|bos|> are "
                "needed, and tokens are stored in 16 bits"
            )
        if not self.models:
            raise UserError("models is empty: name at least one, such as L2_H2_D64")
        for name in ("models", "calibration_models", "screen_models"):
            check_models(name, getattr(self, name))
        check_increasing("prefixes", self.prefixes)
        check_increasing("readouts", self.readouts)
        check_dropouts(self.dropouts)
        check_seeds("seeds", self.seeds)
        check_seeds("stream_seeds", self.stream_seeds)
        check_increasing("stream_prefixes", self.prefixes_of_stream)
        check_dropouts(self.stream_dropouts or self.dropouts)
        if self.stream_steps < 0:
            raise UserError(f"stream_steps {self.stream_steps} must not be negative")
        for name, path in self.anchors.items():
            if len(path) != len(self.prefixes_of_stream):
                raise UserError(
                    f"anchors {name}: {len(path)} values for {len(self.prefixes_of_stream)} stages: give one per prefix"
                )
            check_rates(f"anchors {name}: dropout", path)
        if self.search_points < MIN_SEARCH_POINTS:
            raise UserError(f"search_points {self.search_points} must be at least {MIN_SEARCH_POINTS}")
        context = self.protocol.context
        if self.prefixes[0] < context + 1:
            raise UserError(f"prefixes: {self.prefixes[0]} tokens do not fill one window of context {context}")
        largest = max(self.prefixes[-1], self.prefixes_of_stream[-1])
        if self.train_tokens < largest:
            raise UserError(
                f"train_tokens {self.train_tokens} is less than the largest prefix {largest}: "
                "raise it or drop that prefix"
            )
        if self.eval_tokens < context or self.eval_tokens > self.validation_tokens:
            raise UserError(
                f"eval_tokens {self.eval_tokens} must lie between the context {context} and "
                f"validation_tokens {self.validation_tokens}"
            )

    @property
    def prefixes_of_stream(self) -> tuple[int, ...]:
        return self.stream_prefixes or self.prefixes

    @property
    def steps_of_stream(self) -> int:
        """Optimizer steps of a stage."""
        stages = len(self.prefixes_of_stream)
        return self.stream_steps or max(1, self.readouts[-1] // (stages * self.protocol.tokens_per_step))


def check_models(name: str, models: tuple[ModelSpec, ...]) -> None:
    for number, model in enumerate(models):
        if model in models[:number]:
            raise UserError(f"{name} has {model.name} twice, however it is written: name each once")


def check_seeds(name: str, values: tuple[int, ...]) -> None:
    if not values or len(set(values)) != len(values) or min(values) < 0 or max(values) > MAX_SEED:
        raise UserError(f"{name} {list(values)} must be distinct, from 0 to 2^63 - 1, and not empty")


def check_increasing(name: str, values: tuple[int, ...]) -> None:
    if not values or values[0] <= 0 or list(values) != sorted(set(values)):
        raise UserError(f"{name} {list(values)} must be positive, increasing and not empty")


def check_dropouts(values: tuple[float, ...]) -> None:
    if not values:
        raise UserError("dropouts is empty: give rates such as 0,0.1,0.3")
    check_rates("dropout", values)
    if len(set(values)) != len(values):
        raise UserError(f"dropouts {list(values)} has duplicates: name each rate once")


def check_rates(what: str, values: tuple[float, ...]) -> None:
    for value in values:
        if not 0.0 <= value < 1.0:  # also catches NaN, which compares false
            raise UserError(f"{what} {value} is outside [0, 1): give rates such as 0,0.1,0.3")


@dataclass(frozen=True)
class CorpusSource:
    """Where a regime's text comes from.

    Attributes:
        kind: ``files`` (parquet, .txt, .jsonl, and .gz or .zst of the last two) or ``pydocs`` (the
            docstrings of the installed packages).
        globs: paths or glob patterns, relative to the working directory.
        column: parquet column or jsonl key that holds the text.
        separator: what divides documents in a .txt file.
        form: ``plain``, or ``wikitext`` where one source line group is an article under ` = Title = `.
        validation_fraction: share of documents, by content hash, that go to the validation split.
    """

    kind: str = "files"
    globs: tuple[str, ...] = ()
    column: str = "text"
    separator: str = "\n\n\n"
    form: str = "plain"
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in ("files", "pydocs"):
            raise UserError(f"corpus kind={self.kind!r} is not files or pydocs")
        if self.form not in ("plain", "wikitext"):
            raise UserError(f"corpus form={self.form!r} is not plain or wikitext")
        if not self.separator:
            raise UserError("corpus separator is empty: give the text that divides documents")
        if not 0 < self.validation_fraction < 1:
            raise UserError(f"corpus validation_fraction={self.validation_fraction} must lie between 0 and 1")


@dataclass(frozen=True)
class Regime:
    """A named regime: one corpus and its scales."""

    name: str
    title: str
    corpus: CorpusSource
    scales: dict[str, Scale] = field(hash=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", self.name):
            raise UserError(
                f"regime name {self.name!r} must be lower-case letters, digits and _, begin with a letter "
                "and have at most 40 characters"
            )

    def scale(self, name: str) -> Scale:
        if name not in self.scales:
            raise UserError(f"regime {self.name} has no scale {name!r}: it has {', '.join(self.scales)}")
        return self.scales[name]

    def reading(self, files: str | None, column: str | None) -> Regime:
        """The regime with other text: files (a path or a glob; a folder as it is) and their column; None: its own."""
        corpus = self.corpus
        if files:
            # Of what lies in a folder the reader takes what it can read, and its name is no pattern.
            corpus = replace(corpus, kind="files", globs=(files,))
        if column:
            corpus = replace(corpus, column=column)
        return replace(self, corpus=corpus)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evidence_class(scale: str, device: str) -> str:
    """The class of a result: ``rehearsal`` at pocket scale, else ``evidence`` on mps and ``run`` elsewhere."""
    if scale == "pocket":
        return "rehearsal"
    return "evidence" if device == "mps" else "run"

"""Coefficients fitted elsewhere, frozen for a run: read, checked, recorded, and what they predict for it."""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.adaptive_grid import AdaptiveGrid
from search_spaces.locked_stream import StreamGrid
from search_spaces.schedule_coefficients import ScheduleSpace
from search_spaces.space import Space
from search_spaces.static_dropout import StaticGrid, readout_steps
from tune_dd import artifacts
from tune_dd.errors import UserError
from tune_dd.laws import get_law
from tune_dd.regimes import ModelSpec, Protocol
from tune_dd.schedule import Schedule, law_path

if TYPE_CHECKING:
    from analysis.coefficients import Coefficients

LAW = "law"  # the condition of the first law, which the primary contrast is about


@dataclass(frozen=True)
class FrozenLaw:
    """One coefficients.json.

    Attributes:
        source: the file as named.
        sha256: of its bytes.
        condition: what its schedule is called.
        transfer: whether it was fitted under another regime or tokenizer, as ``--transfer`` allows.
    """

    source: str
    sha256: str
    coefficients: Coefficients
    condition: str
    transfer: bool = False

    def path(self, model: ModelSpec, vocab_size: int, prefixes: Sequence[int], sampled: Sequence[int]) -> Schedule:
        """The law's schedule for a stream."""
        fitted = self.coefficients
        return law_path(
            fitted.coefficients,
            model.n_params(vocab_size),
            prefixes,
            sampled,
            law=fitted.law,
            p_min=fitted.p_min,
            p_max=fitted.p_max,
            condition=self.condition,
        )

    def record(self) -> dict[str, Any]:
        """What config.json keeps of it."""
        fitted = self.coefficients
        return {
            "source": self.source,
            "sha256": self.sha256,
            "condition": self.condition,
            "transfer": self.transfer,
            "carried_from": fitted.carried_from,
            "carried": _carried(fitted),
            "regime": fitted.regime,
            "tokenizer_hash": fitted.tokenizer_hash,
            "law": fitted.law,
            "coefficients": fitted.coefficients,
            "expected": fitted.expected,
            "p_min": fitted.p_min,
            "p_max": fitted.p_max,
        }


def read_laws(
    sources: Sequence[str], regime: str, *, forms: Sequence[str] = (), transfer: bool
) -> tuple[FrozenLaw, ...]:
    """Read each coefficients.json, given as a file or as the run that holds one.

    The first is the condition ``law``, each other one ``law_<form>``.

    Args:
        forms: the laws that are meant, in order; by default the one that each file names. A form that differs
            from a fitted one on streams alone has its coefficients, and can be read from the same file.

    Raises:
        UserError: a file is missing or damaged, or of another regime while ``transfer`` is not set; no file
            has the coefficients of a form that is asked for.
    """
    if not sources and not forms:
        return ()
    from analysis.advise import read_coefficients  # imported where it is needed: it takes a second

    files: list[tuple[str, str, Coefficients]] = []
    for source in sources:
        path = Path(source)
        file = artifacts.coefficients_file(path)
        fitted = read_coefficients(path)
        if fitted.regime != regime and not transfer:
            raise UserError(
                f"{file} was fitted on the regime {fitted.regime}, not {regime}: fit it there, or add --transfer if "
                "that is what you mean to test"
            )
        files.append((source, hashlib.sha256(file.read_bytes()).hexdigest(), fitted))
    meant = files if not forms else [_serving(files, form) for form in forms]
    return tuple(
        FrozenLaw(source, digest, fitted, f"{LAW}_{fitted.law}" if number else LAW, transfer=fitted.regime != regime)
        for number, (source, digest, fitted) in enumerate(meant)
    )


def _serving(files: Sequence[tuple[str, str, Coefficients]], form: str) -> tuple[str, str, Coefficients]:
    """The first file with the coefficients of a form."""
    for source, digest, fitted in files:
        if fitted.form.cells == get_law(form).cells:
            return source, digest, replace(fitted, law=form)
    held = ", ".join(f"{source} has {fitted.law}" for source, _, fitted in files)
    raise UserError(
        f"--law {form}: {held}: fit it with `python -m analysis RUN --law {form} --out FOLDER` and name "
        "--coefficients FOLDER"
    )


def _carried(fitted: Coefficients) -> str:
    """How a law came to its text from another, as its own note says it; empty where it did not."""
    said = (note for note in fitted.notes if fitted.carried_from and note.startswith("carried from "))
    return next(said, "")


def check_tokenizer(laws: Sequence[FrozenLaw], tokenizer_hash: str, *, transfer: bool) -> tuple[FrozenLaw, ...]:
    """The laws, marked as transferred where the tokenizer is another.

    Raises:
        UserError: it is, and ``transfer`` is not set.
    """
    checked = []
    for law in laws:
        other = law.coefficients.tokenizer_hash != tokenizer_hash
        if other and not transfer:
            raise UserError(
                f"{law.source} was fitted under another tokenizer (hash {law.coefficients.tokenizer_hash[:12]}, here "
                f"{tokenizer_hash[:12]}): fit it on this text and vocabulary, or add --transfer if you mean it"
            )
        checked.append(FrozenLaw(law.source, law.sha256, law.coefficients, law.condition, law.transfer or other))
    return tuple(checked)


def of_other_sizes(laws: Sequence[FrozenLaw], space: Space, vocab_size: int) -> list[str]:
    """What a stream's plan says of each law that was fitted on one size and is read at another."""
    if not isinstance(space, StreamGrid | ScheduleSpace):
        return []
    n_params, told = space.model.n_params(vocab_size), []
    for law in laws:
        sizes = law.coefficients.sizes
        if len(sizes) == 1 and n_params not in sizes:
            told.append(
                f"the law of {law.source} was fitted on one model size ({min(sizes):,} parameters), and the stream's "
                f"{space.model.name} has {n_params:,}: nothing tests how it extends to others"
            )
    return told


def write_predictions(
    folder: Path, laws: Sequence[FrozenLaw], space: Space, vocab_size: int, protocol: Protocol
) -> None:
    """predictions.json: what the laws say of a run that has not begun.

    The dropout of every stage or cell with its 95 % interval (of the law's value), and for a stream which
    way its contrasts will go. The report sets it beside what came out. Of a search for other schedules the law
    says nothing.
    """
    if isinstance(space, AdaptiveGrid):
        space = space.grid
    if not isinstance(space, StreamGrid | StaticGrid):
        return
    entries = [
        entry
        for law in laws
        for entry in (
            _stream_entries(law, space, vocab_size, protocol)
            if isinstance(space, StreamGrid)
            else _cell_entries(law, space, vocab_size, protocol)
        )
    ]
    artifacts.write_json(
        folder / artifacts.PREDICTIONS,
        {
            "schema": artifacts.SCHEMA,
            "time": datetime.datetime.now().isoformat(timespec="seconds"),
            "coefficients_hash": laws[0].sha256,
            "coefficients": [law.record() for law in laws],
            "predictions": entries,
        },
    )


def _stream_entries(law: FrozenLaw, grid: StreamGrid, vocab_size: int, protocol: Protocol) -> list[dict[str, Any]]:
    sampled = grid.sampled_tokens(protocol)
    _, low, high = law.coefficients.along(grid.model.n_params(vocab_size), grid.prefixes, sampled)
    path = law.path(grid.model, vocab_size, grid.prefixes, sampled)
    stages = [
        {
            "schedule": law.condition,
            "law": law.coefficients.law,
            "stage": stage,
            "model": grid.model.name,
            "unique_tokens": grid.prefixes[stage],
            "sampled_tokens": sampled[stage],
            "dropout": path.dropouts[stage],
            "low": _limit(low[stage]),
            "high": _limit(high[stage]),
        }
        for stage in range(len(grid.prefixes))
    ]
    claims = [(law.condition, "below the best static")]
    if law.condition == LAW and path.dropouts != path.dropouts[::-1]:
        claims.append((f"reversed_{LAW}", "above the best static"))
    outcomes: list[dict[str, Any]] = [
        {"condition": condition, "metric": metric, "predicted": claim}
        for condition, claim in claims
        for metric in ("final_val_loss", "trajectory_val_loss")
    ]
    return outcomes + stages


def _cell_entries(law: FrozenLaw, grid: StaticGrid, vocab_size: int, protocol: Protocol) -> list[dict[str, Any]]:
    readouts = [step * protocol.tokens_per_step for step in readout_steps(grid.readouts, protocol.tokens_per_step)]
    entries = []
    for model in grid.models:
        for unique in grid.prefixes:
            n_params = model.n_params(vocab_size)
            value = law.coefficients.predict(n_params, unique, readouts)
            low, high = law.coefficients.interval(n_params, unique, readouts)
            entries += [
                {
                    "law": law.coefficients.law,
                    "model": model.name,
                    "unique_tokens": unique,
                    "sampled_tokens": sampled,
                    "dropout": float(value[i]),
                    "low": _limit(low[i]),
                    "high": _limit(high[i]),
                    "beyond": _beyond(law.coefficients, n_params, unique, sampled),
                }
                for i, sampled in enumerate(readouts)
            ]
    return entries


def _limit(value: float) -> float | None:
    """An end of an interval; None where the law has none, as one fitted without replicates."""
    return float(value) if math.isfinite(value) else None


def _beyond(fitted: Coefficients, n_params: int, unique_tokens: int, sampled_tokens: int) -> list[str]:
    """In which quantities a cell exceeds every calibrated one: what a prediction of it extrapolates in."""
    cell = {"n_params": n_params, "unique_tokens": unique_tokens, "sampled_tokens": sampled_tokens}
    return [name for name, value in cell.items() if value > max(known[name] for known in fitted.cells)]

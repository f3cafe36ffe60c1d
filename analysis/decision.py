"""The gates of the study: which models have a best dropout that is inside the grid and above 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from analysis.optimum import CellFit


@dataclass(frozen=True)
class Candidate:
    """One model at its last read-out.

    Attributes:
        n_cells: prefixes that it was trained on.
        n_interior: those whose optimum lies inside the grid and improves on p = 0; where noise is known the
            improvement's interval must exclude 0.
        best_loss: its lowest validation loss on the largest prefix, nats per token.
    """

    model: str
    n_params: int
    n_cells: int
    n_interior: int
    best_loss: float

    @property
    def kept(self) -> bool:
        return self.n_interior > 0


@dataclass(frozen=True)
class Decision:
    """What a gate decided. ``chosen`` is None where no model has a real optimum above 0: the study ends there."""

    phase: str
    candidates: tuple[Candidate, ...]
    chosen: str | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        models = [{**asdict(candidate), "kept": candidate.kept} for candidate in self.candidates]
        return {"phase": self.phase, "chosen": self.chosen, "reason": self.reason, "models": models}


def decide(fits: Sequence[CellFit], phase: str) -> Decision:
    """Judge the models of a screen or confirm phase by their cells at the last read-out.

    Among the models with such an optimum the one with the lowest validation loss on the largest prefix is chosen,
    each judged at its own best dropout: the model that one would train, for a stream ends on its largest text. (A mean
    over the prefixes would be ruled by the smallest, on which every model overfits and the smallest model least.)
    """
    last = max((fit.sampled_tokens for fit in fits), default=0)
    cells: dict[str, list[CellFit]] = {}
    for fit in fits:
        if fit.phase == phase and fit.sampled_tokens == last:
            cells.setdefault(fit.model, []).append(fit)
    candidates = tuple(
        sorted(
            (
                Candidate(
                    model=model,
                    n_params=own[0].n_params,
                    n_cells=len(own),
                    n_interior=sum(_is_real(fit) for fit in own),
                    best_loss=float(max(own, key=lambda fit: fit.unique_tokens).levels.min()),
                )
                for model, own in cells.items()
            ),
            key=lambda candidate: candidate.n_params,
        )
    )
    kept = [candidate for candidate in candidates if candidate.kept]
    if not kept:
        tried = ", ".join(candidate.model for candidate in candidates) or "no model"
        reason = (
            f"no best dropout inside the grid stands out above p = 0 ({tried}), and a decaying dropout is tested only "
            "where a fixed one pays: the study of this regime ends here"
        )
        return Decision(phase, candidates, None, reason)
    best = min(kept, key=lambda candidate: candidate.best_loss)
    where = f"{best.n_interior} of {best.n_cells} prefixes have their best dropout inside the grid and above 0"
    rivals = len(candidates) > 1
    reason = f"{best.model}: {where}" + (
        f", and of the {len(kept)} models with such an optimum it reaches the lowest validation loss on the largest "
        f"prefix ({best.best_loss:.4f} nats per token, each at its best dropout)"
        if rivals
        else ""
    )
    return Decision(phase, candidates, best.model, reason)


def _is_real(fit: CellFit) -> bool:
    gain = fit.improvement_low if np.isfinite(fit.improvement_low) else fit.improvement
    return fit.status == "interior" and bool(gain > 0)

"""Dropout at each stage of a stream: static, anchors, linear decay, the law's path, and a path reversed.

Convention: the law is read at stage t with C_t, the tokens sampled *by the end* of the stage over all
stages, just as a calibration cell is labelled with the C at which it is read out. U_t is the stage's own
prefix. How a form counts what earlier, smaller prefixes contributed to C_t is its own affair (``Law.along``).

Pure: no torch, no Ray, no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tune_dd.errors import UserError
from tune_dd.law import P_MAX
from tune_dd.laws import REFERENCE_LAW, get_law
from tune_dd.trial import static_condition


@dataclass(frozen=True)
class Schedule:
    """A named path of dropout rates.

    Attributes:
        condition: name in the tables, ``static_0.30``, ``law``, ``hold_30_then_decay``, ...
        kind: ``static``, ``law``, or ``anchor_decay`` for any other path that was written down beforehand.
        dropouts: one rate per stage, each in [0, 1).
    """

    condition: str
    kind: str
    dropouts: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.dropouts:
            raise UserError(f"schedule {self.condition} has no stage: give one dropout per prefix")
        for value in self.dropouts:
            if not 0.0 <= value < 1.0:  # also catches NaN, which compares false
                raise UserError(f"schedule {self.condition}: dropout {value} is outside [0, 1)")

    @property
    def mean(self) -> float:
        return sum(self.dropouts) / len(self.dropouts)


def static(dropout: float, n_stages: int) -> Schedule:
    """The same dropout at every stage."""
    return Schedule(static_condition(dropout), "static", (float(dropout),) * n_stages)


def anchors(name: str, dropouts: Sequence[float], n_stages: int) -> Schedule:
    """One dropout per stage, given by hand.

    Raises:
        UserError: there are not exactly ``n_stages`` of them.
    """
    if len(dropouts) != n_stages:
        given = ",".join(f"{value:g}" for value in dropouts)
        raise UserError(
            f"anchors {name}={given or '(none)'}: {len(dropouts)} values for {n_stages} stages: give one per prefix"
        )
    return Schedule(name, "anchor_decay", tuple(float(value) for value in dropouts))


def linear_decay(first: float, last: float, n_stages: int) -> Schedule:
    """Equal steps from ``first`` at the first stage to ``last`` at the last one (``first`` if there is but one)."""
    steps = max(n_stages - 1, 1)
    path = tuple(first + (last - first) * t / steps for t in range(n_stages))
    return Schedule("linear_decay", "anchor_decay", path)


def law_path(
    coefficients: Mapping[str, float],
    n_params: int,
    unique_tokens: Sequence[int],
    sampled_tokens: Sequence[int],
    *,
    law: str = REFERENCE_LAW,
    p_min: float | None = None,
    p_max: float = P_MAX,
    condition: str = "law",
) -> Schedule:
    """The law's dropout at each stage.

    Args:
        coefficients: name -> value, exactly those of the law.
        n_params: P.
        unique_tokens: U_t of each stage.
        sampled_tokens: C_t by the end of each stage, cumulative.
        p_min, p_max: the clamp; by default from the form's own least rate on.

    Raises:
        UserError: the stages do not match, C does not grow, the law or a coefficient is unknown.
    """
    if len(unique_tokens) != len(sampled_tokens):
        raise UserError(
            f"{len(unique_tokens)} prefixes but {len(sampled_tokens)} sampled-token counts: give one per stage"
        )
    if any(later <= earlier for earlier, later in pairwise(sampled_tokens)):
        raise UserError(f"sampled tokens {list(sampled_tokens)} must grow from stage to stage: they are cumulative")
    form = get_law(law)
    least = form.p_min if p_min is None else p_min
    if not 0.0 <= least <= p_max < 1.0:
        raise UserError(f"clamp [{least}, {p_max}] must satisfy 0 <= p_min <= p_max < 1")
    counted = form.along(unique_tokens, sampled_tokens)
    most = form.at_most(len(counted), p_max)
    path = form.dropout(coefficients, n_params, unique_tokens, counted, p_min=least, p_max=most)
    return Schedule(condition, "law", tuple(float(value) for value in path))


def reversed_path(schedule: Schedule) -> Schedule:
    """The same rates in the opposite order: the same mean, so that only the order is tested."""
    return Schedule(f"reversed_{schedule.condition}", "anchor_decay", schedule.dropouts[::-1])

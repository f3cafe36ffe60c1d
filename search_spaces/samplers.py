"""Optuna's samplers, each asked for one point: fresh, on a fresh study of the earlier ones, nothing remembered."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "gp")
# Points suggested at random before the sampler builds on them, those known beforehand among them: Optuna's default.
STARTUP_POINTS = 10


def sample(
    bounds: Mapping[str, tuple[float, float]],
    earlier: Sequence[tuple[Mapping[str, float], float | None]],
    sampler: str,
    seed: int,
    index: int,
) -> dict[str, float]:
    """Parameters of the point of that index.

    Args:
        bounds: range of each parameter, by name.
        earlier: parameters and value of the points before its batch; None where a point failed.
        sampler: ``tpe`` or ``gp``.
        seed: of the search; with the index it seeds the sampler.
    """
    import optuna  # takes half a second, which other phases need not spend

    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(low, high) for name, (low, high) in bounds.items()
    }
    complete, failed = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(direction="minimize", sampler=_make_sampler(sampler, seed, index))
            study.add_trials(
                optuna.trial.create_trial(
                    state=failed if value is None else complete,
                    value=value,
                    params=dict(params),
                    distributions=distributions,
                )
                for params, value in earlier
            )
            found = study.ask(fixed_distributions=distributions).params
    finally:
        optuna.logging.set_verbosity(level)
    return {name: float(found[name]) for name in bounds}


def _make_sampler(name: str, seed: int, index: int) -> optuna.samplers.BaseSampler:
    """A sampler whose random numbers belong to this one point."""
    import optuna

    digest = hashlib.sha256(f"search {seed} point {index}".encode()).digest()
    own = int.from_bytes(digest[:4], "little")
    if name == "gp":
        return optuna.samplers.GPSampler(seed=own, n_startup_trials=STARTUP_POINTS, warn_independent_sampling=False)
    return optuna.samplers.TPESampler(seed=own, n_startup_trials=STARTUP_POINTS, warn_independent_sampling=False)

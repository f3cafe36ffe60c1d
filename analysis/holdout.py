"""How well a law predicts what it was not fitted to: cells, and whole levels, left out; and its rivals.

Errors are judged by regret, the loss at the law's dropout over the held-out cell's own fitted optimum, in
nats per token: being wrong where the loss is flat costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import robust
from analysis.misfit import problem_of
from analysis.targets import MAX_FOLDS, Targets, folds, make_targets
from tune_dd.errors import UserError
from tune_dd.law import Array, design_rank
from tune_dd.laws import REFERENCE_LAW, get_law

LEVELS = ("n_params", "unique_tokens", "sampled_tokens")
BASELINES = ("constant", "x_only", "y_only")  # of one variable or none: they say what the others are worth
RIVALS = (
    *BASELINES,
    *("first_order", "interaction", "separable", "odds", "onset", "pinned", "saturating", "epochs", "floored"),
)


def leave_one_cell_out(
    selection: pd.DataFrame | None,
    table: pd.DataFrame,
    *,
    law: str = REFERENCE_LAW,
    seed: int = 0,
) -> pd.DataFrame:
    """Predict each cell by the law fitted to all others (beyond 200 cells: to those of the other 199 folds).

    Returns one row per cell: model, n_params, unique_tokens, sampled_tokens, status, target, predicted,
    error (predicted less target, dropout) and regret (nats); predicted, error and regret are NaN where the
    remaining cells leave the law undetermined.

    Raises:
        UserError: as ``make_targets``.
    """
    targets = make_targets(selection, table, seed=seed)
    return _predict_folds(targets, law, seed)


def leave_one_level_out(
    selection: pd.DataFrame | None,
    table: pd.DataFrame,
    *,
    law: str = REFERENCE_LAW,
    by: str = "unique_tokens",
    level: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Predict all cells of one level, by default the largest, by the law fitted to the other levels.

    Args:
        by: n_params, unique_tokens or sampled_tokens.

    Returns the columns of ``leave_one_cell_out``, for the held-out cells.

    Raises:
        UserError: ``by`` is not one of the three, there is one level only, or no such level.
    """
    targets = make_targets(selection, table, seed=seed)
    return _predict_level(targets, law, by, level, seed)


def rivals(
    selection: pd.DataFrame | None,
    table: pd.DataFrame,
    *,
    laws: Sequence[str] = RIVALS,
    seed: int = 0,
    targets: Targets | None = None,
) -> pd.DataFrame:
    """Laws side by side on every hold-out that the table allows.

    Returns one row per hold-out and law: holdout (``cell``, ``largest n_params``, ...), law, n_cells held
    out, regret_mean and regret_max (nats), rmse (dropout, over the interior ones), note. Figures are NaN, and
    the note says so, where the remaining cells leave the law undetermined. Within a hold-out the law with the
    least mean regret comes first. ``targets`` are what ``make_targets`` gives for them, if that is done already.

    Raises:
        UserError: as ``make_targets``.
    """
    targets = targets or make_targets(selection, table, seed=seed)
    rows = []
    for law in laws:
        predictions = {"cell": _predict_folds(targets, law, seed)}
        for by in LEVELS:
            if len(np.unique(getattr(targets, by))) > 1:
                predictions[f"largest {by}"] = _predict_level(targets, law, by, None, seed)
        for holdout, held in predictions.items():
            note = f"in {MAX_FOLDS} folds" if holdout == "cell" and len(held) > MAX_FOLDS else ""
            known = held["regret"].notna().all()
            interior = held["status"] == "interior"
            rows.append(
                {
                    "holdout": holdout,
                    "law": law,
                    "n_cells": len(held),
                    "regret_mean": held["regret"].mean() if known else float("nan"),
                    "regret_max": held["regret"].max() if known else float("nan"),
                    "rmse": float(np.sqrt((held.loc[interior, "error"] ** 2).mean())) if known else float("nan"),
                    "note": note if known else "undetermined without the cells held out",
                }
            )
    frame = pd.DataFrame(rows)
    frame["holdout"] = pd.Categorical(frame["holdout"], list(dict.fromkeys(frame["holdout"])), ordered=True)
    frame = frame.sort_values(["holdout", "regret_mean"], kind="stable", ignore_index=True)
    frame["holdout"] = frame["holdout"].astype(str)
    return frame


def _predict_level(targets: Targets, law: str, by: str, level: int | None, seed: int) -> pd.DataFrame:
    if by not in LEVELS:
        raise UserError(f"cannot leave out a level of {by!r}: it is one of {', '.join(LEVELS)}")
    values: Array = getattr(targets, by)
    if len(np.unique(values)) < 2:
        raise UserError(f"all cells have the same {by}: there is no level to leave out")
    held = values == (values.max() if level is None else level)
    if not held.any():
        raise UserError(f"no cell has {by}={level}: choose one of {', '.join(f'{v:.0f}' for v in np.unique(values))}")
    form = get_law(law)
    targets = targets.bounded(form.fit_max)
    mask = (~held).astype(np.float64)
    problem = problem_of(targets, form, seed=seed, mask=mask)
    predicted = np.full(len(targets), np.nan)
    if _determined(problem.design[targets.point & ~held]):
        rng = np.random.default_rng([seed, 2])
        beta, _ = robust.fit(problem, targets.dropout, targets.side, targets.start_weight, rng, mask)
        predicted[held] = problem.predict(problem.design[held] @ beta)
    return _held_out(targets, predicted, np.flatnonzero(held))


def _predict_folds(targets: Targets, law: str, seed: int) -> pd.DataFrame:
    """Predict each cell by the law fitted without its fold. That hardly moves the fit: the whole table's is refined."""
    form = get_law(law)
    targets = targets.bounded(form.fit_max)
    problem = problem_of(targets, form, seed=seed)
    predicted = np.full(len(targets), np.nan)
    fold = folds(targets)
    mask = (fold != np.unique(fold)[:, None]).astype(np.float64)
    left = [number for number, row in enumerate(mask) if _determined(problem.design[(row > 0) & targets.point])]
    if left:
        rng = np.random.default_rng([seed, 2])
        whole, _ = robust.fit(problem, targets.dropout, targets.side, targets.start_weight, rng)
        shape = (len(left), 1)
        start, z, side = np.tile(whole, shape), np.tile(targets.z, shape), np.tile(targets.side, shape)
        refits = np.full((len(mask), len(whole)), np.nan)
        refits[left], _ = robust.minimise(problem, start, z, side, mask[left])
        predicted = problem.predict((problem.design * refits[fold]).sum(axis=1))
    return _held_out(targets, predicted, np.arange(len(targets)))


def _determined(design: Array) -> bool:
    k = int(design.shape[1])
    return len(design) >= k and design_rank(design)[0] == k


def _held_out(targets: Targets, predicted: Array, held: NDArray[np.int64]) -> pd.DataFrame:
    """The columns of ``leave_one_cell_out`` for the cells held out, by their numbers."""
    fits = [targets.fits[i] for i in held]
    target = np.array([fit.target for fit in fits])
    regret = [float(fit.regret(p)) for fit, p in zip(fits, predicted[held], strict=True)]
    return pd.DataFrame(
        {
            "model": [fit.model for fit in fits],
            "n_params": [fit.n_params for fit in fits],
            "unique_tokens": [fit.unique_tokens for fit in fits],
            "sampled_tokens": [fit.sampled_tokens for fit in fits],
            "status": [fit.status for fit in fits],
            "target": target,
            "predicted": predicted[held],
            "error": predicted[held] - target,
            "regret": regret,
        }
    )

"""The command that a finished run suggests, in the words of the one that began it."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from search_spaces.model_screen import partners
from tune_dd.errors import UserError
from tune_dd.regime_file import resolve_regime
from tune_dd.regimes import ModelSpec
from tune_dd.sweep.options import choose_regime, parse, repeated
from tune_dd.sweep.plan import Plan
from tune_dd.sweep.runs import RunFolder, shown_path

if TYPE_CHECKING:
    from analysis.searched import Searched


def next_command(run: RunFolder, plan: Plan, chosen: str) -> str:
    """What follows a gate that was passed."""
    if plan.phase == "screen":
        return same_search(run, "confirm", "--from", shown_path(run.path))
    sizes = (*partners(plan.scale, ModelSpec.parse(chosen)), ModelSpec.parse(chosen))
    return same_search(run, "calibrate", "--models", ",".join(model.name for model in sizes))


def confirmation(run: RunFolder, plan: Plan, search: Searched) -> str:
    """The stream that tries the best point of a search on seeds that it was not chosen on."""
    best = search.best
    assert best is not None
    begun = begun_with(run)
    words = [word for source in begun.coefficients for word in ("--coefficients", source)]
    words += [word for law in begun.law or () for word in ("--law", law)]
    words += ["--transfer"] if begun.transfer else []
    for option in ("models", "prefixes", "stage_steps"):
        if getattr(begun, option) is not None:
            words += [f"--{option.replace('_', '-')}", str(getattr(begun, option))]
    used = {seed for grid in plan.grids for seed in grid.seeds}
    if used & set(plan.scale.stream_seeds):
        first = max(*used, *plan.scale.stream_seeds) + 1
        words += ["--seeds", ",".join(str(first + number) for number in range(len(plan.scale.stream_seeds)))]
    path = ",".join(f"{dropout:.4f}" for dropout in search.dropouts(best))
    return same_search(run, "stream", *words, "--anchors", f"searched={path}")


def begun_with(run: RunFolder) -> argparse.Namespace:
    """The options of the command that began a run."""
    return parse(shlex.split(run.config()["command"])[3:])


def regime_word(run: RunFolder) -> str:
    """The regime as the command that began the run named it: a regime file by its path."""
    try:
        args = begun_with(run)
        return str(args.regime or choose_regime(args).name)
    except UserError:  # a command of another version
        return str(run.config()["regime"]["name"])


def has_full_scale(run: RunFolder) -> bool:
    try:
        return "full" in resolve_regime(regime_word(run)).scales
    except UserError:  # its file has gone or changed
        return False


def same_search(run: RunFolder, phase: str, *more: str) -> str:
    """The command of another phase on the text and device of a run."""
    words = repeated(begun_with(run))
    return shlex.join(["python", "-m", "tune_dd.sweep", *words, "--phase", phase, *more])

"""The command that a finished run suggests, in the words of the one that began it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from search_spaces.model_screen import partners
from tune_dd.builtin_regimes import POCKET, REGIMES
from tune_dd.errors import UserError
from tune_dd.regime_file import resolve_regime
from tune_dd.regimes import ModelSpec
from tune_dd.sweep import options
from tune_dd.sweep.options import parse, repeated
from tune_dd.sweep.plan import Plan
from tune_dd.sweep.runs import RunFolder, resume_command, shown_path

if TYPE_CHECKING:
    from analysis.coefficients import Coefficients
    from analysis.decision import Decision
    from analysis.report import Analysis
    from analysis.searched import Searched

_REMARK = "    # "  # a line that is pasted with it is still a command


def following(run: RunFolder, plan: Plan, result: Analysis, decision: Decision | None, *, crashed: bool) -> str:
    """What to do after a run, as a command and, where it needs one, a remark."""
    if crashed:
        return f"{resume_command(run)} --retry-crashed"
    try:
        return _next_phase(run, plan, result, decision) or _read(run)
    except UserError:  # begun by the command of another version, or its regime file has gone
        return _read(run)


def _read(run: RunFolder) -> str:
    return f"python -m analysis {shlex.quote(shown_path(run.path))}"


def _next_phase(run: RunFolder, plan: Plan, result: Analysis, decision: Decision | None) -> str | None:
    if decision is not None and decision.chosen is not None:
        return after_gate(run, plan, decision.chosen)
    if result.search is not None and result.search.best is not None:
        return f"{confirmation(run, plan, result.search)}{_REMARK}the best point on other seeds"
    frozen = laws_of(begun_with(run))  # a hold-out's own cells are few: the law that it was begun with is the one
    if plan.phase == "calibrate" and not frozen and is_pilot(run, plan):
        return carried(run)
    if plan.phase == "calibrate" and (frozen or result.coefficients is not None):
        if frozen:
            return stream_with(run, plan, frozen, plan.grids[0].models[-1])
        model = model_of(plan, result.coefficients)
        return stream_with(run, plan, ["--coefficients", shown_path(run.path)], model)
    if plan.scale_name == "pocket" and has_full_scale(run):
        begun = begun_with(run)
        words = [options.regime_word(begun), *options.text_words(begun), "--dry-run"]
        return f"{shlex.join(['python', '-m', 'tune_dd.sweep', *words])}{_REMARK}what the full search would cost"
    return None


def is_pilot(run: RunFolder, plan: Plan) -> bool:
    """Whether a calibration is of one seed and one size, on a text of the user's, at the scale of the known texts."""
    begun = begun_with(run)
    if options.regime_word(begun) in REGIMES and not options.text_words(begun):
        return False
    seeds = {seed for grid in plan.grids for seed in grid.seeds}
    models = {model for grid in plan.grids for model in grid.models}
    known = plan.scale.vocab_size == POCKET.vocab_size and plan.scale.protocol == POCKET.protocol
    return known and len(seeds) == len(models) == 1


def carried(run: RunFolder) -> str:
    """What a pilot is for: the mean law of texts carried by it, since its own is of a few cells of one size."""
    folder = shlex.quote(shown_path(run.path))
    return f"python -m analysis carry {folder} --out {folder}/carried{_REMARK}which dropout for this text: then advise"


def after_gate(run: RunFolder, plan: Plan, chosen: str) -> str:
    """What follows a gate that was passed."""
    if plan.phase == "screen":
        return same_search(run, "confirm", "--from", shown_path(run.path))
    sizes = (*partners(plan.scale, ModelSpec.parse(chosen)), ModelSpec.parse(chosen))
    return same_search(run, "calibrate", "--models", ",".join(model.name for model in sizes))


def model_of(plan: Plan, fitted: Coefficients | None) -> ModelSpec:
    """The last model of a calibration's grid; where the law is fitted to cells of others alone, the last of those."""
    models = [model for grid in plan.grids for model in grid.models]
    sizes = fitted.sizes if fitted else frozenset()
    last = plan.grids[0].models[-1]
    told = [model for model in models if model.n_params(plan.scale.vocab_size) in sizes]
    return last if last in told or not told else told[-1]


def stream_with(run: RunFolder, plan: Plan, laws: Sequence[str], model: ModelSpec) -> str:
    """The stream of a calibration's model, where its text is long enough for one."""
    needed, held = plan.scale.prefixes_of_stream[-1], int(run.config()["data"]["manifest"]["tokens"]["train"])
    if held < needed:
        return f"{_read(run)}{_REMARK}a stream needs {needed:,} training tokens, and this text has {held:,}"
    stream = same_search(run, "stream", "--models", model.name, *laws)
    return f"{stream}{_REMARK}does the law beat the best fixed dropout?"


def confirmation(run: RunFolder, plan: Plan, search: Searched) -> str:
    """The stream that tries the best point of a search on seeds that it was not chosen on."""
    best = search.best
    assert best is not None
    begun = begun_with(run)
    words = laws_of(begun)
    for option in ("models", "prefixes", "stage_steps"):
        if getattr(begun, option) is not None:
            words += [f"--{option.replace('_', '-')}", str(getattr(begun, option))]
    used = {seed for grid in plan.grids for seed in grid.seeds}
    if used & set(plan.scale.stream_seeds):
        first = max(*used, *plan.scale.stream_seeds) + 1
        words += ["--seeds", ",".join(str(first + number) for number in range(len(plan.scale.stream_seeds)))]
    path = ",".join(f"{dropout:.4f}" for dropout in search.dropouts(best))
    return same_search(run, "stream", *words, "--anchors", f"searched={path}")


def laws_of(begun: argparse.Namespace) -> list[str]:
    """The words that name the frozen laws of a command; none where it has none."""
    words = [word for source in begun.coefficients or () for word in ("--coefficients", source)]
    words += [word for law in begun.law or () for word in ("--law", law)]
    return words + (["--transfer"] if begun.transfer else [])


def begun_with(run: RunFolder) -> argparse.Namespace:
    """The options of the command that began a run.

    Raises:
        UserError: it is a command of another version.
    """
    return parse(shlex.split(run.config()["command"])[3:])


def regime_word(run: RunFolder) -> str:
    """The regime as the command that began the run named it: a regime file by its path."""
    try:
        return options.regime_word(begun_with(run))
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

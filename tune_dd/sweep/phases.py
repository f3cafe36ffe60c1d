"""What each phase searches: the space of a new run, and the space that a stored one and the options give."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from search_spaces.adaptive_grid import AdaptiveGrid
from search_spaces.locked_stream import StreamGrid, make_schedules, sampled_tokens
from search_spaces.model_screen import confirm_grid, screen_grid
from search_spaces.samplers import SAMPLERS
from search_spaces.schedule_coefficients import ENDS, OBJECTIVES, ScheduleSpace, StartingLaw
from search_spaces.space import Space
from search_spaces.static_dropout import StaticGrid
from tune_dd import artifacts
from tune_dd.builtin_regimes import QUICK_DROPOUTS, QUICK_SEEDS
from tune_dd.errors import UserError
from tune_dd.regime_file import resolve_regime
from tune_dd.regimes import ModelSpec, Scale, check_dropouts
from tune_dd.schedule import Schedule, anchors, static
from tune_dd.sweep.frozen_law import LAW, FrozenLaw
from tune_dd.sweep.values import read_anchors, read_dropouts, read_models, read_seeds, read_tokens

DECISION = "decision.json"
GRID_OPTIONS = ("models", "prefixes", "readouts", "dropouts", "seeds")
ADAPTIVE_OPTIONS = ("adaptive", "target_width", "budget")
STREAM_OPTIONS = ("models", "prefixes", "stage_steps", "dropouts", "seeds", "anchors")
SUGGESTING = ("points", "space", "objective", "sampler", "search_seed", "static")
SEARCH_OPTIONS = ("models", "prefixes", "stage_steps", "seeds", "from_run", *SUGGESTING)


@dataclass(frozen=True)
class Phase:
    """One phase of the search.

    Attributes:
        help: one clause for ``--help``.
        options: what of the command line shapes its space; other such options are refused.
        choose: (options, scale, laws, devices) -> the space of a new run.
        change: (stored space, options) -> that space with the values that the options give.
    """

    help: str
    options: tuple[str, ...]
    choose: Callable[[argparse.Namespace, Scale, Sequence[FrozenLaw], int], Space]
    change: Callable[[Any, argparse.Namespace], Space]


def _choose_grid(args: argparse.Namespace, scale: Scale, laws: Sequence[FrozenLaw], n_devices: int) -> Space:
    grid = StaticGrid.of_scale(scale)
    if args.quick:
        grid = replace(grid, models=scale.models, dropouts=QUICK_DROPOUTS, seeds=QUICK_SEEDS)
    return _adapted(_change_grid(grid, args), args)


def _change_grid(grid: StaticGrid, args: argparse.Namespace) -> StaticGrid:
    """An axis without an option stays."""
    chosen: dict[str, Any] = {
        "models": read_models(args.models),
        "prefixes": read_tokens(args.prefixes, "--prefixes"),
        "readouts": read_tokens(args.readouts, "--readouts"),
        "dropouts": read_dropouts(args.dropouts, extending=bool(args.extend)),
        "seeds": read_seeds(args.seeds),
    }
    return replace(grid, **{name: values for name, values in chosen.items() if values is not None})


def _adapted(grid: StaticGrid, args: argparse.Namespace) -> StaticGrid | AdaptiveGrid:
    """The grid, or with --adaptive what of it is trained as it goes."""
    if args.adaptive:
        return AdaptiveGrid(grid, **_adaptive_options(args))
    for name in ADAPTIVE_OPTIONS:
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is about --adaptive: give that too, or leave it out")
    return grid


def _change_adaptive(space: AdaptiveGrid, args: argparse.Namespace) -> AdaptiveGrid:
    return replace(space, grid=_change_grid(space.grid, args), **_adaptive_options(args))


def _adaptive_options(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("target_width", "budget") if getattr(args, name) is not None}


def _change_either(space: StaticGrid | AdaptiveGrid, args: argparse.Namespace) -> StaticGrid | AdaptiveGrid:
    if isinstance(space, AdaptiveGrid):
        return _change_adaptive(space, args)
    if args.extend and args.adaptive:
        raise UserError("--adaptive: a run is adaptive from its beginning; start a new run for it")
    return _adapted(_change_grid(space, args), args)


def _choose_screen(args: argparse.Namespace, scale: Scale, laws: Sequence[FrozenLaw], n_devices: int) -> StaticGrid:
    return _change_grid(screen_grid(scale), args)


def _choose_confirm(args: argparse.Namespace, scale: Scale, laws: Sequence[FrozenLaw], n_devices: int) -> Space:
    models = read_models(args.models) or ((screened_model(Path(args.from_run)),) if args.from_run else ())
    if len(models) != 1 or (args.models and args.from_run):
        raise UserError("--phase confirm needs one model: give --from RUN, a finished screen run, or --models")
    return _adapted(_change_grid(confirm_grid(scale, models[0]), args), args)


def screened_model(run: Path) -> ModelSpec:
    """The model that a screen run chose.

    Raises:
        UserError: the run is not finished, or found no model worth confirming.
    """
    file = run / DECISION
    if not file.exists():
        raise UserError(f"{file} is missing: name a screen run that has finished")
    decision = artifacts.read_json(file)
    if not isinstance(decision, dict) or "chosen" not in decision:
        raise UserError(f"{file} is no decision of a screen run: name another run, or give --models")
    if decision["chosen"] is None:
        raise UserError(f"{run} found no model to confirm: {decision['reason']}; --models takes one all the same")
    return ModelSpec.parse(decision["chosen"])


def _choose_stream(args: argparse.Namespace, scale: Scale, laws: Sequence[FrozenLaw], n_devices: int) -> StreamGrid:
    if not laws:
        raise UserError(_no_law("stream"))
    model, prefixes, steps = _stream(args, scale)
    sampled = sampled_tokens(len(prefixes), steps, scale.protocol)
    return _stream_grid(args, scale, [law.path(model, scale.vocab_size, prefixes, sampled) for law in laws])


def _stream_grid(args: argparse.Namespace, scale: Scale, laws: Sequence[Schedule]) -> StreamGrid:
    model, prefixes, steps = _stream(args, scale)
    # The regime's own paths are written for its own stages.
    by_hand = dict(scale.anchors) if prefixes == scale.prefixes_of_stream else {}
    return StreamGrid(
        model=model,
        prefixes=prefixes,
        stage_steps=steps,
        schedules=make_schedules(
            len(prefixes),
            laws,
            read_dropouts(args.dropouts, extending=True) or scale.stream_dropouts or scale.dropouts,
            by_hand | read_anchors(args.anchors),
        ),
        seeds=read_seeds(args.seeds) or scale.stream_seeds,
    )


def check_stream(args: argparse.Namespace, scale: Scale) -> None:
    """Refuse options of which no stream can be made, before there is a law for it.

    Raises:
        UserError: as the stream itself would be refused.
    """
    stages = len(_stream(args, scale)[1])
    _stream_grid(args, scale, [Schedule(LAW, "law", (scale.dropouts[-1],) * stages)])


def _no_law(phase: str) -> str:
    return (
        f"--phase {phase} needs the law: give --coefficients RUN, a finished calibrate run of this regime, or a "
        "coefficients.json"
    )


def _stream(args: argparse.Namespace, scale: Scale) -> tuple[ModelSpec, tuple[int, ...], int]:
    """Model, prefixes and steps of a stage."""
    models = _one_model(args) or scale.models[-1:]
    prefixes = read_tokens(args.prefixes, "--prefixes") or scale.prefixes_of_stream
    steps = scale.steps_of_stream if args.stage_steps is None else args.stage_steps
    if steps < 1:
        raise UserError(f"--stage-steps {steps} must be at least 1")
    return models[0], prefixes, steps


def _one_model(args: argparse.Namespace) -> tuple[ModelSpec, ...] | None:
    models = read_models(args.models)
    if models is not None and len(models) > 1:
        raise UserError(f"--models {args.models}: a stream has one model")
    return models


def _change_stream(grid: StreamGrid, args: argparse.Namespace) -> StreamGrid:
    """--dropouts replace the fixed ones, --anchors come besides; the law is frozen."""
    models = _one_model(args) or grid.models
    stages = len(grid.prefixes)
    schedules: tuple[Schedule, ...] = grid.schedules
    dropouts = read_dropouts(args.dropouts, extending=True)
    if dropouts is not None:
        others = tuple(schedule for schedule in schedules if schedule.kind != "static")
        schedules = (*others, *(static(dropout, stages) for dropout in dropouts))
        if set(schedules) == set(grid.schedules):
            schedules = grid.schedules  # named in another order, they are the same
    by_hand = {name: anchors(name, path, stages) for name, path in read_anchors(args.anchors).items()}
    schedules = tuple(({schedule.condition: schedule for schedule in schedules} | by_hand).values())
    prefixes = read_tokens(args.prefixes, "--prefixes") or grid.prefixes
    if prefixes != grid.prefixes:
        raise UserError("--prefixes makes another stream: start a new run for it")
    return replace(
        grid,
        model=models[0],
        schedules=schedules,
        seeds=read_seeds(args.seeds) or grid.seeds,
        stage_steps=grid.stage_steps if args.stage_steps is None else args.stage_steps,
    )


def _choose_search(args: argparse.Namespace, scale: Scale, laws: Sequence[FrozenLaw], n_devices: int) -> ScheduleSpace:
    if not laws:
        raise UserError(_no_law("search"))
    if len(laws) > 1:
        raise UserError("--phase search starts from one law: name one --coefficients")
    model, prefixes, steps = _stream(args, scale)
    fitted = laws[0].coefficients
    law = StartingLaw(
        name=fitted.law,
        coefficients=fitted.coefficients,
        p_min=fitted.p_min,
        p_max=fitted.form.at_most(len(prefixes), fitted.p_max),
        n_params=model.n_params(scale.vocab_size),
        prefixes=prefixes,
        sampled_tokens=sampled_tokens(len(prefixes), steps, scale.protocol),
    )
    # The seeds that the law was fitted on: a choice has been made on them already, and those of the stream stay
    # untouched for what the search finds.
    seeds = read_seeds(args.seeds) or scale.seeds
    objective, sampler = args.objective or OBJECTIVES[0], args.sampler or SAMPLERS[0]
    # Trials enough for every device. A Gaussian process would put the points of one batch, which do not know of one
    # another, in the same place.
    batch = 1 if sampler == "gp" else max(1, math.ceil(n_devices / len(seeds)))
    static, source = _best_static(args, scale, law, model, objective)
    return ScheduleSpace(
        model=model,
        prefixes=prefixes,
        stage_steps=steps,
        seeds=seeds,
        law=law,
        space=args.space or ENDS,
        static=static,
        static_source=source,
        sampler=sampler,
        objective=objective,
        search_seed=args.search_seed or 0,
        points=scale.search_points if args.points is None else args.points,
        batch=batch,
    ).begun()


def _best_static(
    args: argparse.Namespace, scale: Scale, law: StartingLaw, model: ModelSpec, objective: str
) -> tuple[float, str]:
    """The best fixed dropout known, and how: as given, as a stream run found it, else guessed from the law's mean."""
    if args.static is not None and args.from_run:
        raise UserError("--static and --from both name the best fixed dropout: give one of them")
    if args.static is not None:
        check_dropouts((args.static,))
        return float(args.static), "as given"
    if args.from_run:
        regime = resolve_regime(args.regime or "pydocs").name
        stream = (regime, model.name, law.prefixes, law.sampled_tokens)
        found = streamed_static(Path(args.from_run), stream, objective)
        source = f"the best of the stream {args.from_run}"
    else:
        path = law.path(law.fitted)
        mean = sum(path) / len(path)
        found = min(scale.stream_dropouts or scale.dropouts, key=lambda p: abs(p - mean))
        source = "the grid's nearest to the mean of the law's path: --static or --from where a better one is known"
    held = min(max(found, law.p_min), law.p_max)
    return held, source if held == found else f"for {found:g}, held to the law's clamp: {source}"


def streamed_static(run: Path, stream: tuple[str, str, tuple[int, ...], tuple[int, ...]], objective: str) -> float:
    """The fixed dropout with the lowest mean objective in a stream run, over the seeds that it was run with.

    Args:
        stream: regime, model, prefixes and C by the end of each stage that the run must have.

    Raises:
        UserError: it is another stream, or holds no finished one of a fixed dropout.
    """
    from analysis.comparison import outcomes
    from analysis.tables import load_experiment

    metric = f"{objective}_val_loss"
    table = load_experiment([run]).table
    found = outcomes(table, (metric,))
    rows = table[table["phase"] == "stream"]
    ends = rows.groupby("unique_tokens")["sampled_tokens"].max().sort_index()
    has = rows["regime"].iloc[0], rows["model"].iloc[0], tuple(ends.index), tuple(ends)
    if has != stream:
        raise UserError(
            f"--from {run} is the stream of {has[0]}, {has[1]}, prefixes {','.join(map(str, has[2]))}, which ends at "
            f"{has[3][-1]:,} sampled tokens: name one of the same regime, model, prefixes and --stage-steps, or give "
            "--static"
        )
    means = found.loss[metric][found.static].mean(axis=1)  # NaN where a seed is missing
    if not (means == means).any():
        raise UserError(f"{run} has no fixed dropout that finished on every seed: resume it, or give --static")
    name = [c for c, is_static in zip(found.conditions, found.static, strict=True) if is_static][means.argsort()[0]]
    return float(rows.loc[rows["condition"] == name, "dropout"].iloc[0])


def _change_search(space: ScheduleSpace, args: argparse.Namespace) -> ScheduleSpace:
    """What a search is made of is fixed when it begins; only --points may grow."""
    models = _one_model(args) or space.models
    prefixes = read_tokens(args.prefixes, "--prefixes") or space.prefixes
    if prefixes != space.prefixes:
        raise UserError("--prefixes makes another search: start a new run for it")
    changes = {name: getattr(args, name) for name in (*SUGGESTING, "stage_steps") if getattr(args, name) is not None}
    return replace(space, model=models[0], seeds=read_seeds(args.seeds) or space.seeds, **changes)


PHASES: dict[str, Phase] = {
    "screen": Phase("model sizes on a coarse grid, one seed", GRID_OPTIONS, _choose_screen, _change_grid),
    "confirm": Phase(
        "one model on the full grid",
        (*GRID_OPTIONS, *ADAPTIVE_OPTIONS, "from_run"),
        _choose_confirm,
        _change_either,
    ),
    "calibrate": Phase(
        "the static-dropout grid (default)", (*GRID_OPTIONS, *ADAPTIVE_OPTIONS), _choose_grid, _change_either
    ),
    "stream": Phase("the law against fixed dropouts, on one stream", STREAM_OPTIONS, _choose_stream, _change_stream),
    "search": Phase(
        "an Optuna search for the best schedule of the law's form, on one stream",
        SEARCH_OPTIONS,
        _choose_search,
        _change_search,
    ),
}


def refuse_foreign_options(args: argparse.Namespace, phase: str) -> None:
    """Raises UserError for an option that shapes other phases: it would be passed over in silence."""
    known = PHASES[phase].options
    for name in dict.fromkeys(option for other in PHASES.values() for option in other.options):
        if getattr(args, name) is not None and name not in known:
            raise UserError(
                f"--{name.removesuffix('_run').replace('_', '-')} has no meaning in --phase {phase}: leave it out"
            )

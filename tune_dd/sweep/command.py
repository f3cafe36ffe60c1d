"""The command's steps, in order: options, device, text, plan, search, table."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.painters import Painters
from search_spaces.adaptive_grid import AdaptiveGrid
from search_spaces.schedule_coefficients import ScheduleSpace
from search_spaces.space import DataIdentity
from tune_dd import artifacts, device, journal
from tune_dd.console import Console
from tune_dd.corpus import Corpus
from tune_dd.corpus.cache import cache_folder
from tune_dd.device import DEVICES
from tune_dd.errors import UserError
from tune_dd.sweep import plan as planning
from tune_dd.sweep.chain import list_chains, refuse_in_chain, run_chain, show_chain
from tune_dd.sweep.estimates import estimate_cells
from tune_dd.sweep.find import find_run, name_search, refuse_changes, refuse_other_phase
from tune_dd.sweep.following import regime_word
from tune_dd.sweep.frozen_law import check_tokenizer, of_other_sizes, read_laws, write_predictions
from tune_dd.sweep.hours import measure_hours, measure_rest
from tune_dd.sweep.manage import clean_runs, is_finished, list_runs, refuse_lost_journals
from tune_dd.sweep.options import (
    ALL,
    EVERY,
    choose_plan,
    choose_regime,
    parse,
    refuse_two_texts,
)
from tune_dd.sweep.phases import PHASES, refuse_foreign_options
from tune_dd.sweep.plan import Plan
from tune_dd.sweep.progress import Progress
from tune_dd.sweep.ray_process import RayProcess
from tune_dd.sweep.report import prepare_result, print_plan, print_result
from tune_dd.sweep.runs import RunFolder, hold, new_folder, resume_command, shown_path
from tune_dd.sweep.state import SearchState, ended_trials
from tune_dd.sweep.suggestions import Suggestions
from tune_dd.sweep.supervisor import Outcome, Supervisor
from tune_dd.sweep.text import check_named, fetch_text, identify, prepare, same_text
from tune_dd.trial import RunContext, TrialSpec

_HANG_SECONDS = 900.0  # a step of the largest model on one core takes some 12 s, its evaluation minutes


@dataclass(frozen=True)
class Search:
    """A run that is ready to be searched."""

    run: RunFolder
    config: dict[str, Any]
    plan: Plan
    specs: tuple[TrialSpec, ...]


def run_command(argv: list[str]) -> int:
    """Do what the command line asks; returns the exit code.

    Raises:
        UserError: something the user must mend.
    """
    console = Console()
    args = parse(argv)
    refuse_two_texts(args)
    storage = Path(args.storage).absolute()
    if args.list:
        list_runs(storage, console)
        list_chains(storage, console)
        return 0
    if args.clean:
        clean_runs(storage, None if args.clean == EVERY else Path(args.clean).absolute(), console)
        return 0
    args = name_search(args, storage)
    if args.phase == ALL:

        def run_phase(words: list[str], begun: Callable[[RunFolder], None]) -> int:
            return _run_one(parse(words), words, console, begun)

        refuse_in_chain(args)
        if args.dry_run:
            return show_chain(args, console, run_phase)
        _check_writable(storage)
        if not args.resume:
            fetch_text(args, choose_regime(args), console)
        return run_chain(args, console, run_phase)
    return _run_one(args, argv, console)


def _run_one(
    args: argparse.Namespace, argv: list[str], console: Console, begun: Callable[[RunFolder], None] | None = None
) -> int:
    """One phase; ``begun`` is told of a new run's folder before anything is trained in it."""
    run: RunFolder | None = None  # once there is one to go on with
    try:
        with RayProcess(args.address, verbose=args.verbose) as ray:
            if args.resume or args.extend:
                run = find_run(args, Path(args.storage).absolute())
                refuse_lost_journals(run)  # before the lock, which leaves a file
                with nullcontext() if args.dry_run else hold(run):
                    search = _take_up(run, args, argv, ray, console, chained=begun is not None)
                    return 0 if search is None else _run(search, args, ray, console, alone=begun is None)
            search = _begin(args, argv, ray, console, chained=begun is not None)
            if search is None:
                return 0
            run = search.run
            if begun is not None:
                begun(run)
            with hold(run):
                return _run(search, args, ray, console, alone=begun is None)
    except KeyboardInterrupt:
        if run is None:
            raise
        # A chain names its own command.
        how = f"; the search goes on with\n  {resume_command(run)}" if begun is None else ""
        console.print(f"interrupted{how}", soft_wrap=True)
        return 130


def _run(search: Search, args: argparse.Namespace, ray: RayProcess, console: Console, *, alone: bool) -> int:
    """Train what is not finished and show the table; the run's lock is held.

    ``alone``: no chain goes on with the next phase, so the user is told the command of it.
    """
    with Painters() as painters:
        outcome = _search(search, args, ray, painters, console)
        try:
            return _finish(search, outcome, painters, console, alone=alone)
        except KeyboardInterrupt:
            console.print(
                f"the report was interrupted; it is made again with\n  {resume_command(search.run)}", soft_wrap=True
            )
            return 130


def _begin(
    args: argparse.Namespace, argv: list[str], ray: RayProcess, console: Console, *, chained: bool
) -> Search | None:
    """Plan a new run, show the plan and create its folder; None after a dry run. Ray starts meanwhile.

    ``chained``: it is one of a chain, which ends with a stream.
    """
    refuse_foreign_options(args, args.phase)
    regime = choose_regime(args)
    if not args.dry_run:
        device.check_device(args.device or ("cpu" if args.quick else "mps"), args.regime or regime.name)
    laws = read_laws(args.coefficients or (), regime.name, forms=args.law or (), transfer=args.transfer)
    plan = choose_plan(args, regime, laws)
    if not args.dry_run:
        device.check_precision(plan.device, plan.scale.protocol.precision)
    storage = Path(args.storage).absolute()
    cache = Path(args.cache_dir or cache_folder(regime.name, plan.scale_name)).absolute()
    corpus: Corpus | None = None
    if args.dry_run:
        check_named(args, regime)
        data = DataIdentity("not-built", "not-built", "not-built")
    else:
        _check_writable(storage)
        fetch_text(args, regime, console)
        corpus = prepare(plan, cache, use_cached=args.use_cached_data, console=console, chained=chained)
        data = identify(corpus, plan.scale)
        laws = check_tokenizer(laws, data.tokenizer_hash, transfer=args.transfer)
        ray.start(plan)
    specs = plan.trials(data)
    cost = planning.cost(plan, specs, keep_weights=args.keep_weights)
    hours = measure_hours(plan, specs, DEVICES if args.dry_run else (plan.device,), console)
    print_plan(console, plan, specs, cost, hours, corpus=corpus, cache_folder=cache, storage=storage, chained=chained)
    for told in of_other_sizes(laws, plan.grids[0], plan.scale.vocab_size):
        console.print(f"warning: {told}", style="yellow", soft_wrap=True)
    if corpus is None:
        return None
    if hours[0].hours is None:
        raise UserError(f"{plan.device}: {hours[0].note}: choose smaller --models or a smaller context")
    config = planning.to_config(
        plan,
        specs,
        command=_command_line(argv),
        data=data,
        cache_folder=cache,
        manifest=corpus.manifest,
        device_name=device.device_name(device.open_device(plan.device, plan.n_threads)),
        options={"keep_weights": args.keep_weights, "hang_timeout": args.hang_timeout or _HANG_SECONDS},
        more={"coefficients": [law.record() for law in laws]} if laws else {},
    )
    run = new_folder(storage, regime.name, plan.phase, plan.scale_name)
    if laws:
        write_predictions(run.path, laws, plan.grids[0], plan.scale.vocab_size, plan.scale.protocol)
    run.write_config(config)
    console.print(f"run: {shown_path(run.path)}", soft_wrap=True)
    return Search(run, config, plan, specs)


def _take_up(
    run: RunFolder, args: argparse.Namespace, argv: list[str], ray: RayProcess, console: Console, *, chained: bool
) -> Search | None:
    """A stored run, ready to go on; None after a dry run. Options that would change its plan are refused."""
    mended = None if args.dry_run else run.mend_config()
    if mended:
        console.print(mended, style="yellow", soft_wrap=True)
    config = run.config()
    plan, specs = planning.from_config(config, run.path)
    refuse_other_phase(args, plan, run)
    refuse_foreign_options(args, plan.phase)
    if args.extend:
        larger = PHASES[plan.phase].change(plan.grids[-1], args)
        plan, config = planning.extended(config, plan, larger, _command_line(argv))
        specs = plan.trials(planning.identity(config))
    else:
        refuse_changes(args, plan, run)
    device.check_device(plan.device, regime_word(run))
    device.check_precision(plan.device, plan.scale.protocol.precision)
    cache = Path(config["data"]["cache_folder"])
    corpus = same_text(config, plan, cache, run, console, build=not args.dry_run)
    if not args.dry_run and (args.extend or not is_finished(run)):
        ray.start(plan)
    cost = planning.cost(plan, specs, keep_weights=args.keep_weights)
    ended = ended_trials(run, crashed=not args.retry_crashed)
    planned = plan.n_trials(specs) if args.extend else artifacts.planned_trials(run.path, config)
    print_plan(
        console,
        plan,
        specs,
        cost,
        measure_rest(plan, specs, ended, console),
        corpus=corpus,
        cache_folder=cache,
        storage=run.path.parent.parent,
        left=max(0, planned - len(ended)),
        chained=chained,
    )
    changed = planning.other_arithmetic(config, plan)
    if changed:
        console.print(
            f"warning: the run was begun with other arithmetic ({'; '.join(changed)}): what is trained from here on "
            "may differ from it in the last digits",
            style="yellow",
            soft_wrap=True,
        )
    if args.dry_run:
        return None
    if args.extend:
        run.write_config(config)
    if args.retry_crashed:
        for path in run.journals.glob(f"*{journal.CRASH_SUFFIX}"):
            path.unlink()
    verb = "extending" if args.extend else "resuming"
    console.print(f"{verb} {shown_path(run.path)}", soft_wrap=True)
    return Search(run, config, plan, specs)


def _search(search: Search, args: argparse.Namespace, ray: RayProcess, painters: Painters, console: Console) -> Outcome:
    plan = search.plan
    stored = search.config.get("options", {})
    keep_weights = args.keep_weights or bool(stored.get("keep_weights"))
    hang_seconds = args.hang_timeout or float(stored.get("hang_timeout", _HANG_SECONDS))
    progress = Progress(console, plan.scale.protocol.tokens_per_step, resume_command(search.run))
    suggestions, space = None, plan.grids[-1]
    if isinstance(space, AdaptiveGrid):
        space = space.with_estimate(estimate_cells)
    if isinstance(space, AdaptiveGrid | ScheduleSpace):
        suggestions = Suggestions(search.run, space, plan.setting(planning.identity(search.config)), progress.say)
    specs = search.specs if suggestions is None else suggestions.specs
    state = SearchState(search.run, specs, progress.say, plan.n_trials(search.specs))
    state.refresh()
    context = RunContext(
        folder=str(search.run.path),
        cache_folder=search.config["data"]["cache_folder"],
        run_id=search.config["run_id"],
        phase=plan.phase,
        device=plan.device,
        n_threads=plan.n_threads,
        eval_tokens=plan.scale.eval_tokens,
        keep_weights=keep_weights,
    )
    supervisor = Supervisor(
        search.run,
        plan,
        context.to_dict(),
        state,
        progress,
        ray,
        hang_seconds=hang_seconds,
        suggestions=suggestions,
        when_draining=lambda: prepare_result(painters),
    )
    return supervisor.search()


def _finish(search: Search, outcome: Outcome, painters: Painters, console: Console, *, alone: bool) -> int:
    """Analyse, print, and turn the outcome into an exit code."""
    if outcome.signal is not None:
        # A chain names its own command.
        how = f", the rest goes on with\n  {resume_command(search.run)}" if alone else ""
        done = f"{outcome.finished} of {outcome.planned} trials are finished"
        console.print(f"stopped; {done}{how}", soft_wrap=True)
        return 128 + outcome.signal
    print_result(console, search.run, search.plan, outcome, painters, alone=alone)
    missing = outcome.planned - outcome.finished - len(outcome.crashed)
    if missing > 0:
        console.print(
            f"{missing} trials are missing; they are trained by\n  {resume_command(search.run)}", soft_wrap=True
        )
    return 0 if outcome.finished == outcome.planned else 3


def _command_line(argv: list[str]) -> str:
    return shlex.join(["python", "-m", "tune_dd.sweep", *argv])


def _check_writable(storage: Path) -> None:
    """Refuse early what could not be written late."""
    existing = storage
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"cannot write to {storage}: make it writable or choose another folder with --storage")

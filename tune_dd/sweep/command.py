"""The command's steps, in order: options, device, text, plan, search, table."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from search_spaces.static_dropout import DataIdentity
from tune_dd import artifacts, device, journal
from tune_dd.corpus import Corpus, load_corpus, prepare_corpus
from tune_dd.errors import UserError
from tune_dd.regimes import VALIDATION_SALT, ModelSpec, Scale
from tune_dd.stream import evaluation_windows
from tune_dd.sweep import plan as planning
from tune_dd.sweep.options import NEWEST, choose_plan, choose_regime, parse
from tune_dd.sweep.plan import Plan
from tune_dd.sweep.progress import Progress
from tune_dd.sweep.report import print_plan, print_result
from tune_dd.sweep.runs import RunFolder, clear_disposable, find_runs, group_name, hold, new_folder
from tune_dd.sweep.state import SearchState
from tune_dd.sweep.supervisor import Outcome, SearchOptions, Supervisor
from tune_dd.trial import RunContext, TrialSpec


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
    search = _resume(args, console) if args.resume else _begin(args, argv, console)
    if search is None:
        return 0
    with hold(search.run):
        clear_disposable(search.run)
        outcome = _search(search, args, console)
    return _finish(search, outcome, args, console)


def _begin(args: argparse.Namespace, argv: list[str], console: Console) -> Search | None:
    """Plan a new run, show the plan and create its folder; None after a dry run."""
    regime = choose_regime(args)
    device.check_device(args.device or ("cpu" if args.quick else "mps"), regime.name)
    plan = choose_plan(args, regime)
    storage = Path(args.storage).absolute()
    cache_folder = _cache_folder(args, plan)
    corpus: Corpus | None = None
    if args.dry_run:
        data = DataIdentity("not-built", "not-built", "not-built")
    else:
        _check_writable(storage)
        corpus = _prepare(plan, cache_folder, use_cached=args.use_cached_data, console=console)
        data = _identity(corpus, plan.scale)
    specs = plan.trials(data)
    cost = planning.cost(plan, specs, _measure_steps(plan, specs), keep_weights=args.keep_weights)
    print_plan(console, plan, cost, corpus=corpus, cache_folder=cache_folder, storage=storage)
    if corpus is None:
        return None
    run = new_folder(storage, regime.name, plan.phase, plan.scale_name)
    config = planning.to_config(
        plan,
        specs,
        command=shlex.join(["python", "-m", "tune_dd.sweep", *argv]),
        data=data,
        cache_folder=cache_folder,
        manifest=corpus.manifest,
        device_name=device.device_name(device.open_device(plan.device, plan.n_threads)),
    )
    artifacts.write_json(run.path / artifacts.CONFIG, config)
    console.print(f"run: {_shown(run.path)}", highlight=False, soft_wrap=True)
    return Search(run, config, plan, specs)


def _resume(args: argparse.Namespace, console: Console) -> Search | None:
    """Take a run up again. Its plan is stored: options that would change it are refused."""
    storage = Path(args.storage).absolute()
    run = _newest_unfinished(args, storage) if args.resume == NEWEST else RunFolder(Path(args.resume).absolute())
    config = run.config()
    plan, specs = planning.from_config(config, run.path)
    _refuse_changes(args, plan, run)
    device.check_device(plan.device, plan.regime.name)
    cache_folder = Path(config["data"]["cache_folder"])
    try:
        corpus = load_corpus(cache_folder, plan.scale.vocab_size)
    except UserError:
        corpus = _prepare(plan, cache_folder, use_cached=False, console=console)
    if _identity(corpus, plan.scale) != planning.identity(config):
        raise UserError(
            f"the corpus cache {cache_folder} is no longer the one {run.path} was planned on: "
            "restore the sources it was built from, or start a new run"
        )
    cost = planning.cost(plan, specs, None, keep_weights=args.keep_weights)
    print_plan(console, plan, cost, corpus=corpus, cache_folder=cache_folder, storage=run.path.parent.parent)
    console.print(f"resuming {_shown(run.path)}", highlight=False, soft_wrap=True)
    return None if args.dry_run else Search(run, config, plan, specs)


def _search(search: Search, args: argparse.Namespace, console: Console) -> Outcome:
    plan = search.plan
    options = SearchOptions(args.address, args.hang_timeout, args.keep_weights, args.verbose)
    resume_command = f"python -m tune_dd.sweep --resume {shlex.quote(_shown(search.run.path))}"
    progress = Progress(console, plan.scale.protocol.tokens_per_step, resume_command)
    state = SearchState(search.run, search.specs, progress.say)
    state.refresh()
    context = RunContext(
        folder=str(search.run.path),
        cache_folder=search.config["data"]["cache_folder"],
        run_id=search.config["run_id"],
        phase=plan.phase,
        device=plan.device,
        n_threads=plan.n_threads,
        eval_tokens=plan.scale.eval_tokens,
        keep_weights=args.keep_weights,
    )
    return Supervisor(search.run, plan, search.specs, context.to_dict(), state, progress, options).search()


def _finish(search: Search, outcome: Outcome, args: argparse.Namespace, console: Console) -> int:
    """Analyse, print, and turn the outcome into an exit code."""
    resume = f"python -m tune_dd.sweep --resume {shlex.quote(_shown(search.run.path))}"
    if outcome.signal is not None:
        done = f"{outcome.finished} of {len(search.specs)} trials are finished"
        console.print(f"stopped; {done}, the rest goes on with\n  {resume}", highlight=False, soft_wrap=True)
        return 128 + outcome.signal
    print_result(console, search.run, search.plan, search.specs, outcome)
    if outcome.crashed:
        return 3
    return 0


def _newest_unfinished(args: argparse.Namespace, storage: Path) -> RunFolder:
    if args.regime is None:
        raise UserError("--resume without a run needs the regime: python -m tune_dd.sweep REGIME --resume")
    regime = choose_regime(args).name
    prefix = f"{regime}-{args.phase}-"
    scales = [args.scale] if args.scale else ["full", "pocket"]
    groups = {group_name(regime, args.phase, scale) for scale in scales}
    for run in sorted(find_runs(storage), key=lambda r: r.path.name, reverse=True):
        if run.path.parent.name not in groups:
            continue
        finished = sum(_is_finished(path) for path in run.journals.glob(f"*{journal.SUFFIX}"))
        if finished < run.config()["n_trials"]:
            return run
    raise UserError(f"no unfinished run {prefix}* lies under {storage}: start one without --resume")


def _is_finished(path: Path) -> bool:
    try:
        return journal.read_journal(path).finished
    except (journal.DamagedJournal, FileNotFoundError):
        return False


def _refuse_changes(args: argparse.Namespace, plan: Plan, run: RunFolder) -> None:
    asked_names = ("models", "prefixes", "readouts", "dropouts", "seeds", "scale", "device", "devices")
    asked = [f"--{name} {getattr(args, name)}" for name in asked_names if getattr(args, name) is not None]
    if not asked and (args.regime is None or not args.quick):
        return
    wanted = choose_plan(_with_stored(args, plan), plan.regime)
    stored, new = _described(plan), _described(wanted)
    changed = planning.differences(stored, new)
    if changed:
        raise UserError(
            f"{run.path} has another plan ({'; '.join(changed)}): leave those options out, or start a new run"
        )


def _with_stored(args: argparse.Namespace, plan: Plan) -> argparse.Namespace:
    """The options, with the stored plan's values where none was given."""
    grid = plan.grids[0]
    stored = {
        "models": ",".join(m.name for m in grid.models),
        "prefixes": ",".join(map(str, grid.prefixes)),
        "readouts": ",".join(map(str, grid.readouts)),
        "dropouts": ",".join(map(repr, grid.dropouts)),
        "seeds": ",".join(map(str, grid.seeds)),
        "scale": plan.scale_name,
        "device": plan.device,
        "devices": plan.n_devices,
    }
    filled = {name: value for name, value in stored.items() if getattr(args, name) is None}
    return argparse.Namespace(**{**vars(args), **filled, "quick": False})


def _described(plan: Plan) -> dict[str, Any]:
    described: dict[str, Any] = dict(plan.grids[0].to_dict())
    return described | {"scale": plan.scale_name, "device": plan.device, "devices": plan.n_devices}


def _cache_folder(args: argparse.Namespace, plan: Plan) -> Path:
    if args.cache_dir:
        return Path(args.cache_dir).absolute()
    return Path(".cache", f"dropout_decay_{plan.regime.name}").absolute()


def _prepare(plan: Plan, cache_folder: Path, *, use_cached: bool, console: Console) -> Corpus:
    scale = plan.scale
    return prepare_corpus(
        plan.regime.corpus,
        vocab_size=scale.vocab_size,
        train_tokens=scale.train_tokens,
        validation_tokens=scale.validation_tokens,
        min_train_tokens=scale.prefixes[-1],
        cache_dir=cache_folder,
        use_cached=use_cached,
        show_progress=console.is_terminal,
    )


def _identity(corpus: Corpus, scale: Scale) -> DataIdentity:
    windows = evaluation_windows(corpus.validation, scale.protocol.context, scale.eval_tokens, salt=VALIDATION_SALT)
    return DataIdentity(corpus.corpus_hash, corpus.tokenizer_hash, windows.hash)


def _measure_steps(plan: Plan, specs: tuple[TrialSpec, ...]) -> dict[ModelSpec, float]:
    """Seconds of one optimizer step of each model, measured here and now on the plan's device."""
    from tune_dd.training import estimate_step_seconds

    torch_device = device.open_device(plan.device, plan.n_threads)
    first = {spec.model: spec for spec in reversed(specs)}
    return {model: estimate_step_seconds(spec, torch_device) for model, spec in first.items()}


def _check_writable(storage: Path) -> None:
    """Refuse early what could not be written late."""
    existing = storage
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"cannot write to {storage}: make it writable or choose another folder with --storage")


def _shown(path: Path) -> str:
    """A path as short as it can be typed."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)

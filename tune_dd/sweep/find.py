"""Which run or chain --resume and --extend mean, and what they must not change of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from tune_dd.errors import UserError
from tune_dd.regimes import SCALES
from tune_dd.sweep import plan as planning
from tune_dd.sweep.chain_file import CHAIN, unfinished_chains
from tune_dd.sweep.manage import is_finished
from tune_dd.sweep.options import ALL, NEWEST, choose_regime, devices_and_threads
from tune_dd.sweep.phases import PHASES
from tune_dd.sweep.plan import Plan
from tune_dd.sweep.runs import RunFolder, find_runs, group_name


def name_search(args: argparse.Namespace, storage: Path) -> argparse.Namespace:
    """The options with the search named that --resume without --phase means: a run, or a chain by its own folder.

    Of a regime that is its newest unfinished search; a run that belongs to an unfinished chain goes on as a part of it.

    Raises:
        UserError: there is none.
    """
    if not args.resume or not args.any_phase:
        return args
    found = Path(args.resume)
    if args.resume == NEWEST:
        regime, scales = choose_regime(args).name, _scales(args)
        newest: dict[Path, str] = {}  # folder -> when its last run was begun
        parts = set()
        for chain in unfinished_chains(storage, regime, scales):
            runs = {chain.run(phase) for phase in chain.runs}
            newest[chain.path] = max((run.name for run in runs), default=chain.path.name)
            parts |= runs
        groups = {group_name(regime, phase, scale) for phase in PHASES for scale in scales}
        for run in _of_groups(storage, groups):
            if run.path.resolve() not in parts and not is_finished(run):
                newest[run.path] = run.path.name
        if not newest:
            raise UserError(f"no unfinished run {regime}-* lies under {storage}: start one without this option")
        found = max(newest, key=lambda path: newest[path])
    chained = {"phase": ALL} if (found / CHAIN).is_file() else {}
    return argparse.Namespace(**(vars(args) | {"resume": str(found)} | chained))


def find_run(args: argparse.Namespace, storage: Path) -> RunFolder:
    """The run that --resume or --extend names, or the newest of the phase that can be.

    Raises:
        UserError: there is none.
    """
    named = args.resume or args.extend
    if named != NEWEST:
        run = RunFolder(Path(named).absolute())
        if not run.path.is_dir():
            raise UserError(f"there is no run {named}: python -m tune_dd.sweep --list shows those there are")
        return run
    regime, unfinished = choose_regime(args).name, bool(args.resume)
    groups = {group_name(regime, args.phase, scale) for scale in _scales(args)}
    for run in sorted(_of_groups(storage, groups), key=lambda run: run.path.name, reverse=True):
        if not (unfinished and is_finished(run)):
            return run
    what = "unfinished run" if unfinished else "run"
    raise UserError(f"no {what} {regime}-{args.phase}-* lies under {storage}: start one without this option")


def _scales(args: argparse.Namespace) -> tuple[str, ...]:
    return (args.scale,) if args.scale else tuple(SCALES)


def _of_groups(storage: Path, groups: Iterable[str]) -> list[RunFolder]:
    return [run for run in find_runs(storage) if run.path.parent.name in groups]


def refuse_other_phase(args: argparse.Namespace, plan: Plan, run: RunFolder) -> None:
    """Raises UserError where the phase that is named is not the run's."""
    if not args.any_phase and args.phase != plan.phase:
        raise UserError(f"{run.path} is a run of --phase {plan.phase}, not {args.phase}: leave --phase out")


def refuse_changes(args: argparse.Namespace, plan: Plan, run: RunFolder) -> None:
    """A resumed run keeps its plan: say what the options would have changed."""
    if args.regime is not None and choose_regime(args).name != plan.regime.name:
        raise UserError(f"{run.path} is a run of the regime {plan.regime.name}, not {args.regime}: leave the name out")
    stored = plan.grids[0].to_dict() | {"scale": plan.scale_name, "device": plan.device, "devices": plan.n_devices}
    wanted = PHASES[plan.phase].change(plan.grids[0], args).to_dict()
    wanted |= {"scale": args.scale, "device": args.device}
    if args.devices is not None:
        wanted["devices"], _ = devices_and_threads(args.device or plan.device, args.devices)
    changed = planning.differences(stored, wanted)
    if changed:
        raise UserError(
            f"{run.path} has another plan ({'; '.join(changed)}): leave those options out, or start a new run"
        )

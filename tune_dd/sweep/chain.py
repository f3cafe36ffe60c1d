"""``--phase all``: screen, confirm, calibrate and stream, one after the other, and one report at the end.

The chain has a folder of its own with ``chain.json``: which run each phase has and what each gate decided. It
is made with the first run and written before a run's first trial, so a chain that is stopped anywhere goes on with
``--resume``, and one that is refused leaves nothing. Each run is an ordinary one and can be listed, extended and
analysed alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.table import Table

from search_spaces.model_screen import partners
from tune_dd import artifacts
from tune_dd.console import Console
from tune_dd.errors import UserError
from tune_dd.regimes import SCALES, ModelSpec, Scale
from tune_dd.sweep.chain_file import CHAIN, Chain, unfinished_chains
from tune_dd.sweep.manage import GATES, crashed_ids, crashed_rest, is_finished, refuse_lost_journals
from tune_dd.sweep.options import (
    CHAINED,
    NEWEST,
    choose_regime,
    devices_and_threads,
    parse,
    scale_name,
)
from tune_dd.sweep.phases import ADAPTIVE_OPTIONS, DECISION, SUGGESTING
from tune_dd.sweep.plan import differences
from tune_dd.sweep.runs import RunFolder, group_name, hold, is_held, make_folder, shown_path
from tune_dd.sweep.state import finished_ids
from tune_dd.sweep.values import read_models

LAW_FOLDER = "law"
CRASHED, INTERRUPTED = 3, 130  # exit codes: of a phase with crashed trials, and of Ctrl-C
SHAPES = (
    "prefixes",
    "readouts",
    "dropouts",
    "seeds",
    "stage_steps",
    "coefficients",
    "from_run",
    *SUGGESTING,
    *ADAPTIVE_OPTIONS,
)

# (command line of one phase, told of the run's folder before it trains) -> exit code
RunPhase = Callable[[list[str], Callable[[RunFolder], None]], int]


def refuse_in_chain(args: argparse.Namespace) -> None:
    """Raises UserError for an option that a chain would pass over in silence."""
    if args.extend:
        raise UserError("--extend adds to one run: name it with --phase and its folder, not with --phase all")
    if args.law and len(args.law) > 1:
        raise UserError("--law: a chain fits one form; try others on its stream with --phase stream")
    for name in SHAPES:
        if getattr(args, name) is not None:
            option = name.removesuffix("_run").replace("_", "-")
            raise UserError(f"--{option} belongs to one phase: leave it out of --phase all, or set it in a regime file")
    if args.resume and (args.anchors or args.models):
        raise UserError("--anchors and --models: a resumed chain keeps those that it was begun with; leave them out")


def show_chain(args: argparse.Namespace, console: Console, run_phase: RunPhase) -> int:
    """The plans of a chain's phases as far as they are known; nothing is written."""
    chain = _find(args) if args.resume else Chain.of(args)
    scale = chain.scale
    screened = [entry["chosen"] for entry in chain.decisions if entry["step"] == "screen" and entry["chosen"]]
    ladder = [model.name for model in read_models(chain.ladder) or ()]
    likely = scale.models[-1].name if not ladder or scale.models[-1].name in ladder else ladder[-1]
    model = screened[0] if screened else likely
    beside = _beside(scale, model)
    known = {"screen": ["--models", chain.ladder] if chain.ladder else [], "confirm": ["--models", model]}
    if beside:
        known["calibrate"] = beside
    for phase in CHAINED:
        if phase in chain.runs:
            words = ["--resume", str(chain.run(phase))]
        elif phase in known:
            words = [*chain.words, "--phase", phase, *known[phase]]
        else:
            continue
        console.rule(phase, style="bold", align="left")
        run_phase([*words, "--dry-run"], lambda run: None)
    another = ", calibrate another size beside it, and the law is fitted to both" if beside else ""
    console.print(
        f"confirm trains the model that the screen chooses (shown: {model}){another}; then the stream with the law's "
        f"schedule, planned once the law is fitted: the stream reads {scale.prefixes_of_stream[-1]:,} training tokens"
    )
    return 0


def run_chain(args: argparse.Namespace, console: Console, run_phase: RunPhase) -> int:
    """Begin a chain or go on with one; returns the exit code.

    Raises:
        UserError: something the user must mend; what is done is kept.
        KeyboardInterrupt: before anything was begun.
    """
    chain = _find(args) if args.resume else Chain.of(args)
    for phase in chain.runs:
        refuse_lost_journals(RunFolder(chain.run(phase)))
    with ExitStack() as held:

        def settle() -> None:
            console.print(f"chain: {shown_path(chain.path)}", soft_wrap=True)
            held.enter_context(hold(RunFolder(chain.path)))

        def settled(words: list[str], begun: Callable[[RunFolder], None]) -> int:
            def told(run: RunFolder) -> None:
                if not (args.resume or chain.runs):  # until now there was nothing to go on with
                    group = group_name(choose_regime(args).name, "all", scale_name(args))
                    chain.path = make_folder(Path(args.storage).absolute(), group)
                    settle()
                begun(run)

            return run_phase(words, told)

        if args.resume:
            settle()
        try:
            code = _go_on(chain, args, console, settled)
        except KeyboardInterrupt:
            if not (args.resume or chain.runs):
                raise
            code = INTERRUPTED
    if code:
        retry = " --retry-crashed" if code == CRASHED else ""
        how = "crashed trials are taken up again by" if chain.finished and retry else "the chain goes on with"
        console.print(f"{how}\n  {chain.resume_command}{retry}", soft_wrap=True)
    return code


def _find(args: argparse.Namespace) -> Chain:
    if args.resume != NEWEST:
        chain = Chain.read(Path(args.resume).absolute())
    else:
        name, storage = choose_regime(args).name, Path(args.storage).absolute()
        chains = unfinished_chains(storage, name, [args.scale] if args.scale else SCALES)
        if not chains:
            raise UserError(f"no unfinished chain {name}-all-* lies under {args.storage}: start one without --resume")
        chain = chains[-1]
    _refuse_changes(chain, args)
    return chain


def _refuse_changes(chain: Chain, args: argparse.Namespace) -> None:
    """A resumed chain keeps its plan: say what the options would have changed."""
    begun = parse(chain.words)
    stored = {"scale": scale_name(begun), "device": begun.device}
    asked = {"scale": scale_name(args) if args.scale or args.quick else None, "device": args.device}
    if args.regime is not None or args.quick:
        stored["regime"], asked["regime"] = choose_regime(begun).name, choose_regime(args).name
    if args.devices is not None:
        stored["devices"], _ = devices_and_threads(begun.device, begun.devices)
        asked["devices"] = args.devices
    if changed := differences(stored, asked):
        raise UserError(
            f"{chain.path} has another plan ({'; '.join(changed)}): leave those options out, or start a new chain"
        )


def _beside(scale: Scale, model: str) -> list[str]:
    """The option that names the sizes to calibrate beside a confirmed model; none where there is no other size."""
    others = partners(scale, ModelSpec.parse(model))
    return ["--models", ",".join(other.name for other in others)] if others else []


def _go_on(chain: Chain, args: argparse.Namespace, console: Console, run_phase: RunPhase) -> int:
    model = ""
    for phase in GATES:
        more = ["--from", str(chain.run("screen"))] if phase == "confirm" else []
        if phase == "screen" and chain.ladder:
            more = ["--models", chain.ladder]
        if code := _phase(chain, phase, more, args, console, run_phase):
            return code
        found = artifacts.read_json(chain.run(phase) / DECISION)
        decision = chain.decide(phase, found["chosen"], found["reason"])
        _say(decision, console)
        if decision["chosen"] is None:
            return _finish(chain, console)
        model = decision["chosen"]
    if (more := _beside(chain.scale, model)) and (code := _phase(chain, "calibrate", more, args, console, run_phase)):
        return code
    law = _fit(chain)
    _say(chain.decisions[-1], console)
    if law is None:
        return _finish(chain, console)
    more = ["--models", model, "--coefficients", str(law), *chain.by_hand]
    if code := _phase(chain, "stream", more, args, console, run_phase):
        return code
    return _finish(chain, console)


def _phase(
    chain: Chain, phase: str, more: list[str], args: argparse.Namespace, console: Console, run_phase: RunPhase
) -> int:
    """Run a phase from wherever it is; one that is finished, or lacks crashed trials only, is passed over."""

    def begun(run: RunFolder) -> None:
        chain.begin(phase, run.path)

    def goes_on() -> bool:
        crashed = _crashed(phase, RunFolder(chain.run(phase))) if phase in chain.runs else 0
        if crashed:
            console.print(f"{phase} lacks crashed trials ({crashed}): the chain goes on without them")
        return crashed > 0

    console.rule(f"{phase}", style="bold", align="left")
    if phase in chain.runs:
        run = chain.run(phase)
        if is_finished(RunFolder(run)):
            console.print(f"finished: {shown_path(run)}", soft_wrap=True)
            return 0
        if not args.retry_crashed and goes_on():
            return 0
        argv = ["--resume", str(run), *(["--retry-crashed"] if args.retry_crashed else [])]
    else:
        argv = [*chain.words, "--phase", phase, *more]
    machine = ["--address", args.address]
    machine += ["--hang-timeout", str(args.hang_timeout)] if args.hang_timeout is not None else []
    machine += ["--keep-weights"] if args.keep_weights else []
    machine += ["--offline"] if args.offline else []
    machine += ["--verbose"] if args.verbose else []
    code = run_phase([*argv, *machine], begun)
    return 0 if code == CRASHED and goes_on() else code


def _crashed(phase: str, run: RunFolder) -> int:
    """How many crashed trials are all that a phase lacks; 0 where it lacks none, or what the next one needs.

    A calibration that has too little left for a report is passed over too: the confirmed model's cells are there.
    """
    if phase != "calibrate" or (run.path / artifacts.REPORT).exists() or not (run.path / artifacts.LEDGER).exists():
        return crashed_rest(run)
    finished, recorded = len(finished_ids(run)), len(crashed_ids(run))
    try:
        lacking = artifacts.planned_trials(run.path, run.config()) - finished
    except UserError:
        return 0
    return lacking if finished and 0 < lacking <= recorded else 0


def _fit(chain: Chain) -> Path | None:
    """The law over the confirmed model's cells and those calibrated beside it; None if there is none.

    It is fitted again as long as no stream was begun with it: crashed trials may have been taken up since.
    """
    from analysis.report import Settings, compute, write
    from analysis.tables import load_experiment

    folder = chain.path / LAW_FOLDER
    file = folder / artifacts.COEFFICIENTS
    if "stream" not in chain.runs or not file.exists():
        runs = [chain.run(phase) for phase in ("confirm", "calibrate") if phase in chain.runs]
        experiment = load_experiment(runs)
        try:
            result = compute(experiment, folder, Settings(law=chain.law, out=folder))
            note = result.law_note
        except UserError as error:  # the cells do not determine the form that was asked for
            result, note = None, f"No law is fitted: {error}."
        if result is None or result.coefficients is None:
            chain.decide("law", None, f"{note} Without a law there is no schedule to test.")
            return None
        write(result, report=False, export=False)
    law = artifacts.read_json(file)
    terms = ", ".join(f"{name} = {value:.4g}" for name, value in sorted(law["coefficients"].items()))
    chain.decide("law", law["law"], f"{terms}, from the optima of {law['n_cells']} cells")
    return file


def _finish(chain: Chain, console: Console) -> int:
    """One report over the phases that make cells and streams."""
    import analysis.report

    runs = [chain.run(phase) for phase in ("confirm", "calibrate", "stream") if phase in chain.runs]
    result = analysis.report.analyse(
        runs or [chain.run("screen")], out=chain.path, law=chain.law if chain.has_law else None
    )
    console.rule("all", style="bold", align="left")
    analysis.report.print_tables(result, console)
    for entry in chain.decisions:
        console.print(f"{entry['step']}: {_outcome(entry)}", soft_wrap=True)
    chain.finished = True
    chain.write()
    console.print(f"report: {shown_path(result.report)}", soft_wrap=True)
    return CRASHED if any(crashed_rest(RunFolder(chain.run(phase))) for phase in chain.runs) else 0


def list_chains(storage: Path, console: Console) -> None:
    """Print the chains under the storage, oldest first; nothing where there is none."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("chain", "phases", "state"):
        table.add_column(name, no_wrap=True)
    for file in sorted(storage.glob(f"*/*/{CHAIN}"), key=lambda file: file.parent.name):
        try:
            chain = Chain.read(file.parent)
        except UserError as damage:
            table.add_row(shown_path(file.parent), "", str(damage).split(":")[0])
            continue
        state = "finished" if chain.finished else "running" if is_held(RunFolder(chain.path)) else "resumable"
        table.add_row(shown_path(chain.path), " ".join(phase for phase in CHAINED if phase in chain.runs), state)
    if table.row_count:
        console.print_table(table)


def _say(entry: dict[str, Any], console: Console) -> None:
    console.print(f"decision after {entry['step']}: {_outcome(entry)}", style="bold", soft_wrap=True)


def _outcome(entry: dict[str, Any]) -> str:
    return f"{entry['chosen'] or 'stop'} ({entry['reason']})"

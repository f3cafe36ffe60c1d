"""``--phase all``: screen, confirm, calibrate and stream, one after the other, and one report at the end.

The chain has a folder of its own with ``chain.json``: which run each phase has and what each gate decided. It
is written before a run's first trial, so a chain that is stopped anywhere goes on with ``--resume``. Each run
is an ordinary one and can be listed, extended and analysed alone.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from search_spaces.model_screen import partners
from tune_dd import artifacts, schedule
from tune_dd.console import Console
from tune_dd.errors import UserError
from tune_dd.regimes import SCALES, ModelSpec
from tune_dd.sweep.manage import crashed_rest, is_finished, refuse_lost_journals
from tune_dd.sweep.options import CHAINED, NEWEST, choose_regime, parse, repeated, scale_name
from tune_dd.sweep.phases import ADAPTIVE_OPTIONS, DECISION, SUGGESTING
from tune_dd.sweep.runs import RunFolder, group_name, hold, is_held, make_folder, shown_path
from tune_dd.sweep.values import read_anchors

CHAIN = "chain.json"
LAW_FOLDER = "law"
GATES = ("screen", "confirm")
STEPS = ("screen", "confirm", "calibrate", "law", "stream")  # what is decided or run, in order
CRASHED = 3  # the exit code of a phase with crashed trials
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


@dataclass
class Chain:
    """A chain on disk.

    Attributes:
        options: the regime, scale, device and text, repeated for every phase.
        anchors: paths by hand for the stream, as given.
        ladder: the models that are screened, as given; None for the scale's.
        law: the form that is fitted, as given; None for the default.
        runs: phase -> its run's folder, seen from the chain's own, so that both can be moved together.
        decisions: what the gates decided and whether a law was found, in order.
    """

    path: Path
    options: list[str]
    anchors: list[str]
    ladder: str | None
    law: str | None
    runs: dict[str, str]
    decisions: list[dict[str, Any]]
    finished: bool = False

    @classmethod
    def of(cls, args: argparse.Namespace) -> Chain:
        """A new one, without a folder yet.

        Raises:
            UserError: the regime has no such scale, or a path by hand is none of the stream that the chain ends with.
        """
        stages = len(choose_regime(args).scale(scale_name(args)).prefixes_of_stream)
        for name, by_hand in read_anchors(args.anchors).items():
            schedule.anchors(name, by_hand, stages)
        return cls(Path(), repeated(args), args.anchors or [], args.models, args.law[0] if args.law else None, {}, [])

    def write(self) -> None:
        artifacts.write_json(
            self.path / CHAIN,
            {
                "schema": artifacts.SCHEMA,
                "options": self.options,
                "anchors": self.anchors,
                "ladder": self.ladder,
                "law": self.law,
                "runs": self.runs,
                "decisions": self.decisions,
                "finished": self.finished,
            },
        )

    @classmethod
    def read(cls, path: Path) -> Chain:
        """Raises UserError if there is no chain or it is damaged."""
        data = artifacts.read_json(path / CHAIN)
        try:
            fields = ("options", "anchors", "ladder", "law", "runs", "decisions", "finished")
            return cls(path, *(data[name] for name in fields))
        except (KeyError, TypeError):
            raise UserError(f"{path / CHAIN} is damaged: start a new chain with --phase all") from None

    def decide(self, step: str, chosen: str | None, reason: str) -> dict[str, Any]:
        """Record a decision; what it was before stays where a later phase was begun on it.

        It may change where crashed trials were taken up again.
        """
        former = next((entry for entry in self.decisions if entry["step"] == step), None)
        built_on = any(later in self.runs for later in STEPS[STEPS.index(step) + 1 :])
        if former is None or (former["chosen"] != chosen and not built_on):
            time = datetime.datetime.now().isoformat(timespec="seconds")
            before = STEPS[: STEPS.index(step)]
            self.decisions = [entry for entry in self.decisions if entry["step"] in before]
            self.decisions.append({"step": step, "chosen": chosen, "reason": reason, "time": time})
            self.write()
        return next(entry for entry in self.decisions if entry["step"] == step)

    def run(self, phase: str) -> Path:
        """The folder of a phase's run."""
        return (self.path / self.runs[phase]).resolve()

    def begin(self, phase: str, run: Path) -> None:
        self.runs[phase] = os.path.relpath(run, self.path)
        self.write()

    @property
    def has_law(self) -> bool:
        return any(entry["step"] == "law" and entry["chosen"] for entry in self.decisions)

    @property
    def resume_command(self) -> str:
        return f"python -m tune_dd.sweep --phase all --resume {shlex.quote(shown_path(self.path))}"


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
    begun = parse(chain.options)
    screened = [entry["chosen"] for entry in chain.decisions if entry["step"] == "screen" and entry["chosen"]]
    model = screened[0] if screened else choose_regime(begun).scale(scale_name(begun)).models[-1].name
    ladder = ["--models", chain.ladder] if chain.ladder else []
    known = {"screen": ladder, "confirm": ["--models", model], "calibrate": []}
    for phase in CHAINED:
        if phase in chain.runs:
            words = ["--resume", str(chain.run(phase))]
        elif phase in known:
            words = [*chain.options, "--phase", phase, *known[phase]]
        else:
            continue
        console.rule(phase, style="bold", align="left")
        run_phase([*words, "--dry-run"], lambda run: None)
    console.print(
        f"confirm trains the model that the screen chooses (shown: {model}), calibrate another size beside it; "
        "then the stream with the law's schedule, planned once the law is fitted",
    )
    return 0


def run_chain(args: argparse.Namespace, console: Console, run_phase: RunPhase) -> int:
    """Begin a chain or go on with one; returns the exit code.

    Raises:
        UserError: something the user must mend; what is done is kept.
    """
    chain = _find(args) if args.resume else _new(args)
    for phase in chain.runs:
        refuse_lost_journals(RunFolder(chain.run(phase)))
    console.print(f"chain: {shown_path(chain.path)}", soft_wrap=True)
    with hold(RunFolder(chain.path)):
        code = _go_on(chain, args, console, run_phase)
    if code:
        retry = " --retry-crashed" if code == CRASHED else ""
        how = "crashed trials are taken up again by" if chain.finished and retry else "the chain goes on with"
        console.print(f"{how}\n  {chain.resume_command}{retry}", soft_wrap=True)
    return code


def _new(args: argparse.Namespace) -> Chain:
    chain = Chain.of(args)
    group = group_name(choose_regime(args).name, "all", scale_name(args))
    chain = replace(chain, path=make_folder(Path(args.storage).absolute(), group))
    chain.write()
    return chain


def _find(args: argparse.Namespace) -> Chain:
    if args.resume != NEWEST:
        return Chain.read(Path(args.resume).absolute())
    name, storage = choose_regime(args).name, Path(args.storage).absolute()
    groups = [group_name(name, "all", scale) for scale in ([args.scale] if args.scale else SCALES)]
    files = [file for group in groups for file in storage.glob(f"{group}/*/{CHAIN}")]
    for file in sorted(files, key=lambda file: file.parent.name, reverse=True):
        chain = Chain.read(file.parent)
        if not chain.finished:
            return chain
    raise UserError(f"no unfinished chain {name}-all-* lies under {args.storage}: start one without --resume")


def _go_on(chain: Chain, args: argparse.Namespace, console: Console, run_phase: RunPhase) -> int:
    scale = choose_regime(parse(chain.options)).scale(scale_name(parse(chain.options)))
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
    # The confirmed model's own cells are there; the law needs another size beside it.
    others = partners(scale, ModelSpec.parse(model))
    if others:
        more = ["--models", ",".join(other.name for other in others)]
        if code := _phase(chain, "calibrate", more, args, console, run_phase):
            return code
    law = _fit(chain)
    _say(chain.decisions[-1], console)
    if law is None:
        return _finish(chain, console)
    anchors = [word for text in chain.anchors for word in ("--anchors", text)]
    more = ["--models", model, "--coefficients", str(law), *anchors]
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
        crashed = crashed_rest(RunFolder(chain.run(phase))) if phase in chain.runs else 0
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
        argv = [*chain.options, "--phase", phase, *more]
    machine = ["--address", args.address]
    machine += ["--hang-timeout", str(args.hang_timeout)] if args.hang_timeout is not None else []
    machine += ["--keep-weights"] if args.keep_weights else []
    machine += ["--offline"] if args.offline else []
    machine += ["--verbose"] if args.verbose else []
    code = run_phase([*argv, *machine], begun)
    return 0 if code == CRASHED and goes_on() else code


def _fit(chain: Chain) -> Path | None:
    """The law over the confirmed model's cells and those calibrated beside it; None if there is none."""
    import analysis.report

    folder = chain.path / LAW_FOLDER
    file = folder / artifacts.COEFFICIENTS
    runs = [chain.run(phase) for phase in ("confirm", "calibrate") if phase in chain.runs]
    if not file.exists():
        result = analysis.report.analyse(runs, out=folder, law=chain.law, report=False, export=False)
        if result.coefficients is None:
            chain.decide("law", None, f"{result.law_note} Without a law there is no schedule to test.")
            return None
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

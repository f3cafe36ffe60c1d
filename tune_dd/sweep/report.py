"""What the command prints before and after a search, and the ledger of its trials."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from search_spaces.adaptive_grid import AdaptiveGrid
from tune_dd import artifacts
from tune_dd.console import Console
from tune_dd.corpus import Corpus
from tune_dd.corpus.fetch import TEXTS, is_missing
from tune_dd.errors import UserError
from tune_dd.law import rank_and_condition
from tune_dd.laws import DEFAULT_LAW, get_law
from tune_dd.loading import no_collection
from tune_dd.memory import cpu_trial_bytes, parameter_bytes
from tune_dd.regimes import evidence_class
from tune_dd.sweep.following import following
from tune_dd.sweep.hours import DeviceHours
from tune_dd.sweep.ledger import write_ledger
from tune_dd.sweep.phases import DECISION
from tune_dd.sweep.plan import Cost, Plan
from tune_dd.sweep.runs import RunFolder, shown_path
from tune_dd.sweep.supervisor import Outcome
from tune_dd.trial import TrialSpec

if TYPE_CHECKING:
    from analysis.decision import Decision
    from analysis.painters import Painters
    from analysis.report import Analysis

_OVERLAP_WARNING = 0.01
_FORM_MEANING = {
    "token": "this is WikiText in its token form, with <unk> for rare words",
    "plain": "this is no WikiText as the data set writes it (no @-@ and no <unk>)",
}
_CLASS_MEANING = {
    "evidence": "evidence: full scale on mps, comparable with the reference study",
    "run": "run: full scale, but not on mps, so not evidence for the reference study",
    "rehearsal": "rehearsal: pocket scale, shows the effect and not the study's numbers",
}


def print_plan(
    console: Console,
    plan: Plan,
    specs: tuple[TrialSpec, ...],
    cost: Cost,
    hours: Sequence[DeviceHours],
    *,
    corpus: Corpus | None,
    cache_folder: Path,
    storage: Path,
    left: int | None = None,
    chained: bool = False,
) -> None:
    """Every derived quantity, before anything is trained.

    Args:
        hours: of each device kind that was asked about.
        left: of a run that is taken up, the trials still to be trained.
        chained: the run is one of a chain, whose law is fitted to more cells than these.
    """
    scale = plan.scale
    rows = [
        ("regime", f"{plan.regime.title} ({plan.regime.name}), phase {plan.phase}, scale {plan.scale_name}"),
        ("class", _CLASS_MEANING[evidence_class(plan.scale_name, plan.device)]),
        ("text", _describe_text(plan, corpus, cache_folder)),
    ]
    for model in sorted({m for grid in plan.grids for m in grid.models}, key=lambda m: m.n_params(scale.vocab_size)):
        rows.append(("model", f"{model.name}, {model.n_params(scale.vocab_size):,} parameters"))
    for grid in plan.grids:
        rows += grid.described()
    if plan.phase == "calibrate" and not chained:
        rows.append(("law", describe_design(plan, specs)))
    most = "at most " if isinstance(plan.grids[-1], AdaptiveGrid) else ""
    rows += [
        ("device", f"{plan.device}, {plan.n_devices} trial(s) at a time, {plan.n_threads} thread(s) each"),
        ("trials", f"{most}{cost.n_trials:,} trials, {cost.n_rows:,} result rows, {cost.steps:,} optimizer steps"),
        ("tokens", f"{most}{cost.tokens:,} sampled, {cost.flops:.2e} FLOPs"),
        ("memory", describe_memory(plan, specs)),
        ("disk", f"{cost.disk_bytes / 1e6:,.0f} MB at most, under {storage}"),
    ]
    if cost.shared_steps:
        share = cost.shared_steps / cost.steps
        rows.append(
            ("shared", f"up to {cost.shared_steps:,} of these steps ({share:.0%}) are trained once for several")
        )
    if left is not None:
        rows.append(("left", f"{most}{left:,} of these trials are still to be trained"))
    rows += [("time", entry.describe()) for entry in hours]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    form = None if corpus is None else corpus.manifest.get("wikitext_form")
    if form not in (None, "raw") and plan.regime.name in TEXTS:
        console.print(
            f"warning: {_FORM_MEANING[form]}; the regime is one of the raw form, so these results are of another text",
            style="yellow",
        )
    overlap = None if corpus is None else corpus.manifest.get("validation_overlap")
    if overlap is not None and overlap > _OVERLAP_WARNING:
        console.print(
            f"warning: {overlap:.1%} of the validation 13-grams occur in the training text: validation losses are "
            "flattered, and the best dropout may look lower than it is",
            style="yellow",
        )


def describe_memory(plan: Plan, specs: tuple[TrialSpec, ...]) -> str:
    """Of the largest model's trial."""
    largest = max(specs, key=lambda spec: spec.n_params)
    if plan.device == "cpu" and plan.scale.protocol.precision == "float32":
        each = f"about {cpu_trial_bytes(largest) / 1e6:,.0f} MB for a trial of {largest.model.name}"
        return f"{each} at its peak, beside the libraries"
    known = f"{parameter_bytes(largest) / 1e6:,.0f} MB of weights, gradients and moments for {largest.model.name}"
    return f"{known}; activations come on top and are not estimated for {plan.device}"


def describe_design(plan: Plan, specs: tuple[TrialSpec, ...]) -> str:
    """Rank and condition number of the default law's design, should every cell have an optimum inside the grid."""
    law = get_law(DEFAULT_LAW)
    cells = sorted(
        {
            (spec.n_params, stage.unique_tokens, spec.sampled_tokens(step))
            for spec in specs
            for stage in spec.stages
            for step in stage.readout_steps
        }
    )
    rank, condition = rank_and_condition(law, *map(list, zip(*cells, strict=True)))
    sizes, needed = len({n_params for n_params, _, _ in cells}), len(law.coefficients)
    text = (
        f"{law.name}: {len(cells)} cells of {sizes} model size{'s' if sizes > 1 else ''} give rank {rank} of {needed}"
    )
    if rank < needed:
        return f"{text}: too little for its coefficients; add prefixes, read-outs or another of the --models"
    warning = "; with one size nothing tests how it extends to others" if sizes == 1 else ""
    return f"{text}, condition number {condition:.0f}{warning}"


def _describe_text(plan: Plan, corpus: Corpus | None, cache_folder: Path) -> str:
    if corpus is None:
        missing = f"{TEXTS[plan.regime.name].target.name} would be fetched; " if is_missing(plan.regime) else ""
        return f"not read in a dry run; {missing}its cache would be {cache_folder}"
    form = f", {corpus.manifest['wikitext_form']} form of WikiText" if "wikitext_form" in corpus.manifest else ""
    return (
        f"{corpus.n_train:,} training and {corpus.n_validation:,} validation tokens, vocabulary "
        f"{plan.scale.vocab_size:,}{form}, corpus {corpus.corpus_hash[:12]}"
    )


def prepare_result(painters: Painters) -> None:
    """Load what ``print_result`` needs; called when a core is idle, nobody waits for it after the last trial."""
    painters.start()
    with no_collection():
        import analysis.coefficients
        import analysis.drawing
        import analysis.optimum
        import analysis.report  # noqa: F401


def print_result(
    console: Console, run: RunFolder, plan: Plan, outcome: Outcome, painters: Painters, *, alone: bool
) -> None:
    """Analyse the run's table, print the optima, name the files and, for a run alone, the next command."""
    names = {spec.trial_id: spec.name for spec in outcome.specs}
    for trial_id, reason in outcome.crashed.items():
        console.print(f"crashed: {names.get(trial_id, trial_id)}: {reason}", style="red")
    write_ledger(run, outcome, None)  # what is left may be too little for anything else
    if not outcome.finished:
        console.print("no trial finished, so there is nothing to analyse")
        return
    prepare_result(painters)
    # Imported here: it draws, and a search need not wait for that.
    import analysis.report
    from analysis.tables import load_experiment

    experiment = load_experiment([run.path])
    try:
        result = analysis.report.compute(experiment, run.path, painters=painters)
    except UserError as error:
        if not outcome.crashed:
            raise
        console.print(f"beside the crashed trials there is too little to analyse: {error}", soft_wrap=True)
        return
    decision = record_decision(run, plan, result)  # before the report, which says that a run is finished
    write_ledger(run, outcome, result)
    # The page shows the ledger, so it is read again before the page is written.
    result = analysis.report.write(replace(result, experiment=load_experiment([run.path])), painters=painters)
    analysis.report.print_tables(result, console)
    console.print(f"files: {shown_path(run.path)}", soft_wrap=True)
    if decision is not None:
        console.print(f"decision: {decision.reason}", style="bold", soft_wrap=True)
    if alone:
        command = following(run, plan, result, decision, crashed=bool(outcome.crashed))
        console.print(f"next: {command}", soft_wrap=True)


def record_decision(run: RunFolder, plan: Plan, result: Analysis) -> Decision | None:
    """decision.json of a phase that is a gate."""
    from analysis.decision import decide

    if plan.phase not in ("screen", "confirm"):
        return None
    decision = decide(result.fits, plan.phase)
    time = datetime.datetime.now().isoformat(timespec="seconds")
    artifacts.write_json(run.path / DECISION, {"schema": artifacts.SCHEMA, "time": time, **decision.to_dict()})
    return decision

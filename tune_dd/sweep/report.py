"""What the command prints before and after a search, and the ledger of its trials."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from tune_dd import artifacts, journal
from tune_dd.corpus import Corpus
from tune_dd.regimes import evidence_class
from tune_dd.sweep.plan import Cost, Plan
from tune_dd.sweep.progress import format_seconds
from tune_dd.sweep.runs import RunFolder, resume_command, shown_path
from tune_dd.sweep.supervisor import Outcome
from tune_dd.trial import TrialSpec, format_dropout, short_count

_OVERLAP_WARNING = 0.01
_CLASS_MEANING = {
    "evidence": "evidence: full scale on mps, comparable with the reference study",
    "run": "run: full scale, but not on mps, so not evidence for the reference study",
    "rehearsal": "rehearsal: pocket scale, shows the effect and not the study's numbers",
}


def print_plan(
    console: Console, plan: Plan, cost: Cost, *, corpus: Corpus | None, cache_folder: Path, storage: Path
) -> None:
    """Every derived quantity, before anything is trained."""
    scale = plan.scale
    rows = [
        ("regime", f"{plan.regime.title} ({plan.regime.name}), phase {plan.phase}, scale {plan.scale_name}"),
        ("class", _CLASS_MEANING[evidence_class(plan.scale_name, plan.device)]),
        ("text", _describe_text(plan, corpus, cache_folder)),
    ]
    for model in sorted({m for grid in plan.grids for m in grid.models}, key=lambda m: m.n_params(scale.vocab_size)):
        rows.append(("model", f"{model.name}, {model.n_params(scale.vocab_size):,} parameters"))
    for grid in plan.grids:
        rows += [
            ("prefixes U", " ".join(short_count(n) for n in grid.prefixes) + " tokens"),
            ("read-outs C", " ".join(short_count(n) for n in grid.readouts) + " tokens"),
            ("dropouts", " ".join(format_dropout(p) for p in grid.dropouts)),
            ("seeds", " ".join(map(str, grid.seeds))),
        ]
    rows += [
        ("device", f"{plan.device}, {plan.n_devices} trial(s) at a time, {plan.n_threads} thread(s) each"),
        ("trials", f"{cost.n_trials:,} trials, {cost.n_rows:,} result rows, {cost.steps:,} optimizer steps"),
        ("tokens", f"{cost.tokens:,} sampled, {cost.flops:.2e} FLOPs"),
        ("disk", f"{cost.disk_bytes / 1e6:,.0f} MB at most, under {storage}"),
    ]
    if cost.hours is not None:
        rows.append(("time", f"about {format_seconds(cost.hours * 3600)} from a step measured now"))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False, markup=False)
    overlap = None if corpus is None else corpus.manifest.get("validation_overlap")
    if overlap is not None and overlap > _OVERLAP_WARNING:
        console.print(
            f"warning: {overlap:.1%} of the validation 13-grams occur in the training text: validation losses are "
            "flattered, and the best dropout may look lower than it is",
            style="yellow",
            highlight=False,
        )


def _describe_text(plan: Plan, corpus: Corpus | None, cache_folder: Path) -> str:
    if corpus is None:
        return f"not read in a dry run; its cache would be {cache_folder}"
    return (
        f"{corpus.n_train:,} training and {corpus.n_validation:,} validation tokens, vocabulary "
        f"{plan.scale.vocab_size:,}, corpus {corpus.corpus_hash[:12]}"
    )


def print_result(console: Console, run: RunFolder, plan: Plan, specs: tuple[TrialSpec, ...], outcome: Outcome) -> None:
    """Analyse the run's table, print the optima, name the files and the next command."""
    names = {spec.trial_id: spec.name for spec in specs}
    for trial_id, reason in outcome.crashed.items():
        console.print(f"crashed: {names.get(trial_id, trial_id)}: {reason}", style="red", highlight=False, markup=False)
    if not outcome.finished:
        write_ledger(run, specs, outcome, None)
        console.print("no trial finished, so there is nothing to analyse", highlight=False)
        return
    # Imported here: it draws, and a search need not wait for that.
    import analysis.report
    from analysis.tables import load_experiment

    result = analysis.report.compute(load_experiment([run.path]), run.path)
    write_ledger(run, specs, outcome, result.selection)
    # The page shows the ledger, so it is read again before the page is written.
    result = analysis.report.write(replace(result, experiment=load_experiment([run.path])))
    analysis.report.print_tables(result, console)
    console.print(f"files: {shown_path(run.path)}", highlight=False, soft_wrap=True)
    if outcome.crashed:
        following = f"{resume_command(run)} --retry-crashed"
    elif plan.scale_name == "pocket":
        following = f"python -m tune_dd.sweep {plan.regime.name} --dry-run    (what the full search would cost)"
    else:
        following = f"python -m analysis {shlex.quote(shown_path(run.path))}"
    console.print(f"next: {following}", highlight=False, soft_wrap=True)


def write_ledger(
    run: RunFolder, specs: tuple[TrialSpec, ...], outcome: Outcome, selection: pd.DataFrame | None
) -> None:
    """results.tsv, a line per trial.

    ``keep``: the trial's dropout lies on the plateau of a cell that it feeds; ``discard``: on none;
    ``crash``: it crashed, and the description says why.
    """
    lines = ["trial\tval_bpb\tmemory_gb\tstatus\tdescription"]
    for spec in specs:
        stage = spec.stages[0]
        what = (
            f"{spec.model.name} U={short_count(stage.unique_tokens)} {spec.condition} seed {spec.seed} "
            f"to C={spec.sampled_tokens(spec.total_steps)}"
        )
        if spec.trial_id in outcome.crashed:
            reason = outcome.crashed[spec.trial_id].replace("\t", " ")
            lines.append(f"{spec.name}\t\t\tcrash\t{what}: {reason}")  # no score is not a score of 0
            continue
        try:
            rows = journal.read_journal(journal.journal_path(run.journals, spec.trial_id)).rows
        except (FileNotFoundError, journal.DamagedJournal):
            continue
        if not rows:
            continue
        status = "keep" if selection is None or _on_a_plateau(spec, selection) else "discard"
        last = rows[-1]
        lines.append(f"{spec.name}\t{last['val_bpb']:.6f}\t{last['peak_memory_bytes'] / 1e9:.1f}\t{status}\t{what}")
    artifacts.write_text_atomic(run.path / artifacts.LEDGER, "\n".join(lines) + "\n")


def _on_a_plateau(spec: TrialSpec, selection: pd.DataFrame) -> bool:
    stage = spec.stages[0]
    cells = selection[(selection["model"] == spec.model.name) & (selection["unique_tokens"] == stage.unique_tokens)]
    on = (cells["plateau_low"] <= stage.dropout) & (stage.dropout <= cells["plateau_high"])
    return bool(on.any())

"""results.tsv: what came of each trial, a line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_dd import artifacts, journal
from tune_dd.sweep.runs import RunFolder
from tune_dd.sweep.supervisor import Outcome
from tune_dd.trial import TrialSpec, short_count

if TYPE_CHECKING:
    from analysis.report import Analysis
    from analysis.searched import Searched


def write_ledger(run: RunFolder, outcome: Outcome, result: Analysis | None) -> None:
    """results.tsv, a line per trial.

    ``keep``: the trial's dropout lies on the plateau of a cell that it feeds, or its schedule ends no higher
    than the best fixed dropout (of a search: than the one that it began with); ``discard``: neither; ``crash``: it
    crashed, and the description says why.
    """
    lines = ["trial\tval_bpb\tmemory_gb\tstatus\tdescription"]
    for spec in outcome.specs:
        stage = spec.stages[0]
        place = f"U={short_count(stage.unique_tokens)}" if len(spec.stages) == 1 else "stream"
        what = (
            f"{spec.model.name} {place} {spec.condition} seed {spec.seed} to C={spec.sampled_tokens(spec.total_steps)}"
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
        status = "keep" if result is None or _is_worth_keeping(spec, result) else "discard"
        last = rows[-1]
        lines.append(f"{spec.name}\t{last['val_bpb']:.6f}\t{last['peak_memory_bytes'] / 1e9:.1f}\t{status}\t{what}")
    artifacts.write_text_atomic(run.path / artifacts.LEDGER, "\n".join(lines) + "\n")


def _is_worth_keeping(spec: TrialSpec, result: Analysis) -> bool:
    stage = spec.stages[0]
    if result.search is not None and spec.kind == "law":
        return _searched_low_enough(spec.condition, result.search)
    if len(spec.stages) > 1:
        if result.comparison is None:
            return True
        rows = result.comparison
        final = rows[(rows["metric"] == "final_val_loss") & (rows["condition"] == spec.condition)]
        return bool((final["difference"].iloc[:1] <= 0).any())  # the first is the one against the best static
    cells = result.selection
    own = [spec.sampled_tokens(step) for step in stage.readout_steps]
    cells = cells[(cells["model"] == spec.model.name) & (cells["unique_tokens"] == stage.unique_tokens)]
    cells = cells[cells["sampled_tokens"].isin(own)]
    on = (cells["plateau_low"] <= stage.dropout) & (stage.dropout <= cells["plateau_high"])
    return bool(on.any())


def _searched_low_enough(condition: str, search: Searched) -> bool:
    """Whether a point came to no more than the fixed dropout, or one of the two to nothing yet."""
    values = search.history.set_index("condition")["value"]
    fixed = search.history.loc[search.history["role"] == "static", "value"]
    return not bool(values[condition] > fixed.iloc[0])

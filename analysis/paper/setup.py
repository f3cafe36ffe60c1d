"""What was run: a row per study and phase, and the protocol."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.figures import count_text
from analysis.paper.blocks import Block, Cited, Number, Paragraph, Parts, Ref, Section, Table, join, listed
from analysis.paper.studies import PHASES, Study, by_class, class_words
from analysis.report import Settings
from analysis.words import CLASS_WORDS, SIGNIFICANT
from tune_dd.law import P_MAX, P_MIN

NAME = "setup"
ORDER = ("screen", *PHASES)
STATIC = ("screen", "confirm", "calibrate")  # phases of fixed rates
HEADER = ("model (parameters)", "U", "C", "dropout", "seeds", "trials")
COLUMNS = (
    "U: unique tokens of the training prefix; C: tokens sampled by the read-outs; dropout: rates tried (of a stream: "
    "paths); seeds: of each rate in a cell (of a stream: of each path)."
)


def section(studies: Sequence[Study]) -> Section:
    blocks: list[Block] = []
    details: list[Block] = []
    for evidence, group in by_class(studies):
        table = phases_table(evidence, group)
        blocks += [Paragraph((Ref(table.name), " sums up the trainings. ", *protocol(group))), table]
        details.append(runs_table(evidence, group))
    labels = list(dict.fromkeys(study.title for study in studies))
    classes = [CLASS_WORDS.get(evidence, f"Class: {evidence}.") for evidence, _ in by_class(studies)]
    total = sum(study.analysis.experiment.table["trial_id"].nunique() for study in studies)
    everything, method = Cited("all"), Cited("the program")
    return Section(
        NAME,
        "What was run",
        blocks,
        {
            "Corpora": (listed(labels),),
            "CorpusTotal": (everything.count(len(labels), "config.regime.title, distinct"),),
            "Classes": (" ".join(classes),),
            "TrialTotal": (everything.count(total, "metrics.trial_id, distinct"),),
            "ClampLow": (method.number(P_MIN, "tune_dd.law.P_MIN", 2),),
            "ClampHigh": (method.number(P_MAX, "tune_dd.law.P_MAX", 2),),
            "Draws": (method.count(Settings().bootstrap, "analysis.report.Settings.bootstrap"),),
            "Level": (method.number(SIGNIFICANT, "analysis.words.SIGNIFICANT", 2),),
        },
        details,
    )


def phase_rows(studies: Sequence[Study]) -> dict[str, list[tuple[str, pd.DataFrame]]]:
    """Phase -> the run and the rows of each study that has it; what laws were frozen for is called a hold-out."""
    found: dict[str, list[tuple[str, pd.DataFrame]]] = {}
    for phase in ORDER:
        for study in studies:
            table = study.analysis.experiment.table
            own = table[table["phase"] == phase]
            if len(own):
                held = study.held_out and phase in STATIC
                found.setdefault("hold-out" if held else phase, []).append((study.source(phase), own))
    return found


def phases_table(evidence: str, studies: Sequence[Study]) -> Table:
    """A row per corpus and phase."""
    groups = []
    for title in dict.fromkeys(study.title for study in studies):
        rows: list[list[Parts]] = []
        for phase, found in phase_rows([study for study in studies if study.title == title]).items():
            cited = Cited(found[0][0] if len(found) == 1 else f"all {phase} runs of {title}")
            runs = (cited.count(len(found), "metrics.run_id, distinct"),)
            together = pd.concat([own for _, own in found], ignore_index=True)
            rows.append([(title if not rows else "",), (phase,), runs, *run_row(cited, together)])
        groups.append(rows)
    return Table(
        name=f"phases-{evidence}",
        caption=(f"What was run, by corpus and phase. {COLUMNS} {class_words(studies)}",),
        header=("corpus", "phase", "runs", *HEADER),
        align="llrllllrr",
        groups=groups,
    )


def runs_table(evidence: str, studies: Sequence[Study]) -> Table:
    groups = []
    for study in studies:
        rows: list[list[Parts]] = []
        for phase, found in phase_rows([study]).items():
            rows += [[(study.label if not rows else "",), (phase,), *run_row(Cited(run), own)] for run, own in found]
        groups.append(rows)
    return Table(
        name=f"runs-{evidence}",
        caption=(f"What was run, run by run. {COLUMNS} {class_words(studies)}",),
        header=("corpus", "phase", *HEADER),
        align="llllllrr",
        groups=groups,
    )


def run_row(cited: Cited, rows: pd.DataFrame) -> list[Parts]:
    """Models (all of two, the ends of more), U, C, dropout, seeds, trials."""
    models = rows[["n_params", "model"]].drop_duplicates().sort_values("n_params").itertuples(index=False, name=None)
    named: list[Parts] = [(f"{model} (", cited.count(n, "metrics.n_params", count_text(n)), ")") for n, model in models]
    conditions = rows["condition"].nunique()
    tried: Parts = (
        (*ends(cited, rows, "dropout"), " (", cited.count(rows["dropout"].nunique(), "metrics.dropout, distinct"), ")")
        if rows["phase"].isin(STATIC).all()
        else (cited.count(conditions, "metrics.condition, distinct"), " paths")
    )
    return [
        join(named, ", ") if len(named) < 3 else (*named[0], " to ", *named[-1]),
        ends(cited, rows, "unique_tokens"),
        ends(cited, rows, "sampled_tokens"),
        tried,
        seeds(cited, rows),
        (cited.count(rows["trial_id"].nunique(), "metrics.trial_id, distinct"),),
    ]


def seeds(cited: Cited, rows: pd.DataFrame) -> Parts:
    """Seeds that a rate of a cell (of a stream: a path) was trained on: one number, or the least and the most."""
    of_rate = rows.groupby(["regime", "model", "condition", "unique_tokens", "sampled_tokens"])["seed"].nunique()
    column = "metrics.seed, distinct, of each condition and read-out"
    least, most = (cited.count(int(n), column) for n in (of_rate.min(), of_rate.max()))
    return (least,) if least.value == most.value else (least, " to ", most)


def ends(cited: Cited, rows: pd.DataFrame, column: str) -> Parts:
    """Smallest and largest value of a column."""
    values = [rows[column].min(), rows[column].max()]
    if column == "dropout":
        numbers = [cited.number(value, f"metrics.{column}", 2) for value in values]
    else:
        numbers = [cited.count(value, f"metrics.{column}", count_text(value)) for value in values]
    return (numbers[0],) if values[0] == values[1] else (numbers[0], " to ", numbers[1])


def protocol(studies: Sequence[Study]) -> Parts:
    """A sentence on what every trial of the class shares."""
    tables = pd.concat([study.analysis.experiment.table for study in studies], ignore_index=True)
    cited = Cited(studies[0].name if len(studies) == 1 else "all of the class")

    def distinct(column: str) -> Parts:
        values = sorted(tables[column].unique())
        numbers = [(cited.count(value, f"metrics.{column}"),) for value in values]
        return join(numbers, " or ")

    warmup = sorted(
        {
            int(config["scale"]["protocol"]["warmup_steps"])
            for study in studies
            for config in study.configs.values()
            if "warmup_steps" in config.get("scale", {}).get("protocol", {})
        }
    )
    rates = sorted(tables["learning_rate"].unique())
    steps: list[Parts] = [(cited.count(value, "config.scale.protocol.warmup_steps"),) for value in warmup]
    return (
        f"Every trial ({studies[0].evidence}) has a vocabulary of ",
        *distinct("vocab_size"),
        " tokens, a context of ",
        *distinct("context"),
        " tokens, ",
        *distinct("batch_size"),
        " sequences a step, and a learning rate that after warm-up ",
        *(("(", *join(steps, " or "), " steps) ") if steps else ()),
        "stays at ",
        Number(float(rates[-1]), f"{rates[-1]:g}", cited.source, "metrics.learning_rate, largest"),
        "; its validation loss is the mean over ",
        *distinct("val_tokens"),
        " tokens.",
    )

"""What was run: a row per study and phase, and the protocol."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.figures import count_text
from analysis.paper.blocks import Block, Cited, Number, Paragraph, Parts, Ref, Section, Table, join, listed
from analysis.paper.studies import PHASES, Study, by_class, class_words
from analysis.report import Settings
from analysis.words import CLASS_WORDS, SIGNIFICANT
from tune_dd.laws import P_MAX, P_MIN

NAME = "setup"
ORDER = ("screen", *PHASES)


def section(studies: Sequence[Study]) -> Section:
    blocks: list[Block] = []
    for evidence, group in by_class(studies):
        table = runs_table(evidence, group)
        blocks += [Paragraph((Ref(table.name), " lists the trainings behind the results. ", *protocol(group))), table]
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
            "Classes": (" ".join(classes),),
            "TrialTotal": (everything.count(total, "metrics.trial_id, distinct"),),
            "ClampLow": (method.number(P_MIN, "tune_dd.laws.P_MIN", 2),),
            "ClampHigh": (method.number(P_MAX, "tune_dd.laws.P_MAX", 2),),
            "Draws": (method.count(Settings().bootstrap, "analysis.report.Settings.bootstrap"),),
            "Level": (method.number(SIGNIFICANT, "analysis.words.SIGNIFICANT", 2),),
        },
    )


def runs_table(evidence: str, studies: Sequence[Study]) -> Table:
    groups = []
    for study in studies:
        table = study.analysis.experiment.table
        rows: list[list[Parts]] = []
        for phase in ORDER:
            own = table[table["phase"] == phase]
            if len(own):
                rows.append([(study.label if not rows else "",), *run_row(study, phase, own)])
        groups.append(rows)
    return Table(
        name=f"runs-{evidence}",
        caption=(
            "What was run. U: unique tokens of the training prefix; C: tokens sampled by the read-outs; "
            f"dropout: rates tried (of a stream: paths). {class_words(studies)}",
        ),
        header=("corpus", "phase", "model (parameters)", "U", "C", "dropout", "seeds", "trials"),
        align="llllllrr",
        groups=groups,
    )


def run_row(study: Study, phase: str, rows: pd.DataFrame) -> list[Parts]:
    cited = Cited(study.source(phase))
    models = rows[["n_params", "model"]].drop_duplicates().sort_values("n_params").itertuples(index=False, name=None)
    named: list[Parts] = [(f"{model} (", cited.count(n, "metrics.n_params", count_text(n)), ")") for n, model in models]
    static = phase in ("screen", "confirm", "calibrate")
    conditions = rows["condition"].nunique()
    tried: Parts = (
        (*ends(cited, rows, "dropout"), " (", cited.count(rows["dropout"].nunique(), "metrics.dropout, distinct"), ")")
        if static
        else (cited.count(conditions, "metrics.condition, distinct"), " paths")
    )
    return [
        (phase,),
        join(named, ", "),
        ends(cited, rows, "unique_tokens"),
        ends(cited, rows, "sampled_tokens"),
        tried,
        (cited.count(rows["seed"].nunique(), "metrics.seed, distinct"),),
        (cited.count(rows["trial_id"].nunique(), "metrics.trial_id, distinct"),),
    ]


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

"""The laws fitted to the cells, and what each form loses on cells that it has not seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.coefficients import Coefficients
from analysis.paper.blocks import DASH, Block, Cited, Paragraph, Parts, Ref, Section, Table, join, listed
from analysis.paper.studies import Study, by_class, class_words
from analysis.verdict import TIED, alike
from tune_dd.laws import DEFAULT_LAW, LAWS

NAME = "laws"
HOLDOUTS = {
    "cell": "one cell",
    "largest n_params": "the largest P",
    "largest unique_tokens": "the largest U",
    "largest sampled_tokens": "the largest C",
}


def section(studies: Sequence[Study]) -> Section:
    blocks: list[Block] = []
    details: list[Block] = []
    fitted = [study for study in studies if study.analysis.coefficients is not None and not study.held_out]
    for evidence, group in by_class(fitted):
        table = coefficient_table(evidence, group)
        blocks += [Paragraph((Ref(table.name), " gives the law of each study. ", *certainty(group))), table]
        if any(study.analysis.held_out is not None for study in group):
            pooled = pool(group)
            held = pooled_table(evidence, group, pooled)
            lead = (Ref(held.name), " asks what each form loses on cells that it was not fitted to. ")
            blocks += [Paragraph((*lead, ahead(pooled))), held]
            details += [Paragraph(winners(group)), held_out_table(evidence, group)]
    return Section(NAME, "The laws fitted", blocks, details=details)


def law_of(study: Study) -> Coefficients:
    if study.analysis.coefficients is None:
        raise ValueError(f"{study.name} has no law")
    return study.analysis.coefficients


def coefficient_table(evidence: str, studies: Sequence[Study]) -> Table:
    """A column per coefficient of the forms fitted."""
    names = list(dict.fromkeys(name for study in studies for name in law_of(study).coefficients))
    rows = []
    for study in studies:
        law, cited = law_of(study), Cited(study.name)
        values: list[Parts] = [(DASH,) for _ in names]
        for position, name in enumerate(names):
            if name in law.coefficients:
                column = f"coefficients.{name}"
                ends = (f"coefficients.intervals.{name}, low", f"coefficients.intervals.{name}, high")
                value = cited.number(law.coefficients[name], column, 2)
                values[position] = (value, *cited.interval(*law.intervals[name], ends, 2))
        cells: Parts = (
            cited.count(law.n_cells, "coefficients.n_cells"),
            " of ",
            cited.count(len(law.cells), "coefficients.cells"),
        )
        errors = [
            (cited.number(optional(value), f"coefficients.{name}", digits),)
            for name, value, digits in (
                ("rmse", law.rmse, 3),
                ("discrepancy", law.discrepancy, 3),
            )
        ]
        form = "" if law.law == DEFAULT_LAW else f" ({law.law.replace('_', ' ')})"
        rows.append([(study.label + form,), *values, cells, *errors])
    default = DEFAULT_LAW.replace("_", " ")
    return Table(
        name=f"laws-{evidence}",
        caption=(
            f"The fitted laws (where no other form is named, {default}): coefficients with intervals at the 95 % "
            "level, cells whose optimum it is fitted to of all, root mean square miss on the former (dropout), scatter "
            f"of the cells about the law beyond noise (standard deviation, dropout).{held_to(studies)} "
            f"{class_words(studies)}",
        ),
        header=("corpus", *(name.replace("_", " ") for name in names), "cells", "miss", "scatter"),
        align="l" + "l" * len(names) + "lrr",
        groups=[rows],
    )


def held_to(studies: Sequence[Study]) -> str:
    """What fits hold coefficients to, where they do: an interval is then not of the cells alone."""
    forms = {law_of(study).law for study in studies}
    held = dict.fromkeys(name for form in sorted(forms) for name in LAWS[form].expected)
    if not held:
        return ""
    return f" {listed(list(held))} is held to what other texts have: its intervals are of the cells and of that."


def optional(value: float | None) -> float:
    return float("nan") if value is None else value


def certainty(studies: Sequence[Study]) -> Parts:
    """How many coefficients of P, U and C are known by their sign, of those that the cells alone tell."""
    known = total = 0
    for study in studies:
        law = law_of(study)
        for name in law.coefficients:
            low, high = law.intervals[name]
            if np.isfinite(low) and not name.startswith("C0") and name not in LAWS[law.law].expected:
                total += 1
                known += low > 0 or high < 0
    cited = Cited(studies[0].name if len(studies) == 1 else "all of these studies")
    column = "coefficients.intervals"
    if not total:
        return ()
    return (
        "Of the fitted coefficients other than the constant, ",
        cited.count(known, column),
        " of ",
        cited.count(total, column),
        " have an interval that excludes zero",
        "; the others are not known even by their sign." if known < total else ".",
    )


def held_out_rows(study: Study) -> pd.DataFrame:
    held = study.analysis.held_out
    return held if held is not None else pd.DataFrame(columns=["holdout", "law", "regret_mean"])


def pool(studies: Sequence[Study]) -> pd.DataFrame:
    """Mean regret of each form over the cells of several studies: index the hold-outs, columns the forms.

    Of each hold-out the studies that leave as many forms determined as any does, so that all are judged on the same
    cells; NaN where a form is undetermined even there.
    """
    rows = [held_out_rows(study).assign(study=study.name) for study in studies]
    held = pd.concat(rows, ignore_index=True)
    held = held[held["regret_mean"].notna() & held["holdout"].isin(list(HOLDOUTS))]
    forms = held.groupby(["holdout", "study"])["law"].transform("nunique")
    held = held[forms == forms.groupby(held["holdout"]).transform("max")]
    held = held.assign(lost=held["regret_mean"] * held["n_cells"])
    sums = held.groupby(["holdout", "law"])[["lost", "n_cells"]].sum()
    full = sums["n_cells"] == sums.groupby("holdout")["n_cells"].transform("max")
    means: pd.DataFrame = (sums["lost"] / sums["n_cells"]).where(full).unstack("law")
    means.insert(0, "cells", sums["n_cells"].groupby("holdout").max())
    return means.reindex([name for name in HOLDOUTS if name in means.index])


def pooled_table(evidence: str, studies: Sequence[Study], pooled: pd.DataFrame) -> Table:
    """A row per hold-out, a column per form."""
    cited = Cited(studies[0].name if len(studies) == 1 else "all calibrations of the class")
    laws = [str(law) for law in pooled.columns if law != "cells"]
    rows: list[list[Parts]] = []
    for holdout, own in pooled.iterrows():
        count: Parts = (cited.count(int(own["cells"]), f"held_out.n_cells, {holdout}"),)
        values = [(cited.number(own[law], f"held_out.regret_mean, {holdout}, {law}", 4),) for law in laws]
        rows.append([(HOLDOUTS[str(holdout)],), count, *values])
    return Table(
        name=f"heldout-{evidence}",
        caption=(
            "Regret on cells left out of a calibration: the validation loss at the law's dropout over the cell's best, "
            "nats per token, mean over the cells of those studies that leave as many forms determined as any does. "
            "Left out: each cell alone (the other read-outs of its trials stay in), or all cells of a study's largest "
            "P, U or C. A dash: the form is not determined without them. What a form holds to be the same for all "
            f"texts was set on cells like these: it is no stranger to them. {class_words(studies)}",
        ),
        header=("left out", "cells", *(law.replace("_", " ") for law in laws)),
        align="lr" + "r" * len(laws),
        groups=[rows],
    )


def ahead(pooled: pd.DataFrame) -> str:
    """Which form has the least mean regret on which hold-out; forms that are level are named together."""
    said = []
    for holdout, own in pooled.drop(columns="cells").iterrows():
        level = [str(law).replace("_", " ") for law in own.index[own <= own.min() + TIED]]
        said.append(f"{alike(level)} with {HOLDOUTS[str(holdout)]} left out")
    return f"The least mean regret is that of {listed(said)}."


def held_out_table(evidence: str, studies: Sequence[Study]) -> Table:
    """Mean regret: a row per corpus and hold-out, a column per law."""
    laws = list(dict.fromkeys(law for study in studies for law in sorted(held_out_rows(study)["law"].unique())))
    groups = []
    for study in studies:
        cited, held = Cited(study.name), held_out_rows(study)
        rows: list[list[Parts]] = []
        for holdout in HOLDOUTS:
            own: dict[Any, dict[Any, Any]] = {
                row["law"]: row for row in held[held["holdout"] == holdout].to_dict("records")
            }
            if own:
                first = next(iter(own.values()))
                values: list[Parts] = [
                    (cited.number(own[law]["regret_mean"], "held_out.regret_mean", 4),) if law in own else (DASH,)
                    for law in laws
                ]
                count: Parts = (cited.count(first["n_cells"], "held_out.n_cells"),)
                rows.append([(study.label if not rows else "",), (HOLDOUTS[holdout],), count, *values])
        groups.append(rows)
    return Table(
        name=f"heldout-studies-{evidence}",
        caption=(
            "Regret on held-out cells: the validation loss at the law's dropout over the cell's best, mean over the "
            "cells held out, nats per token. Held out: each cell alone (the other read-outs of its trials stay in), or "
            "all cells of the largest P, U or C. A dash: the law is not determined without them. "
            f"{class_words(studies)}",
        ),
        header=("corpus", "held out", "cells", *(law.replace("_", " ") for law in laws)),
        align="llr" + "r" * len(laws),
        groups=[group for group in groups if group],
    )


def winners(studies: Sequence[Study]) -> Parts:
    """Which law has the least regret on which hold-out; and in how many studies; ties are named together."""
    sentences: list[Parts] = []
    for holdout, words in HOLDOUTS.items():
        best: Counter[str] = Counter()
        for study in studies:
            held = held_out_rows(study)
            own = held[(held["holdout"] == holdout) & held["regret_mean"].notna()]
            if len(own):
                laws = own.loc[own["regret_mean"] <= own["regret_mean"].min() + TIED, "law"]
                shared = "several forms alike" if len(laws) > 2 else " and ".join(sorted(laws))
                best[shared.replace("_", " ")] += 1
        if best:
            counts: list[Parts] = [
                (f"{laws} (", Cited("all").count(n, f"held_out, {holdout}: studies"), ")")
                for laws, n in best.most_common()
            ]
            sentences.append((f"with {words} held out, ", *join(counts, ", ")))
    return ("The least mean regret has, ", *join(sentences, "; "), ".")

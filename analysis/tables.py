"""Result tables as one tidy DataFrame, from one run or from several that may be combined.

Whatever the source (a run's metrics.jsonl, Tune's own folder, a ResultGrid), the same results give the
same table: the columns of metrics.jsonl in their order, one dtype each, rows in one canonical order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pandas as pd

from analysis.sources import Source, read_grid, read_source
from tune_dd.artifacts import COLUMNS, METRICS, planned_trials
from tune_dd.errors import UserError

ORDER = ("regime", "phase", "n_params", "model", "condition", "seed", "trial_id", "stage", "readout")
# What was measured. Not the trial's id: a trial planned with more read-outs has another one, and the same numbers.
POINT = ("phase", "model", "condition", "seed", "stage", "unique_tokens", "sampled_tokens")
NUMBERS = ("train_loss", "val_loss", "val_bpb", "gap", "dropout", "n_params")
# What rows of one table must share, with what a reader can do about it.
SHARED = {
    "regime": "coefficients belong to one regime: analyse the runs one by one",
    "evidence": "no table mixes evidence classes: analyse the runs one by one",
    "validation_hash": "losses on different validation texts do not compare: analyse the runs one by one",
    "tokenizer_hash": "losses under different tokenizers do not compare: analyse the runs one by one",
    "device": "results of different device classes are not pooled: analyse the runs one by one",
    "context": "the context belongs to the protocol of a regime: analyse the runs one by one",
    "batch_size": "the batch size belongs to the protocol of a regime: analyse the runs one by one",
}
SAVED = "saved"  # below the storage: copies of `analysis.saved`, which are never the newest run
READ = "read"  # beside SAVED: what is derived from those copies, which are evidence and stay as they are
DTYPES = {int: "int64", float: "float64", str: "str"}


@dataclass(frozen=True)
class Experiment:
    """What was run, ready to be asked.

    Attributes:
        table: one row per seed / model / condition / stage read-out; columns of ``metrics.jsonl``,
            ``validation_hash`` empty where the source lacks it.
        folders: the folders read, in the order given.
        configs: the ``config.json`` of those that have one.
        ledger: the lines of ``results.tsv`` (all text), or None where there is none.
        notes: sentences that the reader must be told: torn lines skipped, repeats dropped.
    """

    table: pd.DataFrame
    folders: tuple[Path, ...]
    configs: list[dict[str, Any]]
    ledger: pd.DataFrame | None
    notes: tuple[str, ...]

    @property
    def regime(self) -> str:
        return str(self.table["regime"].iloc[0])

    @property
    def evidence(self) -> str:
        """The evidence class of every row: evidence, run or rehearsal."""
        return str(self.table["evidence"].iloc[0])

    @property
    def so_far(self) -> str:
        """``2 of 24 planned trials so far`` of a run that has not come to its end.

        Empty of a whole run, of several, and where no config tells; a trial that crashed has come to its end.
        """
        if len(self.folders) != 1 or len(self.configs) != 1 or not isinstance(self.configs[0].get("n_trials"), int):
            return ""
        done, planned = self.table["trial_id"].nunique(), planned_trials(self.folders[0], self.configs[0])
        crashed: set[str] = set()
        if self.ledger is not None:
            crashed = {*self.ledger.loc[self.ledger["status"] == "crash", "trial"]} - {*self.table["trial_name"]}
        return f"{done} of {planned} planned trials so far" if done + len(crashed) < planned else ""


def load_experiment(paths: Sequence[Path | str]) -> Experiment:
    """Read and combine results: run folders, metrics.jsonl files, plain Tune experiment folders.

    What several runs hold (the same condition, seed and read-out in the same phase) counts once.

    Raises:
        UserError: a source is missing, empty or damaged (file and line named); the runs differ in what
            one table must share (the column named); one trial has different numbers in two runs.
    """
    if not paths:
        raise UserError("no run given: name the folder of a run")
    unique = list(dict.fromkeys(Path(path).resolve() for path in paths))
    return combine([read_source(path) for path in unique])


def from_result_grid(grid: Any) -> Experiment:
    """The same, from the ``ResultGrid`` that ``Tuner.fit`` returns; Ray itself is not imported.

    Raises:
        UserError: no trial of the grid reported, or a report lacks a column of the schema.
    """
    return combine([read_grid(grid)])


def newest_run(storage: Path) -> Path:
    """The run whose results were written last, anywhere under ``storage`` but among those saved there.

    Raises:
        UserError: there is none.
    """
    paths = (path for path in Path(storage).glob(f"**/{METRICS}") if SAVED not in path.relative_to(storage).parts[:-1])
    found = sorted((path.stat().st_mtime_ns, path.parent) for path in paths)
    if not found:
        raise UserError(f"no run under {storage}: name the folder of a run, or start one with `tune_dd.sweep`")
    return found[-1][1]


def beside_saved(folder: Path) -> Path:
    """Where to write what would go to ``folder``: of STORAGE/saved/GROUP/NAME it is STORAGE/read/GROUP/NAME."""
    group = folder.parent
    return group.parent.with_name(READ) / group.name / folder.name if group.parent.name == SAVED else folder


def combine(sources: Sequence[Source]) -> Experiment:
    """One table out of several sources; see ``load_experiment``."""
    check_protocols(sources)
    frames = [to_frame(source) for source in sources]
    table = pd.concat(frames, ignore_index=True)
    check_shared(table)
    check_rates(table)
    table, dropped = drop_repeats(table)
    notes = [note for source in sources for note in source.notes]
    if dropped:
        notes.append(f"{dropped} rows were there twice and count once.")
    table = table.sort_values(list(ORDER), kind="stable", ignore_index=True).drop(columns="place")
    ledgers = [pd.DataFrame(s.ledger).assign(run=s.name) for s in sources if s.ledger]
    return Experiment(
        table=table,
        folders=tuple(source.folder for source in sources if source.folder is not None),
        configs=[source.config for source in sources if source.config is not None],
        ledger=pd.concat(ledgers, ignore_index=True) if ledgers else None,
        notes=tuple(notes),
    )


def to_frame(source: Source) -> pd.DataFrame:
    frame = source.table
    if frame is None:
        frame = pd.DataFrame.from_records(source.rows, columns=list(COLUMNS))
        frame["validation_hash"] = frame["validation_hash"].astype("object").fillna("")
    frame = frame.astype({name: DTYPES[kind] for name, kind in COLUMNS.items()})
    frame["place"] = source.places
    return frame


def check_shared(table: pd.DataFrame) -> None:
    """Refuse rows that must not stand in one table, naming the column and where it changes."""
    for name, why in SHARED.items():
        column, values = name, table[name]
        if name == "validation_hash" and (values == "").any():
            column, values = "corpus_hash", table["corpus_hash"]
        if name == "device":
            values = values.str.partition(":")[0]  # cuda:0 and cuda:1 are one class
        first = values.iloc[0]
        other = values[values != first]
        if len(other):
            places = table["place"].iloc[0], table["place"].loc[other.index[0]]
            raise UserError(f"column {column!r} is {first} in {places[0]} but {other.iloc[0]} in {places[1]}: {why}")


def check_rates(table: pd.DataFrame) -> None:
    """Refuse two learning rates at one point of training: the rate moves the optimum, and belongs to the protocol.

    Runs without a config.json have no other mark of it. A rate may follow the steps, so it is compared step by step.
    """
    keys = ["phase", "stage", "sampled_tokens"]
    first = table.groupby(keys)["learning_rate"].transform("first")
    differs = ~np.isclose(table["learning_rate"], first, rtol=1e-6, atol=0.0)
    if differs.any():
        other = table[differs].iloc[0]
        same = table[(table[keys] == other[keys]).all(axis=1)].iloc[0]
        raise UserError(
            f"column 'learning_rate' is {same['learning_rate']} in {same['place']} but {other['learning_rate']} in "
            f"{other['place']}: the rate belongs to the protocol of a regime: analyse the runs one by one"
        )


def check_protocols(sources: Sequence[Source]) -> None:
    """Refuse runs whose config.json tells of two training protocols: the rate moves the optimum."""
    known = [(s.name, s.config["scale"]["protocol"]) for s in sources if has_protocol(s.config)]
    for name, protocol in known[1:]:
        for key in sorted(set(known[0][1]) | set(protocol)):
            first, other = known[0][1].get(key), protocol.get(key)
            if first != other:
                raise UserError(
                    f"protocol {key!r} is {first} in {known[0][0]} but {other} in {name}: "
                    "a protocol belongs to its regime: analyse the runs one by one"
                )


def has_protocol(config: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    scale = config.get("scale") if config else None
    return isinstance(scale, dict) and isinstance(scale.get("protocol"), dict)


def drop_repeats(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Count every measured point once. Measured twice it has the same numbers, up to timing."""
    repeated = table.duplicated(list(POINT), keep=False)
    groups = table[repeated].groupby(list(POINT), sort=False)
    for name in NUMBERS:
        differs = groups[name].nunique() > 1
        if differs.any():
            first = set(differs[differs].index[:1])
            same = next(rows for key, rows in groups if key in first)
            a = same.iloc[0]
            b = same[same[name] != a[name]].iloc[0]
            raise UserError(
                f"trial {a['trial_name']!r} has {name} {a[name]!r} in {a['place']} but {b[name]!r} in {b['place']}: "
                "the same trial must have the same numbers; leave one of the runs out"
            )
    kept = table.drop_duplicates(list(POINT), ignore_index=True)
    return kept, len(table) - len(kept)

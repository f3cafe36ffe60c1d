"""Files: tables as CSV and JSON, the tidy table for other tools (parquet, an Optuna study, TensorBoard scalars)."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from tune_dd.artifacts import storage_error, write_atomic, write_json, write_text_atomic
from tune_dd.errors import UserError

if TYPE_CHECKING:
    import optuna

SCALARS = ("train_loss", "val_loss", "val_bpb", "gap", "dropout", "learning_rate")
OPTUNA, TENSORBOARD = "optuna.db", "tensorboard"
_WRITERS = 8


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Every float in the shortest form that reads back to the same bits."""
    write_text_atomic(path, frame.to_csv(index=False, lineterminator="\n"))


def plain_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain JSON, NaN as null."""
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(name): value for name, value in record.items()} for record in records]


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder} ({error.strerror}): give another folder with --out") from None


def safe_name(name: str) -> str:
    """A file name out of a name that holds what users wrote."""
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".")


def write_pair(folder: Path, stem: str, frame: pd.DataFrame, more: Any = None) -> list[Path]:
    """STEM.csv, and STEM.json with the same rows as records (NaN as null), or with what holds more than those."""
    csv, json = folder / f"{stem}.csv", folder / f"{stem}.json"
    write_csv(csv, frame)
    write_json(json, plain_records(frame) if more is None else more)
    return [csv, json]


def write_table(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write ``table.csv`` and ``table.parquet`` and return their paths."""
    csv, parquet = folder / "table.csv", folder / "table.parquet"
    write_csv(csv, table)
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomic(parquet, buffer.getvalue())
    return [csv, parquet]


def write_drawings(folder: Path, drawings: Sequence[tuple[str, str, bytes, pd.DataFrame]]) -> None:
    """Write each drawing, (file stem, SVG, PNG, what it shows), as SVG, PNG and CSV.

    Several at a time: a file takes little but waiting for the disk, some 5 ms, and there are up to a hundred.
    """

    def write(drawing: tuple[str, str, bytes, pd.DataFrame]) -> None:
        stem, svg, png, data = drawing
        write_text_atomic(folder / f"{stem}.svg", svg)
        write_atomic(folder / f"{stem}.png", png)
        write_csv(folder / f"{stem}.csv", data)

    with ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(write, drawings))


def write_optuna(table: pd.DataFrame, folder: Path) -> Path:
    """Write ``optuna.db``, one minimised study per run, which optuna-dashboard and optuna's plots open.

    Each trial has the parameters dropout (of its last stage), seed, unique_tokens (likewise), model and
    condition, the final validation loss (nats per token) as value and one intermediate value per
    read-out, by step. A former file is replaced.
    """
    import optuna

    path = folder / OPTUNA
    temp = folder / f".{OPTUNA}.{os.getpid()}.tmp"
    temp.unlink(missing_ok=True)
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{temp}")
        for (run_id, phase), rows in table.groupby(["run_id", "phase"], sort=True):
            study = optuna.create_study(storage=storage, study_name=f"{run_id} {phase}", direction="minimize")
            study.set_user_attr("evidence", str(rows["evidence"].iloc[0]))
            study.add_trials(optuna_trials(rows))
        storage.engine.dispose()
        os.replace(temp, path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        temp.unlink(missing_ok=True)
        optuna.logging.set_verbosity(level)
    return path


def optuna_trials(rows: pd.DataFrame) -> list[optuna.trial.FrozenTrial]:
    """The finished trials of one run, in the table's order."""
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.trial import create_trial

    distributions: dict[str, BaseDistribution] = {
        "dropout": FloatDistribution(0.0, max(1e-6, float(rows["dropout"].max()))),
        "seed": IntDistribution(int(rows["seed"].min()), int(rows["seed"].max())),
        "unique_tokens": IntDistribution(int(rows["unique_tokens"].min()), int(rows["unique_tokens"].max())),
        "model": CategoricalDistribution(sorted(rows["model"].unique())),
        "condition": CategoricalDistribution(sorted(rows["condition"].unique())),
    }
    trials = []
    for trial_id, own in rows.groupby("trial_id", sort=False):
        last = own.iloc[-1]
        params: dict[str, Any] = {
            "dropout": float(last["dropout"]),
            "seed": int(last["seed"]),
            "unique_tokens": int(last["unique_tokens"]),
            "model": str(last["model"]),
            "condition": str(last["condition"]),
        }
        trials.append(
            create_trial(
                params=params,
                distributions=distributions,
                value=float(last["val_loss"]),
                intermediate_values={int(s): float(v) for s, v in zip(own["steps"], own["val_loss"], strict=True)},
                user_attrs={"trial_id": str(trial_id), "trial_name": str(last["trial_name"])},
            )
        )
    return trials


def write_tensorboard(table: pd.DataFrame, folder: Path, trace: pd.DataFrame | None = None) -> Path:
    """Write the read-outs of every trial as TensorBoard scalars by step, under ``tensorboard/``.

    Args:
        trace: optional columns ``trial_id, step, train_loss``, written as ``trace/train_loss``.

    Raises:
        UserError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped]
    except ImportError:
        raise UserError("--tensorboard needs tensorboardX: install ray[tune] or tensorboardX") from None

    place = folder / TENSORBOARD
    try:
        shutil.rmtree(place, ignore_errors=True)  # a former export would show every trial twice
        traces = dict(list(trace.groupby("trial_id"))) if trace is not None else {}
        for trial_id, rows in table.groupby("trial_id", sort=False):
            with SummaryWriter(str(place / log_name(rows))) as writer:
                add_scalars(writer, rows, SCALARS, "steps", "")
                if trial_id in traces:
                    add_scalars(writer, traces[trial_id], ("train_loss",), "step", "trace/")
    except OSError as error:
        raise storage_error(place, error) from error
    return place


def log_name(rows: pd.DataFrame) -> str:
    """A folder name: the trial's readable name, made safe, and enough of its id to be the only one."""
    safe = re.sub(r"[^\w.+-]", "_", str(rows["trial_name"].iloc[0])).lstrip(".")
    return f"{safe}-{rows['trial_id'].iloc[0][:8]}"


def add_scalars(writer: Any, rows: pd.DataFrame, names: Sequence[str], step: str, prefix: str) -> None:
    for name in names:
        for at, value in zip(rows[step], rows[name], strict=True):
            writer.add_scalar(prefix + name, value, int(at))

"""Exports hold the table's numbers and open in the tools they are for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import optuna
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from analysis.exports import write_optuna, write_table, write_tensorboard
from analysis.tables import load_experiment
from tune_dd.errors import UserError


@pytest.fixture
def table(synthetic: ModuleType, tmp_path: Path) -> pd.DataFrame:
    rows = synthetic.calibration(prefixes=(4_000, 8_000), dropouts=(0.0, 0.2, 0.4), seeds=(0, 1))
    return load_experiment([synthetic.write_run(tmp_path / "run", rows)]).table


def test_csv_and_parquet_read_back_to_the_same_bits(table: pd.DataFrame, tmp_path: Path) -> None:
    csv, parquet = write_table(table, tmp_path)
    assert_frame_equal(pd.read_csv(csv), table, check_exact=True)
    assert_frame_equal(pd.read_parquet(parquet), table, check_exact=True)
    first = parquet.read_bytes()
    write_table(table, tmp_path)
    assert parquet.read_bytes() == first


def test_the_optuna_study_holds_every_trial(table: pd.DataFrame, tmp_path: Path) -> None:
    path = write_optuna(table, tmp_path)
    assert write_optuna(table, tmp_path) == path  # a second export replaces the first
    study = optuna.load_study(study_name="synthetic calibrate", storage=f"sqlite:///{path}")
    assert len(study.trials) == 12
    rows = table[table["trial_id"] == study.trials[3].user_attrs["trial_id"]]
    trial = study.trials[3]
    assert trial.value == rows["val_loss"].iloc[-1]
    assert trial.intermediate_values == dict(zip(rows["steps"], rows["val_loss"], strict=True))
    assert trial.params["dropout"] == rows["dropout"].iloc[0]
    assert trial.params["model"] == "L2_H2_D64"
    best = table.loc[table.groupby("trial_id")["steps"].idxmax(), "val_loss"].min()
    assert study.best_value == best
    assert not list(tmp_path.glob(".optuna*"))


def test_a_stream_exports_too(synthetic: ModuleType, tmp_path: Path) -> None:
    table = load_experiment([synthetic.write_run(tmp_path / "run", synthetic.stream(seeds=(1,)))]).table
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{write_optuna(table, tmp_path)}")
    assert {trial.params["condition"] for trial in study.trials} == set(table["condition"])


def test_tensorboard_scalars_per_trial(table: pd.DataFrame, tmp_path: Path) -> None:
    trial_id = table["trial_id"].iloc[0]
    trace = pd.DataFrame({"trial_id": [trial_id] * 2, "step": [1, 2], "train_loss": [6.0, 5.5]})
    place = write_tensorboard(table, tmp_path, trace)
    logs = sorted(place.glob("*/events*"))
    assert len(logs) == 12
    own = next(path for path in logs if trial_id[:8] in path.parent.name).read_bytes()
    assert b"val_bpb" in own
    assert b"trace/train_loss" in own


def test_tensorboard_without_its_writer_says_what_to_install(
    table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="install ray"):
        write_tensorboard(table, tmp_path)

"""What Tune itself leaves, made by Tune: its folder and its ResultGrid hold the run's own table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
from pandas.testing import assert_frame_equal

from analysis.tables import load_experiment

SEARCH = """
import json, os, sys
from pathlib import Path
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_AUTH_MODE="token")
import ray
from ray import tune
from analysis.tables import from_result_grid

def train(config):
    for row in json.loads(Path(config["rows"]).read_text())[config["trial"]["id"]]:
        tune.report(row)

rows, folder, table = sys.argv[1:]
trials = json.loads(Path(rows).with_name("trials.json").read_text())
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
grid = tune.Tuner(
    tune.with_resources(train, {"cpu": 1}),
    param_space={"trial": tune.grid_search(trials), "rows": rows},
    run_config=tune.RunConfig(storage_path=folder, name="search", verbose=0),
).fit()
from_result_grid(grid).table.to_parquet(table)
ray.shutdown()
"""


def test_tables_of_a_real_search_are_those_of_its_metrics(synthetic: ModuleType, tmp_path: Path) -> None:
    rows = synthetic.calibration(prefixes=(4_000,), dropouts=(0.0, 0.2), seeds=(0, 1))
    expected = load_experiment([synthetic.write_run(tmp_path / "run", rows)]).table
    by_trial: dict[str, list[object]] = {}
    for row in rows:
        by_trial.setdefault(row["trial_id"], []).append(row)
    (tmp_path / "rows.json").write_text(json.dumps(by_trial))
    trials = [{"id": trial_id, "spec": synthetic.SPECS[trial_id]} for trial_id in by_trial]
    (tmp_path / "trials.json").write_text(json.dumps(trials))
    arguments = [str(tmp_path / name) for name in ("rows.json", "results", "grid.parquet")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SEARCH, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert_frame_equal(load_experiment([tmp_path / "results" / "search"]).table, expected)
    assert_frame_equal(pd.read_parquet(tmp_path / "grid.parquet"), expected)

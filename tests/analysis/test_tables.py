"""The tidy table: one table from every source, and a clear refusal of everything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from analysis.tables import from_result_grid, load_experiment, newest_run
from tune_dd.artifacts import COLUMNS, encode_row
from tune_dd.errors import UserError

SMALL: dict[str, Any] = {"prefixes": (4_000, 8_000), "dropouts": (0.0, 0.2, 0.4), "seeds": (0, 1)}


@pytest.fixture
def rows(synthetic: ModuleType) -> list[dict[str, Any]]:
    return synthetic.calibration(**SMALL)


def refusal(*paths: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_experiment(paths)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_run_folder_gives_every_row_in_canonical_order(
    synthetic: ModuleType, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    experiment = load_experiment([synthetic.write_run(tmp_path / "run", rows, config={"command": "x"})])
    assert list(experiment.table.columns) == list(COLUMNS)
    assert len(experiment.table) == 2 * 3 * 2 * 4
    assert (experiment.regime, experiment.evidence, experiment.notes) == ("pydocs", "rehearsal", ())
    assert experiment.configs == [{"command": "x"}]
    assert experiment.ledger is not None
    assert "crash" in set(experiment.ledger["status"])
    assert experiment.table["dropout"].dtype == "float64"
    shuffled = load_experiment([synthetic.write_run(tmp_path / "other", rows[::-1])])
    assert_frame_equal(experiment.table, shuffled.table)


def test_a_folder_with_nothing_but_metrics_and_the_file_itself_are_enough(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "metrics.jsonl", [encode_row(row) for row in rows])
    by_folder, by_file = load_experiment([tmp_path]), load_experiment([path])
    assert_frame_equal(by_folder.table, by_file.table)
    assert by_folder.ledger is None
    assert by_folder.configs == []


def test_unknown_columns_are_ignored_and_validation_hash_may_lack(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    for row in rows:
        row["novel"] = "x"
        del row["validation_hash"]
    path = write_lines(tmp_path / "metrics.jsonl", [json.dumps(row) for row in rows])
    table = load_experiment([path]).table
    assert list(table.columns) == list(COLUMNS)
    assert set(table["validation_hash"]) == {""}


def test_a_plain_tune_folder_gives_the_same_table(
    synthetic: ModuleType, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    run = load_experiment([synthetic.write_run(tmp_path / "run", rows)])
    tune = load_experiment([synthetic.write_tune_experiment(tmp_path / "tune", rows)])
    assert_frame_equal(run.table, tune.table)


def test_repeats_of_a_retry_are_dropped_and_a_torn_last_line_is_told(
    synthetic: ModuleType, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = synthetic.write_tune_experiment(tmp_path / "tune", rows)
    path = sorted(folder.glob("*/result.json"))[0]
    lines = path.read_text().splitlines()
    # A retry reports its first two read-outs again and is killed in the middle of a line.
    path.write_text("\n".join([*lines, lines[0], lines[1], lines[2][:200]]))
    experiment = load_experiment([folder])
    assert_frame_equal(experiment.table, load_experiment([synthetic.write_tune_experiment(tmp_path / "b", rows)]).table)
    assert any("2 rows repeated" in note for note in experiment.notes)
    assert any(f"{path}, line 7: torn" in note for note in experiment.notes)
    path.write_text("\n".join([lines[0][:200], lines[1]]))
    assert f"{path}, line 1: not JSON" in refusal(folder)


def test_a_result_grid_gives_the_same_table(synthetic: ModuleType, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """By interface only: metrics_dataframe with Tune's columns beside ours, config nested, a failed trial."""
    folder = synthetic.write_tune_experiment(tmp_path / "tune", rows)
    grid = []
    for path in sorted(folder.glob("*/result.json")):
        results = [json.loads(line) for line in path.read_text().splitlines()]
        config = results[0]["config"]
        frame = pd.DataFrame([{k: v for k, v in result.items() if k != "config"} for result in results])
        frame["n_params"] = frame["n_params"].astype(float)  # as pandas does where a report lacks a column
        grid.append(SimpleNamespace(metrics_dataframe=frame, config=config, error=None, path=str(path.parent)))
    grid.append(SimpleNamespace(metrics_dataframe=None, config={}, error=RuntimeError("boom\nat step 3"), path=""))
    experiment = from_result_grid(grid)
    assert_frame_equal(experiment.table, load_experiment([synthetic.write_run(tmp_path / "run", rows)]).table)
    assert experiment.notes == ("trial 12 of the result grid failed: boom at step 3",)
    with pytest.raises(UserError, match="holds no results"):
        from_result_grid(grid[-1:])


def test_runs_combine_and_a_shared_trial_counts_once(synthetic: ModuleType, tmp_path: Path) -> None:
    whole = synthetic.calibration(**SMALL)
    a = synthetic.write_run(tmp_path / "a", synthetic.calibration(**{**SMALL, "seeds": (0,)}, run_id="a"))
    again = synthetic.calibration(**SMALL, run_id="b")
    for row in again:
        row["train_seconds"] *= 2
    b = synthetic.write_run(tmp_path / "b", again)
    experiment = load_experiment([a, b, a])
    one = load_experiment([synthetic.write_run(tmp_path / "whole", whole)])
    timing = ["train_seconds", "run_id"]
    assert_frame_equal(experiment.table.drop(columns=timing), one.table.drop(columns=timing))
    assert experiment.notes == ("24 rows were there twice and count once.",)
    assert len(experiment.folders) == 2


def test_the_same_trial_in_two_phases_stays_in_both(synthetic: ModuleType, tmp_path: Path) -> None:
    a = synthetic.write_run(tmp_path / "a", synthetic.calibration(**SMALL))
    b = synthetic.write_run(tmp_path / "b", synthetic.calibration(**{**SMALL, "seeds": (0,)}, phase="confirm"))
    table = load_experiment([a, b]).table
    assert table.groupby("phase").size().to_dict() == {"calibrate": 48, "confirm": 24}


def test_the_same_trial_with_other_numbers_is_refused(synthetic: ModuleType, tmp_path: Path) -> None:
    a = synthetic.write_run(tmp_path / "a", synthetic.calibration(**SMALL))
    rows = synthetic.calibration(**SMALL)
    rows[5]["val_loss"] += 1e-6
    b = synthetic.write_run(tmp_path / "b", rows)
    message = refusal(a, b)
    assert "pydocs-L2_H2_D64-U4k-p0.20-s0" in message
    assert "metrics.jsonl, line 6" in message
    assert "leave one of the runs out" in message


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("regime", "owt"),
        ("evidence", "run"),
        ("validation_hash", "other"),
        ("tokenizer_hash", "other"),
        ("device", "cuda"),
        ("context", 256),
        ("learning_rate", 0.003),  # two folders without a config.json have no other mark of their protocol
    ],
)
def test_runs_that_must_not_be_mixed_are_refused_by_column(
    synthetic: ModuleType, tmp_path: Path, column: str, value: Any
) -> None:
    a = synthetic.write_run(tmp_path / "a", synthetic.calibration(**SMALL))
    rows = synthetic.calibration(**{**SMALL, "seeds": (2,)})
    b = synthetic.write_run(tmp_path / "b", [{**row, column: value} for row in rows])
    message = refusal(a, b)
    assert f"column {column!r}" in message
    assert str(value) in message
    assert "one by one" in message


def test_runs_under_two_protocols_are_refused(synthetic: ModuleType, tmp_path: Path) -> None:
    for name, seed, rate in (("a", 0, 0.01), ("b", 1, 0.003)):
        rows = synthetic.calibration(**{**SMALL, "seeds": (seed,)})
        config = {"scale": {"protocol": {"learning_rate": rate, "warmup_steps": 20}}}
        synthetic.write_run(tmp_path / name, rows, config=config)
    assert "protocol 'learning_rate' is 0.01" in refusal(tmp_path / "a", tmp_path / "b")


def test_a_longer_plan_of_the_same_trials_combines(synthetic: ModuleType, tmp_path: Path) -> None:
    """More read-outs make another trial id; what was measured at the shared read-outs is the same."""
    short = synthetic.write_run(tmp_path / "a", synthetic.calibration(**SMALL, readouts=(65_536,)))
    long = synthetic.write_run(tmp_path / "b", synthetic.calibration(**SMALL))
    table = load_experiment([short, long]).table
    assert table.groupby("sampled_tokens").size().tolist() == [12, 12, 12, 12]


def test_without_validation_hash_the_corpus_decides(synthetic: ModuleType, tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [{**row, "corpus_hash": name} for row in synthetic.calibration(**SMALL)]
        for row in rows:
            del row["validation_hash"]
        synthetic.write_run(tmp_path / name, rows)
    assert "column 'corpus_hash'" in refusal(tmp_path / "a", tmp_path / "b")


def test_two_devices_of_one_class_mix(synthetic: ModuleType, tmp_path: Path) -> None:
    rows = synthetic.calibration(**SMALL)
    for number, row in enumerate(rows):
        row["device"] = f"cuda:{number % 2}"
    assert len(load_experiment([synthetic.write_run(tmp_path, rows)]).table) == len(rows)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda lines: [*lines[:3], lines[3][:100]], "line 4: not JSON"),
        (lambda lines: [*lines, lines[2]], "line 49: repeats the read-out of line 3"),
        (lambda lines: [lines[0].replace('"val_loss":', '"val_loss": NaN, "was":')], "line 1: val_loss is nan"),
        (lambda lines: [lines[0].replace('"gap":', '"gap": -Infinity, "was":')], "line 1: gap is -inf"),
        (lambda lines: [lines[0].replace('"dropout":0.0', '"dropout": 1.5')], "line 1: dropout is 1.5"),
        (lambda lines: [lines[0].replace('"seed"', '"sd"')], "line 1: column 'seed' is missing"),
        (lambda lines: [lines[0], lines[1].replace('"schema":1', '"schema": 2')], "line 2: schema 2 is not 1"),
        (lambda lines: [lines[0].replace('"unique_tokens":4000', '"unique_tokens": 0')], "line 1: unique_tokens is 0"),
        (lambda lines: [lines[0].replace('"steps":', '"steps": 1' + "0" * 400)], "line 1: steps is too large"),
        (lambda lines: [lines[0].replace('"gap":', '"gap": 1' + "0" * 400 + ', "was":')], "line 1: gap is too large"),
        (lambda lines: ["[1, 2]"], "line 1: not a row of results"),
        (lambda lines: [], "has no rows yet"),
    ],
)
def test_a_damaged_table_is_refused_by_file_and_line(
    rows: list[dict[str, Any]], tmp_path: Path, change: Any, expected: str
) -> None:
    path = write_lines(tmp_path / "metrics.jsonl", change([encode_row(row) for row in rows]))
    message = refusal(tmp_path)
    assert expected in message
    assert str(path) in message


def test_places_that_hold_no_run_are_told(synthetic: ModuleType, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "holds neither" in refusal(tmp_path / "empty")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text("{}")
    assert "--resume" in refusal(tmp_path / "begun")
    run = synthetic.write_run(tmp_path / "regime" / "stamp", rows)
    assert str(run) in refusal(tmp_path / "regime")
    binary = tmp_path / "metrics.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(binary)


def test_damaged_companions_are_refused(synthetic: ModuleType, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path / "run", rows, config={})
    (run / "config.json").write_text("{")
    assert "config.json is damaged" in refusal(run)
    (run / "config.json").write_text("[]")
    assert "config.json is not a JSON object" in refusal(run)
    (run / "config.json").unlink()
    (run / "results.tsv").write_text("trial\tval_bpb\n")
    assert "results.tsv, line 1: column 'memory_gb' is missing" in refusal(run)


def test_the_newest_run_is_the_one_written_last(
    synthetic: ModuleType, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no run under"):
        newest_run(tmp_path)
    old = synthetic.write_run(tmp_path / "b" / "2", rows[:4])
    new = synthetic.write_run(tmp_path / "a" / "1", rows[:4])
    os.utime(old / "metrics.jsonl", ns=(1, 1))
    assert newest_run(tmp_path) == new


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, analysis, analysis.tables\n"
        "heavy = [n for n in ('torch', 'ray', 'matplotlib', 'scipy', 'optuna') if n in sys.modules]\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

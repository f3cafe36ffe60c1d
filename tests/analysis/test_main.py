"""The command: exit codes, one line for what the user can mend, and no torch or Ray anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests_support import REFUSE_TORCH_AND_RAY

from analysis.__main__ import main


def write_small(synthetic: ModuleType, folder: Path) -> Path:
    rows = synthetic.calibration(prefixes=(8_000,), readouts=(262_144,), dropouts=(0.0, 0.2, 0.4), seeds=(0, 1))
    run: Path = synthetic.write_run(folder, rows)
    return run


def test_the_whole_command_works_where_neither_torch_nor_ray_can_be_imported(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    run = write_small(synthetic, tmp_path / "ray_results" / "pydocs-calibrate-pocket" / "2026-01-01_00-00-00")
    command = "from analysis.__main__ import main\nsys.exit(main(['--bootstrap', '50', '--optuna']))"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", REFUSE_TORCH_AND_RAY + command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"Report: {run / 'report.html'}" in done.stdout
    assert "Best dropout per cell with 95 % interval, calibrate; gain over p = 0 in nats (rehearsal)" in done.stdout
    assert "\x1b" not in done.stdout  # plain where nobody looks
    assert done.stderr == ""
    assert (run / "optuna.db").is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["absent"], "does not exist"),
        (["--storage", "absent"], "no run under absent"),
        (["run", "--law", "interaction"], "rank"),
        (["run", "--margin", "-1"], "margin"),
        (["run", "--bootstrap", "0"], "--bootstrap"),
        (["run", "--seed", "-1"], "--seed -1 must not be negative"),
        (["run", "--bootstrap", "many"], "invalid int value: 'many'"),
        (["run", "--law", "cubic"], "invalid choice: 'cubic'"),
        (["run", "--unknown"], "--unknown"),
        (["advise"], "--params"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_2(
    synthetic: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = synthetic.calibration(prefixes=(8_000,), readouts=(196_608,), seeds=(0, 1))
    synthetic.write_run(tmp_path / "run", rows)
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert expected in captured.err
    assert sorted(tmp_path.rglob("*")) == before  # nothing half-written


def test_ctrl_c_is_one_line_and_130(
    synthetic: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("analysis.report.analyse", interrupt)
    assert main([str(write_small(synthetic, tmp_path / "run"))]) == 130
    assert capsys.readouterr().err == "interrupted: give the command again\n"


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_kept_as_evidence_is_read_elsewhere(
    count: int, synthetic: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = "pydocs-calibrate-pocket"
    first = write_small(synthetic, tmp_path / "saved" / group / "20260101-000000")
    runs = [first, shutil.copytree(first, first.with_name("20260102-000000"))][:count]
    before = sorted((tmp_path / "saved").rglob("*"))
    assert main([*map(str, runs), "--no-report", "--bootstrap", "50"]) == 0
    out = tmp_path / "read" / group / (first.name if count == 1 else "combined")
    assert f"Tables: {out}" in capsys.readouterr().out
    assert (out / "model_selection.csv").is_file()
    assert sorted((tmp_path / "saved").rglob("*")) == before


def test_no_report_writes_tables_only(
    synthetic: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_small(synthetic, tmp_path / "run")
    assert main([str(run), "--no-report", "--bootstrap", "50", "--out", str(tmp_path / "out")]) == 0
    assert f"Tables: {tmp_path / 'out'}" in capsys.readouterr().out
    assert (tmp_path / "out" / "model_selection.csv").is_file()
    assert not (tmp_path / "out" / "report.html").exists()
    assert not (tmp_path / "out" / "figures").exists()

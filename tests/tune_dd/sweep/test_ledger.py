"""The ledger: which trials are worth keeping, and that it is written whatever else cannot be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from tests_support import spec

from tune_dd import artifacts, journal
from tune_dd.sweep import plan as planning
from tune_dd.sweep.__main__ import main
from tune_dd.sweep.ledger import _is_worth_keeping
from tune_dd.sweep.runs import RunFolder
from tune_dd.trial import Stage


def test_a_trial_is_kept_for_a_cell_that_it_feeds() -> None:
    columns = ["model", "unique_tokens", "sampled_tokens", "plateau_low", "plateau_high"]
    cells = [("L1_H2_D16", 400, 640, 0.1, 0.3), ("L1_H2_D16", 400, 2560, 0.3, 0.5)]
    result: Any = SimpleNamespace(search=None, selection=pd.DataFrame(cells, columns=columns))
    first, extended = spec(stages=(Stage(400, 0.2, (10, 20)),)), spec(stages=(Stage(400, 0.2, (40,)),))
    assert _is_worth_keeping(first, result)
    assert not _is_worth_keeping(extended, result)  # its dropout lies on the plateau of the earlier cell alone


@pytest.fixture
def run(tiny_regime: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A finished search of two trials."""
    monkeypatch.chdir(tiny_regime.parent)
    assert main([tiny_regime.name, "--device", "cpu", "--prefixes", "400"]) == 0
    (path,) = Path("ray_results/tiny-calibrate-full").iterdir()
    return RunFolder(path.absolute())


def test_crashes_that_leave_one_dropout_are_no_error(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["--extend", str(run.path), "--seeds", "1,2", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "4 of these trials are still to be trained" in plan
    assert "time         cpu: about" in plan

    _, specs = planning.from_config(run.config(), run.path)
    crashed = next(trial for trial in specs if trial.stages[0].dropout > 0)
    journal.record_crash(run.journals, crashed, "made to fail", 3)
    journal.journal_path(run.journals, crashed.trial_id).unlink()
    for name in (artifacts.LEDGER, artifacts.REPORT):
        (run.path / name).unlink()
    assert main(["--resume", str(run.path)]) == 3
    told = capsys.readouterr()
    assert "beside the crashed trials there is too little to analyse: every cell has one dropout only" in told.out
    assert told.err == ""
    assert [line.split("\t")[3] for line in (run.path / artifacts.LEDGER).read_text().splitlines()[1:]] == [
        "keep",
        "crash",
    ]

    from tune_dd.sweep.chain import _crashed

    assert (_crashed("screen", run), _crashed("calibrate", run)) == (0, 1)
    assert main(["--resume", str(run.path), "--retry-crashed"]) == 0
    assert "1 of these trials are still to be trained" in capsys.readouterr().out
    assert (run.path / artifacts.REPORT).exists()

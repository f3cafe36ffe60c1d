"""Which search --resume means where none is named."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests_support import assert_refused

from tune_dd import artifacts
from tune_dd.errors import UserError
from tune_dd.sweep import command
from tune_dd.sweep.__main__ import main
from tune_dd.sweep.chain_file import Chain
from tune_dd.sweep.find import find_run, name_search
from tune_dd.sweep.options import parse
from tune_dd.sweep.phases import DECISION
from tune_dd.sweep.runs import RunFolder

CONFIG: dict[str, Any] = {"schema": artifacts.SCHEMA, "regime": {"name": "owt"}, "n_trials": 4}


def begin(storage: Path, phase: str, name: str, regime: str = "owt") -> Path:
    run = RunFolder(storage / f"{regime}-{phase}-pocket" / name)
    run.journals.mkdir(parents=True)
    run.write_config(CONFIG | {"phase": phase})
    return run.path


def begin_chain(storage: Path, name: str, runs: dict[str, Path]) -> Chain:
    path = storage / "owt-all-pocket" / name
    path.mkdir(parents=True)
    chain = replace(Chain.of(parse(["owt", "--scale", "pocket", "--device", "cpu", "--phase", "all"])), path=path)
    for phase, run in runs.items():
        chain.begin(phase, run)
    return chain


def meant(storage: Path, *words: str) -> tuple[str, str]:
    args = name_search(parse(list(words)), storage)
    return args.phase, args.resume


def test_the_newest_unfinished_search_of_the_regime_whatever_its_phase(tmp_path: Path) -> None:
    begin(tmp_path, "calibrate", "1")
    screen = begin(tmp_path, "screen", "2")
    begin(tmp_path, "screen", "9", regime="pydocs")
    assert meant(tmp_path, "owt", "--resume") == ("calibrate", str(screen))
    assert find_run(name_search(parse(["owt", "--resume"]), tmp_path), tmp_path).path == screen

    # A run of a chain goes on as a part of it.
    confirm = begin(tmp_path, "confirm", "4")
    chain = begin_chain(tmp_path, "3", {"confirm": confirm})
    assert meant(tmp_path, "owt", "--resume") == ("all", str(chain.path))
    chain.finished = True
    chain.write()
    done = RunFolder(confirm)
    done.write_config(done.config() | {"n_trials": 0})
    for name in (artifacts.REPORT, DECISION):
        (confirm / name).touch()
    assert meant(tmp_path, "owt", "--resume") == ("calibrate", str(screen))

    with pytest.raises(UserError, match="no unfinished run owt-"):
        name_search(parse(["owt", "--resume", "--scale", "full"]), tmp_path)


def test_a_phase_that_is_named_is_the_one_that_is_meant(tmp_path: Path) -> None:
    calibrate = begin(tmp_path, "calibrate", "1")
    begin(tmp_path, "screen", "2")
    args = name_search(parse(["owt", "--resume", "--phase", "calibrate"]), tmp_path)
    assert find_run(args, tmp_path).path == calibrate


def test_a_chain_s_folder_says_that_it_is_one(tmp_path: Path) -> None:
    chain = begin_chain(tmp_path, "1", {})
    chain.write()
    assert meant(tmp_path, "--resume", str(chain.path)) == ("all", str(chain.path))


def test_ctrl_c_before_there_is_a_run_promises_nothing(
    tiny_regime: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_regime.parent)

    def interrupt(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(command, "measure_hours", interrupt)
    assert main([tiny_regime.name, "--device", "cpu"]) == 130
    told = capsys.readouterr()
    assert "--resume" not in told.out + told.err
    assert not Path("ray_results").exists()


def test_another_phase_than_the_run_s_is_refused(
    tiny_regime: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_regime.parent)
    assert main([tiny_regime.name, "--device", "cpu", "--seeds", "0", "--prefixes", "400"]) == 0
    (path,) = Path("ray_results/tiny-calibrate-full").iterdir()
    capsys.readouterr()
    for option in ("--resume", "--extend"):
        message = "is a run of --phase calibrate, not stream: leave --phase out"
        assert_refused([option, str(path), "--phase", "stream"], message, capsys)
    assert main(["--resume", str(path), "--phase", "calibrate"]) == 0

"""What --list and --clean say, on terminals of every width and of folders of every name."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tune_dd import artifacts
from tune_dd.console import Console
from tune_dd.sweep.__main__ import main
from tune_dd.sweep.chain import list_chains
from tune_dd.sweep.chain_file import Chain
from tune_dd.sweep.manage import list_runs
from tune_dd.sweep.runs import RunFolder, hold


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One run and one chain, none of whose trials was trained."""
    monkeypatch.chdir(tmp_path)
    storage = tmp_path / "q [v2]"
    run = RunFolder(storage / "owt-calibrate-pocket" / "20260101-000000")
    run.journals.mkdir(parents=True)
    config = {"schema": artifacts.SCHEMA, "regime": {"name": "owt"}, "phase": "calibrate", "n_trials": 24}
    run.write_config(config | {"created": "2026-01-01T00:00:00"})
    chain = storage / "owt-all-pocket" / "20260101-000000"
    chain.mkdir(parents=True)
    runs = {"calibrate": "../../owt-calibrate-pocket/20260101-000000"}
    Chain(chain, ["owt", "--scale", "pocket"], [], None, None, runs, []).write()
    return storage


def test_folders_are_named_as_they_were_given(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--storage", "none [v2]"]) == 0
    assert f"no runs under {storage.parent / 'none [v2]'}" in capsys.readouterr().out
    run = "q [v2]/owt-calibrate-pocket/20260101-000000"
    with hold(RunFolder(storage.parent / run)):
        assert main(["--storage", "q [v2]", "--clean"]) == 0
    assert f"{run} is being searched: left as it is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "left_out"),
    [
        (["--clean", "--dry-run"], "--dry-run"),
        (["owt", "--clean"], "owt"),
        (["pydocs", "--resume", "--clean"], "pydocs"),
        (["--clean", "--phase", "stream"], "--phase"),
        (["--clean", "--from", "x"], "--from"),
        (["--list", "--clean"], "--list"),
        (["--list", "--keep-weights"], "--keep-weights"),
        (["--list", "owt"], "owt"),
    ],
)
def test_what_list_and_clean_do_not_heed_is_refused(
    storage: Path, words: list[str], left_out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(storage.rglob("*"))
    assert main([*words, "--storage", str(storage)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f": leave {left_out} out")
    assert sorted(storage.rglob("*")) == before


def test_a_chain_without_a_run_s_journals_is_refused_and_left_as_it_is(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = storage.glob("owt-calibrate-*/*")
    (run / artifacts.METRICS).write_text("{}\n")
    before = sorted(storage.rglob("*"))
    assert main(["--phase", "all", "--resume", str(next(storage.glob("owt-all-*/*")))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run} is a saved copy or has lost its journals" in line
    assert sorted(storage.rglob("*")) == before


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_listed_run_is_one_line_whatever_the_terminal(storage: Path, width: int) -> None:
    file = io.StringIO()
    console = Console(width=width, file=file)
    list_runs(storage, console)
    list_chains(storage, console)
    head, run, _, chain = file.getvalue().splitlines()
    assert head.split() == ["run", "regime", "phase", "trials", "crashed", "size", "age", "state"]
    assert run.startswith("q [v2]/owt-calibrate-pocket/20260101-000000 ")
    assert "  0 / 24  " in run
    assert run.rstrip().endswith("resumable")
    assert chain.startswith("q [v2]/owt-all-pocket/20260101-000000 ")
    assert chain.rstrip().endswith("resumable")

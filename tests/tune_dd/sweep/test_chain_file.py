"""What a chain remembers, and that it is found and goes on wherever it is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests_support import TINY_REGIME, assert_refused, synthetic_text

from tune_dd import artifacts
from tune_dd.builtin_regimes import REGIMES
from tune_dd.sweep.__main__ import main
from tune_dd.sweep.chain import run_chain
from tune_dd.sweep.chain_file import Chain
from tune_dd.sweep.options import choose_regime, parse

BEGUN = ["tiny.toml", "--scale", "full", "--device", "cpu", "--phase", "all"]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the tiny regime and its text."""
    folder = tmp_path / "a study [v2]"
    folder.mkdir()
    (folder / "text.txt").write_text(synthetic_text(120))
    (folder / "tiny.toml").write_text(TINY_REGIME)
    monkeypatch.chdir(folder)
    return folder


def begun(folder: Path, *options: str, name: str = "20260101-000000") -> Chain:
    path = folder / "ray_results" / "tiny-all-full" / name
    path.mkdir(parents=True)
    chain = replace(Chain.of(parse([*BEGUN, *options])), path=path)
    chain.write()
    return chain


def test_a_decision_holds_once_a_phase_was_begun_on_it(tmp_path: Path) -> None:
    state = Chain(tmp_path, [], [], None, None, {}, [])
    assert state.decide("screen", None, "crashed")["chosen"] is None
    assert state.decide("screen", "L1_H2_D32", "taken up again")["chosen"] == "L1_H2_D32"
    state.begin("confirm", tmp_path / "run")
    assert state.decide("screen", "L2_H2_D64", "taken up again")["chosen"] == "L1_H2_D32"
    assert [entry["chosen"] for entry in Chain.read(tmp_path).decisions] == ["L1_H2_D32"]
    assert state.decide("screen", "L2_H2_D64", "again")["reason"] == "taken up again"


def test_a_decision_is_told_anew_where_its_reason_has_changed(tmp_path: Path) -> None:
    state = Chain(tmp_path, [], [], None, None, {}, [])
    state.decide("law", "interaction", "from 3 cells")
    assert state.decide("law", "interaction", "from 4 cells")["reason"] == "from 4 cells"
    state.begin("stream", tmp_path / "run")
    assert state.decide("law", "interaction", "from 5 cells")["reason"] == "from 4 cells"


def test_runs_are_found_through_a_linked_folder(tmp_path: Path) -> None:
    run = tmp_path / "storage" / "tiny-screen-full" / "1"
    run.mkdir(parents=True)
    (tmp_path / "disk" / "of" / "chains" / "2").mkdir(parents=True)
    (tmp_path / "storage" / "tiny-all-full").symlink_to(tmp_path / "disk" / "of" / "chains")
    state = Chain(tmp_path / "storage" / "tiny-all-full" / "2", [], [], None, None, {}, [])
    state.begin("screen", run)
    assert Chain.read(state.path).run("screen") == run.resolve()


def test_a_chain_of_a_former_version_is_read(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = begun(study)
    data = artifacts.read_json(state.path / "chain.json")
    artifacts.write_json(state.path / "chain.json", {k: v for k, v in data.items() if k not in ("law", "folder")})
    former = Chain.read(state.path)
    assert (former.law, former.words) == (None, state.options)
    assert main(["--list"]) == 0
    assert "damaged" not in capsys.readouterr().out


def test_a_chain_goes_on_from_another_folder(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = begun(study)
    assert state.words == state.options  # where it was begun
    monkeypatch.chdir(tmp_path)
    words = Chain.read(state.path).words
    assert words[0] == str(study / "tiny.toml")
    assert words[words.index("--cache-dir") + 1] == str(study / ".cache/dropout_decay_tiny")
    assert words[words.index("--storage") + 1] == str(study / "ray_results")
    assert main(["--phase", "all", "--resume", str(state.path), "--dry-run"]) == 0
    told = "".join(capsys.readouterr().out.split())  # lines are folded
    assert "".join(f"its cache would be {study}".split()) in told

    monkeypatch.chdir(study)
    named = parse(["tinystories", "--device", "cpu", "--phase", "all", "--corpus", "text.txt"])
    built_in = parse(["tinystories", "--device", "cpu", "--phase", "all"])
    texts = []
    for args in (named, built_in):
        chain = Chain.of(args)
        monkeypatch.chdir(tmp_path)
        texts += choose_regime(parse(chain.words)).corpus.globs
        monkeypatch.chdir(study)
    (pattern,) = REGIMES["tinystories"].corpus.globs
    assert texts[0] == str(study / "text.txt")
    assert texts[1].endswith(pattern)
    assert Path(texts[1]).is_absolute()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda"], 'device: "cpu" -> "cuda"'),
        (["--scale", "pocket"], 'scale: "full" -> "pocket"'),
        (["pydocs"], 'regime: "tiny" -> "pydocs"'),
    ],
)
def test_a_resumed_chain_keeps_its_plan(
    options: list[str], message: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = begun(study)
    assert_refused(["--phase", "all", "--resume", str(state.path), *options], message, capsys)


def test_ctrl_c_in_a_plan_names_the_chain_where_there_is_one(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tune_dd.console import Console

    def interrupted(words: list[str], begun: object) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_chain(parse(BEGUN), Console(), interrupted)
    assert not Path("ray_results").exists()
    state = begun(study)
    assert run_chain(parse(["--phase", "all", "--resume", str(state.path)]), Console(), interrupted) == 130
    assert state.resume_command in capsys.readouterr().out

"""What is asked of a text before anything is trained on it."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from tests_support import TINY_REGIME, assert_refused, synthetic_text

from tune_dd.builtin_regimes import POCKET
from tune_dd.console import Console
from tune_dd.corpus import Corpus
from tune_dd.errors import UserError
from tune_dd.sweep.__main__ import main
from tune_dd.sweep.options import choose_plan, choose_regime, parse
from tune_dd.sweep.runs import RunFolder
from tune_dd.sweep.text import identify, prepare, same_text


def corpus(n_validation: int) -> Corpus:
    tokens = np.arange(100 + n_validation, dtype=np.uint16)
    return Corpus(Path(), tokens, 100, n_validation, np.ones(1, np.int64), "c", "t", {})


def test_evaluation_tokens_are_whole_windows() -> None:
    scale = replace(POCKET, eval_tokens=8_000, validation_tokens=20_000)  # 62 windows of 128 and a remainder
    assert identify(corpus(20_000), scale) == identify(corpus(20_000), replace(scale, eval_tokens=62 * 128))
    identify(corpus(62 * 128 + 1), scale)
    with pytest.raises(UserError, match=r"7,936 tokens, .* need 7,937: .* a larger validation_fraction or fewer eval"):
        identify(corpus(62 * 128), scale)
    with pytest.raises(UserError, match=r"7,936 tokens, .* need 7,937: give a regime file with more validation_tokens"):
        identify(corpus(7_936), replace(scale, eval_tokens=7_936, validation_tokens=7_936))


@pytest.fixture
def short_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A regime whose text is enough for its grid and too short for its stream."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(synthetic_text(60))
    regime = TINY_REGIME.replace("prefixes = [400, 800]", "prefixes = [400, 800]\nstream_prefixes = [400, 900_000]")
    path = tmp_path / "tiny.toml"
    path.write_text(regime.replace("train_tokens = 4000", "train_tokens = 900_000"))
    return path


def test_a_chain_asks_for_the_tokens_of_its_stream_before_it_trains(
    short_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = [short_text.name, "--device", "cpu", "--phase", "all"]
    assert_refused(chain, "fewer than the 900,000 of the stream that --phase all ends with", capsys)
    assert main([*chain, "--dry-run"]) == 0
    assert "the stream reads 900,000 training tokens" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("option", ["--corpus", "--corpus-glob"])
def test_a_dry_run_looks_for_the_files_that_are_named(
    option: str, tiny_regime: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_regime.parent)
    plan = [tiny_regime.name, "--device", "cpu", "--dry-run", option]
    assert_refused([*plan, "no/such/file.txt"], "there is no file no/such/file.txt", capsys)
    Path("empty.txt").touch()
    assert_refused([*plan, "empty.txt"], "empty.txt is empty", capsys)
    assert main([*plan, "text.txt"]) == 0
    # The cache would be read, and the file recorded as what was.
    assert_refused([*plan, "text.txt", "--use-cached-data"], f"whatever {option} says: leave one of them out", capsys)


def test_a_run_is_told_to_restore_its_text_and_not_to_name_another(
    tiny_regime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = parse(["tiny.toml", "--device", "cpu"])
    plan = choose_plan(args, choose_regime(args))
    console, run = Console(), RunFolder(tmp_path / "run")
    built = prepare(plan, tmp_path / "cache", use_cached=False, console=console)
    data = identify(built, plan.scale)
    config = {"data": asdict(data) | {"manifest": built.manifest}}
    known = same_text(config, plan, tmp_path / "cache", run, console, build=True)
    assert known is not None
    assert identify(known, plan.scale) == data
    shutil.rmtree(tmp_path / "cache")
    text = tiny_regime.with_name("text.txt")
    again = r"has changed or gone: restore its sources \(text\.txt\), or start a new run$"
    for written in (synthetic_text(120).upper(), synthetic_text(1), None):
        text.unlink() if written is None else text.write_text(written)
        with pytest.raises(UserError, match=again):
            same_text(config, plan, tmp_path / "cache", run, console, build=True)
    # What is wrong with something else keeps its own remedy.
    text.write_text(synthetic_text(120))
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="cache") as caught:
        same_text(config, plan, tmp_path / "cache", run, console, build=True)
    assert "restore its sources" not in str(caught.value)

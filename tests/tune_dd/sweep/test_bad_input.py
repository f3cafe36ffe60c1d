"""Every failure a user can cause before a search: one line, exit code 2, nothing left behind."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import pytest
from tests_support import TINY_REGIME, synthetic_text

from tune_dd.regime_file import parse_tokens, pattern_below
from tune_dd.sweep.__main__ import main


def refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """Run the command in this process; returns its one line on standard error."""
    assert main(argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nonsense"], "unknown regime 'nonsense'"),
        ([], "name a regime"),
        (["owt", "--wrong"], "unrecognized arguments: --wrong"),
        (["owt", "--scale", "huge"], "--scale"),
        (["owt", "--device", "tpu"], "--device"),
        (["owt", "--device", "cpu", "--phase", "search"], "--phase search needs the law"),
        (["owt", "--device", "cpu", "--phase", "stream"], "give --coefficients RUN"),
        (["owt", "--device", "cpu", "--phase", "stream", "--coefficients", "nowhere.json"], "nowhere.json is missing"),
        (["owt", "--phase", "stream", "--readouts", "1M"], "--readouts has no meaning in --phase stream"),
        (["owt", "--stage-steps", "5"], "--stage-steps has no meaning in --phase calibrate"),
        (["owt", "--transfer"], "name it with --coefficients"),
        (["owt", "--resume", "--coefficients", "x"], "keeps the law"),
        (["owt", "--phase", "dance"], "--phase 'dance' is unknown"),
        (["owt", "--devices", "0"], "--devices 0"),
        (["owt", "--devices", "999", "--device", "cpu"], "--devices 999"),
        (["owt", "--device", "cpu", "--dropouts", "0,1.0"], "outside"),
        (["owt", "--device", "cpu", "--dropouts", "0,nan"], "outside"),
        (["owt", "--device", "cpu", "--dropouts", "0,0.1,0.1"], "duplicates"),
        (["owt", "--device", "cpu", "--dropouts", "-0.1,0.2"], "expected one argument"),
        (["owt", "--device", "cpu", "--dropouts=-0.1,0.2"], "outside"),
        (["owt", "--device", "cpu", "--dropouts", "low"], "give numbers"),
        (["owt", "--device", "cpu", "--dropouts", "0.1"], "name at least two"),
        (["--resume", "x", "--corpus", "y.txt"], "--corpus: a run keeps the text"),
        (["--extend", "x", "--device", "cpu"], "leave --scale"),
        (["--resume", "x", "--extend", "y"], "give one of them"),
        (["owt", "--retry-crashed"], "--retry-crashed goes with --resume"),
        (["owt", "--device", "cpu", "--dropouts", ","], "--dropouts is empty"),
        (["owt", "--device", "cpu", "--prefixes", "2M,1M"], "must increase"),
        (["owt", "--device", "cpu", "--prefixes", "many"], "--prefixes: 'many' is not a count"),
        (["owt", "--device", "cpu", "--readouts", "1M,1M"], "must increase"),
        (["owt", "--device", "cpu", "--seeds", "0,0"], "--seeds"),
        (["owt", "--device", "cpu", "--seeds", "²"], "--seeds ²: give distinct whole numbers"),
        (["owt", "--device", "cpu", "--seeds", "9" * 23], "from 0 to 2^63 - 1"),
        (["owt", "--device", "cpu", "--models", "L2_H3_D64"], "do not divide"),
        (["owt", "--device", "cpu", "--models", "big"], "of the form"),
        (["owt", "--device", "cpu", "--models", "L1_H2_D32,L1_H2_D32"], "has duplicates: name each once"),
        (["owt", "--device", "cpu", "--prefixes", "1.00001k"], "is not a count of tokens"),
        (["owt", "--corpus", "a", "--corpus-glob", "b"], "twice"),
        (["owt", "--quick", "--scale", "full", "--corpus", "x"], "--quick is the pocket scale"),
        (["owt", "--device", "cpu"], "data/openwebtext10k"),
        (["owt", "--device", "cpu", "--corpus", "missing.txt"], "missing.txt"),
        (["owt", "--device", "cpu", "--use-cached-data"], "cache"),
        (["missing.toml"], "does not exist"),
        (["owt", "--resume"], "no unfinished run"),
        (["--resume", "nowhere"], "there is no run nowhere"),
        (["owt", "--device", "cpu", "--hang-timeout", "0"], "--hang-timeout"),
        (["owt", "--device", "cpu", "--hang-timeout", "nan"], "--hang-timeout"),
        (["owt", "--device", "cpu", "--hang-timeout", "inf"], "--hang-timeout inf must be above 0 seconds and finite"),
        (["owt", "--device", "cpu", "--prefixes", "9" * 400], "is not a count"),
    ],
)
def test_one_line_and_nothing_left(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, options)
    assert [p.name for p in tmp_path.iterdir() if p.name != ".cache"] == []
    assert list(tmp_path.glob(".cache/*/*.npy")) == []


def test_mps_is_the_default_and_is_never_replaced_in_silence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    if torch.backends.mps.is_available():
        pytest.skip("this machine has MPS")
    line = refused(capsys, ["owt"])
    assert "MPS" in line
    assert "python -m tune_dd.sweep owt --device cpu --scale pocket" in line
    Path("my tiny.toml").write_text(TINY_REGIME)
    assert "python -m tune_dd.sweep 'my tiny.toml' --device cpu --scale pocket" in refused(capsys, ["my tiny.toml"])
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    assert "PYTORCH_ENABLE_MPS_FALLBACK=1" in refused(capsys, ["owt"])


CORPORA = {
    "empty": b"",
    "binary": bytes(range(256)) * 50,
    "not UTF-8": "é".encode("latin-1") * 500,
}


@pytest.mark.parametrize("kind", CORPORA)
def test_a_corpus_that_is_no_text(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_bytes(CORPORA[kind])
    Path("tiny.toml").write_text(TINY_REGIME)
    line = refused(capsys, ["tiny.toml", "--device", "cpu"])
    assert ("is empty" if kind == "empty" else "text.txt") in line
    assert not Path("ray_results").exists()


def test_a_folder_of_texts_may_hold_other_files_and_have_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("my [texts]")
    folder.mkdir()
    (folder / "a.txt").write_text(synthetic_text(120))
    (folder / "README.md").write_text("what these are")
    Path("tiny.toml").write_text(TINY_REGIME)
    options = ["--corpus", str(folder), "--prefixes", "400,900k"]  # refused after the text was read
    assert "900,000" in refused(capsys, ["tiny.toml", "--device", "cpu", *options])


def test_fewer_tokens_than_the_largest_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_text(synthetic_text(60))
    Path("tiny.toml").write_text(TINY_REGIME)
    line = refused(capsys, ["tiny.toml", "--device", "cpu", "--prefixes", "400,900k"])
    assert "900,000" in line or "900000" in line


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("vocab_size = 300", "vocab_size = 256", "vocab_size 256"),
        ("vocab_size = 300", "vocab_size = 70000", "vocab_size 70000"),
        ("vocab_size = 300", "vocab_size = true", "not a whole number"),
        ('name = "tiny"', 'name = "../up"', "regime name"),
        ('name = "tiny"', 'name = "owt"', "built-in"),
        ('name = "tiny"', 'name = ["tiny"]', "name: ['tiny'] is not text"),
        ('name = "tiny"', 'name = "tiny"\ntitle = 1', "title: 1 is not text"),
        ('separator = "\\n\\n"', "separator = 5", "corpus.separator: 5 is not text"),
        ("[corpus]", '[corpus]\nvalidation_fraction = "half"', "corpus.validation_fraction: 'half' is not a number"),
        ("seeds = [0]", "seeds = [0]\ncolour = 1", "unknown key 'colour'"),
        ("seeds = [0]", "", "lacks the key 'seeds'"),
        ("prefixes = [400, 800]", "prefixes = [800, 400]", "prefixes"),
        ("dropouts = [0.0, 0.2]", "dropouts = [0.0, nan]", "dropout"),
        ("warmup_steps = 3", "warmup_steps = 3\nweight_decay = inf", "weight_decay=inf must be finite"),
        ("warmup_steps = 3", f"warmup_steps = 3\nweight_decay = 0x{'f' * 300}", "the number is too large"),
        ("seeds = [0]", "seeds = [0]\nanchors = {slow = [nan, 0.1]}", "anchors slow: dropout nan is outside"),
        ('models = ["L1_H2_D16"]', 'models = ["L1_H3_D16"]', "do not divide"),
        ("[corpus]", "[corpus", "cannot be read as TOML"),
        ('globs = ["text.txt"]', "", "needs globs"),
    ],
)
def test_a_regime_file_names_the_key_that_is_wrong(
    old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in TINY_REGIME
    Path("tiny.toml").write_text(TINY_REGIME.replace(old, new))
    line = refused(capsys, ["tiny.toml", "--device", "cpu", "--dry-run"])
    assert message in line
    assert "tiny.toml" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_storage_folder(tiny_regime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked = Path("locked")
    locked.mkdir(mode=0o500)
    line = refused(capsys, [str(tiny_regime), "--device", "cpu", "--storage", "locked/runs"])
    assert "--storage" in line


def test_a_model_larger_than_the_memory(tiny_regime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    too_large = [str(tiny_regime), "--device", "cpu", "--models", "L1_H8_D8000000000"]
    assert main([*too_large, "--dry-run"]) == 0
    assert "cpu: not measured here (its memory does not hold a step)" in capsys.readouterr().out
    assert "cpu: its memory does not hold a step: choose smaller --models" in refused(capsys, too_large)
    assert not Path("ray_results").exists()


def test_a_storage_folder_that_is_a_file(tiny_regime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("x")
    line = refused(capsys, [str(tiny_regime), "--device", "cpu", "--storage", "file/runs"])
    assert "--storage" in line


def test_the_example_regime_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    from tests_support import REPOSITORY

    example = REPOSITORY / "examples" / "my_corpus.toml"
    assert main([str(example), "--device", "cpu", "--scale", "pocket", "--dry-run"]) == 0
    assert "my_corpus" in capsys.readouterr().out


def test_counts_with_decimals_are_what_they_say() -> None:
    told = {"4.1M": 4_100_000, "8.05k": 8_050, "1.001k": 1_001, "64.1k": 64_100, "1.5M": 1_500_000, "65536": 65_536}
    assert {text: parse_tokens(text, "--prefixes") for text in told} == told


def test_a_folder_s_name_is_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "texts [v2]"
    folder.mkdir()
    (folder / "a [1].txt").write_text(synthetic_text(120))
    (folder / "b.txt").write_text(synthetic_text(120, seed=1))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "c.txt").write_text(synthetic_text(120, seed=2))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for pattern, n_files in (("*.txt", 2), ("a [1].txt", 1), ("b.txt", 1), ("~/*.txt", 1), (str(folder / "b.txt"), 1)):
        found = glob.glob(pattern_below(folder, pattern))  # noqa: PTH207
        exact = [pattern_below(folder, pattern)] if Path(pattern_below(folder, pattern)).exists() else found
        assert len(exact) == n_files, pattern

"""A law carried from one text to another by what both are measured to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.advise import read_coefficients
from analysis.bakeoff import ANOTHER, CARRIED, judge_cells, sort_runs
from analysis.carry import BIGRAM_SLOPE, Text, carry, read_text, unique_scale
from analysis.coefficients import Coefficients, fit_law
from analysis.tables import load_experiment
from tune_dd.artifacts import write_json
from tune_dd.corpus.prepare import prepare_corpus
from tune_dd.errors import UserError
from tune_dd.regimes import CorpusSource, ModelSpec

HERE = Text("pydocs", 3.6, 2_000_000, 200_000, 512, "docstrings-tokenizer", "docstrings-corpus")
# A text of which a token counts for two of the other's.
THERE = Text("owt", 3.6 - np.log10(2) / BIGRAM_SLOPE, 2_000_000, 200_000, 512, "web-tokenizer", "web-corpus")
INNER, MODELS = (4_000, 8_000, 16_000, 32_000), (ModelSpec(1, 2, 32), ModelSpec(2, 2, 64))


def config_of(text: Text, run_id: str) -> dict[str, Any]:
    counted = {"val_loss": text.bigram_loss, "train_tokens": text.train_tokens, "val_tokens": text.val_tokens}
    manifest = {"bigram": counted, "settings": {"vocab_size": text.vocab_size}}
    data = {"manifest": manifest, "tokenizer_hash": text.tokenizer_hash, "corpus_hash": text.corpus_hash}
    return {"run_id": run_id, "regime": {"name": text.regime}, "scale_name": "pocket", "data": data}


@pytest.fixture(scope="module")
def run(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration of two sizes, with its coefficients."""
    folder = tmp_path_factory.mktemp("here")
    rows = synthetic.calibration(prefixes=INNER, models=MODELS)
    synthetic.write_run(folder, rows, config=config_of(HERE, "synthetic"))
    table = load_experiment([folder]).table
    write_json(folder / "coefficients.json", fit_law(None, table, law="onset", n_bootstrap=60).to_dict())
    return folder


@pytest.fixture(scope="module")
def fitted(run: Path) -> Coefficients:
    return read_coefficients(run)


def test_the_scale_is_a_power_of_the_difference_in_loss() -> None:
    assert unique_scale(HERE, THERE) == pytest.approx(2.0)
    assert unique_scale(THERE, HERE) == pytest.approx(0.5)
    assert unique_scale(HERE, HERE) == 1.0
    for other in (replace(THERE, vocab_size=4_096), replace(THERE, train_tokens=500_000)):
        with pytest.raises(UserError, match="bigram losses do not compare"):
            unique_scale(HERE, other)


def test_a_carried_law_says_of_u_what_the_law_says_of_its_multiple(fitted: Coefficients) -> None:
    carried = carry(fitted, HERE, THERE)
    cells = (163_840, np.array([3_000, 12_000]), 262_144)
    doubled = (163_840, np.array([6_000, 24_000]), 262_144)
    np.testing.assert_allclose(carried.predict(*cells), fitted.predict(*doubled), rtol=1e-9)
    for mine, other in zip(carried.interval(*cells), fitted.interval(*doubled), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-9)
    assert (carried.regime, carried.tokenizer_hash) == ("owt", "web-tokenizer")
    assert sorted({cell["unique_tokens"] for cell in carried.cells}) == pytest.approx([2e3, 4e3, 8e3, 16e3])
    assert "carried from pydocs" in carried.notes[0]
    assert "U counts 2.00 times" in carried.notes[0]
    for name, (low, high) in carried.intervals.items():
        assert low < carried.coefficients[name] < high


def test_without_draws_there_is_still_no_interval(fitted: Coefficients) -> None:
    unknown = dict.fromkeys(fitted.coefficients, (float("nan"), float("nan")))
    carried = carry(replace(fitted, draws=(), intervals=unknown), HERE, THERE)
    assert np.isnan(list(carried.intervals.values())).all()
    assert Coefficients.from_dict(carried.to_dict()).coefficients == carried.coefficients


def test_the_command_carries_a_run_s_law_to_a_token_cache(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cache is a real one, of a text of words drawn at random."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), size=4)) for _ in range(400)]
    text = "\n\n\n".join(" ".join(rng.choice(words, size=60)) for _ in range(300))
    (tmp_path / "text.txt").write_text(text)
    corpus = prepare_corpus(
        CorpusSource(globs=(str(tmp_path / "text.txt"),)),
        vocab_size=300,
        train_tokens=20_000,
        validation_tokens=2_000,
        min_train_tokens=1_000,
        cache_dir=tmp_path / "dropout_decay_words",
    )
    there = read_text(corpus.folder)
    assert (there.regime, there.corpus_hash, there.train_tokens) == ("words", corpus.corpus_hash, 20_000)
    out = tmp_path / "carried"
    assert main(["carry", str(run), str(corpus.folder), "--out", str(out)]) == 2
    assert "differ in vocab_size (512 and 300)" in capsys.readouterr().err
    assert not out.exists()

    home = tmp_path / "home"
    home.mkdir()
    write_json(
        home / "config.json", config_of(replace(there, regime="pydocs", bigram_loss=there.bigram_loss + 0.4), "home")
    )
    (home / "coefficients.json").write_bytes((run / "coefficients.json").read_bytes())
    assert main(["carry", str(home), str(corpus.folder), "--out", str(out)]) == 0
    assert f"U counts {10 ** (0.4 * BIGRAM_SLOPE):.2f} times" in capsys.readouterr().out
    advice = ["advise", "--coefficients", str(out), "--params", "163840", "--stages", "4k:131k,8k:262k"]
    assert main(advice) == 0
    assert "words, P = 164k" in capsys.readouterr().out


def test_bad_input_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "old"
    old.mkdir()
    write_json(old / "config.json", {"regime": {"name": "owt"}, "data": {"manifest": {}}})
    for other, message in (
        (tmp_path / "none", "is neither a run nor the token cache"),
        (old, "does not say how much its text surprises: tokenize it anew"),
    ):
        assert main(["carry", str(run), str(other), "--out", str(tmp_path / "out")]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_hold_outs_on_another_text_are_judged_as_they_are_and_carried(
    run: Path, synthetic: ModuleType, tmp_path: Path
) -> None:
    """The other text behaves as this one does at twice its tokens: carried, the law loses no more than at home."""
    rows = synthetic.calibration(
        prefixes=[2 * u for u in INNER], models=MODELS, regime="owt", corpus="web", seeds=(3, 4)
    )
    halved = [row | {"unique_tokens": row["unique_tokens"] // 2} for row in rows]
    there = synthetic.write_run(tmp_path, halved, config=config_of(THERE, "there"))
    study = sort_runs([load_experiment([run]), load_experiment([there])])
    cells = judge_cells(study, laws=("separable",)).query("fitted_on == 'pydocs'")
    found = cells.groupby("kind")["regret"].mean()
    assert (cells["regime"] == "owt").all()
    assert found[CARRIED] < 0.5 * found[ANOTHER]
    assert cells.groupby("kind").size().tolist() == [32, 32]

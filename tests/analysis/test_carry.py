"""A law carried from one text to another by what was counted of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.advise import read_coefficients
from analysis.carry import carry
from analysis.carry_command import read_text
from analysis.coefficients import Coefficients, fit_law
from analysis.foretell import Text, rule_without
from analysis.tables import load_experiment
from tune_dd.artifacts import write_json
from tune_dd.corpus.prepare import prepare_corpus
from tune_dd.regimes import CorpusSource, ModelSpec

RULE = rule_without(frozenset({"pydocs", "owt"}), 2_000_000)
HERE = Text("pydocs", {500_000: 3.9, 2_000_000: 3.6}, 0.04, 512, "docstrings-tokenizer", "docstrings-corpus")
# A text of which a token counts for two of the other's, as it surprises a little less and repeats itself.
REPEATED = (0.2 + (np.log10(2) - RULE.per_nat * 0.5) / RULE.per_root) ** 2
THERE = Text("owt", {2_000_000: 3.1}, REPEATED, 512, "web-tokenizer", "web-corpus")
INNER, MODELS = (4_000, 8_000, 16_000, 32_000), (ModelSpec(1, 2, 32), ModelSpec(2, 2, 64))


@pytest.fixture(scope="module")
def run(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration of two sizes, with its coefficients."""
    folder = tmp_path_factory.mktemp("here")
    rows = synthetic.calibration(prefixes=INNER, models=MODELS)
    synthetic.write_run(folder, rows, config=synthetic.text_config("pydocs", "docstrings", HERE.losses[2_000_000]))
    table = load_experiment([folder]).table
    write_json(folder / "coefficients.json", fit_law(None, table, law="onset", n_bootstrap=60).to_dict())
    return folder


@pytest.fixture(scope="module")
def fitted(run: Path) -> Coefficients:
    return read_coefficients(run)


def test_a_carried_law_says_of_u_what_the_law_says_of_its_multiple(fitted: Coefficients) -> None:
    carried = carry(fitted, HERE, THERE)
    cells = (163_840, np.array([3_000, 12_000]), 262_144)
    doubled = (163_840, np.array([6_000, 24_000]), 262_144)
    np.testing.assert_allclose(carried.predict(*cells), fitted.predict(*doubled), rtol=1e-9)
    assert (carried.regime, carried.tokenizer_hash) == ("owt", "web-tokenizer")
    assert sorted({cell["unique_tokens"] for cell in carried.cells}) == pytest.approx([2e3, 4e3, 8e3, 16e3])
    assert "carried from pydocs" in carried.notes[0]
    assert "U counts 2.00 [" in carried.notes[0]
    for name, (low, high) in carried.intervals.items():
        assert low < carried.coefficients[name] < high


def test_its_intervals_hold_the_doubt_about_the_scale(fitted: Coefficients) -> None:
    many = replace(fitted, draws=(tuple(fitted.coefficients.values()),) * 4_000)  # of the law there is none
    carried = carry(many, HERE, THERE)
    cell = (163_840, 12_000.0, 262_144)
    low, high = carried.interval(*cell)
    far, near = (2.0 * 10 ** (side * 1.96 * RULE.spread) for side in (1, -1))
    assert high == pytest.approx(float(fitted.predict(cell[0], near * cell[1], cell[2])), abs=0.005)
    assert low == pytest.approx(float(fitted.predict(cell[0], far * cell[1], cell[2])), abs=0.005)
    assert high - low > 0.03
    assert f"U counts 2.00 [{near:.2f}, {far:.2f}] times" in carried.notes[0]
    assert carry(many, HERE, THERE) == carried


def test_a_text_unlike_those_that_the_scale_was_measured_on_is_told_so(fitted: Coefficients) -> None:
    usual = replace(HERE, losses={2_000_000: 3.2})
    assert not any("a guess" in note for note in carry(fitted, HERE, usual).notes)
    for home, other in (
        (HERE, replace(HERE, losses={2_000_000: 2.3})),
        (HERE, replace(HERE, overlap=0.7)),
        (replace(HERE, losses={2_000_000: 2.3}), HERE),
        (replace(HERE, vocab_size=4_096), replace(usual, vocab_size=4_096)),
    ):
        assert "these texts lie outside, and their scale is a guess" in carry(fitted, home, other).notes[1]


def test_without_draws_there_is_still_no_interval(fitted: Coefficients) -> None:
    unknown = dict.fromkeys(fitted.coefficients, (float("nan"), float("nan")))
    carried = carry(replace(fitted, draws=(), intervals=unknown), HERE, THERE)
    assert np.isnan(list(carried.intervals.values())).all()
    assert Coefficients.from_dict(carried.to_dict()).coefficients == carried.coefficients


def test_the_command_carries_a_run_s_law_to_a_token_cache(
    run: Path, synthetic: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    assert (there.regime, there.corpus_hash, list(there.losses)) == ("words", corpus.corpus_hash, [20_000])
    out = tmp_path / "carried"
    assert main(["carry", str(run), str(corpus.folder), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert "pydocs (vocabulary 512, 2,000,000 tokens counted)" in told
    assert "words (vocabulary 300, 20,000 tokens counted) do not compare" in told
    assert not out.exists()

    home = tmp_path / "home"
    home.mkdir()
    config = synthetic.text_config("pydocs", "docstrings", there.losses[20_000] + 0.4, vocab_size=300)
    counted = config["data"]["manifest"]["bigram"]
    counted["train_tokens"] = 20_000
    write_json(home / "config.json", config)
    (home / "coefficients.json").write_bytes((run / "coefficients.json").read_bytes())
    assert main(["carry", str(home), str(corpus.folder), "--out", str(out)]) == 0
    rule = rule_without(frozenset({"pydocs", "words"}), 20_000)
    repeated = np.sqrt(there.overlap) - np.sqrt(0.04)
    scale = 10 ** (0.4 * rule.per_nat + repeated * rule.per_root)
    assert f"U counts {scale:.2f} [" in capsys.readouterr().out
    law = tmp_path / "law"
    law.mkdir()
    (law / "coefficients.json").write_bytes((run / "coefficients.json").read_bytes())
    assert main(["carry", str(law), str(corpus.folder), "--out", str(tmp_path / "again")]) == 2
    assert "is neither a run nor a token cache" in capsys.readouterr().err
    alone = ["carry", str(law), str(corpus.folder), "--out", str(tmp_path / "again")]
    assert main([*alone, "--calibrated-on", str(corpus.folder)]) == 2, "its tokenizer is not that of the coefficients"
    assert "was not fitted on the text of" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
    advice = ["advise", "--coefficients", str(out), "--params", "163840", "--stages", "4k:131k,8k:262k"]
    assert main(advice) == 0
    advised = " ".join(capsys.readouterr().out.split())
    assert "words, P = 164k" in advised
    assert "Note: carried from pydocs by counts (bigram loss" in advised


def test_bad_input_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "old"
    old.mkdir()
    write_json(old / "config.json", {"regime": {"name": "owt"}, "data": {"manifest": {}}})
    broken = [tmp_path / name for name in ("list", "chain", "cache")]
    files = ("config.json", "[]"), ("chain.json", '{"runs": []}'), ("manifest-v512.json", "{}")
    for folder, (name, text) in zip(broken, files, strict=True):
        folder.mkdir()
        (folder / name).write_text(text)
    several = tmp_path / "several"
    several.mkdir()
    for size in (512, 4096):
        (several / f"manifest-v{size}.json").write_text("{}")
    for other, message in (
        (tmp_path / "none", "none is not there: name a run on the other text, or its token cache"),
        (tmp_path, "is neither a run nor a token cache"),
        (old, "is from before its counts were taken: build its text"),
        *((folder, "is damaged") for folder in broken),
        (several, "is the cache of several vocabularies: name one, such as"),
    ):
        assert main(["carry", str(run), str(other), "--out", str(tmp_path / "out")]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert main(["carry", str(run), str(run), "--out", str(run)]) == 2
    assert "is a run with coefficients of its own: give --out another folder" in capsys.readouterr().err


def test_the_law_that_is_carried_is_not_written_over(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    law = tmp_path / "law"
    law.mkdir()
    (law / "coefficients.json").write_bytes((run / "coefficients.json").read_bytes())
    for named in (law, law / "coefficients.json"):
        assert main(["carry", str(named), str(run), "--out", str(law)]) == 2
        assert "holds the law that is to be carried: give --out another folder" in capsys.readouterr().err
    assert (law / "coefficients.json").read_bytes() == (run / "coefficients.json").read_bytes()

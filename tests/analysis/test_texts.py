"""One text held against another: by a law of the one, with U scaled, on the cells of the other."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.bakeoff import ANOTHER, Study, judge_cells, judge_texts, sort_runs
from analysis.foretell import rule_without
from analysis.tables import load_experiment
from analysis.texts import measure
from analysis.verdict import CARRIED, PILOTED
from tune_dd.regimes import ModelSpec

INNER, MODELS = (4_000, 8_000, 16_000, 32_000), (ModelSpec(1, 2, 32), ModelSpec(2, 2, 64))


@pytest.fixture(scope="module")
def runs(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two texts, of which the second behaves at U as the first one does at 2 U, and the counts for it."""
    folder = tmp_path_factory.mktemp("texts")
    here = synthetic.calibration(prefixes=INNER, models=MODELS)
    doubled = synthetic.calibration(
        prefixes=[2 * u for u in INNER], models=MODELS, regime="owt", corpus="web", seeds=(3, 4)
    )
    there = [row | {"unique_tokens": row["unique_tokens"] // 2} for row in doubled]
    rule = rule_without(frozenset({"pydocs", "owt"}), 2_000_000)
    repeated = (0.2 + (np.log10(2) - rule.per_nat * 0.5) / rule.per_root) ** 2
    counted = ((3.6, 0.04), (3.1, repeated))
    return [
        synthetic.write_run(folder / regime, rows, config=synthetic.text_config(regime, corpus, loss, overlap=share))
        for rows, regime, corpus, (loss, share) in zip(
            (here, there), ("pydocs", "owt"), ("docstrings", "web"), counted, strict=True
        )
    ]


@pytest.fixture(scope="module")
def study(runs: list[Path]) -> Study:
    return sort_runs([load_experiment([run]) for run in runs])


def test_hold_outs_on_another_text_are_judged_as_they_are_and_carried(study: Study) -> None:
    cells = judge_cells(study, laws=("separable",)).query("fitted_on == 'pydocs'")
    found = cells.groupby("kind")["regret"].mean()
    assert (cells["regime"] == "owt").all()
    for kind in (CARRIED, PILOTED):
        assert found[kind] < 0.5 * found[ANOTHER]
    assert cells.groupby("kind").size().to_dict() == dict.fromkeys((ANOTHER, CARRIED, PILOTED), 32)


def test_the_scale_that_a_text_has_is_found_from_its_cells(study: Study) -> None:
    pairs = judge_texts(study, law="separable").set_index("fitted_on")
    assert set(pairs["regime"]) == {"owt", "pydocs"}
    assert pairs.at["pydocs", "scale"] == pytest.approx(2.0)
    assert 1.6 < pairs.at["pydocs", "best_scale"] < 2.5
    assert 1.6 < 1 / pairs.at["owt", "best_scale"] < 2.5
    assert pairs.at["pydocs", "pilot_low"] < 2 < pairs.at["pydocs", "pilot_high"]
    assert pairs.at["owt", "pilot_low"] < 1 / 2 < pairs.at["owt", "pilot_high"]
    assert pairs.at["pydocs", "low"] < 2 < pairs.at["pydocs", "high"]
    measured = {each.text.regime: each.decades for each in measure(judge_texts(study, law="separable"), study.texts)}
    assert measured["owt"] - measured["pydocs"] == pytest.approx(np.log10(2), abs=0.1)
    assert sum(measured.values()) == pytest.approx(0.0, abs=1e-12)
    for _, pair in pairs.iterrows():
        assert pair["regret_best"] <= min(pair["regret_raw"], pair["regret_carried"], pair["regret_piloted"])
        assert max(pair["regret_carried"], pair["regret_piloted"]) < 0.5 * pair["regret_raw"]
        assert pair["regret_best"] == pytest.approx(pair["regret_own"], abs=0.006)


def test_texts_that_nobody_counted_are_compared_by_pilots(synthetic: ModuleType, tmp_path: Path) -> None:
    rows = synthetic.calibration(prefixes=INNER, seeds=(0, 1))
    other = synthetic.calibration(prefixes=INNER, seeds=(0, 1), regime="owt", corpus="web")
    old = synthetic.write_run(tmp_path / "old", rows)
    new = synthetic.write_run(tmp_path / "new", other, config=synthetic.text_config("owt", "web", 3.9))
    study = sort_runs([load_experiment([run]) for run in (old, new)])
    pairs = judge_texts(study, law="first_order")
    assert pairs[["scale", "low", "high", "regret_carried"]].isna().all(axis=None)
    assert pairs[["pilot_scale", "best_scale", "regret_piloted", "regret_own"]].notna().all(axis=None)
    cells = judge_cells(study, laws=("first_order",))
    assert set(cells["kind"]) == {ANOTHER, PILOTED}, "a pilot needs no counts"


def test_the_command_tells_what_a_text_counts_as(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["laws", *map(str, runs), "--out", str(tmp_path / "laws")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "another corpus, by counts" in out
    assert "another corpus, by a pilot" in out
    assert "What U of another text counts as under the law of owt" in out
    assert "decades per nat" not in out, "two texts tell no rule"
    written = json.loads((tmp_path / "laws" / "law_texts.json").read_text())
    assert "best_scale" in json.dumps(written)
    scales = json.loads((tmp_path / "laws" / "measured_texts.json").read_text())
    assert [each["regime"] for each in scales] == ["owt", "pydocs"]

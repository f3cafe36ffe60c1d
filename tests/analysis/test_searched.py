"""A search's history, contrasts, importance and pictures, from the files that a run leaves."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from tests_support import REPOSITORY, search_space

from analysis.drawing import render
from analysis.report import analyse, compute
from analysis.search_figures import search_pictures
from analysis.searched import best_contrasts, parameter_importance, searched
from analysis.tables import load_experiment
from search_spaces.locked_stream import sampled_tokens
from search_spaces.schedule_coefficients import Point, ScheduleSpace, StartingLaw
from search_spaces.space import DataIdentity, Setting
from tune_dd import artifacts
from tune_dd.builtin_regimes import POCKET
from tune_dd.errors import UserError
from tune_dd.regimes import ModelSpec, Protocol
from tune_dd.sweep.suggestions import sealed

SEEDS = (0, 1, 2)
MODEL, PREFIXES = ModelSpec(2, 2, 64), (4_000, 8_000, 16_000, 32_000, 64_000)
PROTOCOL = Protocol(batch_size=16, context=128, learning_rate=1e-2, warmup_steps=20)
SETTING = Setting("pydocs", "pocket", replace(POCKET, protocol=PROTOCOL), DataIdentity("c", "t", "v"))
LAW = StartingLaw(
    "interaction",
    {"A": 0.3, "B": 0.25, "D": 0.05, "C0": -0.35},
    0.02,
    0.65,
    MODEL.n_params(512),
    PREFIXES,
    sampled_tokens(5, 64, PROTOCOL),
)


def make_space(**changes: object) -> ScheduleSpace:
    fields: dict = {
        "model": MODEL,
        "prefixes": PREFIXES,
        "stage_steps": 64,
        "seeds": SEEDS,
        "law": LAW,
        "points": 20,
    }
    return search_space(**fields | changes)


def losses_of(point: Point, seed: int) -> list[float]:
    """Stage-end losses. Only the first stage's dropout matters much."""
    noise = random.Random(f"{point.index} {seed}").gauss(0, 0.01)
    gain = (point.dropouts[0] - 0.4) ** 2 + 0.02 * (point.dropouts[-1] - 0.1) ** 2
    return [6.0 - 0.5 * stage + gain + noise + seed / 50 for stage in range(5)]


def write_search(
    synthetic: ModuleType, folder: Path, space: ScheduleSpace, *, missing: tuple[int, int] | None = None
) -> list[Point]:
    """A run's files; ``missing``: (point, seed) of a trial that did not get beyond its first stage."""
    found: list[tuple[Point, float | None]] = []
    rows = []
    for index in range(space.points):
        point = space.suggest(index, found)
        found.append((point, space.value([losses_of(point, seed) for seed in space.seeds])))
        for trial in space.trials_of(point, SETTING):
            own = synthetic.rows_of(trial, losses_of(point, trial.seed), run_id="search", phase="search")
            rows += own[:1] if (index, trial.seed) == missing else own
    synthetic.write_run(folder, rows)
    artifacts.write_json(folder / artifacts.SUGGESTIONS, sealed(space, [point for point, _ in found]))
    return [point for point, _ in found]


@pytest.fixture(scope="module")
def run(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    write_search(synthetic, folder, make_space(points=30))
    return folder


@pytest.mark.parametrize("objective", ["final", "trajectory"])
def test_a_point_s_value_is_what_the_sampler_was_told(synthetic: ModuleType, tmp_path: Path, objective: str) -> None:
    space = make_space(objective=objective, points=6)
    points = write_search(synthetic, tmp_path, space)
    found = searched(load_experiment([tmp_path]).table, [tmp_path])
    assert found is not None
    expected = [space.value([losses_of(point, seed) for seed in SEEDS]) for point in points]
    assert found.history["value"].tolist() == pytest.approx(expected, abs=1e-12)
    assert found.history["best_so_far"].tolist() == pytest.approx(np.minimum.accumulate(expected), abs=1e-12)
    assert found.best is not None
    assert found.best["condition"] == points[int(np.argmin(expected))].condition
    assert found.dropouts(found.best) == list(points[int(np.argmin(expected))].dropouts)
    std = [np.std([losses_of(p, s)[-1] for s in SEEDS], ddof=1) for p in points]
    assert found.history["value_std"].tolist() == pytest.approx(std)


def test_a_point_with_a_missing_seed_has_no_value_and_is_named(synthetic: ModuleType, tmp_path: Path) -> None:
    write_search(synthetic, tmp_path, make_space(points=5), missing=(3, 1))
    result = compute(load_experiment([tmp_path]), tmp_path)
    assert result.search is not None
    assert result.search.history["value"].isna().tolist() == [False, False, False, True, False]
    assert result.search.history["best_so_far"].notna().all()
    assert result.search.history["n_seeds"].tolist() == [3, 3, 3, 2, 3]
    assert result.search.notes == ("left out, unfinished: search_003 seed 1",)


def test_the_lead_is_paired_and_its_noise_pooled_over_the_points() -> None:
    draw = np.random.default_rng(0)
    loss = np.array([3.0, 3.05, 2.9, 3.1])[:, None] + np.array([0.0, 0.3, -0.2]) + 0.01 * draw.standard_normal((4, 3))
    history = pd.DataFrame(
        {
            "condition": [f"search_00{i}" for i in range(4)],
            "role": ["fitted", "static", "sampled", "sampled"],
            "value": loss.mean(axis=1),
        }
    )
    table = best_contrasts(history, loss)
    assert table["baseline"].tolist() == ["fitted", "static"]
    residuals = loss - loss.mean(axis=1, keepdims=True) - loss.mean(axis=0) + loss.mean()
    sigma = np.sqrt((residuals**2).sum() / 6)
    margin = stats.t.ppf(0.975, 6) * sigma * np.sqrt(2 / 3)
    assert table["difference"].tolist() == pytest.approx([(loss[2] - loss[i]).mean() for i in (0, 1)])
    assert (table["high"] - table["difference"]).tolist() == pytest.approx([margin, margin])
    one_seed = best_contrasts(history, loss[:, :1])
    assert one_seed["low"].isna().all()
    assert one_seed["n_pairs"].tolist() == [1, 1]
    best_is_known = history.assign(role=["static", "sampled", "fitted", "sampled"])
    assert best_contrasts(best_is_known, loss)["baseline"].tolist() == ["static"]


def test_the_parameter_that_decides_is_the_important_one(run: Path) -> None:
    found = searched(load_experiment([run]).table, [run])
    assert found is not None
    assert found.importance["parameter"].iloc[0] == "p_first"
    assert found.importance["importance"].sum() == pytest.approx(1)
    assert parameter_importance(found.about, found.history.head(19)).empty


@pytest.mark.parametrize("space", ["ends", "coefficients"])
def test_every_picture_is_drawn_from_its_data(synthetic: ModuleType, tmp_path: Path, space: str) -> None:
    write_search(synthetic, tmp_path, make_space(space=space, points=20))
    found = searched(load_experiment([tmp_path]).table, [tmp_path])
    assert found is not None
    pictures = {picture.name: picture for picture in search_pictures(found)}
    params = ["p_first", "p_last"] if space == "ends" else ["A", "B", "D", "C0"]
    expected = {"search-history", "search-importance", "search-paths", *(f"search-slice-{name}" for name in params)}
    assert set(pictures) == expected | ({"search-map"} if space == "ends" else set())
    for picture in pictures.values():
        svg, png = render(picture)
        assert svg.startswith("<svg")
        assert png.startswith(b"\x89PNG")
    assert "fitted law" in render(pictures["search-history"])[0]
    conditions = pictures["search-paths"].data["condition"].unique()
    assert len(conditions) == 3
    assert sum(name.startswith("best: ") for name in conditions) == 1


def test_the_page_and_the_terminal_say_that_the_best_is_flattered(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from analysis.report import print_tables

    result = analyse([run])
    page = result.report.read_text()
    assert 'id="search"' in page
    assert "is chosen on the seeds that it is reported on" in page
    assert page.count('<div role="img"') == 6
    print_tables(result)
    out = " ".join(capsys.readouterr().out.split())
    assert "which flatters it: confirm it on others" in out
    assert "from the law that it began with and" in out
    written = json.loads((run / "search.json").read_text())
    assert len(written["points"]) == 30
    assert [row["baseline"] for row in written["contrasts"]] == ["fitted", "static"]
    assert len(pd.read_csv(run / "search.csv")) == 30
    assert result.comparison is None, "a search is no stream"


def test_without_its_record_a_search_is_told_of_and_not_shown(run: Path, tmp_path: Path) -> None:
    (tmp_path / artifacts.METRICS).write_bytes((run / artifacts.METRICS).read_bytes())
    result = compute(load_experiment([tmp_path]), tmp_path)
    assert result.search is None
    assert any("suggestions.json is missing" in note for note in result.notes)
    (tmp_path / artifacts.SUGGESTIONS).write_text("{}")
    with pytest.raises(UserError, match="no list of points"):
        searched(load_experiment([tmp_path]).table, [tmp_path])


def test_optuna_is_imported_only_for_a_search() -> None:
    code = (
        "import sys, analysis.report, analysis.terminal, analysis.page, analysis.searched\n"
        "assert 'optuna' not in sys.modules and 'torch' not in sys.modules and 'ray' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""--adaptive: the same trials wherever it is stopped, from the journals alone, and as a user runs it."""

from __future__ import annotations

import html
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from faults_support import kill, rows_of, start
from faults_support import run as run_with
from tests_support import TINY_REGIME, assert_refused, coefficients, row, synthetic_text, wait_until

from analysis.adaptive import REASONS, read_adaptive
from search_spaces.adaptive_grid import AdaptiveGrid, GridPoint
from search_spaces.locked_stream import StreamGrid
from search_spaces.space import DataIdentity, Setting
from search_spaces.static_dropout import StaticGrid
from tune_dd import artifacts, journal
from tune_dd.builtin_regimes import POCKET
from tune_dd.errors import UserError
from tune_dd.regimes import ModelSpec
from tune_dd.schedule import static
from tune_dd.sweep.__main__ import main
from tune_dd.sweep.estimates import estimate_cells
from tune_dd.sweep.frozen_law import read_laws, write_predictions
from tune_dd.sweep.runs import RunFolder
from tune_dd.sweep.state import SearchState
from tune_dd.sweep.suggestions import Suggestions
from tune_dd.trial import TrialSpec

SETTING = Setting("tiny", "full", POCKET, DataIdentity("c", "t", "v"))
GRID = StaticGrid((ModelSpec(1, 2, 16),), (400, 800), (2048, 4096), (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0, 1, 2, 3))
SPACE = AdaptiveGrid(GRID, 0.08, 0.8).with_estimate(lambda rows: estimate_cells(rows, n_bootstrap=100))


def finish(run: RunFolder, spec: TrialSpec) -> None:
    """The journal of a finished trial whose losses depend on what it is."""
    stage = spec.stages[0]
    rows = []
    for number in range(2):
        noise = np.random.default_rng([spec.seed, round(100 * stage.dropout), stage.unique_tokens, number])
        best = 0.3 if stage.unique_tokens == 400 else 0.2
        rows.append(
            row(
                phase="calibrate",
                kind="static",
                model=spec.model.name,
                condition=spec.condition,
                seed=spec.seed,
                stage=0,
                readout=number,
                unique_tokens=stage.unique_tokens,
                sampled_tokens=GRID.readouts[number],
                dropout=stage.dropout,
                val_loss=3 + 2 * (stage.dropout - best) ** 2 + 0.02 * noise.standard_normal() + spec.seed / 10,
            )
        )
    journal.write_journal(run.journals, spec, step=spec.total_steps, rows=rows, counters={}, tensors={})


def begin(path: Path, told: list[str]) -> tuple[RunFolder, SearchState, Suggestions]:
    """What a command that takes the run up has before it trains anything."""
    run = RunFolder(path)
    run.journals.mkdir(parents=True, exist_ok=True)
    suggestions = Suggestions(run, SPACE, SETTING, told.append)
    state = SearchState(run, suggestions.specs, told.append, SPACE.points)
    state.refresh()
    suggestions.more(state)
    return run, state, suggestions


def go_on(run: RunFolder, state: SearchState, suggestions: Suggestions) -> list[GridPoint]:
    """Train whatever is unfinished, the last known first, until the search is over."""
    while state.unfinished:
        finish(run, state.unfinished[-1])
        state.refresh()
        suggestions.more(state)
    return suggestions.points


def test_cut_at_any_trial_and_with_nothing_but_the_journals_it_chooses_the_same(tmp_path: Path) -> None:
    told: list[str] = []
    run, state, suggestions = begin(tmp_path / "whole", told)
    whole = go_on(run, state, suggestions)
    record = (run.path / artifacts.SUGGESTIONS).read_text()
    rounds = [point.round for point in whole]
    assert max(rounds) >= 3, "coarse, neighbours, seeds and seeds again"
    assert {point.stage for point in whole} == {"coarse", "neighbours", "seeds"}
    assert len(whole) < SPACE.points
    assert state.n_planned == suggestions.n_trials == len(whole)
    for index in range(len(whole)):
        cut = RunFolder(tmp_path / f"cut{index}")
        cut.journals.mkdir(parents=True)
        # Those before it, and the last of its own round: trials end in any order.
        own = [point for point in whole if point.round == whole[index].round]
        for point in [*whole[:index], *own[-1:]]:
            finish(cut, SPACE.trials_of(point, SETTING)[0])
        _, state, suggestions = begin(cut.path, told)
        known = own[-1].round if index < own[-1].index or len(own) == 1 else own[-1].round + 1
        assert suggestions.points == [point for point in whole if point.round <= known]
        assert suggestions.n_trials is None or known > max(rounds)
        if index % 7 == 3:
            assert go_on(cut, state, suggestions) == whole
            assert (cut.path / artifacts.SUGGESTIONS).read_text() == record
    assert set(told) == {f"{artifacts.SUGGESTIONS} is missing: the points are suggested again from the journals"}


def test_a_crashed_trial_is_passed_over_and_a_retry_leaves_the_choices_as_they_are(tmp_path: Path) -> None:
    told: list[str] = []
    run, state, suggestions = begin(tmp_path, told)
    crashed = state.unfinished[3]
    journal.record_crash(run.journals, crashed, "made to fail", 3)
    state.refresh()
    chosen = list(go_on(run, state, suggestions))
    assert len(chosen) > len(SPACE.known)
    assert artifacts.planned_trials(run.path, {"n_trials": SPACE.points}) == len(chosen)
    journal.crash_path(run.journals, crashed.trial_id).unlink()
    run, state, suggestions = begin(tmp_path, told)
    assert suggestions.points == chosen
    assert state.unfinished == [crashed]
    before = json.loads((run.path / artifacts.SUGGESTIONS).read_text())["cells"]
    assert before, "what was told before is kept while nothing new is known"
    go_on(run, state, suggestions)
    assert suggestions.points[: len(chosen)] == chosen
    assert json.loads((run.path / artifacts.SUGGESTIONS).read_text())["cells"] != before
    assert told == []


def test_a_damaged_record_is_set_aside_told_and_made_again(tmp_path: Path) -> None:
    told: list[str] = []
    points = go_on(*begin(tmp_path, told))
    path = tmp_path / artifacts.SUGGESTIONS
    before = path.read_text()
    data = json.loads(before)
    data["points"][12]["dropout"] = 0.6
    path.write_text(json.dumps(data))
    _, state, suggestions = begin(tmp_path, told)
    assert (suggestions.points, state.unfinished, path.read_text()) == (points, [], before)
    assert len(told) == 1


def test_its_record_says_where_every_cell_stands(tmp_path: Path) -> None:
    points = go_on(*begin(tmp_path, []))
    (found,) = read_adaptive([tmp_path])
    assert (found.trained, found.full_grid, found.target_width, found.budget) == (len(points), 56, 0.08, 0.8)
    assert len(found.cells) == 4
    assert set(found.cells["reason"]) <= set(REASONS) - {"open"}
    for cell in found.cells.to_dict("records"):
        assert cell["n_trials"] == sum(point.unique_tokens == cell["unique_tokens"] for point in points)
        assert cell["decided"] == (cell["reason"] in ("narrow", "edge"))
        if cell["reason"] == "narrow":
            assert cell["width"] <= 0.08
    path = tmp_path / artifacts.SUGGESTIONS
    data = json.loads(path.read_text())
    del data["cells"][0]["reason"]
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="--resume"):
        read_adaptive([tmp_path])


OPTIONS = ["tiny.toml", "--device", "cpu", "--devices", "2", "--readouts", "3200,6400"]
MORE = ["--dropouts", "0,0.1,0.2,0.3,0.4,0.5", "--seeds", "0,1,2"]
ADAPTIVE = [*OPTIONS, *MORE, "--adaptive", "--budget", "0.6"]


def prepare(folder: Path) -> None:
    (folder / "text.txt").write_text(synthetic_text(120), encoding="utf-8")
    (folder / "tiny.toml").write_text(TINY_REGIME, encoding="utf-8")


def the_run(folder: Path) -> Path:
    (path,) = folder.glob("ray_results/tiny-calibrate-full/*")
    return path


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """An adaptive calibration that was left alone."""
    folder = tmp_path_factory.mktemp("adaptive")
    prepare(folder)
    return folder, run_with(folder, *ADAPTIVE)


def test_a_run_trains_less_than_the_grid_and_says_what_is_decided(searched) -> None:
    folder, done = searched
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    shown = " ".join(done.stdout.split())
    assert "budget at most 21 trials, 58% of the full grid's 36" in shown
    assert "at most 21 trials, 42 result rows" in shown
    path = the_run(folder)
    record = json.loads((path / artifacts.SUGGESTIONS).read_text())
    trained = len(record["points"])
    assert 10 < trained <= 21
    assert record["n_trials"] == trained
    assert len(rows_of(path)) == 2 * trained
    (found,) = read_adaptive([path])
    assert " ".join(found.sentence.split()) in shown
    page = (path / artifacts.REPORT).read_text()
    assert f"{trained} with results of at most 21 planned" in page
    assert all(html.escape(REASONS[reason]) in page for reason in found.cells["reason"])
    assert f"{trained} / {trained}" in run_with(folder, "--list").stdout
    assert len((path / artifacts.LEDGER).read_text().splitlines()) == 1 + trained


def test_killed_in_a_later_round_it_comes_to_the_same_trials_and_rows(searched, tmp_path: Path) -> None:
    prepare(tmp_path)

    def journals() -> int:
        return len(list(tmp_path.glob(f"ray_results/*/*/{artifacts.JOURNALS}/*{journal.SUFFIX}")))

    process = start(tmp_path, *ADAPTIVE)
    wait_until(lambda: journals() >= 11)
    assert kill(process, "everything")
    process.communicate(timeout=60)
    path, unbroken = the_run(tmp_path), the_run(searched[0])
    assert 11 <= journals() < len(json.loads((unbroken / artifacts.SUGGESTIONS).read_text())["points"])
    (path / artifacts.SUGGESTIONS).unlink()
    done = run_with(tmp_path, "--resume", str(path), "--adaptive")
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows_of(path) == rows_of(unbroken)
    assert (path / artifacts.SUGGESTIONS).read_text() == (unbroken / artifacts.SUGGESTIONS).read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([*OPTIONS, *MORE, "--target-width", "0.1"], "--target-width is about --adaptive"),
        ([*OPTIONS, *MORE, "--budget", "0.5"], "--budget is about --adaptive"),
        ([*OPTIONS, *MORE, "--adaptive", "--target-width", "0"], "--target-width 0"),
        ([*OPTIONS, *MORE, "--adaptive", "--target-width", "-1"], "--target-width -1"),
        ([*OPTIONS, *MORE, "--adaptive", "--target-width", "wide"], "--target-width"),
        ([*OPTIONS, *MORE, "--adaptive", "--budget", "2"], "--budget 2"),
        ([*OPTIONS, *MORE, "--adaptive", "--budget", "0.1"], "give at least 0.28"),
        ([*OPTIONS, "--adaptive"], "the grid has 2 and 1"),
        (["--quick", "--adaptive"], "the grid has 6 and 1"),
        ([*OPTIONS, "--phase", "screen", "--adaptive"], "--adaptive has no meaning in --phase screen"),
        ([*OPTIONS[:5], "--phase", "stream", "--adaptive"], "--adaptive has no meaning in --phase stream"),
        ([*OPTIONS[:5], "--phase", "search", "--budget", "0.5"], "--budget has no meaning in --phase search"),
        ([*OPTIONS[:5], "--phase", "all", "--adaptive"], "leave it out of --phase all"),
        (["--resume", "RUN", "--budget", "0.9"], "budget: 0.6 -> 0.9"),
        (["--resume", "RUN", "--adaptive", "--target-width", "0.2"], "target_width: 0.05 -> 0.2"),
        (["--extend", "RUN", "--seeds", "0,1,2,3"], "--extend: an adaptive run chooses"),
        (["--extend", "RUN"], "--extend: an adaptive run chooses"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    searched, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = searched
    monkeypatch.chdir(folder)
    assert_refused([str(the_run(folder)) if word == "RUN" else word for word in options], message, capsys)


def test_a_confirmation_can_be_adaptive(
    searched, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(searched[0])
    assert main([*ADAPTIVE, "--phase", "confirm", "--models", "L1_H2_D16", "--dry-run"]) == 0
    out = capsys.readouterr().out
    for word in ("phase confirm", "10 coarse trials (0.00 0.10 0.30 0.40 0.50 on seed 0)", "at most 21 trials"):
        assert word in out, out


def test_a_law_predicts_every_cell_of_an_adaptive_run(tmp_path: Path) -> None:
    (tmp_path / "law.json").write_text(json.dumps(coefficients()))
    laws = read_laws([str(tmp_path / "law.json")], "tiny", transfer=False)
    said = []
    for space in (GRID, SPACE):
        write_predictions(tmp_path, laws, space, 300, POCKET.protocol)
        said.append(artifacts.read_json(tmp_path / artifacts.PREDICTIONS)["predictions"])
    assert said[0] == said[1]
    assert len(said[1]) == 4


def test_a_law_without_intervals_predicts_without_them(tmp_path: Path) -> None:
    """As a calibration of one seed fits it: nothing told its noise."""
    (tmp_path / "law.json").write_text(json.dumps(coefficients(draws=[])))
    laws = read_laws([str(tmp_path / "law.json")], "tiny", transfer=False)
    stream = StreamGrid(GRID.models[0], GRID.prefixes, 4, (static(0.2, 2),), (0,))
    for space in (GRID, stream):
        write_predictions(tmp_path, laws, space, 300, POCKET.protocol)
        predictions = artifacts.read_json(tmp_path / artifacts.PREDICTIONS)["predictions"]
        told = [entry for entry in predictions if "dropout" in entry]
        assert told
        assert all(entry["low"] is None and entry["high"] is None for entry in told)


@pytest.mark.parametrize("budget", ["1", "0.6"])
def test_a_budget_is_checked_as_it_was_given(
    budget: str, searched, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A grid so small that the default budget does not pay its coarse trials."""
    monkeypatch.chdir(searched[0])
    small = ["--dropouts", "0,0.1,0.2,0.3,0.4,0.5", "--seeds", "0,1"]
    options = [option for option in ADAPTIVE if option not in ("--budget", "0.6")]
    assert main([*options, *small, "--budget", budget, "--dry-run"]) == 0, capsys.readouterr().err

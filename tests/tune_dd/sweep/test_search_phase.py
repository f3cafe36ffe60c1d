"""The search phase: the same suggestions wherever it is stopped, from the journals alone, and as a user runs it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from faults_support import kill, rows_of, start
from faults_support import run as run_with
from tests_support import assert_refused, coefficients, prepare_law, row, search_space, wait_until

from search_spaces.samplers import SAMPLERS
from search_spaces.schedule_coefficients import Point, ScheduleSpace, StartingLaw
from search_spaces.space import DataIdentity, Setting
from tune_dd import artifacts, journal
from tune_dd.builtin_regimes import POCKET
from tune_dd.errors import UserError
from tune_dd.regimes import ModelSpec
from tune_dd.sweep.__main__ import main
from tune_dd.sweep.phases import streamed_static
from tune_dd.sweep.runs import RunFolder
from tune_dd.sweep.state import SearchState
from tune_dd.sweep.suggestions import Suggestions
from tune_dd.trial import TrialSpec

LAW = StartingLaw("interaction", coefficients()["coefficients"], 0.02, 0.65, 12_672, (400, 800), (640, 1280))
SETTING = Setting("tiny", "full", POCKET, DataIdentity("c", "t", "v"))
SEEDS = (3, 4)


def make_space(**changes: Any) -> ScheduleSpace:
    fields: dict[str, Any] = {
        "model": ModelSpec(1, 2, 16),
        "prefixes": LAW.prefixes,
        "stage_steps": 10,
        "seeds": SEEDS,
        "law": LAW,
        "points": 14,
    }
    return search_space(**fields | changes)


def finish(run: RunFolder, spec: TrialSpec) -> None:
    """The journal of a finished trial whose loss depends on its path and seed."""
    loss = 3 + sum((stage.dropout - 0.3) ** 2 for stage in spec.stages) + spec.seed / 100
    rows = [{"val_loss": loss + 1}, {"val_loss": loss}]
    journal.write_journal(run.journals, spec, step=spec.total_steps, rows=rows, counters={}, tensors={})


def begin(path: Path, space: ScheduleSpace, told: list[str]) -> tuple[RunFolder, SearchState, Suggestions]:
    """What a command that takes the run up has before it trains anything."""
    run = RunFolder(path)
    run.journals.mkdir(parents=True, exist_ok=True)
    suggestions = Suggestions(run, space, SETTING, told.append)
    state = SearchState(run, suggestions.specs, told.append, space.points * len(space.seeds))
    state.refresh()
    suggestions.more(state)
    return run, state, suggestions


def go_on(run: RunFolder, state: SearchState, suggestions: Suggestions) -> list[Point]:
    """Train whatever is unfinished, the last known first, until the search is over."""
    while state.unfinished:
        finish(run, state.unfinished[-1])
        state.refresh()
        suggestions.more(state)
    return suggestions.points


@pytest.mark.parametrize(("sampler", "batch"), [("tpe", 1), ("tpe", 3), ("gp", 1)])
def test_cut_at_any_point_and_with_nothing_but_the_journals_it_suggests_the_same(
    tmp_path: Path, sampler: str, batch: int
) -> None:
    assert sampler in SAMPLERS
    space, told = make_space(sampler=sampler, batch=batch), []
    whole = go_on(*begin(tmp_path / "whole", space, told))
    assert len(whole) == space.points
    assert len({point.dropouts for point in whole}) > 10
    for index in range(space.points):
        run = RunFolder(tmp_path / f"cut{index}")
        run.journals.mkdir(parents=True)
        done = [spec for point in whole[:index] for spec in space.trials_of(point, SETTING)]
        partly = space.trials_of(whole[index], SETTING)[-1:]
        for spec in done + partly:
            finish(run, spec)
        _, state, suggestions = begin(run.path, space, told)
        # Every point of the batch that is under way is known, and none beyond it.
        assert len(suggestions.points) == min(max(space.first_of_batch(index) + batch, 2), space.points)
        assert suggestions.points == whole[: len(suggestions.points)]
        if index % 5 == 3:
            assert go_on(run, state, suggestions) == whole
    assert set(told) == {f"{artifacts.SUGGESTIONS} is missing: the points are suggested again from the journals"}


def test_a_crashed_point_has_failed_and_a_retry_leaves_the_points_as_they_are(tmp_path: Path) -> None:
    space, told = make_space(), []
    run, state, suggestions = begin(tmp_path, space, told)
    whole = go_on(*begin(tmp_path / "other", space, told))
    crashed = space.trials_of(whole[5], SETTING)[0]
    while len(suggestions.points) < 12:
        for spec in state.unfinished:
            if spec.trial_id == crashed.trial_id:
                journal.record_crash(run.journals, spec, "made to fail", 3)
            else:
                finish(run, spec)
        state.refresh()
        suggestions.more(state)
    points = list(suggestions.points)
    assert points[:10] == whole[:10]
    assert points != whole[: len(points)], "a sampler that builds on its points had one less"
    journal.crash_path(run.journals, crashed.trial_id).unlink()
    run, state, suggestions = begin(tmp_path, space, told)
    assert suggestions.points == points
    assert crashed in state.unfinished
    go_on(run, state, suggestions)
    assert suggestions.points[: len(points)] == points
    assert told == []


@pytest.mark.parametrize("damage", ["torn", "altered", "foreign"])
def test_a_damaged_record_is_set_aside_told_and_made_again(tmp_path: Path, damage: str) -> None:
    space, told = make_space(), []
    points = go_on(*begin(tmp_path, space, told))
    path = tmp_path / artifacts.SUGGESTIONS
    before = path.read_text()
    if damage == "torn":
        path.write_text(before[: len(before) // 2])
    elif damage == "altered":
        data = json.loads(before)
        data["points"][7]["dropouts"][0] = 0.5
        path.write_text(json.dumps(data))
    else:
        go_on(*begin(tmp_path / "other", make_space(search_seed=1), told))
        path.write_text((tmp_path / "other" / artifacts.SUGGESTIONS).read_text())
    _, state, suggestions = begin(tmp_path, space, told)
    assert suggestions.points == points
    assert not state.unfinished
    assert path.read_text() == before
    assert told == [
        "suggestions.json was damaged: set aside as suggestions.json.damaged-1, the points are suggested again from "
        "the journals"
    ]
    assert (tmp_path / f"{artifacts.SUGGESTIONS}.damaged-1").exists()


def test_the_best_fixed_dropout_is_that_of_a_stream_run_by_the_search_s_objective(tmp_path: Path) -> None:
    final = {0.1: (4.0, 3.0), 0.3: (3.5, 3.1), 0.5: (1.0, 1.0)}
    rows = [
        row(
            trial_id=f"{dropout} {seed}",
            phase="stream",
            model="L1_H2_D16",
            kind="static",
            condition=f"static_{dropout:.2f}",
            dropout=dropout,
            seed=seed,
            stage=stage,
            readout=0,
            unique_tokens=LAW.prefixes[stage],
            sampled_tokens=LAW.sampled_tokens[stage],
            val_loss=loss + seed / 10,
        )
        for dropout, losses in final.items()
        for seed in (0, 1)
        for stage, loss in enumerate(losses)
        # The one that would win did not finish on every seed.
        if (dropout, seed, stage) != (0.5, 1, 1)
    ]
    artifacts.write_rows(tmp_path / artifacts.METRICS, rows)
    stream = ("x", "L1_H2_D16", LAW.prefixes, LAW.sampled_tokens)
    assert streamed_static(tmp_path, stream, "final") == 0.1
    assert streamed_static(tmp_path, stream, "trajectory") == 0.3
    shorter = tuple(c // 2 for c in LAW.sampled_tokens)
    for other in (("owt", *stream[1:]), (*stream[:3], shorter)):
        with pytest.raises(UserError, match="name one of the same regime, model, prefixes and --stage-steps"):
            streamed_static(tmp_path, other, "final")


OPTIONS = ["tiny.toml", "--device", "cpu", "--devices", "2", "--phase", "search", "--coefficients", "law.json"]
LONG = ["--law", "interaction", "--stage-steps", "150", "--seeds", "1"]


def the_run(folder: Path) -> Path:
    (path,) = folder.glob("ray_results/tiny-search-full/*")
    return path


def points_of(path: Path) -> list[dict[str, Any]]:
    return json.loads((path / artifacts.SUGGESTIONS).read_text())["points"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A search that was left alone."""
    folder = tmp_path_factory.mktemp("searched")
    prepare_law(folder)
    return folder, run_with(folder, *OPTIONS, *LONG, "--points", "12")


def test_a_search_finds_plots_and_says_how_to_confirm(searched) -> None:
    folder, done = searched
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert re.search(r"trials +12 trials, 24 result rows", done.stdout)
    path = the_run(folder)
    rows = [row for _, row in artifacts.read_rows(path / artifacts.METRICS)]
    points = points_of(path)
    assert [point["role"] for point in points] == ["fitted", "static"] + ["sampled"] * 10
    assert {row["phase"] for row in rows} == {"search"}
    measured = {(row["condition"], row["stage"]): row["dropout"] for row in rows}
    assert measured == {(p["condition"], stage): x for p in points for stage, x in enumerate(p["dropouts"])}
    history = pd.read_csv(path / "search.csv")
    final = {row["condition"]: row["val_loss"] for row in rows if row["stage"] == 1}
    assert history.set_index("condition")["value"].to_dict() == final
    found = json.loads((path / "search.json").read_text())
    assert found["best"] == min(final, key=lambda name: final[name])
    for name in ("history", "slice-p_first", "slice-p_last", "map", "paths"):
        assert (path / "figures" / f"search-{name}.png").stat().st_size > 0, name
    assert not (path / "comparison.csv").exists()
    (following,) = re.findall(r"next: python -m tune_dd.sweep (.*?)    # the best point", done.stdout)
    best = next(point for point in points if point["condition"] == found["best"])
    searched_path = ",".join(f"{p:.4f}" for p in best["dropouts"])
    assert following == (
        "tiny.toml --scale full --device cpu --devices 2 --phase stream --coefficients law.json --law interaction "
        f"--stage-steps 150 --anchors searched={searched_path}"
    )
    ledger = (path / artifacts.LEDGER).read_text().splitlines()[1:]
    kept = {line.split()[0] for line in ledger if "\tkeep\t" in line}
    assert len(kept) == sum(final[p["condition"]] <= final["search_001"] for p in points)


def test_interrupted_and_killed_and_extended_it_comes_to_the_same_rows(searched, tmp_path: Path) -> None:
    prepare_law(tmp_path)

    def journals() -> int:
        return len(list(tmp_path.glob(f"ray_results/*/*/{artifacts.JOURNALS}/*{journal.SUFFIX}")))

    process = start(tmp_path, *OPTIONS, *LONG, "--points", "11")
    wait_until(lambda: journals() >= 3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    stopped = journals()
    assert stopped < 11
    (resume,) = re.findall(r"python -m tune_dd\.sweep (--resume \S+)", out)
    process = start(tmp_path, *resume.split())
    wait_until(lambda: journals() >= stopped + 3)
    assert kill(process, "everything")
    process.communicate(timeout=60)
    assert journals() < 11
    path = the_run(tmp_path)
    done = run_with(tmp_path, "--extend", str(path), "--points", "12")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 / 12" in run_with(tmp_path, "--list").stdout
    unbroken = the_run(searched[0])
    assert points_of(path) == points_of(unbroken)
    assert without_run(rows_of(path)) == without_run(rows_of(unbroken))


def without_run(rows: list[str]) -> list[dict[str, Any]]:
    """The rows without the run's name, which tells how many points it was begun with."""
    return [{k: v for k, v in json.loads(row).items() if k != "run_id"} for row in rows]


def test_a_crash_fails_its_point_and_the_search_goes_on(tmp_path: Path) -> None:
    prepare_law(tmp_path)
    fault = {"kind": "raise", "unique_tokens": 800, "step": 12, "once": str(tmp_path / "struck")}
    few = [*OPTIONS, "--points", "4", "--seeds", "1,2", "--stage-steps", "10"]
    broken = run_with(tmp_path, *few, fault=fault)
    assert broken.returncode == 3, broken.stdout + broken.stderr
    path = the_run(tmp_path)
    points = points_of(path)
    assert len(points) == 4
    assert len(list(artifacts.read_rows(path / artifacts.METRICS))) == 4 * 2 * 2 - 1
    history = pd.read_csv(path / "search.csv")
    assert history["value"].isna().sum() == 1
    assert "--retry-crashed" in broken.stdout
    mended = run_with(tmp_path, "--resume", str(path), "--retry-crashed")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert points_of(path) == points
    assert pd.read_csv(path / "search.csv")["value"].notna().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume", "RUN", "--points", "20"], "points: 12 -> 20"),
        (["--resume", "RUN", "--sampler", "gp"], 'sampler: "tpe" -> "gp"'),
        (["--extend", "RUN", "--points", "5"], "--extend adds nothing"),
        (["--extend", "RUN", "--seeds", "9"], "--seeds makes another search"),
        (["--extend", "RUN", "--prefixes", "400,800,1600"], "--prefixes makes another search"),
        (["--extend", "RUN", "--dropouts", "0.1"], "--dropouts has no meaning in --phase search"),
        (OPTIONS[:-2], "--phase search needs the law"),
        ([*OPTIONS, "--coefficients", "law.json"], "one law"),
        ([*OPTIONS, "--points", "2"], "--points 2"),
        ([*OPTIONS, "--anchors", "0.1,0.2"], "--anchors has no meaning in --phase search"),
        ([*OPTIONS, "--static", "0.9"], "--static 0.9 lies outside"),
        ([*OPTIONS, "--static", "0.2", "--from", "x"], "give one of them"),
        ([*OPTIONS, "--from", "nowhere"], "nowhere does not exist"),
        ([*OPTIONS, "--from", "RUN"], "no rows of the stream phase"),
        ([*OPTIONS, "--prefixes", "800"], "--space coefficients"),
        (["tiny.toml", "--device", "cpu", "--points", "9"], "--points has no meaning in --phase calibrate"),
        (["tiny.toml", "--device", "cpu", "--phase", "all", "--points", "9"], "leave it out of --phase all"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    searched, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = searched
    monkeypatch.chdir(folder)
    assert_refused([str(the_run(folder)) if word == "RUN" else word for word in options], message, capsys)


def test_a_dry_run_shows_the_whole_search(
    searched, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(searched[0])
    options = ["--points", "7", "--seeds", "1,2,3", "--space", "coefficients", "--sampler", "gp", "--dry-run"]
    assert main([*OPTIONS, *options, "--objective", "trajectory", "--static", "0.15"]) == 0
    out = capsys.readouterr().out
    shown = ["21 trials, 42 result rows, 420 optimizer steps", "static     0.15, as given", "C0 -0.675 to 0.425"]
    for word in (*shown, "gp, seed 0: 7 points, one point at a time"):
        assert word in out, out

"""The stream phase as a user runs it: the law frozen and recorded, its predictions first, then the comparison."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from tests_support import assert_refused, prepare_law

from tune_dd import artifacts
from tune_dd.sweep.__main__ import main

OPTIONS = ["tiny.toml", "--device", "cpu", "--devices", "1", "--phase", "stream"]


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "tune_dd.sweep", *options]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("streamed")
    prepare_law(folder)
    return folder, run(folder, *OPTIONS, "--coefficients", "law.json", "--seeds", "1,2", "--anchors", "mine=0.2,0.1")


def the_run(folder: Path) -> Path:
    (path,) = folder.glob("ray_results/tiny-stream-full/*")
    return path


def test_every_condition_runs_and_the_primary_contrast_comes_first(streamed) -> None:
    folder, done = streamed
    assert done.returncode == 0, done.stderr
    rows = [row for _, row in artifacts.read_rows(the_run(folder) / artifacts.METRICS)]
    conditions = ["law", "static_0.00", "static_0.20", "reversed_law", "linear_decay", "mine"]
    assert {(r["condition"], r["seed"], r["stage"]) for r in rows} == {
        (c, seed, stage) for c in conditions for seed in (1, 2) for stage in (0, 1)
    }
    kinds = {r["condition"]: r["kind"] for r in rows}
    assert (kinds["law"], kinds["static_0.20"], kinds["mine"]) == ("law", "static", "anchor_decay")
    table = pd.read_csv(the_run(folder) / "comparison.csv")
    assert table.iloc[0][["metric", "condition", "primary"]].tolist() == ["final_val_loss", "law", True]
    assert (table["n_pairs"] == 2).all()
    # The law of two stages is its own linear decay, and "mine" begins as static 0.20 does.
    assert "up to 60 of these steps (25%) are trained once for several" in done.stdout
    assert not (the_run(folder) / "snapshots").exists()
    assert "law (primary)" in done.stdout
    assert "On the stream, law" in done.stdout
    assert "next: " in done.stdout


def test_the_law_and_its_predictions_are_written_down_before_anything_trains(streamed) -> None:
    folder, _ = streamed
    path = the_run(folder)
    digest = hashlib.sha256((folder / "law.json").read_bytes()).hexdigest()
    (recorded,) = json.loads((path / "config.json").read_text())["coefficients"]
    assert (recorded["sha256"], recorded["transfer"], recorded["source"]) == (digest, False, "law.json")
    written = json.loads((path / "predictions.json").read_text())
    assert written["coefficients_hash"] == digest
    first_journal = min(p.stat().st_mtime_ns for p in (path / artifacts.JOURNALS).iterdir())
    assert (path / "predictions.json").stat().st_mtime_ns < first_journal
    stages = [entry for entry in written["predictions"] if "stage" in entry]
    law = {r["stage"]: r["dropout"] for _, r in artifacts.read_rows(path / artifacts.METRICS) if r["kind"] == "law"}
    assert {entry["stage"]: entry["dropout"] for entry in stages} == law
    assert all(entry["low"] < entry["dropout"] < entry["high"] for entry in stages)
    claims = {entry["condition"] for entry in written["predictions"] if "condition" in entry}
    assert claims == {"law", "reversed_law"}
    assert "below the best static" in (path / "report.html").read_text()


def test_a_stream_is_extended_by_seeds_and_paths(streamed) -> None:
    folder, _ = streamed
    path = the_run(folder)
    journals = {p.name: p.read_bytes() for p in (path / artifacts.JOURNALS).iterdir()}
    done = run(folder, "--extend", str(path), "--seeds", "3", "--dropouts", "0.4", "--anchors", "late=0.1,0.2")
    assert done.returncode == 0, done.stderr
    rows = [row for _, row in artifacts.read_rows(path / artifacts.METRICS)]
    assert len(rows) == 8 * 3 * 2
    assert all((path / artifacts.JOURNALS / name).read_bytes() == data for name, data in journals.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume", "RUN", "--dropouts", "0.5"], "has another plan (schedules: "),
        (["--resume", "RUN", "--seeds", "7"], "seeds: [1, 2] -> [7]"),
        (["--extend", "RUN", "--stage-steps", "7"], "--stage-steps makes another stream"),
        (["--extend", "RUN", "--prefixes", "400,800,1600"], "--prefixes makes another stream"),
        (["--extend", "RUN", "--models", "L1_H2_D16,L2_H2_D16", "--seeds", "9"], "a stream has one model"),
        (["--extend", "RUN", "--readouts", "6400"], "--readouts has no meaning in --phase stream"),
        (["--extend", "RUN", "--coefficients", "law.json"], "keeps the law that it was begun with"),
        (["--extend", "RUN", "--anchors", "mine=0.5,0.5"], "condition mine of another path"),
        ([*OPTIONS, "--coefficients", "elsewhere.json"], "fitted on the regime owt, not tiny"),
        ([*OPTIONS, "--coefficients", "other.json"], "under another tokenizer"),
        ([*OPTIONS, "--coefficients", "text.txt"], "damaged"),
        (
            [*OPTIONS, "--coefficients", "law.json", "--law", "odds"],
            "law.json has interaction: fit it with",
        ),
        ([*OPTIONS, "--law", "odds"], "name its --coefficients too"),
        (["--resume", "RUN", "--law", "interaction"], "--law: a run keeps the law"),
        (
            [*OPTIONS, "--coefficients", "law.json", "--coefficients", "law.json", "--models", "L1_H2_D16,L2_H2_D16"],
            "one model",
        ),
        ([*OPTIONS, "--coefficients", "law.json", "--anchors", "0.3,0.2,0.1"], "3 values for 2 stages"),
        ([*OPTIONS, "--coefficients", "law.json", "--anchors", "high,low"], "give a dropout per stage"),
        ([*OPTIONS, "--coefficients", "law.json", "--anchors", "law=0.3,0.2"], "two conditions are named law"),
        ([*OPTIONS, "--coefficients", "law.json", "--dropouts", ","], "--dropouts is empty"),
        ([*OPTIONS, "--coefficients", "law.json", "--stage-steps", "0"], "--stage-steps 0"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    streamed, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = streamed
    monkeypatch.chdir(folder)
    assert_refused([str(the_run(folder)) if word == "RUN" else word for word in options], message, capsys)


def test_a_transfer_is_recorded_and_the_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from analysis.companions import transfers
    from tune_dd.sweep.frozen_law import check_tokenizer, read_laws

    prepare_law(tmp_path)
    monkeypatch.chdir(tmp_path)
    laws = check_tokenizer(read_laws(["law.json", "other.json"], "tiny", transfer=True), "here", transfer=True)
    assert [law.condition for law in laws] == ["law", "law_interaction"]
    assert all(law.transfer for law in laws)
    notes = transfers([{"coefficients": [law.record() for law in laws]}, {}])
    assert len(notes) == 2
    assert "fitted on tiny under tokenizer" in notes[0]
    argv = [*OPTIONS, "--coefficients", "elsewhere.json", "--transfer", "--dry-run"]
    assert main(argv) == 0
    assert "law " in capsys.readouterr().out


def test_one_fit_serves_the_forms_that_differ_on_streams_alone(
    streamed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = streamed
    monkeypatch.chdir(folder)
    forms = ["--law", "interaction", "--law", "interaction_diluted"]
    assert main([*OPTIONS, "--coefficients", "law.json", *forms, "--seeds", "1", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    lines = [line.split() for line in plan.splitlines() if line.startswith("law")]
    path = {words[0]: [float(word) for word in words[1:]] for words in lines}
    assert path["law"][0] == path["law_interaction_diluted"][0]
    assert path["law"][1] > path["law_interaction_diluted"][1]


def test_a_law_of_one_size_read_at_another_is_warned_of(
    streamed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, done = streamed
    assert "warning" not in done.stdout
    monkeypatch.chdir(folder)
    plan = [*OPTIONS, "--coefficients", "law.json", "--models", "L2_H2_D16", "--seeds", "1", "--dry-run"]
    assert main(plan) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "warning: the law of law.json was fitted on one model size (12,672 parameters)" in told

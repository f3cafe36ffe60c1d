"""--phase all on a text so small that dropout pays: stopped in the middle, resumed, and one report at the end.

What the documents build on a finished chain is run on this one: to fit, advise, hold out, search, save and write up.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from documented_runs import CHAIN, STEPS, STUDY, TINY
from documents_support import newest, normalised
from tests_support import TINY_REGIME, assert_refused, synthetic_text

from tune_dd import artifacts, journal
from tune_dd.builtin_regimes import REGIMES
from tune_dd.console import Console
from tune_dd.sweep import plan as planning
from tune_dd.sweep.__main__ import main
from tune_dd.sweep.chain import _fit, _phase
from tune_dd.sweep.chain_file import Chain
from tune_dd.sweep.options import parse
from tune_dd.sweep.runs import RunFolder

# So that dropout pays: few tokens, many passes over them.
CHANGES = {
    'models = ["L1_H2_D16"]': 'models = ["L1_H2_D32"]\ncalibration_models = ["L1_H2_D32", "L2_H2_D64"]',
    "prefixes = [400, 800]": "prefixes = [800, 1200]\nstream_steps = 40\nstream_seeds = [5, 6]",
    "readouts = [640, 1280]": "readouts = [6400, 12800]",
    "dropouts = [0.0, 0.2]": "dropouts = [0.0, 0.1, 0.3, 0.5, 0.7]\nstream_dropouts = [0.0, 0.2]",
    "seeds = [0]": "seeds = [0, 1]",
}
ANCHOR = ["--anchors", "down=0.4,0.1"]  # beside what is documented
OPTIONS = [TINY, "--device", "cpu", "--phase", "all"]


def prepare(folder: Path) -> None:
    """The tiny regime, whose full and pocket scales are the same, and its text."""
    text = TINY_REGIME
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    scale = text[text.index("[scales.full]") :]
    (folder / TINY).write_text(text + scale.replace("scales.full", "scales.pocket"), encoding="utf-8")
    (folder / "text.txt").write_text(synthetic_text(120), encoding="utf-8")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A chain that was stopped in its second phase and resumed: where it lies, and what the rest of it printed."""
    folder = tmp_path_factory.mktemp("chain")
    prepare(folder)
    argv = [sys.executable, *CHAIN.words(folder)[1:], *ANCHOR]
    process = subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not list(folder.glob("ray_results/tiny-confirm-pocket/*/journals/*.safetensors")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    (resume,) = re.findall(r"python -m (tune_dd\.sweep --phase all --resume \S+)", out)
    (state,) = folder.glob("ray_results/tiny-all-pocket/*/chain.json")
    assert sorted(json.loads(state.read_text())["runs"]) == ["confirm", "screen"]

    done = subprocess.run(
        [sys.executable, "-m", *resume.split()], cwd=folder, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.timeout(600)  # some 40 s of work, and whatever else the machine does
def test_a_chain_is_stopped_and_goes_on_to_one_report(
    chain: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, told = chain
    (path,) = folder.glob("ray_results/tiny-all-pocket/*")
    state = json.loads((path / "chain.json").read_text())
    assert state["finished"]
    assert list(state["runs"]) == ["calibrate", "confirm", "screen", "stream"]  # JSON's keys are sorted
    assert [(d["step"], d["chosen"] is not None) for d in state["decisions"]] == [
        ("screen", True),
        ("confirm", True),
        ("law", True),
    ]
    chosen = state["decisions"][0]["chosen"]
    rows = {
        phase: [row for _, row in artifacts.read_rows(path / run / artifacts.METRICS)]
        for phase, run in state["runs"].items()
    }
    assert {row["model"] for row in rows["confirm"]} == {row["model"] for row in rows["stream"]} == {chosen}
    assert chosen not in {row["model"] for row in rows["calibrate"]}
    assert {row["condition"] for row in rows["stream"]} == {
        "law", "reversed_law", "linear_decay", "static_0.00", "static_0.20", "down"
    }  # fmt: skip
    law = json.loads((path / "law" / "coefficients.json").read_text())
    assert len({cell["model"] for cell in law["cells"]}) == 2
    for name in ("report.html", "comparison.csv", "model_selection.csv", "coefficients.json"):
        assert (path / name).stat().st_size > 0, name
    selection = pd.read_csv(path / "model_selection.csv")
    assert set(selection["phase"]) == {"confirm", "calibrate"}
    assert "decision after confirm: " in told
    assert told.rstrip().splitlines()[-1].startswith("report: ")
    assert "next: " not in told  # the chain itself goes on
    monkeypatch.chdir(folder)
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()[-1]
    assert listed.split() == [
        str(path.relative_to(folder)),
        "screen",
        "confirm",
        "calibrate",
        "stream",
        "finished",
    ]


@pytest.mark.timeout(600)
def test_a_chain_goes_on_where_only_crashed_trials_are_missing(
    chain: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    shutil.copytree(chain[0], study)
    monkeypatch.chdir(study)
    calibrate = RunFolder(newest(study, "tiny-calibrate-pocket"))
    crash_one(calibrate)
    path = newest(study, "tiny-all-pocket")
    state = Chain.read(path)
    state.finished = False
    state.write()

    assert main(["--phase", "all", "--resume", str(path)]) == 3
    told = capsys.readouterr().out
    assert "calibrate lacks crashed trials (1): the chain goes on without them" in told
    assert "report: " in told
    assert told.rstrip().endswith(f"--phase all --resume {path.relative_to(study)} --retry-crashed")
    assert Chain.read(path).finished

    # The same where the phase has just been run; not where something else is missing too.
    retry = parse(["--phase", "all", "--resume", str(path), "--retry-crashed"])
    assert _phase(state, "calibrate", [], retry, Console(), lambda words, begun: 3) == 0
    next(calibrate.journals.glob(f"*{journal.SUFFIX}")).unlink()
    assert _phase(state, "calibrate", [], retry, Console(), lambda words, begun: 3) == 3


def crash_one(run: RunFolder) -> None:
    """Let one finished trial of a run have crashed instead."""
    config = run.config()
    _, specs = planning.from_config(config, run.path)
    journal.record_crash(run.journals, specs[-1], "made to fail", 3)
    journal.journal_path(run.journals, specs[-1].trial_id).unlink()
    table = run.path / artifacts.METRICS
    left = [row for _, row in artifacts.read_rows(table) if row["trial_id"] != specs[-1].trial_id]
    artifacts.write_rows(table, left)


def neutral(command: str) -> list[str]:
    """A command's words without the regime's name, its runs' times, and the size that a chain has chosen."""
    words = [
        re.sub(rf"^(ray_results/)?({'|'.join(REGIMES)}|tiny)(\.toml|(?=-)|$)", r"\1REGIME", word)
        for word in shlex.split(normalised(command))
    ]
    chosen = words.index("--models") + 1 if {"calibrate", "stream"} & set(words) and "--models" in words else None
    return [word if index != chosen else "MODEL" for index, word in enumerate(words)]


@pytest.mark.timeout(600)
def test_a_law_is_fitted_to_the_cells_there_are_until_a_stream_was_begun_with_it(
    chain: tuple[Path, str], tmp_path: Path
) -> None:
    study = tmp_path / "study"
    shutil.copytree(chain[0], study)
    state = Chain.read(newest(study, "tiny-all-pocket"))
    file = state.path / "law" / artifacts.COEFFICIENTS
    fitted = artifacts.read_json(file)
    former = fitted | {"coefficients": dict.fromkeys(fitted["coefficients"], 9.0)}  # of fewer trials
    artifacts.write_json(file, former)
    assert _fit(state) == file  # the stream was begun with it
    assert artifacts.read_json(file) == former
    state.runs.pop("stream")
    assert _fit(state) == file
    assert artifacts.read_json(file)["coefficients"] == fitted["coefficients"]

    # One size does not determine this form: that is said and written down, and each resume says the same.
    del state.runs["calibrate"]
    state.law = "separable"
    for _ in range(2):
        assert _fit(state) is None
        *_, decision = Chain.read(state.path).decisions
        assert (decision["step"], decision["chosen"]) == ("law", None)
        assert "No law is fitted: " in decision["reason"]
        assert "Without a law there is no schedule to test." in decision["reason"]


def test_a_dry_run_plans_what_the_chain_will_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main([*OPTIONS, "--models", "L1_H2_D32,L2_H2_D64", "--dry-run"]) == 0
    *_, confirm, calibrate = capsys.readouterr().out.split(", phase ")
    assert re.findall(r"model +(\S+),", confirm) == ["L1_H2_D32"]
    assert re.findall(r"model +(\S+),", calibrate) == ["L2_H2_D64"]
    assert "the stream reads 1,200 training tokens" in " ".join(calibrate.split())
    assert main([*OPTIONS, "--models", "L2_H2_D64", "--dry-run"]) == 0
    assert "(shown: L2_H2_D64)" in capsys.readouterr().out


def test_quick_is_the_embedded_corpus_in_a_chain_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tinystories", "--quick", "--phase", "all", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("Python docstrings (pydocs), phase ") == 3
    assert "TinyStories" not in out


def test_a_path_of_the_regime_file_that_no_stream_takes_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = Path(TINY).read_text().replace("seeds = [0, 1]", "seeds = [0, 1]\nanchors = { law = [0.3, 0.1] }")
    Path(TINY).write_text(text)
    assert_refused(OPTIONS, "two conditions are named law", capsys)


@pytest.mark.timeout(600)
def test_the_phases_of_the_chain_are_the_documented_commands(chain: tuple[Path, str]) -> None:
    study, _ = chain
    for documented, phase in STEPS:
        config = artifacts.read_json(newest(study, f"tiny-{phase}-pocket") / artifacts.CONFIG)
        recorded = neutral(config["command"].replace(f"{study}/", "").replace(f" {' '.join(ANCHOR)}", ""))
        words = neutral(re.sub(r" --corpus-glob \S+", "", documented))  # the tiny regime's file names its text
        if "REGIME" in shlex.split(documented):  # what a user types; the chain names scale, device and the rest besides
            left = iter(recorded)
            assert all(word == "RUN" or word in left for word in words), (documented, recorded)
            assert "RUN" not in words or recorded[recorded.index(words[words.index("RUN") - 1]) + 1].startswith("ray_")
        else:
            assert words == recorded


@pytest.mark.timeout(600)  # some 30 s of work, and whatever else the machine does
def test_what_is_built_on_a_chain_in_the_order_of_the_documents(chain: tuple[Path, str]) -> None:
    study, told = chain
    assert re.search(CHAIN.prints, told)
    assert list(study.glob(CHAIN.leaves))
    for run in STUDY:
        run.check(study)
    numbers = (study / "paper" / "paper_results_summary.json").read_text()
    assert "tiny-stream-pocket" in numbers
    (saved,) = study.glob("ray_results/saved/tiny-all-pocket/*/chain.json")
    assert str(study) not in saved.read_text()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "1"], "--seeds belongs to one phase"),
        (["--dropouts", "0,0.1"], "--dropouts belongs to one phase"),
        (["--coefficients", "x"], "--coefficients belongs to one phase"),
        (["--resume", "--models", "L1_H2_D16"], "keeps those that it was begun with"),
        (["--resume"], "no unfinished chain tiny-all-*"),
        (["--resume", "nowhere"], "nowhere/chain.json is missing"),
        (["--scale", "huge"], "--scale"),
        (["--anchors", "down=0.4,0.2,0.1"], "3 values for 2 stages"),
        (["--anchors", "high,low"], "give a dropout per stage"),
        (["--anchors", "law=0.3,0.1"], "two conditions are named law"),
        (["--anchors", "static_0.20=0.3,0.1"], "two conditions are named static_0.20"),
        (["--anchors", "a/b=0.3,0.1"], "condition 'a/b' must be letters"),
        (["--anchors", f"{'a' * 61}=0.3,0.1"], "at most 60"),
        (["--models", "L1_H2_D32,L1_H3_D32"], "do not divide"),
    ],
)
def test_what_a_chain_refuses(
    options: list[str],
    message: str,
    dry: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main([*OPTIONS, *options, *dry]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not Path("ray_results").exists()


def test_a_chain_is_not_extended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["tiny.toml", "--phase", "all", "--extend"]) == 2
    assert "--extend adds to one run" in capsys.readouterr().err


def test_a_dry_run_shows_what_is_known_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main([*OPTIONS, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert [out.count(f"phase {phase},") for phase in ("screen", "confirm", "calibrate")] == [1, 1, 1]
    assert "the law is fitted to both" in " ".join(out.split())
    assert not Path("ray_results").exists()


def test_a_dry_run_of_a_chain_to_go_on_with_plans_the_chain_s_own_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "ray_results" / "tiny-all-pocket" / "20260101-000000"
    path.mkdir(parents=True)
    args = parse([TINY, "--scale", "pocket", "--device", "cpu", "--phase", "all", "--models", "L1_H2_D16"])
    state = replace(Chain.of(args), path=path)
    state.write()
    state.decide("screen", "L1_H2_D32", "for a test")
    before = sorted(tmp_path.rglob("*"))
    assert main(["--phase", "all", "--resume", str(path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("(tiny), phase ") == 3
    assert out.count("scale pocket") == 3
    assert "L1_H2_D16" in out.split("phase confirm")[0]
    assert "(shown: L1_H2_D32)" in out
    assert sorted(tmp_path.rglob("*")) == before

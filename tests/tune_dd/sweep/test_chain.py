"""--phase all on a text so small that dropout pays: stopped in the middle, resumed, and one report at the end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from tests_support import TINY_REGIME, synthetic_text

from tune_dd import artifacts
from tune_dd.sweep.__main__ import main

CHANGES = {
    'models = ["L1_H2_D16"]': 'models = ["L1_H2_D16"]\nscreen_models = ["L1_H2_D16", "L1_H2_D32"]',
    "prefixes = [400, 800]": "prefixes = [800, 1200]\nstream_steps = 40\nstream_seeds = [5, 6]",
    "readouts = [640, 1280]": "readouts = [12800, 19200]",
    "dropouts = [0.0, 0.2]": "dropouts = [0.0, 0.1, 0.3, 0.5, 0.7]\nstream_dropouts = [0.0, 0.2]",
    "seeds = [0]": "seeds = [0, 1]",
}
OPTIONS = ["tiny.toml", "--device", "cpu", "--phase", "all"]


def prepare(folder: Path) -> None:
    text = TINY_REGIME
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "tiny.toml").write_text(text, encoding="utf-8")
    (folder / "text.txt").write_text(synthetic_text(120), encoding="utf-8")


@pytest.mark.timeout(600)  # some 40 s of work, and whatever else the machine does
def test_a_chain_is_stopped_and_goes_on_to_one_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path)
    argv = [sys.executable, "-m", "tune_dd.sweep", *OPTIONS, "--anchors", "down=0.4,0.1"]
    process = subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("ray_results/tiny-confirm-full/*/journals/*.safetensors")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    (resume,) = re.findall(r"python -m (tune_dd\.sweep --phase all --resume \S+)", out)
    (chain,) = tmp_path.glob("ray_results/tiny-all-full/*/chain.json")
    assert sorted(json.loads(chain.read_text())["runs"]) == ["confirm", "screen"]

    done = subprocess.run(
        [sys.executable, "-m", *resume.split()], cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    state = json.loads(chain.read_text())
    assert state["finished"]
    assert list(state["runs"]) == ["calibrate", "confirm", "screen", "stream"]  # JSON's keys are sorted
    assert [(d["step"], d["chosen"] is not None) for d in state["decisions"]] == [
        ("screen", True),
        ("confirm", True),
        ("law", True),
    ]
    chosen = state["decisions"][0]["chosen"]
    rows = {
        phase: [row for _, row in artifacts.read_rows(chain.parent / run / artifacts.METRICS)]
        for phase, run in state["runs"].items()
    }
    assert {row["model"] for row in rows["confirm"]} == {row["model"] for row in rows["stream"]} == {chosen}
    assert chosen not in {row["model"] for row in rows["calibrate"]}
    assert {row["condition"] for row in rows["stream"]} == {
        "law", "reversed_law", "linear_decay", "static_0.00", "static_0.20", "down"
    }  # fmt: skip
    law = json.loads((chain.parent / "law" / "coefficients.json").read_text())
    assert len({cell["model"] for cell in law["cells"]}) == 2
    for name in ("report.html", "comparison.csv", "model_selection.csv", "coefficients.json"):
        assert (chain.parent / name).stat().st_size > 0, name
    selection = pd.read_csv(chain.parent / "model_selection.csv")
    assert set(selection["phase"]) == {"confirm", "calibrate"}
    assert "decision after confirm: " in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].startswith("report: ")
    assert "next: " not in done.stdout  # the chain itself goes on
    monkeypatch.chdir(tmp_path)
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()[-1]
    assert listed.split() == [
        str(chain.parent.relative_to(tmp_path)),
        "screen",
        "confirm",
        "calibrate",
        "stream",
        "finished",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "1"], "--seeds belongs to one phase"),
        (["--coefficients", "x"], "--coefficients belongs to one phase"),
        (["--resume", "--models", "L1_H2_D16"], "keeps those that it was begun with"),
        (["--resume"], "no unfinished chain tiny-all-*"),
        (["--resume", "nowhere"], "nowhere/chain.json is missing"),
        (["--scale", "huge"], "--scale"),
    ],
)
def test_what_a_chain_refuses(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main([*OPTIONS, *options]) == 2
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
    assert "rank" in out
    assert not Path("ray_results").exists()

"""The command that a finished run suggests: one that can be pasted and that works."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tune_dd import artifacts
from tune_dd.sweep.following import following
from tune_dd.sweep.options import choose_plan, choose_regime, parse
from tune_dd.sweep.runs import RunFolder


def fitted_to(*sizes: int) -> Any:
    return SimpleNamespace(search=None, coefficients=SimpleNamespace(sizes=frozenset(sizes)))


SMALL, LAST = 45_056, 163_840  # parameters of L1_H2_D32 and L2_H2_D64
FITTED: Any = fitted_to(SMALL, LAST)
UNFITTED: Any = SimpleNamespace(search=None, coefficients=None)
TRAIN = 2_000_000


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def suggested(command: str, result: Any, *, n_train: int = TRAIN, more: str = "") -> str:
    """What is suggested after the calibration that a command began; ``more``: options of another version."""
    args = parse(shlex.split(command))
    plan = choose_plan(args, choose_regime(args))
    run = RunFolder(Path("ray_results/r/1").absolute())
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_config(
        {
            "schema": artifacts.SCHEMA,
            "command": f"python -m tune_dd.sweep {command}{more}",
            "regime": {"name": plan.regime.name},
            "data": {"manifest": {"tokens": {"train": n_train}}},
        }
    )
    plan = replace(plan, scale=plan.grids[0].on_scale(plan.scale))
    words = shlex.split(following(run, plan, result, None, crashed=False), comments=True)
    if words[2] == "tune_dd.sweep":
        parse(words[3:])
    return shlex.join(words)


POCKET = "pydocs --scale pocket --device cpu"
READ = "python -m analysis ray_results/r/1"


@pytest.mark.parametrize(
    ("command", "stream"),
    [
        (POCKET, f"{POCKET} --phase stream --models L2_H2_D64 --coefficients ray_results/r/1"),
        (
            f"{POCKET} --models L3_H4_D96",
            f"{POCKET} --phase stream --models L3_H4_D96 --coefficients ray_results/r/1",
        ),
        (
            f"{POCKET} --models L3_H4_D96 --coefficients law --law odds --transfer",  # a hold-out
            f"{POCKET} --phase stream --models L3_H4_D96 --coefficients law --law odds --transfer",
        ),
        ("tinystories --quick", f"{POCKET} --phase stream --models L2_H2_D64 --coefficients ray_results/r/1"),
        (
            "owt --quick --corpus a.txt --seeds 0,1",
            "owt --scale pocket --device cpu --corpus a.txt --phase stream --models L2_H2_D64 "
            "--coefficients ray_results/r/1",
        ),
    ],
)
def test_a_calibration_is_followed_by_the_stream_that_its_law_is_for(command: str, stream: str) -> None:
    assert suggested(command, FITTED) == f"python -m tune_dd.sweep {stream}"


def test_the_stream_is_of_a_size_that_the_law_is_fitted_to() -> None:
    both = f"{POCKET} --models L1_H2_D32,L2_H2_D64"
    assert "--models L2_H2_D64 " in suggested(both, FITTED)
    assert "--models L1_H2_D32 " in suggested(both, fitted_to(SMALL))
    assert "--models L2_H2_D64 " in suggested(f"{POCKET} --models L2_H2_D64,L1_H2_D32", fitted_to(LAST))


def test_a_pilot_is_followed_by_what_it_is_for() -> None:
    pilot = "--models L2_H2_D64 --prefixes 4k,8k,16k --dropouts 0,0.1,0.3,0.4,0.6 --seeds 0"
    own = f"{POCKET} --corpus a.txt {pilot}"
    assert suggested(own, FITTED) == "python -m analysis carry ray_results/r/1 --out ray_results/r/1/carried"
    assert suggested(own, UNFITTED) == suggested(own, FITTED), "its own law is not what it is for"
    assert "--phase stream" in suggested(f"{own},1", FITTED)
    assert "--phase stream" in suggested(f"{own} --coefficients law", FITTED), "a hold-out is none"
    assert "--phase stream" in suggested(f"{POCKET} {pilot}", FITTED), "nor is a text of the study's"


def test_a_pilot_of_another_vocabulary_is_none(tiny_regime: Path) -> None:
    """The mean law of texts is of one vocabulary, batch and learning rate."""
    tiny_regime.write_text(tiny_regime.read_text().replace("[scales.full", "[scales.pocket"))
    words = f"{shlex.quote(str(tiny_regime))} --scale pocket --device cpu --seeds 0 --models L1_H2_D16"
    assert "carry" not in suggested(words, UNFITTED)


def test_a_hold_out_is_followed_by_the_stream_whatever_its_own_cells_gave() -> None:
    assert "--coefficients law" in suggested(f"{POCKET} --coefficients law", UNFITTED)


def test_no_stream_is_suggested_that_the_text_is_too_short_for() -> None:
    assert suggested(POCKET, FITTED, n_train=63_999) == READ
    assert "--phase stream" in suggested(POCKET, FITTED, n_train=64_000)


@pytest.mark.parametrize(
    ("command", "full"),
    [
        (POCKET, "pydocs --dry-run"),
        ("tinystories --quick", "pydocs --dry-run"),
        (
            "owt --scale pocket --device cpu --corpus-glob 'my texts/*.txt' --column body",
            "owt --corpus-glob 'my texts/*.txt' --column body --dry-run",
        ),
    ],
)
def test_the_full_search_is_one_on_the_same_text(command: str, full: str) -> None:
    assert suggested(command, UNFITTED) == f"python -m tune_dd.sweep {full}"


def test_a_run_of_another_version_s_command_ends_all_the_same() -> None:
    for result in (FITTED, UNFITTED):
        assert suggested(POCKET, result, more=" --no-longer-there") == READ

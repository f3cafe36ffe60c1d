"""Every benchmark runs at a toy size and gives its figures as JSON. What they are is for no test to judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import analysis, corpus, search, step


def numbers(figures: Any) -> list[float]:
    """Every number that the figures hold, having been JSON."""

    def within(value: Any) -> list[float]:
        if isinstance(value, dict | list):
            return [n for inner in (value.values() if isinstance(value, dict) else value) for n in within(inner)]
        return [value] if isinstance(value, int | float) else []

    return within(json.loads(json.dumps(figures, allow_nan=False)))


def test_step() -> None:
    row = step.measure(step.Case("L1_H2_D16", 300, 2, 16, repeats=2), 1)
    assert len(row["step_seconds"]) == 2
    assert min(numbers(row)) > 0


def test_search(tiny_regime: Path) -> None:
    words = (str(tiny_regime), "--device", "cpu")
    figures = search.measure(words, repeats=1, memory_trials=6, planned=80)
    assert figures["search"]["trials"] == 4
    assert figures["planning"]["trials"] == 80
    assert all(len(values) == 1 for values in figures["search"].values() if isinstance(values, list))
    assert min(numbers(figures["search"])) > 0
    assert min(numbers(figures["readout"])) > 0
    assert len(figures["memory"]["resident_bytes"]) == 1


def test_corpus() -> None:
    figures = corpus.measure(encoded=0.3, sources=(0.3, 0.6), repeats=1)
    assert [round(source["megabytes"], 1) for source in figures["sources"]] == [0.3, 0.6]
    assert figures["sources"][1]["tokens"] > figures["sources"][0]["tokens"]
    assert min(numbers(figures)) > 0


def test_analysis() -> None:
    figures = analysis.measure(n_models=2, n_prefixes=3, n_seeds=2, repeats=1, bootstrap=20)
    assert (figures["trials"], figures["rows"]) == (96, 384)
    assert figures["page"]["cpu_over_yardstick"] > 0
    assert len(figures["tables"]["seconds"]) == 1


def test_the_command_writes_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "CASES", (step.Case("L1_H2_D16", 300, 2, 16, repeats=1),))
    file = tmp_path / "figures.json"
    assert command.main(["step", "--quick", "--json", str(file)]) == 0
    assert json.loads(file.read_text())["step"]["rows"][0]["case"] == "L1_H2_D16 V300 2x16"


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["speed"])
    assert "no benchmark 'speed'" in capsys.readouterr().err

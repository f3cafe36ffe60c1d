"""Every benchmark runs at a toy size and gives its figures as JSON. What they are is for no test to judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests_support import row

from benchmarks import __main__ as command
from benchmarks import analysis, answer, corpus, search, step
from tune_dd import artifacts


def numbers(figures: Any) -> list[float]:
    """Every number that the figures hold, having been JSON."""

    def within(value: Any) -> list[float]:
        if isinstance(value, dict | list):
            return [n for inner in (value.values() if isinstance(value, dict) else value) for n in within(inner)]
        return [value] if isinstance(value, int | float) else []

    return within(json.loads(json.dumps(figures, allow_nan=False)))


def test_step() -> None:
    found = step.measure(step.Case("L1_H2_D16", 300, 2, 16, repeats=2), 1)
    assert len(found["step_seconds"]) == 2
    assert min(numbers(found)) > 0


def test_search(tiny_regime: Path) -> None:
    words = (str(tiny_regime), "--device", "cpu")
    figures = search.measure({"tiny": words}, repeats=1, memory_trials=6, planned=80)
    tiny = figures["searches"]["tiny"]
    assert tiny["trials"] == 4
    assert figures["planning"]["trials"] == 80
    assert all(len(values) == 1 for values in tiny.values() if isinstance(values, list))
    assert {len(values) for values in tiny["readout"].values()} <= {4, 5}
    assert min(numbers({name: values for name, values in tiny.items() if name != "cpu_seconds"})) > 0
    assert set(tiny["cpu_seconds"]) == {"workers", "driver", "ray", "command", "bare_loop"}
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


def test_answer(tmp_path: Path) -> None:
    bank = answer.simulated("curves", 0)
    run, unfinished = tmp_path / "run", tmp_path / "unfinished"
    write_grid(run, bank)
    write_grid(unfinished, bank, n_rows=100)
    (saved,) = answer.saved([run, run, unfinished])
    assert saved.everything == bank.everything
    assert all((saved.losses[block] == losses).all() for block, losses in bank.losses.items())
    figures = answer.measure([run], simulations=2, n_bootstrap=50, noises=(1.0,))
    assert set(figures) >= {"recorded", "simulated curves", "simulated law"}
    assert figures["recorded"]["banks"] == [f"tiny L2_H2_D64, seed {seed} first" for seed in (0, 1, 2)]
    assert figures["simulated law"]["cells"] == 2 * 8 * 3
    for name in ("recorded", "simulated curves", "simulated law"):
        ours, rival = figures[name]["adaptive"], figures[name]["whole grid, one seed"]
        assert 8 * 5 / 192 < ours["share"] <= ours["largest_share"] <= 0.4
        assert rival["share"] == 1 / 3
        assert rival["width"] is None, "one seed has no interval"
        assert sum(ours["reasons"].values()) == pytest.approx(1)
        assert "budget" not in ours["reasons"] or ours["decided"] < 1
    assert figures["recorded"]["adaptive"].get("coverage") is None, "nobody knows the truth of a recorded cell"
    assert 0 <= figures["simulated law"]["adaptive"]["coverage"] <= 1
    json.dumps(figures, allow_nan=False)


def test_a_replay_of_the_whole_grid_is_the_whole_grid() -> None:
    bank = answer.simulated("law", 1)
    full = bank.fits(bank.everything, 50)
    rows = answer.judged(bank, answer.fixed(bank, bank.everything["L1_H2_D32", 4_000]), full, 50)
    figures = answer.summarised([1.0], rows)
    assert (figures["agrees"], figures["on_plateau"]) == (1, 1)
    for name in ("width", "coverage", "rms_error", "truly"):
        other = "rms_full_error" if name == "rms_error" else f"full_{name}"
        assert figures[name] == figures[other]
    turned = bank.rotated(1)
    assert (turned.losses["L1_H2_D32", 4_000][:, 0] == bank.losses["L1_H2_D32", 4_000][:, 1]).all()


def write_grid(folder: Path, bank: answer.Bank, n_rows: int | None = None) -> None:
    """A static run of the bank's losses, as far as it has come."""
    folder.mkdir()
    config = {"phase": "calibrate", "regime": {"name": "tiny"}, "grids": [bank.grid.to_dict()]}
    artifacts.write_json(folder / artifacts.CONFIG, config)
    grid = bank.grid
    rows = [
        row(
            model=model,
            unique_tokens=prefix,
            sampled_tokens=grid.readouts[c],
            seed=grid.seeds[s],
            dropout=grid.dropouts[j],
            val_loss=float(loss),
        )
        for (model, prefix), losses in bank.losses.items()
        for (c, s, j), loss in np.ndenumerate(losses)
    ]
    artifacts.write_rows(folder / artifacts.METRICS, rows[:n_rows])


def test_the_command_writes_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "CASES", (step.Case("L1_H2_D16", 300, 2, 16, repeats=1),))
    file = tmp_path / "figures.json"
    assert command.main(["step", "--quick", "--json", str(file)]) == 0
    assert json.loads(file.read_text())["step"]["rows"][0]["case"] == "L1_H2_D16 V300 2x16"


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["speed"])
    assert "no benchmark 'speed'" in capsys.readouterr().err

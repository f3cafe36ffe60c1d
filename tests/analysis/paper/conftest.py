"""Saved runs that the paper's tests are about, and the paper made from them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from analysis.paper.build import build
from analysis.paper.removed import FILE
from analysis.paper.studies import Study, find_studies
from analysis.saved import save
from tune_dd.artifacts import write_json
from tune_dd.regimes import ModelSpec
from tune_dd.trial import Stage

SMALL = ModelSpec(1, 2, 32)
REMOVED = """run,evidence,regime,model,law,seeds,n_pairs,difference,low,high,p_paired_t,removed_by
pydocs-stream-pocket/a,rehearsal,pydocs,L2_H2_D64,interaction,20-24,5,-0.02,-0.03,-0.01,0.01,abc
pydocs-stream-pocket/b,rehearsal,pydocs,L2_H2_D64,interaction,30-34,5,-0.01,-0.03,-0.001,0.2,abc
pydocs-stream-pocket/c,rehearsal,pydocs,L1_H2_D32,onset,30-34,5,0.02,0.01,0.03,0.01,def
owt-stream-pocket/d,rehearsal,owt,L1_H2_D32,onset,30-34,5,0.02,0.01,0.03,0.01,def
pydocs-stream-full/e,run,pydocs,L1_H2_D32,onset,30-34,5,0.02,0.01,0.03,0.01,def
"""


def calibration(synthetic: ModuleType, **changes: Any) -> list[dict[str, Any]]:
    grid = {
        "prefixes": (4_000, 8_000, 16_000),
        "readouts": (196_608, 262_144),
        "dropouts": (0.0, 0.1, 0.2, 0.3, 0.4, 0.6),
        "models": (SMALL, synthetic.POCKET_MODEL),
    }
    rows: list[dict[str, Any]] = synthetic.calibration(**grid | changes)
    return rows


def write_search(synthetic: ModuleType, folder: Path) -> None:
    """A search of three points over two seeds, with its suggestions.json."""
    points, rows = [], []
    for index, (role, path, loss) in enumerate(
        (("fitted", (0.4, 0.1), 3.9), ("static", (0.2, 0.2), 4.0), ("sampled", (0.5, 0.05), 3.8))
    ):
        condition = f"point_{index:03d}"
        points.append({"index": index, "condition": condition, "role": role, "params": {"p_first": path[0]}})
        points[-1] |= {"coefficients": {"A": 0.1}, "dropouts": list(path)}
        for seed in (0, 1):
            stages = [Stage(u, p, (64 * t + 64,)) for t, (u, p) in enumerate(zip((4_000, 8_000), path, strict=True))]
            trial = synthetic.spec(seed, condition, "law", stages, model=SMALL, regime="pydocs", corpus="docstrings")
            rows += synthetic.rows_of(trial, [5.0, loss + seed / 50 + index * seed / 500], run_id="s", phase="search")
    synthetic.write_finished(folder, rows)
    about = {"space": "ends", "law": "interaction", "sampler": "tpe", "objective": "final", "search_seed": 0}
    write_json(
        folder / "suggestions.json", {**about, "seeds": [0, 1], "bounds": {"p_first": [0.02, 0.65]}, "points": points}
    )


@pytest.fixture(scope="session")
def results(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved chain with a stream, a saved hold-out on another text, and a saved search."""
    storage, saved = tmp_path_factory.mktemp("ray_results"), tmp_path_factory.mktemp("saved")
    chain = synthetic.write_chain(storage, {"calibrate": calibration(synthetic), "stream": synthetic.stream()})
    held = storage / "tinystories-calibrate-pocket" / "9"
    rows = calibration(synthetic, regime="tinystories", corpus="stories", models=(synthetic.POCKET_MODEL,))
    synthetic.write_finished(held, rows, title="TinyStories")
    entry = {"law": "interaction", "model": "L2_H2_D64", "sampled_tokens": 262_144, "low": 0.1, "high": 0.6}
    said = [{**entry, "unique_tokens": 8_000, "dropout": 0.3}, {**entry, "unique_tokens": 16_000, "dropout": 0.25}]
    write_json(held / "predictions.json", {"coefficients": [], "predictions": said})
    search = storage / "pydocs-search-pocket" / "8"
    write_search(synthetic, search)
    save([chain, held, search], saved)
    (saved / FILE).write_text(REMOVED)
    return saved


@pytest.fixture(scope="session")
def studies(results: Path) -> list[Study]:
    return find_studies(results)


@pytest.fixture(scope="session")
def built(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``paper`` and ``docs`` made from ``results``."""
    folder = tmp_path_factory.mktemp("built")
    build(results, folder / "paper", folder / "docs")
    return folder

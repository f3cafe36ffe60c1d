"""Synthetic runs with the shape and the noise of real pocket runs, written through the project's own writers.

Validation losses at C = 262k are means of three measured seeds (L2_H2_D64, V 512, docstrings); earlier
read-outs mix that curve with one that has its optimum at 0, as measured there. Models of another size
see the curve of the prefix with the same P/U. The noise is the measured one: a seed effect of 0.040
shared by every dropout of a cell, and 0.030 between two dropouts of one seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tune_dd import artifacts
from tune_dd.regimes import ModelSpec, Protocol
from tune_dd.trial import Stage, TrialSpec, static_condition

DROPOUTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
PREFIXES = (4_000, 8_000, 16_000, 32_000, 64_000)
READOUTS = (65_536, 131_072, 196_608, 262_144)
MEASURED = np.array(
    [
        [7.920, 7.599, 7.326, 6.879, 6.639, 6.496, 6.420, 6.424],
        [5.915, 5.651, 5.499, 5.311, 5.246, 5.238, 5.260, 5.303],
        [4.682, 4.613, 4.562, 4.535, 4.549, 4.588, 4.665, 4.760],
        [4.175, 4.173, 4.170, 4.207, 4.258, 4.329, 4.391, 4.502],
        [4.009, 3.999, 4.007, 4.040, 4.111, 4.185, 4.272, 4.411],
    ]
)
SEED_SD, POINT_SD = 0.040, 0.030 / np.sqrt(2)
PROTOCOL = Protocol(batch_size=16, context=128, learning_rate=1e-2, warmup_steps=20)
BYTES_PER_TOKEN = 2.2
POCKET_MODEL = ModelSpec(2, 2, 64)
SPECS: dict[str, dict[str, Any]] = {}  # of every trial generated, by its id: what Tune's config holds
# Schedules of a locked stream over PREFIXES, and their measured final differences from static 0.20.
STREAM = {
    "law": ((0.43, 0.34, 0.21, 0.10, 0.05), -0.057),
    "hold_35_then_decay": ((0.35, 0.40, 0.34, 0.10, 0.02), -0.062),
    "reversed_law": ((0.05, 0.10, 0.21, 0.34, 0.43), 0.097),
    "static_0.15": ((0.15,) * 5, 0.008),
    "static_0.20": ((0.20,) * 5, 0.0),
    "static_0.25": ((0.25,) * 5, 0.015),
    "static_0.30": ((0.30,) * 5, 0.023),
}


def mean_loss(n_params: int, unique_tokens: int, sampled_tokens: int, dropout: float) -> float:
    """Validation loss in nats per token, without noise."""
    log_u = np.log2(unique_tokens * 163_840 / n_params)
    curve = np.array([np.interp(log_u, np.log2(PREFIXES), column) for column in MEASURED.T])
    late = float(np.interp(dropout, DROPOUTS, curve))
    share = float(np.interp(sampled_tokens, [0, *READOUTS, 10 * READOUTS[-1]], [0, 0.1, 0.45, 0.8, 1, 1]))
    early = 4.2 + 0.9 * dropout + 0.6 * (1 - share)
    return share * late + (1 - share) * early


def spec(
    seed: int, condition: str, kind: str, stages: Sequence[Stage], *, model: ModelSpec, regime: str, corpus: str
) -> TrialSpec:
    return TrialSpec(
        regime=regime,
        scale="pocket",
        corpus_hash=f"{corpus}-corpus",
        tokenizer_hash=f"{corpus}-tokenizer",
        validation_hash=f"{corpus}-validation",
        vocab_size=512,
        model=model,
        protocol=PROTOCOL,
        seed=seed,
        condition=condition,
        kind=kind,
        stages=tuple(stages),
    )


def rows_of(trial: TrialSpec, losses: Sequence[float], *, run_id: str, phase: str) -> list[dict[str, Any]]:
    """The metrics rows of one trial, one validation loss (nats) per read-out."""
    SPECS[trial.trial_id] = trial.to_dict()
    rows = []
    places = [(s, r, step) for s, stage in enumerate(trial.stages) for r, step in enumerate(stage.readout_steps)]
    for (stage, readout, step), loss in zip(places, losses, strict=True):
        gap = 0.4 * (1 - trial.stages[stage].dropout)
        rows.append(
            {
                "schema": artifacts.SCHEMA,
                "run_id": run_id,
                "trial_id": trial.trial_id,
                "trial_name": trial.name,
                "regime": trial.regime,
                "phase": phase,
                "scale": trial.scale,
                "evidence": "rehearsal",
                "model": trial.model.name,
                "n_params": trial.n_params,
                "vocab_size": trial.vocab_size,
                "context": trial.protocol.context,
                "batch_size": trial.protocol.batch_size,
                "seed": trial.seed,
                "condition": trial.condition,
                "kind": trial.kind,
                "stage": stage,
                "readout": readout,
                "unique_tokens": trial.stages[stage].unique_tokens,
                "sampled_tokens": trial.sampled_tokens(step),
                "steps": step,
                "dropout": trial.stages[stage].dropout,
                "learning_rate": trial.protocol.learning_rate,
                "train_loss": loss - gap,
                "val_loss": loss,
                "val_bpb": loss / np.log(2) / BYTES_PER_TOKEN,
                "gap": gap,
                "val_tokens": 65_536,
                "corpus_hash": trial.corpus_hash,
                "tokenizer_hash": trial.tokenizer_hash,
                "validation_hash": trial.validation_hash,
                "device": "cpu",
                "device_name": "x86_64",
                "train_seconds": 1.4,
                "tokens_per_second": 48_400.0,
                "peak_memory_bytes": 300_000_000,
            }
        )
    return rows


def calibration(
    *,
    prefixes: Sequence[int] = PREFIXES,
    readouts: Sequence[int] = READOUTS,
    dropouts: Sequence[float] = DROPOUTS,
    seeds: Sequence[int] = (0, 1, 2),
    models: Sequence[ModelSpec] = (POCKET_MODEL,),
    regime: str = "pydocs",
    corpus: str = "docstrings",
    run_id: str = "synthetic",
    phase: str = "calibrate",
) -> list[dict[str, Any]]:
    """Rows of a static grid: prefixes x dropouts x seeds x models, each trial read out at every C."""
    steps = tuple(c // PROTOCOL.tokens_per_step for c in readouts)
    rows = []
    for model in models:
        for unique_tokens in prefixes:
            for seed in seeds:
                shared = SEED_SD * generator("seed", model.name, unique_tokens, seed).standard_normal()
                for dropout in dropouts:
                    trial = spec(
                        seed,
                        static_condition(dropout),
                        "static",
                        [Stage(unique_tokens, dropout, steps)],
                        model=model,
                        regime=regime,
                        corpus=corpus,
                    )
                    own = POINT_SD * generator("point", model.name, unique_tokens, seed, dropout).standard_normal()
                    losses = [mean_loss(trial.n_params, unique_tokens, c, dropout) + shared + own for c in readouts]
                    rows += rows_of(trial, losses, run_id=run_id, phase=phase)
    return rows


def stream(
    *, seeds: Sequence[int] = (10, 11, 12, 13, 14), regime: str = "pydocs", corpus: str = "docstrings"
) -> list[dict[str, Any]]:
    """Rows of a locked stream over PREFIXES, 64 steps a stage, with the measured final differences."""
    rows = []
    for seed in seeds:
        shared = SEED_SD * generator("stream", seed).standard_normal()
        for condition, (path, difference) in STREAM.items():
            kind = "static" if condition.startswith("static") else "law" if condition == "law" else "anchor_decay"
            stages = [
                Stage(u, p, (64 * t + 32, 64 * t + 64)) for t, (u, p) in enumerate(zip(PREFIXES, path, strict=True))
            ]
            trial = spec(seed, condition, kind, stages, model=POCKET_MODEL, regime=regime, corpus=corpus)
            noise = POINT_SD * generator("stream point", seed, condition).standard_normal(10)
            levels = np.linspace(5.4, 3.8764, 10) + shared + difference * np.linspace(0, 1, 10)
            rows += rows_of(trial, list(levels + noise), run_id="synthetic-stream", phase="stream")
    return rows


def generator(*key: Any) -> np.random.Generator:
    """Noise as a pure function of what it belongs to, so that a subset of a run repeats its numbers."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def write_run(folder: Path, rows: Sequence[dict[str, Any]], *, config: dict[str, Any] | None = None) -> Path:
    """A run folder as the sweep leaves it: metrics.jsonl, the ledger and, if given, config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    artifacts.write_rows(folder / artifacts.METRICS, rows)
    last = {row["trial_name"]: row for row in rows}
    lines = ["trial\tval_bpb\tmemory_gb\tstatus\tdescription"]
    lines += [f"{name}\t{row['val_bpb']:.6f}\t0.3\tkeep\t{row['condition']}" for name, row in last.items()]
    lines.append("pydocs-L2_H2_D64-U4k-p0.90-s0\t\t\tcrash\tloss is not finite at step 12")
    (folder / artifacts.LEDGER).write_text("\n".join(lines) + "\n")
    if config is not None:
        artifacts.write_json(folder / artifacts.CONFIG, config)
    return folder


def text_config(
    regime: str,
    corpus: str,
    bigram_loss: float,
    *,
    overlap: float = 0.04,
    run_id: str = "synthetic",
    vocab_size: int = 512,
) -> dict[str, Any]:
    """What config.json says of the text that a run was trained on."""
    counted = {"val_loss": bigram_loss, "train_tokens": 2_000_000, "val_tokens": 200_000}
    data = {
        "manifest": {"bigram": counted, "validation_overlap": overlap, "settings": {"vocab_size": vocab_size}},
        "tokenizer_hash": f"{corpus}-tokenizer",
        "corpus_hash": f"{corpus}-corpus",
    }
    return {"run_id": run_id, "regime": {"name": regime}, "scale_name": "pocket", "data": data}


def write_tune_experiment(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The folder that Tune itself leaves: one folder per trial with result.json and params.json.

    Tune overwrites the column ``trial_id`` with its own and nests the trial's config in every line.
    """
    by_trial: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_trial.setdefault(row["trial_id"], []).append(row)
    for number, (trial_id, own) in enumerate(by_trial.items()):
        place = folder / f"train_{number:05d}_{own[0]['trial_name']}"
        place.mkdir(parents=True)
        config = {"trial": {"id": trial_id, "spec": SPECS[trial_id]}, "run": {"phase": own[0]["phase"]}}
        (place / "params.json").write_text(json.dumps(config))
        with open(place / "result.json", "w") as file:
            for iteration, row in enumerate(own, start=1):
                extra = {"trial_id": f"061ce_{number:05d}", "training_iteration": iteration, "done": False}
                file.write(json.dumps({**row, **extra, "pid": 5236, "config": config}) + "\n")
    return folder


def write_finished(
    folder: Path, rows: list[dict[str, Any]], *, title: str = "Docstrings", home: str = "/home/someone/a study"
) -> Path:
    """A finished run whose files name paths in the folder that it was started in, ``home``, and elsewhere."""
    config = {
        "schema": artifacts.SCHEMA,
        "regime": {"name": rows[0]["regime"], "title": title, "corpus": {"globs": [f"{home}/data/*.txt"]}},
        "phase": rows[0]["phase"],
        "scale_name": rows[0]["scale"],
        "scale": {"protocol": {"warmup_steps": PROTOCOL.warmup_steps}},
        "n_trials": len({row["trial_name"] for row in rows}),
        "command": f"python -m tune_dd.sweep pydocs --corpus-glob '{home}/data/*.txt' --corpus=/mnt/disk/texts/a.txt",
        "data": {
            "cache_folder": f"{home}/.cache/dropout_decay_pydocs",
            "manifest": {"sources": [{"path": "/mnt/disk/texts/a.txt"}, {"path": f"{home}/data/b.txt"}]},
        },
        "platform": "Linux-6.1.0-13-amd64-x86_64-with-glibc2.36",
        "attribution": "DOI 10.5281/zenodo.20616633, https://example.org/a/b, losses in nats/token",
    }
    run = write_run(folder, rows, config=config | {"checksum": artifacts.checksum(config)})
    with open(run / artifacts.LEDGER, "a") as ledger:
        ledger.write("another\t\t\tcrash\tcannot read /mnt/disk/texts/a.txt: gone\n")
    (run / artifacts.REPORT).write_text("a page")
    (run / artifacts.JOURNALS).mkdir()
    (run / artifacts.JOURNALS / "x.safetensors").write_bytes(b"weights")
    return run


def write_chain(storage: Path, phases: dict[str, list[dict[str, Any]]], *, title: str = "Docstrings") -> Path:
    """A finished chain of these phases, whose runs are called 1, 2, ..., and itself after them."""
    runs = {}
    for number, (phase, rows) in enumerate(phases.items(), start=1):
        regime = rows[0]["regime"]
        write_finished(storage / f"{regime}-{phase}-pocket" / str(number), rows, title=title)
        runs[phase] = f"../../{regime}-{phase}-pocket/{number}"
    folder = storage / f"{regime}-all-pocket" / str(len(phases) + 1)
    (folder / "law").mkdir(parents=True)
    (folder / "law" / "coefficients.json").write_text("{}\n")
    (folder / artifacts.REPORT).write_text("a page")
    options = [regime, "--corpus", "/mnt/disk/texts/a.txt"]
    record = {"schema": artifacts.SCHEMA, "finished": True, "runs": runs, "options": options, "decisions": []}
    artifacts.write_json(folder / "chain.json", record)
    return folder

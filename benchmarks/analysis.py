"""The analysis of a large run: tables alone, and tables with the drawn page, as a user gives the commands.

The run is synthetic: every model, prefix, dropout and seed of a grid, four read-outs a trial, losses that are
quadratic in dropout around a made-up law plus noise of the measured size. Between the commands its file is
read by ``json.loads`` line by line: a yardstick of the machine at that moment, which the ratios refer to.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.measuring import Usage, machine, run_python, spread
from tune_dd import artifacts
from tune_dd.regimes import ModelSpec, Protocol
from tune_dd.trial import Stage, TrialSpec, static_condition

MODELS = (
    *(ModelSpec(layers, 2, 32 * width) for layers in (1, 2, 3, 4) for width in (1, 2, 3)),
    ModelSpec(6, 2, 192),
    ModelSpec(8, 2, 256),
)
PREFIXES = tuple(4_000 * 2**i for i in range(10))
DROPOUTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
STEPS = (32, 64, 96, 128)
PROTOCOL = Protocol(batch_size=16, context=128, learning_rate=1e-2, warmup_steps=20)
SEED_SD, POINT_SD = 0.040, 0.021  # measured at pocket scale, nats


def synthetic_rows(n_models: int, n_prefixes: int, n_seeds: int) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of n_models x n_prefixes x n_seeds x 8 trials, four each."""
    draw = np.random.default_rng(0)
    rows = []
    for model in MODELS[:n_models]:
        for unique_tokens in PREFIXES[:n_prefixes]:
            for seed in range(n_seeds):
                shared = SEED_SD * draw.standard_normal()
                for dropout in DROPOUTS:
                    trial = TrialSpec(
                        regime="benchmark",
                        scale="pocket",
                        corpus_hash="corpus",
                        tokenizer_hash="tokenizer",
                        validation_hash="validation",
                        vocab_size=512,
                        model=model,
                        protocol=PROTOCOL,
                        seed=seed,
                        condition=static_condition(dropout),
                        kind="static",
                        stages=(Stage(unique_tokens, dropout, STEPS),),
                    )
                    for readout, step in enumerate(STEPS):
                        x = np.log10(trial.n_params / unique_tokens)
                        y = np.log10(trial.sampled_tokens(step) / unique_tokens)
                        best = float(np.clip(0.2 * x + 0.1 * y + 0.1 * x * y - 0.1, -0.1, 0.7))
                        loss = 4 + 2 * (dropout - best) ** 2 + shared + POINT_SD * draw.standard_normal()
                        rows.append(row(trial, readout, step, loss))
    return rows


def row(trial: TrialSpec, readout: int, step: int, loss: float) -> dict[str, Any]:
    """One read-out of a trial as its journal would have it."""
    stage = trial.stages[0]
    return {
        "schema": artifacts.SCHEMA,
        "run_id": "benchmark",
        "trial_id": trial.trial_id,
        "trial_name": trial.name,
        "regime": trial.regime,
        "phase": "calibrate",
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
        "stage": 0,
        "readout": readout,
        "unique_tokens": stage.unique_tokens,
        "sampled_tokens": trial.sampled_tokens(step),
        "steps": step,
        "dropout": stage.dropout,
        "learning_rate": trial.protocol.learning_rate,
        "train_loss": loss - 0.3,
        "val_loss": loss,
        "val_bpb": loss / np.log(2) / 2.2,
        "gap": 0.3,
        "val_tokens": 65_536,
        "corpus_hash": trial.corpus_hash,
        "tokenizer_hash": trial.tokenizer_hash,
        "validation_hash": trial.validation_hash,
        "device": "cpu",
        "device_name": "benchmark",
        "train_seconds": 1.4,
        "tokens_per_second": 48_400.0,
        "peak_memory_bytes": 300_000_000,
    }


def yardstick(path: Path) -> float:
    """Seconds of cpu that ``json.loads`` takes for every line of the file."""
    began = time.process_time()
    with open(path, encoding="utf-8") as file:
        for line in file:
            json.loads(line)
    return time.process_time() - began


def measure(*, n_models: int, n_prefixes: int, n_seeds: int, repeats: int, bootstrap: int = 2000) -> dict[str, Any]:
    commands = {"tables": ["--no-report"], "page": []}
    usages: dict[str, list[Usage]] = {name: [] for name in commands}
    yard = []
    with tempfile.TemporaryDirectory() as name:
        run = Path(name, "run")
        run.mkdir()
        rows = synthetic_rows(n_models, n_prefixes, n_seeds)
        artifacts.write_rows(run / artifacts.METRICS, rows)
        for _ in range(repeats):
            yard.append(yardstick(run / artifacts.METRICS))
            for command, options in commands.items():
                words = ["-m", "analysis", str(run), "--bootstrap", str(bootstrap), *options]
                usages[command].append(run_python(*words))
    figures: dict[str, Any] = {
        "trials": n_models * n_prefixes * n_seeds * len(DROPOUTS),
        "rows": len(rows),
        "bootstrap": bootstrap,
        "yardstick_cpu_seconds": yard,
    }
    for command, found in usages.items():
        figures[command] = {
            "seconds": [usage.seconds for usage in found],
            "cpu_seconds": [usage.cpu_seconds for usage in found],
            "cpu_over_yardstick": median(usage.cpu_seconds for usage in found) / median(yard),
            "peak_bytes": max(usage.peak_bytes for usage in found),
        }
    return figures


def run(*, quick: bool = False) -> dict[str, Any]:
    where = machine()
    figures = measure(n_models=14, n_prefixes=10, n_seeds=1 if quick else 9, repeats=1 if quick else 5)
    print(f"{figures['trials']:,} trials, {figures['rows']:,} rows, {figures['bootstrap']:,} bootstrap draws")
    print(f"{'':10s}{'wall s':>26s}{'cpu s':>26s}{'cpu / yardstick':>18s}{'peak MB':>10s}")
    for name in ("tables", "page"):
        found = figures[name]
        print(
            f"{name:10s}{spread(found['seconds']):>26s}{spread(found['cpu_seconds']):>26s}"
            f"{found['cpu_over_yardstick']:18.1f}{found['peak_bytes'] / 1e6:10.0f}",
            flush=True,
        )
    return {**where, **figures}

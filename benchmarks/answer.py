"""What ``--adaptive`` answers, for how many of the full grid's tokens: the policy replayed on banks of known losses.

A *bank* holds the loss of every trial of a full grid at every read-out. The policy asks for trials, the bank answers,
and the cells of what it asked for are judged beside those of the whole grid, by the same statistics. Recorded banks
are finished runs; each is replayed with every rotation of its seeds, so that each seed is once the first. Simulated
ones are drawn around known curves, so that there the true optimum is known too.

- *agree*: the adaptive optimum lies within the full grid's plateau: the full grid's own curve there is no further
  above its lowest point than the plateau's margin. *On the plateau*: its best dropout is one of the plateau's.
- *truly* (simulated): the same as agree, by the true curve; for the full grid beside it. Recorded banks share trials
  with the full grid that they are held against, which flatters their agreement; a true curve does not.
- *coverage* (simulated): intervals that hold the true optimum; for the full grid beside it, and among the cells that
  were called decided for the narrowness of their interval.

Beside it: the same without a budget, for the same width and for twice that; the whole grid on one seed; and the five
coarse dropouts on two.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.cells import Cell, decompose, pool_noise
from analysis.optimum import CellFit, fit_cell
from analysis.simulated import CURVES, SEED_SD, TRIAL_SD, TRUE_LAW, LossCurve, curve_with_optimum
from benchmarks.measuring import REPOSITORY, machine
from search_spaces.adaptive_grid import BUDGET, DECIDED, NARROW, TARGET_WIDTH, AdaptiveGrid, Block, CellEstimate
from search_spaces.adaptive_grid import GridPoint as Point
from search_spaces.static_dropout import StaticGrid
from tune_dd import artifacts
from tune_dd.errors import UserError
from tune_dd.law import Array
from tune_dd.laws import get_law
from tune_dd.regimes import ModelSpec
from tune_dd.sweep.runs import DEFAULT_STORAGE

DROPOUTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
SEEDS = (0, 1, 2)
CALIBRATED = ("calibrate", "confirm")
# Read-outs of one trial share half of its noise; the loss of an early one is that of a late curve, whose optimum lies
# high, mixed with one whose optimum is 0: shares as in pocket runs at C = 66k, 131k, 197k, 262k.
CORRELATION, LATE_SHARES = 0.5, (0.1, 0.45, 0.8, 1.0)
FINE = np.linspace(0.0, DROPOUTS[-1], 2401)

Chosen = Mapping[Block, Sequence[tuple[int, int]]]  # (place of the seed, place of the dropout) of each trial
Fits = dict[tuple[Block, int], CellFit]


@dataclass(frozen=True)
class Bank:
    """A full grid whose every loss is known.

    Attributes:
        losses: block -> (read-outs, seeds, dropouts), nats per token.
        true: block -> the true curve of each read-out; empty where nobody knows.
    """

    name: str
    grid: StaticGrid
    losses: Mapping[Block, Array]
    true: Mapping[Block, Sequence[Callable[[Array], Array]]]

    def fits(self, chosen: Chosen, n_bootstrap: int) -> Fits:
        """The cells of the chosen trials, as the analysis has them."""
        cells: dict[tuple[Block, int], Cell] = {}
        for (model, prefix), trials in chosen.items():
            seed, place = np.array(trials).T
            dropout = np.array(self.grid.dropouts)[place]
            for number, losses in enumerate(self.losses[model, prefix]):
                key = (self.name, "calibrate", model, 1, prefix, self.grid.readouts[number])
                cells[(model, prefix), number] = decompose(key, seed, dropout, losses[seed, place])
        noise = pool_noise(cells.values())
        return {key: fit_cell(cell, noise[cell.key], None, n_bootstrap, 0) for key, cell in cells.items()}

    def rotated(self, turns: int) -> Bank:
        """The same with another seed first."""
        losses = {block: np.roll(values, -turns, axis=1) for block, values in self.losses.items()}
        return Bank(f"{self.name}, seed {self.grid.seeds[turns]} first", self.grid, losses, self.true)

    @property
    def everything(self) -> Chosen:
        seeds, dropouts = len(self.grid.seeds), len(self.grid.dropouts)
        return {block: [(s, j) for s in range(seeds) for j in range(dropouts)] for block in self.losses}


def recorded(run: Path) -> Bank | None:
    """The bank of a finished static run; None where it is no full grid of two seeds or more.

    Raises:
        UserError: it cannot be read.
    """
    config = artifacts.read_json(run / artifacts.CONFIG)
    if config.get("phase") not in CALIBRATED or len(config["grids"]) != 1 or "target_width" in config["grids"][0]:
        return None
    grid = StaticGrid.from_dict(config["grids"][0])
    found: dict[tuple[str, int], dict[tuple[int, int, float], float]] = {}
    for _, row in artifacts.read_rows(run / artifacts.METRICS):
        block = found.setdefault((row["model"], row["unique_tokens"]), {})
        block[row["sampled_tokens"], row["seed"], row["dropout"]] = row["val_loss"]
    readouts = sorted({readout for block in found.values() for readout, _, _ in block})
    try:
        losses = {
            (model.name, prefix): np.array(
                [[[found[model.name, prefix][c, s, p] for p in grid.dropouts] for s in grid.seeds] for c in readouts]
            )
            for model in grid.models
            for prefix in grid.prefixes
        }
        AdaptiveGrid(grid)
    except (KeyError, UserError):
        return None  # unfinished, or too small to choose from
    return Bank(f"{config['regime']['name']} {grid.models[0].name}", grid, losses, {})


def saved(folders: Sequence[Path]) -> list[Bank]:
    """The banks of the folders, each set of losses once."""
    banks: dict[str, Bank] = {}
    for folder in folders:
        bank = recorded(folder)
        if bank is not None:
            content = json.dumps([[list(block), values.tolist()] for block, values in bank.losses.items()])
            banks.setdefault(content, bank)
    return list(banks.values())


def simulated(kind: str, number: int, noise: float = 1.0) -> Bank:
    """A pocket run around known curves.

    Args:
        kind: ``curves``: the two families of ``analysis.simulated`` in turn, at U = 4k to 32k and four read-outs;
            ``law``: optima that follow a law missed by .03 a cell, two sizes, four prefixes, three read-outs.
        noise: times the measured one.
    """
    draw = np.random.default_rng([number, len(kind), round(100 * noise)])
    true = _true_curves(kind, number, draw)
    models = tuple(dict.fromkeys(ModelSpec.parse(model) for model, _ in true))
    prefixes = tuple(sorted({prefix for _, prefix in true}))
    n_readouts = len(next(iter(true.values())))
    grid = StaticGrid(models, prefixes, tuple(65_536 * (i + 1) for i in range(n_readouts)), DROPOUTS, SEEDS)
    losses = {}
    for block, curves in true.items():
        shape = (len(SEEDS), len(DROPOUTS))
        common, rows = draw.standard_normal(shape), []
        for curve in curves:
            own = np.sqrt(CORRELATION) * common + np.sqrt(1 - CORRELATION) * draw.standard_normal(shape)
            scatter = SEED_SD * draw.standard_normal((len(SEEDS), 1)) + TRIAL_SD * own
            rows.append(curve(np.array(DROPOUTS)) + noise * scatter)
        losses[block] = np.array(rows)
    return Bank(f"{kind} {number}", grid, losses, true)


def _true_curves(kind: str, number: int, draw: np.random.Generator) -> dict[Block, list[Callable[[Array], Array]]]:
    if kind == "curves":
        family = ("exponential", "hyperbolic")[number % 2]
        return {
            ("L2_H2_D64", 1000 * k): [_mixed(CURVES[f"{family} {k}k"], share) for share in LATE_SHARES]
            for k in (4, 8, 16, 32)
        }
    form = get_law("interaction")

    def place(n_params: int, prefix: int, sampled: int) -> float:
        exact = form.dropout(TRUE_LAW, n_params, prefix, sampled)
        return float(np.clip(exact + 0.03 * draw.standard_normal(), 0.0, 0.65))

    return {
        (model, prefix): [curve_with_optimum(place(size, prefix, c)) for c in (131_072, 196_608, 262_144)]
        for model, size in (("L1_H2_D32", 45_000), ("L2_H2_D64", 163_840))
        for prefix in (4_000, 8_000, 16_000, 32_000)
    }


def _mixed(late: LossCurve, share: float) -> Callable[[Array], Array]:
    return lambda p: np.asarray(share * late(p) + (1 - share) * (4.2 + 0.9 * p))


@dataclass(frozen=True)
class Replay:
    """What was trained, and where each cell of it stands."""

    chosen: Chosen
    reasons: Mapping[tuple[Block, int], str]


def adaptive(bank: Bank, target_width: float, budget: float, n_bootstrap: int) -> Replay:
    """The policy's own trials."""
    space = AdaptiveGrid(bank.grid, target_width, budget)
    places = {seed: place for place, seed in enumerate(bank.grid.seeds)}
    points: list[Point] = list(space.known)
    while True:
        chosen: dict[Block, list[tuple[int, int]]] = {}
        for point in points:
            trial = places[point.seed], bank.grid.dropouts.index(point.dropout)
            chosen.setdefault(point.block, []).append(trial)
        fits = bank.fits(chosen, n_bootstrap)
        estimates = [
            CellEstimate(*block, readout, fit.grid_optimum, fit.fitted_low, fit.fitted_high, fit.status)
            for (block, readout), fit in fits.items()
        ]
        more, reasons = space.next_round(points, estimates)
        if not more:
            return Replay(chosen, dict(zip(fits, reasons, strict=True)))
        points += more


def fixed(bank: Bank, trials: Sequence[tuple[int, int]]) -> Replay:
    """The same trials in every block."""
    return Replay(dict.fromkeys(bank.losses, trials), {})


def judged(bank: Bank, replay: Replay, full: Fits, n_bootstrap: int) -> list[dict[str, Any]]:
    """One row per cell: the replay's fit beside the full grid's."""
    rows = []
    for (block, readout), fit in bank.fits(replay.chosen, n_bootstrap).items():
        whole = full[block, readout]
        regret = float(whole.regret(np.array([fit.fitted_optimum]))[0])
        row = {
            "bank": bank.name,
            "block": list(block),
            "readout": readout,
            "reason": replay.reasons.get((block, readout), ""),
            "optimum": fit.fitted_optimum,
            "full_optimum": whole.fitted_optimum,
            "regret": regret,
            "agrees": bool(regret <= whole.plateau_margin),
            "on_plateau": fit.grid_optimum in whole.plateau,
            "width": None if np.isnan(fit.fitted_low) else fit.fitted_high - fit.fitted_low,
            "full_width": whole.fitted_high - whole.fitted_low,
        }
        if bank.true:
            curve = bank.true[block][readout]
            best = float(FINE[np.argmin(curve(FINE))])
            for name, one in (("", fit), ("full_", whole)):
                cost = float(curve(np.array(one.fitted_optimum)) - curve(np.array(best)))
                row[f"{name}truly"] = bool(cost <= whole.plateau_margin)
                row[f"{name}covers"] = bool(one.fitted_low - 1e-9 <= best <= one.fitted_high + 1e-9)
                row[f"{name}error"] = one.fitted_optimum - best
        rows.append(row)
    return rows


def coarse_dropouts(bank: Bank) -> Replay:
    coarse = sorted({bank.grid.dropouts.index(point.dropout) for point in AdaptiveGrid(bank.grid).known})
    return fixed(bank, [(seed, place) for seed in (0, 1) for place in coarse])


def compare(banks: Sequence[Bank], *, n_bootstrap: int) -> dict[str, Any]:
    """The policy and its rivals on some banks; figures are over all their cells."""
    policies: dict[str, Callable[[Bank], Replay]] = {
        "adaptive": lambda bank: adaptive(bank, TARGET_WIDTH, BUDGET, n_bootstrap),
        "adaptive, budget 1": lambda bank: adaptive(bank, TARGET_WIDTH, 1.0, n_bootstrap),
        "adaptive, budget 1, width .1": lambda bank: adaptive(bank, 0.1, 1.0, n_bootstrap),
        "whole grid, one seed": lambda bank: fixed(bank, [(0, j) for j in range(len(bank.grid.dropouts))]),
        "coarse dropouts, two seeds": coarse_dropouts,
    }
    full = {bank.name: bank.fits(bank.everything, n_bootstrap) for bank in banks}
    found: dict[str, Any] = {"banks": [bank.name for bank in banks], "cells": sum(len(fits) for fits in full.values())}
    for name, policy in policies.items():
        shares, rows = [], []
        for bank in banks:
            replay = policy(bank)
            n_full = sum(map(len, bank.everything.values()))
            shares.append(sum(map(len, replay.chosen.values())) / n_full)
            rows += judged(bank, replay, full[bank.name], n_bootstrap)
        found[name] = summarised(shares, rows)
    return found


def summarised(shares: Sequence[float], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def mean(name: str, among: Sequence[dict[str, Any]] = rows) -> float | None:
        values = [row[name] for row in among if row.get(name) is not None]
        return float(np.mean(values)) if values else None

    figures: dict[str, Any] = {
        "share": float(np.mean(shares)),
        "largest_share": max(shares),
        **{name: mean(name) for name in ("agrees", "on_plateau", "regret", "width", "full_width")},
        "disagreeing": [row for row in rows if not row["agrees"]],
    }
    reasons = Counter(row["reason"] for row in rows if row["reason"])
    if reasons:
        figures["reasons"] = {name: count / len(rows) for name, count in reasons.most_common()}
        figures["decided"] = sum(reasons[name] for name in DECIDED) / len(rows)
    if "covers" in rows[0]:
        figures["truly"], figures["full_truly"] = mean("truly"), mean("full_truly")
        known = [row for row in rows if row["width"] is not None]
        narrow = [row for row in known if row["reason"] == NARROW]
        for name, among in (("coverage", known), ("coverage_of_the_narrow", narrow)):
            figures[name], figures[f"full_{name}"] = mean("covers", among), mean("full_covers", among)
            figures[f"{name}_cells"] = len(among)
        for name in ("error", "full_error"):
            figures[f"rms_{name}"] = float(np.sqrt(np.mean([row[name] ** 2 for row in rows])))
    return figures


def show(title: str, found: dict[str, Any]) -> None:
    print(f"{title}: {found['cells']} cells in {len(found['banks'])} replays")
    head = ("tokens", "agree", "on plateau", "truly", "full", "width", "full", "coverage", "full", "rms error", "full")
    print(f"  {'':28s}" + "".join(f"{name:>11s}" for name in head))
    keys = ("share", "agrees", "on_plateau", "truly", "full_truly", "width", "full_width", "coverage", "full_coverage")
    for name, figures in found.items():
        if isinstance(figures, dict):
            values = [figures.get(key) for key in (*keys, "rms_error", "rms_full_error")]
            print(f"  {name:28s}" + "".join(f"{'-' if v is None else f'{v:.3f}':>11s}" for v in values))
    ours = found["adaptive"]
    print("  cells by reason: " + ", ".join(f"{name} {share:.3f}" for name, share in ours["reasons"].items()))
    if ours.get("coverage_of_the_narrow_cells"):
        print(
            f"  {ours['coverage_of_the_narrow_cells']} cells decided by a narrow interval: coverage "
            f"{ours['coverage_of_the_narrow']:.3f}, of the full grid on them {ours['full_coverage_of_the_narrow']:.3f}"
        )


def measure(
    folders: Sequence[Path], *, simulations: int, n_bootstrap: int, noises: Sequence[float] = (1.0, 0.5, 2.0)
) -> dict[str, Any]:
    """The figures of recorded banks, where there are any, and of ``simulations`` simulated ones of each kind."""
    figures: dict[str, Any] = {"bootstrap": n_bootstrap, "target_width": TARGET_WIDTH, "budget": BUDGET}
    banks = [bank.rotated(turns) for bank in saved(folders) for turns in range(len(bank.grid.seeds))]
    if banks:
        figures["recorded"] = compare(banks, n_bootstrap=n_bootstrap)
        show("recorded", figures["recorded"])
    else:
        print("no finished full grid of six dropouts and two seeds among the runs: simulated cells only")
    for kind in ("curves", "law"):
        for noise in noises:
            name = f"simulated {kind}" + (f", noise x {noise:g}" if noise != 1 else "")
            banks = [simulated(kind, number, noise) for number in range(simulations)]
            figures[name] = compare(banks, n_bootstrap=n_bootstrap)
            show(name, figures[name])
    return figures


def run(*, quick: bool = False, runs: Sequence[Path] | None = None) -> dict[str, Any]:
    where = machine()
    below = [file.parent for file in sorted((REPOSITORY / DEFAULT_STORAGE).rglob(artifacts.CONFIG))]
    folders = below if runs is None else [folder for folder in runs if (folder / artifacts.CONFIG).is_file()]
    return {**where, **measure(folders, simulations=4 if quick else 50, n_bootstrap=200 if quick else 2000)}

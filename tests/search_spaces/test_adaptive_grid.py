"""The adaptive policy, asked by hand: losses are known, the statistics are the analysis's own."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests_support import row

from search_spaces.adaptive_grid import AdaptiveGrid, CellEstimate, GridPoint, Verdict
from search_spaces.space import DataIdentity, Setting
from search_spaces.static_dropout import StaticGrid
from tune_dd.builtin_regimes import POCKET
from tune_dd.errors import UserError
from tune_dd.regimes import ModelSpec
from tune_dd.sweep.estimates import estimate_cells

GRID = StaticGrid(
    (ModelSpec(1, 2, 32), ModelSpec(2, 2, 64)),
    (4_000, 8_000),
    (65_536, 131_072),
    (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    (3, 1, 2),
)
SETTING = Setting("tiny", "full", POCKET, DataIdentity("c", "t", "v"))
Loss = Callable[[str, int, int, float], float]  # of (model, U, C, dropout), nats


def bowl(optimum: float, steep: float = 4.0) -> Loss:
    return lambda model, unique, sampled, p: 3 + steep * (p - optimum) ** 2


def rows_of(point: GridPoint, loss: Loss, noise: float, readouts: Sequence[int]) -> list[dict[str, Any]]:
    """A finished trial's rows; its noise is a function of what it is."""
    rows = []
    for number, sampled in enumerate(readouts):
        key = [GRID.seeds.index(point.seed), round(100 * point.dropout), point.unique_tokens, number, len(point.model)]
        own = np.random.default_rng(key).standard_normal()
        rows.append(
            row(
                regime="tiny",
                phase="calibrate",
                kind="static",
                model=point.model,
                n_params=1,
                unique_tokens=point.unique_tokens,
                sampled_tokens=sampled,
                dropout=point.dropout,
                condition=f"static_{point.dropout:.2f}",
                seed=point.seed,
                stage=0,
                readout=number,
                val_loss=loss(point.model, point.unique_tokens, sampled, point.dropout)
                + 0.1 * point.seed
                + noise * own,
            )
        )
    return rows


def replay(
    space: AdaptiveGrid, loss: Loss, *, noise: float = 0.01, crashed: Sequence[int] = ()
) -> tuple[list[GridPoint], list[dict[str, Any]]]:
    """Every point until the policy asks for none, and its last verdicts."""
    space = space.with_estimate(lambda rows: estimate_cells(rows, n_bootstrap=200))
    points = list(space.known)
    while True:
        outcomes = [
            None if point.index in crashed else [rows_of(point, loss, noise, space.grid.readouts)] for point in points
        ]
        following = space.following(len(points), list(zip(points, outcomes, strict=True)))
        if not following.points:
            return points, following.told["cells"]
        points += following.points


def by_block(points: Sequence[GridPoint]) -> Mapping[Any, Mapping[float, list[int]]]:
    """Block -> dropout -> its seeds, in the order of their choice."""
    found: dict[Any, dict[float, list[int]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        found[point.block][point.dropout].append(point.seed)
    return found


def test_the_coarse_round_is_spread_over_the_grid_and_its_trials_are_the_full_grid_s() -> None:
    space = AdaptiveGrid(GRID)
    assert [p.dropout for p in space.known[:5]] == [0.0, 0.1, 0.3, 0.4, 0.6]
    assert {point.seed for point in space.known} == {3}
    assert (space.n_full, space.points, space.n_later) == (96, 38, 18)
    full = {spec.trial_id: spec.name for spec in StaticGrid.trials((GRID,), SETTING)}
    points, _ = replay(space, bowl(0.25))
    specs = [spec for point in points for spec in space.trials_of(point, SETTING)]
    assert AdaptiveGrid.trials((space,), SETTING) == specs[: len(space.known)]
    assert {spec.trial_id for spec in specs} < set(full)
    assert [point.index for point in points] == list(range(len(points)))


def test_it_survives_json_and_its_identity_is_that_of_what_decides() -> None:
    space = AdaptiveGrid(GRID, 0.1, 0.5)
    assert AdaptiveGrid.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    assert space.with_estimate(estimate_cells) == space
    others = [replace(space, target_width=0.2), replace(space, budget=0.6)]
    assert len({grid.identity() for grid in (space, *others)}) == 3
    point = space.known[3]
    assert space.read_point(json.loads(json.dumps(point.to_dict()))) == point


@pytest.mark.parametrize("budget", [0.25, 0.3, 0.4, 0.7, 1.0])
@pytest.mark.parametrize("noise", [0.005, 0.05])
def test_the_budget_holds_no_trial_is_chosen_twice_and_seeds_are_paired(budget: float, noise: float) -> None:
    space = AdaptiveGrid(GRID, 0.02, budget)

    def loss(model: str, unique: int, sampled: int, p: float) -> float:
        return bowl(0.1 if unique == 4_000 else 0.35)(model, unique, sampled, p) + (sampled == 65_536) * p / 2

    points, cells = replay(space, loss, noise=noise)
    assert len(points) <= space.points <= budget * 96
    assert len({(point.block, point.dropout, point.seed) for point in points}) == len(points)
    for dropouts in by_block(points).values():
        for seeds in dropouts.values():
            assert tuple(seeds) == GRID.seeds[: len(seeds)], "a dropout's seeds are the grid's first ones"
        later = Counter(seed for seeds in dropouts.values() for seed in seeds[1:])
        assert all(count >= 2 for count in later.values()), "a seed compares dropouts"
    assert len(cells) == 8
    if any(cell["reason"] == "budget" for cell in cells):
        assert len(points) >= space.points - 1


def test_a_cell_whose_optimum_is_the_grid_s_end_is_not_chased() -> None:
    """Every cell lies at an edge: one replicate tells the noise, and no more is spent."""
    for optimum, end in ((-0.5, 0.0), (1.2, 0.6)):
        points, cells = replay(AdaptiveGrid(GRID, 0.05, 1.0), bowl(optimum))
        assert {cell["reason"] for cell in cells} <= {"edge", "narrow"}
        assert all(cell["decided"] for cell in cells)
        assert len(points) < 0.4 * 96
        replicated = {point.dropout for point in points if point.stage == "seeds"}
        assert end in replicated
        assert max(abs(dropout - end) for dropout in replicated) <= 0.1


def test_a_flat_cell_does_not_eat_the_budget_of_one_that_can_be_decided() -> None:
    def loss(model: str, unique: int, sampled: int, p: float) -> float:
        return 3.0 if unique == 4_000 else bowl(0.25, 8)(model, unique, sampled, p)

    points, cells = replay(AdaptiveGrid(GRID, 0.05, 1.0), loss, noise=0.02)
    flat = [cell for cell in cells if cell["unique_tokens"] == 4_000]
    assert {cell["reason"] for cell in flat} <= {"flat", "out_of_reach"}
    assert max(cell["n_seeds"] for cell in flat) == 2
    assert all(cell["decided"] for cell in cells if cell["unique_tokens"] == 8_000)
    assert max(point.seed for point in points if point.unique_tokens == 4_000) != GRID.seeds[2]


def test_a_cell_that_no_seed_of_the_grid_could_decide_gets_its_replicate_and_no_more() -> None:
    points, cells = replay(AdaptiveGrid(GRID, 0.001, 1.0), bowl(0.25), noise=0.02)
    assert {cell["reason"] for cell in cells} == {"out_of_reach"}
    assert {cell["n_seeds"] for cell in cells} == {2}
    assert {seed for point in points for seed in [point.seed]} == set(GRID.seeds[:2])


def test_a_trial_that_several_cells_want_is_chosen_once_and_comes_first() -> None:
    """Two cells of one block want the same neighbours, those of another block differ: what more cells want comes first
    where the budget is short."""
    space = AdaptiveGrid(replace(GRID, models=GRID.models[:1]), 0.05, 12 / 48)

    def loss(model: str, unique: int, sampled: int, p: float) -> float:
        return bowl(0.3 if unique == 8_000 or sampled == 65_536 else -1)(model, unique, sampled, p)

    points, _ = replay(space, loss, noise=0.001)
    assert [(p.unique_tokens, p.dropout) for p in points[10:]] == [(8_000, 0.2), (8_000, 0.5)]
    narrow = next(cell for cell in replay(replace(space, budget=1.0), loss, noise=0.001)[1] if cell["decided"])
    assert narrow["n_trials"] >= 9


def test_a_crashed_trial_is_not_chosen_again_and_its_cell_is_judged_by_the_others() -> None:
    space = AdaptiveGrid(GRID, 0.05, 0.6)
    crashed = [2, 21]  # of the coarse round, and of the one after it
    points, cells = replay(space, bowl(0.3), crashed=crashed)
    assert len({(point.block, point.dropout, point.seed) for point in points}) == len(points)
    first = [cell for cell in cells if (cell["model"], cell["unique_tokens"]) == points[2].block]
    trained = sum(point.block == points[2].block for point in points)
    lost = sum(points[index].block == points[2].block for index in crashed)
    assert {cell["n_trials"] for cell in first} == {trained - lost}


def test_an_interval_that_is_narrow_after_one_seed_decides_nothing() -> None:
    """The noise may be that of other dropouts' replicates: of this optimum no second seed has told."""
    space = AdaptiveGrid(replace(GRID, models=GRID.models[:1], prefixes=(4_000,)), 0.05, 1.0)
    (model,) = space.models
    fields = {"model": model.name, "unique_tokens": 4_000}
    points = [GridPoint(i, 0, "coarse", dropout=p, seed=3, **fields) for i, p in enumerate(GRID.dropouts)]
    cell = CellEstimate(sampled_tokens=65_536, best=0.2, low=0.19, high=0.21, status="interior", **fields)
    chosen, reasons = space.next_round(points, [cell])
    assert reasons == ["open"]
    assert [(point.dropout, point.seed) for point in chosen] == [(0.1, 1), (0.2, 1), (0.3, 1)]
    assert space.next_round([*points, *chosen], [cell]) == ([], ["narrow"])


def test_nothing_finished_leaves_nothing_to_choose() -> None:
    space = AdaptiveGrid(GRID)
    assert space.following(20, [(point, None) for point in space.known]) == ([], {"cells": []})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"target_width": 0.0}, "--target-width 0"),
        ({"target_width": float("nan")}, "--target-width nan"),
        ({"budget": 0.0}, "--budget 0"),
        ({"budget": 1.1}, "--budget 1.1"),
        ({"budget": float("nan")}, "--budget nan"),
        ({"budget": 0.2}, "give at least 0.21"),
        ({"grid": replace(GRID, seeds=(0,))}, "the grid has 8 and 1"),
        ({"grid": replace(GRID, dropouts=GRID.dropouts[:5])}, "the grid has 5 and 3"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(changes: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        AdaptiveGrid(**{"grid": GRID} | changes)


def test_it_cannot_be_extended() -> None:
    with pytest.raises(UserError, match="start a new run"):
        AdaptiveGrid(GRID).union(AdaptiveGrid(replace(GRID, seeds=(0, 1, 2, 3))))


def test_a_verdict_says_whether_it_decides() -> None:
    fields = ("L1_H2_D32", 4_000, 65_536)
    assert Verdict(*fields, "edge", None, 5, 1).to_dict()["decided"]
    assert not Verdict(*fields, "budget", 0.1, 9, 2).to_dict()["decided"]

from __future__ import annotations

from dataclasses import replace

import pytest

from search_spaces.static_dropout import DataIdentity, StaticGrid, param_space, readout_steps, trials
from tune_dd.builtin_regimes import POCKET
from tune_dd.errors import UserError
from tune_dd.regimes import ModelSpec

DATA = DataIdentity("c", "t", "v")
GRID = StaticGrid.of_scale(POCKET)


def expand(*grids: StaticGrid):
    return trials(grids, regime="owt", scale_name="pocket", scale=POCKET, data=DATA)


def test_the_pocket_grid_is_the_full_factorial_one_seed_after_the_other() -> None:
    specs = expand(GRID)
    assert len(specs) == 2 * 4 * 8 * 3
    assert len({s.trial_id for s in specs}) == len(specs)
    assert [s.seed for s in specs] == sorted(s.seed for s in specs)
    assert {s.stages[0].readout_steps for s in specs} == {(32, 64, 96, 128)}
    assert all(s.condition == f"static_{s.stages[0].dropout:.2f}" for s in specs)


def test_readouts_become_whole_steps_without_repeats() -> None:
    assert readout_steps((1, 2048, 2049, 4096, 262_144), 2048) == (1, 2, 128)


def test_a_grid_survives_json() -> None:
    assert StaticGrid.from_dict(GRID.to_dict()) == GRID


def test_an_extension_adds_what_is_missing_and_repeats_nothing() -> None:
    more = GRID.union(replace(GRID, seeds=(3,), dropouts=(0.0, 0.7), readouts=(393_216,)))
    before, after = expand(GRID), expand(GRID, more)
    assert after[: len(before)] == before
    cells = [
        (s.seed, s.model, s.stages[0].unique_tokens, s.stages[0].dropout, step)
        for s in after
        for step in s.stages[0].readout_steps
    ]
    assert len(cells) == len(set(cells)) == 2 * 4 * 4 * 9 * 5
    old = {(s.seed, s.stages[0].unique_tokens, s.stages[0].dropout) for s in before}
    for spec in after[len(before) :]:
        known = (spec.seed, spec.stages[0].unique_tokens, spec.stages[0].dropout) in old
        assert spec.stages[0].readout_steps == ((192,) if known else (32, 64, 96, 128, 192))


@pytest.mark.parametrize(
    "changes",
    [{"prefixes": ()}, {"prefixes": (2, 1)}, {"readouts": (0,)}, {"dropouts": (1.0,)}, {"dropouts": ()}],
)
def test_a_grid_refuses_what_makes_no_sense(changes: dict) -> None:
    with pytest.raises(UserError):
        replace(GRID, **changes)


def test_tune_gets_one_variant_a_trial_in_the_plan_s_order() -> None:
    from ray.tune.search.variant_generator import generate_variants

    listed = [{"id": s.trial_id, "name": s.name, "spec": s.to_dict()} for s in expand(replace(GRID, seeds=(0,)))]
    space = param_space(listed, {"device": "cpu"})
    variants = [config for _, config in generate_variants(space)]
    assert [v["trial"]["id"] for v in variants] == [item["id"] for item in listed]
    assert all(v["run"] == {"device": "cpu"} for v in variants)


def test_models_of_a_grid_are_kept_apart() -> None:
    specs = expand(replace(GRID, models=(ModelSpec(1, 2, 32), ModelSpec(2, 2, 64)), seeds=(0,)))
    assert len(specs) == 2 * 4 * 8
    assert {s.model.name for s in specs} == {"L1_H2_D32", "L2_H2_D64"}

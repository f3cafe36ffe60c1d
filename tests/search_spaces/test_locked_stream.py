from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests_support import spec

from search_spaces.locked_stream import StreamGrid, make_schedules, sampled_tokens
from search_spaces.space import DataIdentity, Setting
from search_spaces.static_dropout import StaticGrid
from tune_dd.builtin_regimes import POCKET, REGIMES
from tune_dd.errors import UserError
from tune_dd.regimes import ModelSpec
from tune_dd.schedule import Schedule

LAW = Schedule("law", "law", (0.4, 0.3, 0.05))
GRID = StreamGrid(
    model=ModelSpec(1, 2, 16),
    prefixes=(400, 800, 1600),
    stage_steps=5,
    schedules=make_schedules(3, [LAW], (0.0, 0.3), {"by_hand": (0.3, 0.2, 0.1)}),
    seeds=(10, 11),
)
SETTING = Setting("tiny", "full", POCKET, DataIdentity("c", "t", "v"))


def test_the_law_is_tried_with_its_controls_and_the_fixed_dropouts() -> None:
    paths = {schedule.condition: schedule.dropouts for schedule in GRID.schedules}
    assert paths == {
        "law": (0.4, 0.3, 0.05),
        "static_0.00": (0.0, 0.0, 0.0),
        "static_0.30": (0.3, 0.3, 0.3),
        "reversed_law": (0.05, 0.3, 0.4),
        "linear_decay": pytest.approx((0.4, 0.225, 0.05)),
        "by_hand": (0.3, 0.2, 0.1),
    }


def test_a_trial_goes_through_every_stage_and_is_read_out_at_its_end() -> None:
    trials = StreamGrid.trials((GRID,), SETTING)
    assert [t.seed for t in trials] == [10] * 6 + [11] * 6
    first = trials[0]
    assert [(s.unique_tokens, s.dropout, s.readout_steps) for s in first.stages] == [
        (400, 0.4, (5,)),
        (800, 0.3, (10,)),
        (1600, 0.05, (15,)),
    ]
    assert sampled_tokens(3, 5, POCKET.protocol) == tuple(first.sampled_tokens(s.end_step) for s in first.stages)
    assert len({t.trial_id for t in trials}) == len({t.name for t in trials}) == 12


def test_two_conditions_of_one_path_are_two_trials() -> None:
    twin = Schedule("twin", "anchor_decay", LAW.dropouts)
    law, other = StreamGrid.trials((replace(GRID, schedules=(LAW, twin, *GRID.schedules[1:3])),), SETTING)[:2]
    assert law.stages == other.stages
    assert law.trial_id != other.trial_id
    assert law.name != other.name


def test_it_survives_json_to_the_last_bit() -> None:
    path = tuple(x / 7 for x in (3, 2, 1))
    grid = replace(GRID, schedules=(Schedule("law", "law", path), *GRID.schedules[1:]))
    again = StreamGrid.from_dict(json.loads(json.dumps(grid.to_dict())))
    assert again == grid
    assert [t.trial_id for t in again.trials((again,), SETTING)] == [t.trial_id for t in grid.trials((grid,), SETTING)]


def test_extending_adds_seeds_and_conditions_and_repeats_nothing() -> None:
    more = replace(GRID, seeds=(12,), schedules=(*GRID.schedules, Schedule("new", "anchor_decay", (0.1, 0.1, 0.0))))
    larger = GRID.union(more)
    before = [t.trial_id for t in StreamGrid.trials((GRID,), SETTING)]
    after = [t.trial_id for t in StreamGrid.trials((GRID, larger), SETTING)]
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 7 * 3


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model": ModelSpec(2, 2, 16)}, "--models"),
        ({"stage_steps": 6}, "--stage-steps"),
        ({"schedules": (replace(LAW, dropouts=(0.1, 0.1, 0.1)), *GRID.schedules[1:])}, "another path"),
    ],
)
def test_another_stream_does_not_extend_it(changes: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        GRID.union(replace(GRID, **changes))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"schedules": (LAW,)}, "no fixed dropout"),
        ({"schedules": (*GRID.schedules, LAW)}, "two conditions are named law"),
        ({"schedules": (*GRID.schedules, Schedule("../up", "anchor_decay", (0.1, 0.1, 0.1)))}, "condition"),
        ({"prefixes": (400, 800)}, "3 dropouts for 2 stages"),
        ({"stage_steps": 0}, "--stage-steps"),
        ({"seeds": ()}, "seeds"),
    ],
)
def test_a_stream_names_what_is_wrong(changes: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        replace(GRID, **changes)


def test_the_reference_schedules_stand_in_their_regimes() -> None:
    owt = REGIMES["owt"].scale("full")
    assert owt.anchors["reference_interaction"] == (0.39, 0.32, 0.23, 0.14, 0.07)
    assert owt.anchors["mild_30_to_08"] == (0.30, 0.24, 0.18, 0.12, 0.08)
    assert REGIMES["tinystories"].scale("full").anchors["baseabc"] == (0.25, 0.19, 0.10, 0.02)
    for regime in REGIMES.values():
        for name, scale in regime.scales.items():
            assert len(scale.stream_seeds) == (3 if name == "full-8m" else 5)
            assert not set(scale.stream_seeds) & set(scale.seeds)
    assert REGIMES["owt"].scale("full").steps_of_stream == 1000
    assert REGIMES["tinystories"].scale("full").steps_of_stream == 2000


def test_a_grid_leaves_the_regime_s_stream_as_it_is() -> None:
    owt = REGIMES["owt"].scale("full")
    scale = StaticGrid.of_scale(replace(owt, prefixes=(250_000,), anchors={})).on_scale(owt)
    assert scale.prefixes_of_stream == owt.prefixes
    assert scale.anchors == owt.anchors


def test_the_specification_of_a_static_trial_is_what_it_was() -> None:
    """Runs on disk hold trial ids: they must not move."""
    grid = StaticGrid((ModelSpec(1, 2, 16),), (400,), (640,), (0.2,), (0,))
    protocol = spec().protocol
    (trial,) = grid.trials((grid,), replace(SETTING, scale=replace(POCKET, protocol=protocol, vocab_size=300)))
    assert trial.trial_id == spec(stages=(trial.stages[0],)).trial_id

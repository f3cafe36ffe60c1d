"""What a stored plan may be extended by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from search_spaces.space import DataIdentity
from search_spaces.static_dropout import StaticGrid
from tune_dd.builtin_regimes import POCKET, REGIMES
from tune_dd.errors import UserError
from tune_dd.sweep.plan import Plan, extended

GRID = StaticGrid.of_scale(POCKET)
LAST = GRID.readouts[-1]


def stored(rate_schedule: str) -> tuple[dict[str, Any], Plan]:
    """A plan whose learning rate goes so, and as much of its config.json as ``extended`` reads."""
    scale = replace(POCKET, protocol=replace(POCKET.protocol, rate_schedule=rate_schedule))
    data = dict.fromkeys(DataIdentity.__dataclass_fields__, "x")
    config = {"data": {**data, "manifest": {"tokens": {"train": POCKET.train_tokens}}}}
    return config, Plan(REGIMES["owt"], "calibrate", "pocket", scale, (GRID,), "cpu", 1, 1)


@pytest.mark.parametrize("readouts", [(2 * LAST,), (GRID.readouts[0] // 2,)])
def test_other_read_outs_need_a_run_of_their_own_where_the_rate_goes_by_a_trial_s_end(readouts: tuple[int]) -> None:
    more = replace(GRID, readouts=readouts)
    with pytest.raises(UserError, match=r"--readouts: with rate_schedule 'warmdown' .*: start a new run for them"):
        extended(*stored("warmdown"), more, "command")
    larger, config = extended(*stored("constant"), more, "command")
    assert larger.grids[-1].readouts == tuple(sorted({*GRID.readouts, *readouts}))
    assert config["extensions"] == ["command"]


def test_whatever_the_rate_seeds_and_dropouts_can_be_added() -> None:
    larger, config = extended(*stored("warmdown"), replace(GRID, seeds=(7,)), "command")
    assert larger.grids[-1].seeds == (*GRID.seeds, 7)
    ends = {spec.total_steps for spec in larger.trials(DataIdentity("x", "x", "x"))}
    assert len(ends) == 1
    assert config["n_trials"] == 2 * 4 * 8 * 4

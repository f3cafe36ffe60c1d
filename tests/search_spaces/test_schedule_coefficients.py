from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests_support import search_space

from search_spaces.samplers import SAMPLERS, STARTUP_POINTS
from search_spaces.schedule_coefficients import (
    FIRST,
    LAST,
    SPACES,
    Point,
    ScheduleSpace,
    StartingLaw,
)
from search_spaces.space import DataIdentity, Setting
from tune_dd.builtin_regimes import POCKET
from tune_dd.errors import UserError
from tune_dd.laws import LAWS
from tune_dd.regimes import ModelSpec
from tune_dd.schedule import law_path

# Unclamped the path is .73, .63, .49, .34: the first stage is beyond the clamp.
FITTED = {"A": 0.3, "B": 0.25, "D": 0.05, "C0": 0.05}
LAW = StartingLaw(
    "interaction", FITTED, 0.02, 0.65, 163_840, (8_000, 16_000, 32_000, 64_000), (65_536, 131_072, 196_608, 262_144)
)
SETTING = Setting("tiny", "full", POCKET, DataIdentity("c", "t", "v"))
TARGET = (0.4, 0.33, 0.2, 0.05)


def make(**changes: object) -> ScheduleSpace:
    fields: dict = {
        "model": ModelSpec(2, 2, 64),
        "prefixes": LAW.prefixes,
        "stage_steps": 32,
        "seeds": (0, 1),
        "law": LAW,
        "points": 20,
    }
    return search_space(**fields | changes)


def bowl(point: Point) -> float:
    return sum((p - t) ** 2 for p, t in zip(point.dropouts, TARGET, strict=True))


def search(space: ScheduleSpace, crashed: Sequence[int] = ()) -> list[tuple[Point, float | None]]:
    """Every point with its value, as an uninterrupted search has them."""
    found: list[tuple[Point, float | None]] = []
    for index in range(space.points):
        point = space.suggest(index, found[: space.first_of_batch(index)])
        found.append((point, None if index in crashed else bowl(point)))
    return found


@pytest.mark.parametrize("kind", SPACES)
def test_the_fitted_law_and_the_fixed_dropout_come_first_and_exactly(kind: str) -> None:
    space = make(space=kind)
    fitted, fixed = space.known
    assert (fitted.role, fitted.coefficients, fitted.dropouts) == ("fitted", FITTED, LAW.path(FITTED))
    assert fitted.dropouts[0] == 0.65
    assert (fixed.role, fixed.dropouts) == ("static", (0.2,) * 4)
    assert [space.suggest(index, []) for index in (0,)] == [fitted]
    for point in space.known:
        assert LAW.path(point.coefficients) == point.dropouts
        for name, (low, high) in space.bounds().items():
            assert low <= point.params[name] <= high


def test_the_ends_stretch_and_shift_the_law_s_own_path() -> None:
    shape = LAW.shape()
    coefficients = LAW.stretched(0.5, 0.1)
    path = LAW.path(coefficients)
    for value, before in zip(path, shape, strict=True):
        assert value == pytest.approx(0.5 + (0.1 - 0.5) * (before - shape[0]) / (shape[-1] - shape[0]))
    factor = -0.4 / (shape[-1] - shape[0])
    assert {name: coefficients[name] / FITTED[name] for name in "ABD"} == pytest.approx(dict.fromkeys("ABD", factor))
    assert make().bounds()[FIRST] == make().bounds()[LAST] == (0.02, shape[0]), "the fitted law lies inside"


@pytest.mark.parametrize("name", sorted(LAWS))
@pytest.mark.parametrize("kind", SPACES)
def test_every_law_can_be_searched_in_its_own_coefficients(name: str, kind: str) -> None:
    values = {"a_P": 0.2, "a_U": -0.3, "a_C": 0.1, "A": 0.2, "B": 0.1, "D": 0.03, "C0": 0.1}
    law = replace(LAW, name=name, coefficients={c: values[c] for c in LAWS[name].coefficients})
    law = replace(law, p_max=law.form.at_most(len(law.prefixes), law.p_max))
    if (name, kind) == ("constant", "ends"):
        with pytest.raises(UserError, match="--space coefficients"):
            make(law=law, space=kind)
        return
    space = make(law=law, space=kind, points=4)
    assert (
        space.known[0].dropouts
        == law_path(law.coefficients, law.n_params, law.prefixes, law.sampled_tokens, law=name).dropouts
    )
    assert space.known[1].dropouts == (space.static,) * len(law.prefixes)
    found = search(space)
    for point, _ in found:
        assert tuple(point.coefficients) == law.names
        assert law.path(point.coefficients) == point.dropouts
        assert all(law.p_min <= p <= law.p_max for p in point.dropouts)
    if kind == "coefficients":
        assert tuple(space.bounds()) == law.names
    assert len({point.dropouts for point, _ in found}) == 4


def test_a_stream_of_one_stage_has_no_ends_to_search() -> None:
    law = replace(LAW, prefixes=(8_000,), sampled_tokens=(65_536,))
    with pytest.raises(UserError, match="1 stage\\), so there is nothing to stretch"):
        make(law=law, prefixes=(8_000,))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("kind", "batch"), [("ends", 1), ("coefficients", 3)])
def test_a_suggestion_is_a_pure_function_of_the_batches_before(sampler: str, kind: str, batch: int) -> None:
    """At every index, from the space as config.json gives it back."""
    space = make(sampler=sampler, space=kind, batch=batch, points=16)
    found = search(space, crashed=[4])
    stored = ScheduleSpace.from_dict(json.loads(json.dumps(space.to_dict(), sort_keys=True)))
    assert stored == space
    for index in reversed(range(space.points)):
        assert stored.suggest(index, found[: space.first_of_batch(index)]) == found[index][0]
    assert len({tuple(point.params.values()) for point, _ in found}) == space.points


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_was_measured_guides_the_search(sampler: str) -> None:
    found = search(make(sampler=sampler))
    values = [value for _, value in found]
    assert min(values[STARTUP_POINTS:]) < min(values[:STARTUP_POINTS])
    other = search(make(sampler=sampler, search_seed=1))
    assert [point.dropouts for point, _ in found[:2]] == [point.dropouts for point, _ in other[:2]]
    assert all(a.dropouts != b.dropouts for (a, _), (b, _) in zip(found[2:], other[2:], strict=True))


def test_a_point_that_crashed_counts_as_failed_and_not_as_a_value() -> None:
    space = make()
    whole = search(space)[:15]
    broken = [(point, None if point.index == 12 else value) for point, value in whole]
    assert space.suggest(15, broken) == space.suggest(15, broken)
    assert space.suggest(15, broken) != space.suggest(15, whole)
    with pytest.raises(ValueError, match="point 15"):
        space.suggest(15, whole[:14])


def test_the_objective_is_a_mean_over_seeds_of_the_end_or_of_the_stages() -> None:
    losses = [[5.0, 4.0, 3.0, 2.0], [5.0, 5.0, 4.0, 3.0]]
    assert make().value(losses) == 2.5
    assert make(objective="trajectory").value(losses) == pytest.approx((3.5 + 4.25) / 2)


def test_every_point_has_a_trial_per_seed_and_a_name_of_its_own() -> None:
    space = make()
    known = ScheduleSpace.trials((space,), SETTING)
    assert [(t.condition, t.seed) for t in known] == [
        ("search_000", 0),
        ("search_000", 1),
        ("search_001", 0),
        ("search_001", 1),
    ]
    assert {t.kind for t in known} == {"law"}
    assert [(s.unique_tokens, s.readout_steps) for s in known[0].stages] == [
        (8_000, (32,)),
        (16_000, (64,)),
        (32_000, (96,)),
        (64_000, (128,)),
    ]
    assert len(known) + space.n_later == 20 * 2
    twin = replace(space.known[1], index=7)
    assert not {t.trial_id for t in known} & {t.trial_id for t in space.trials_of(twin, SETTING)}


def test_only_more_points_extend_it_and_the_former_ones_stay() -> None:
    space = make(points=12)
    larger = space.union(replace(space, points=14))
    assert larger.points == 14
    assert search(larger)[:12] == search(space)
    assert larger.identity() == space.identity()
    assert space.union(replace(space, points=5)) == space
    changes = {"seeds": (0,), "sampler": "gp", "objective": "trajectory", "search_seed": 3, "static": 0.3}
    for name, value in changes.items():
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} makes another search"):
            space.union(replace(space, **{name: value}))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"points": 2}, "--points 2"),
        ({"sampler": "grid"}, "--sampler 'grid'"),
        ({"static": 0.0}, "--static 0 lies outside"),
        ({"search_seed": -1}, "--search-seed"),
        ({"stage_steps": 0}, "--stage-steps"),
        ({"seeds": ()}, "seeds"),
    ],
)
def test_a_search_names_what_is_wrong(changes: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        make(**changes)

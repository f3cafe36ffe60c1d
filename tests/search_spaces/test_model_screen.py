from __future__ import annotations

from dataclasses import replace

from search_spaces.model_screen import confirm_grid, partners, screen_grid
from tune_dd.builtin_regimes import POCKET, REGIMES
from tune_dd.regimes import ModelSpec

FULL = REGIMES["owt"].scale("full")


def test_the_screen_is_coarse_and_its_trials_are_among_those_of_the_full_grid() -> None:
    for scale in (POCKET, FULL):
        grid = screen_grid(scale)
        assert len(grid.models) >= 3
        assert grid.seeds == (0,)
        assert grid.dropouts == (0.0, 0.1, 0.3, 0.5)
        assert set(grid.prefixes) < set(scale.prefixes)
    assert [m.name for m in screen_grid(FULL).models] == ["L8_H8_D256", "L12_H8_D320", "L16_H8_D384", "L20_H8_D448"]


def test_a_scale_without_the_coarse_dropouts_is_screened_on_its_own() -> None:
    assert screen_grid(replace(POCKET, dropouts=(0.0, 0.25))).dropouts == (0.0, 0.25)


def test_the_confirmation_is_one_model_on_everything() -> None:
    grid = confirm_grid(POCKET, ModelSpec(2, 2, 64))
    assert (grid.dropouts, grid.prefixes, grid.seeds) == (POCKET.dropouts, POCKET.prefixes, (0, 1, 2))
    assert grid.models == (ModelSpec(2, 2, 64),)


def test_a_size_is_calibrated_beside_its_smaller_neighbour() -> None:
    assert partners(FULL, ModelSpec(16, 8, 384)) == (ModelSpec(12, 8, 320),)
    assert partners(FULL, ModelSpec(8, 8, 256)) == (ModelSpec(12, 8, 320),)
    assert partners(replace(POCKET, screen_models=(), calibration_models=()), ModelSpec(2, 2, 64)) == ()


def test_the_sizes_of_a_scale_are_its_models_where_it_names_no_others() -> None:
    small, large = ModelSpec(8, 8, 256), ModelSpec(12, 8, 320)
    scale = replace(FULL, models=(small, large), screen_models=(), calibration_models=())
    assert (partners(scale, small), partners(scale, large)) == ((large,), (small,))
    confirming = confirm_grid(scale, large).on_scale(scale)  # whose models are the confirmed one alone
    assert partners(confirming, large) == (small,)
    for name in ("owt", "tinystories", "wikitext103", "pydocs"):
        full = REGIMES[name].scale("full")
        model = full.models[-1]
        assert partners(confirm_grid(full, model).on_scale(full), model) == partners(full, model) != ()
    extrapolation = REGIMES["owt"].scale("full-8m")
    assert partners(extrapolation, extrapolation.models[-1]) == ()

"""The two gates before a calibration: which model sizes have a best dropout above 0, and does one stand?

Both are static grids. The screen is coarse: every size of the scale's ladder on every other prefix, few
dropouts, one seed. The confirmation is one model on the whole grid of the scale.
"""

from __future__ import annotations

from search_spaces.static_dropout import StaticGrid
from tune_dd.regimes import ModelSpec, Scale

# Enough for an optimum inside the grid to be seen as such, with 0 among them to be better than.
COARSE_DROPOUTS = (0.0, 0.1, 0.3, 0.5)


def screen_grid(scale: Scale) -> StaticGrid:
    """Dropouts of the scale's own grid where it holds the coarse ones, so that trials are told by one name."""
    dropouts = tuple(p for p in COARSE_DROPOUTS if p in scale.dropouts)
    return StaticGrid(
        models=scale.screen_models or scale.models,
        prefixes=scale.prefixes[::2],
        readouts=scale.readouts,
        dropouts=dropouts if len(dropouts) >= 3 else scale.dropouts,
        seeds=scale.seeds[:1],
    )


def confirm_grid(scale: Scale, model: ModelSpec) -> StaticGrid:
    return StaticGrid((model,), scale.prefixes, scale.readouts, scale.dropouts, scale.seeds)


def partners(scale: Scale, model: ModelSpec) -> tuple[ModelSpec, ...]:
    """The sizes to calibrate beside a confirmed model, whose own cells are there: the next smaller of the
    scale's sizes, or the next larger for the smallest, so that the law sees P vary at the least cost."""
    known = {*(scale.screen_models or scale.models), *(scale.calibration_models or scale.models), model}
    sizes = sorted(known, key=lambda m: m.n_params(scale.vocab_size))
    place = sizes.index(model)
    return tuple(sizes[place - 1 : place] if place else sizes[1:2])

"""What one text is to another: the scale of U at which a law of the one holds best on the other."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd

from analysis.carry import Text, comparable, loss_difference, unique_scale
from analysis.coefficients import Coefficients
from analysis.pilot import SCALES, Split, interval_of, measure_scale
from analysis.targets import Targets
from tune_dd.errors import UserError
from tune_dd.laws import Array

Place = tuple[str, str, str]  # regime, scale, tokenizer's hash: what makes a law of one run apply to another


def compare_texts(
    laws: Mapping[Place, Coefficients], cells: Mapping[Place, Split], texts: Mapping[Place, Text]
) -> pd.DataFrame:
    """Every law of one text on the cells of every other one at its scale.

    Args:
        laws, cells, texts: (regime, scale, tokenizer) -> the law fitted there, its cells, its text if that is known.

    Returns one row per pair: fitted_on, regime, loss_difference (bigram loss of the first less that of the second,
    nats per token), scale (what U is multiplied by for it), pilot_scale (as a pilot measures it) with its 95 % interval
    pilot_low and pilot_high, best_scale (the one with the least regret of ``SCALES``), and the mean regrets, nats per
    token: regret_raw without a scale, regret_carried, regret_piloted and regret_best with these three, regret_own of
    the law that was fitted to this text itself. NaN where the two texts' bigrams do not compare, and where there is no
    pilot or it tells nothing.
    """
    rows: list[dict[str, Any]] = []
    for first, second in permutations(laws, 2):
        if first[0] == second[0] or first[1] != second[1]:
            continue
        judged = cells[second].cells
        difference, scale = _foretold(texts.get(first), texts.get(second))
        piloted, low, high = _piloted(laws[first], cells[second])
        scales = np.array([1.0, scale, piloted, *SCALES])
        tried = regrets(laws[first], judged, np.nan_to_num(scales, nan=1.0))
        tried[np.isnan(scales)] = np.nan
        best = 3 + int(tried[3:].argmin())
        rows.append(
            {
                "fitted_on": first[0],
                "regime": second[0],
                "loss_difference": difference,
                "scale": scale,
                "pilot_scale": piloted,
                "pilot_low": low,
                "pilot_high": high,
                "best_scale": float(SCALES[best - 3]),
                "regret_raw": tried[0],
                "regret_carried": tried[1],
                "regret_piloted": tried[2],
                "regret_best": tried[best],
                "regret_own": regrets(laws[second], judged, np.ones(1))[0],
            }
        )
    return pd.DataFrame(rows)


def _foretold(here: Text | None, there: Text | None) -> tuple[float, float]:
    """The difference in bigram loss and the scale by it, NaN where the two do not compare."""
    if here is None or there is None or not comparable(here, there):
        return np.nan, np.nan
    return loss_difference(here, there), unique_scale(here, there)


def _piloted(law: Coefficients, other: Split) -> tuple[float, float, float]:
    """The scale that a pilot measures and its interval, NaN where there is none or it tells nothing."""
    if other.pilot is None:
        return np.nan, np.nan, np.nan
    try:
        scale, draws = measure_scale(law, other.pilot)
    except UserError:
        return np.nan, np.nan, np.nan
    return scale, *interval_of(draws)


def regrets(law: Coefficients, cells: Targets, scales: Array) -> Array:
    """(s,) mean regret over the cells of the law with U multiplied by each of the scales, nats per token."""
    each = [fit.regret(law.predict(fit.n_params, fit.unique_tokens * scales, fit.sampled_tokens)) for fit in cells.fits]
    return np.asarray(np.mean(each, axis=0))


def bigram_slope(pairs: pd.DataFrame) -> float:
    """Decades of U per nat of bigram loss: least squares of log10(best_scale), through the origin."""
    told = pairs.dropna(subset="loss_difference")
    difference = told["loss_difference"]
    return float((difference * np.log10(told["best_scale"])).sum() / (difference**2).sum())

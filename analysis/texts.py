"""What one text is to another: the scale of U at which a law of the one holds best on the other."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd

from analysis.coefficients import Coefficients
from analysis.foretell import MeasuredText, Text, comparable, foretold_decades, interval
from analysis.pilot import SCALES, Split, interval_of, measure_scale
from analysis.targets import Targets
from tune_dd.errors import UserError
from tune_dd.law import Array

Place = tuple[str, str, str]  # regime, scale, tokenizer's hash: what makes a law of one run apply to another


def compare_texts(
    laws: Mapping[Place, Coefficients], cells: Mapping[Place, Split], texts: Mapping[Place, Text]
) -> pd.DataFrame:
    """Every law of one text on the cells of every other one at its scale.

    Args:
        laws, cells, texts: (regime, scale, tokenizer) -> the law fitted there, its cells, its text if that is known.

    Returns one row per pair: fitted_on, regime, scale (what U is multiplied by, by the counts of the two texts and the
    rule fitted to others) with its 95 % interval low and high, pilot_scale (as a pilot measures it) with its pilot_low
    and pilot_high, best_scale (the one with the least regret of ``SCALES``), and the mean regrets, nats per token:
    regret_raw without a scale, regret_carried, regret_piloted and regret_best with these three, regret_own of the law
    that was fitted to this text itself. NaN where the two texts' counts do not compare, and where there is no pilot or
    it tells nothing.
    """
    rows: list[dict[str, Any]] = []
    for first, second in permutations(laws, 2):
        if first[0] == second[0] or first[1] != second[1]:
            continue
        judged = cells[second].cells
        scale, scale_low, scale_high = _foretold(texts.get(first), texts.get(second))
        piloted, low, high = pilot_scale(laws[first], cells[second])
        scales = np.array([1.0, scale, piloted, *SCALES])
        tried = regrets(laws[first], judged, np.nan_to_num(scales, nan=1.0))
        tried[np.isnan(scales)] = np.nan
        best = 3 + int(tried[3:].argmin())
        rows.append(
            {
                "fitted_on": first[0],
                "regime": second[0],
                "scale": scale,
                "low": scale_low,
                "high": scale_high,
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


def _foretold(here: Text | None, there: Text | None) -> tuple[float, float, float]:
    """The scale by counts and its interval, NaN where the two do not compare."""
    if here is None or there is None or not comparable(here, there):
        return np.nan, np.nan, np.nan
    decades, rule = foretold_decades(here, there)
    return 10.0**decades, *interval(decades, rule)


def pilot_scale(law: Coefficients, other: Split) -> tuple[float, float, float]:
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


def measure(pairs: pd.DataFrame, texts: Mapping[Place, Text]) -> list[MeasuredText]:
    """The texts of the pairs with the decades that their U lies above the mean text's, by least squares of best_scale.

    What ``analysis/measured_texts.json`` holds of ours. Texts without counts, and of a regime that is there
    at several scales or under several tokenizers, are left out.
    """
    named = [place[0] for place in texts]
    known = {place[0]: text for place, text in texts.items() if named.count(place[0]) == 1}
    pairs = pairs[pairs["fitted_on"].isin(known) & pairs["regime"].isin(known)]
    regimes = sorted(set(pairs["regime"]))
    at = {regime: number for number, regime in enumerate(regimes)}
    design = np.zeros((len(pairs), len(regimes)))
    design[np.arange(len(pairs)), pairs["regime"].map(at)] = 1.0
    design[np.arange(len(pairs)), pairs["fitted_on"].map(at)] = -1.0
    # Of all that differ by a constant the least-norm solution has the mean 0.
    decades = np.linalg.lstsq(design, np.log10(pairs["best_scale"].to_numpy()), rcond=None)[0]
    return [MeasuredText(known[regime], float(decades[at[regime]])) for regime in regimes]

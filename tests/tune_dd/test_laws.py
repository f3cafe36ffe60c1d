from dataclasses import replace

import numpy as np
import pytest

from tune_dd.errors import UserError
from tune_dd.law import P_MAX, P_MIN, SATURATION, Law, design_rank, rank_and_condition
from tune_dd.laws import LAWS, PINNED_ONSET, PINNED_SLOPE, get_law

INTERACTION = {"A": 0.2, "B": 0.15, "D": 0.06, "C0": -0.25}


def test_interaction_is_the_reference_formula() -> None:
    p, u, c = 17_367_040, 1_000_000, 8_000_000
    x, y = np.log10(p / u), np.log10(c / u)
    expected = 0.2 * x + 0.15 * y + 0.06 * x * y - 0.25
    assert get_law("interaction").dropout(INTERACTION, p, u, c) == pytest.approx(expected, abs=1e-12)


def test_first_order_is_the_separable_law_whose_slopes_sum_to_zero() -> None:
    p, u, c = np.array([1e5, 1e6]), np.array([4e3, 8e4]), np.array([1e5, 1e7])
    first = get_law("first_order").dropout({"A": 0.1, "B": 0.2, "C0": -0.1}, p, u, c)
    separable = get_law("separable").dropout({"a_P": 0.1, "a_U": -0.3, "a_C": 0.2, "C0": -0.1}, p, u, c)
    np.testing.assert_allclose(first, separable, atol=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_each_law_has_one_column_per_coefficient_and_the_constant_last(name: str) -> None:
    design = get_law(name).design([1e5, 1e6, 1e7], 1e4, [[1e5], [1e6]])
    assert design.shape == (2, 3, len(LAWS[name].coefficients))
    assert LAWS[name].coefficients[-1] == "C0"
    scale = LAWS[name].scale
    assert (design[..., -1] == (1 if scale is None else scale(np.array(4.0)))).all()


def test_the_clamp_holds_on_both_sides() -> None:
    law = get_law("constant")
    assert law.dropout({"C0": -1.0}, 1e5, 1e4, 1e5) == P_MIN
    assert law.dropout({"C0": 2.0}, 1e5, 1e4, 1e5) == P_MAX


def test_one_ratio_of_parameters_to_sampled_tokens_leaves_rank_three() -> None:
    p = np.array([1e5, 2e5, 4e5, 1e5, 2e5, 4e5])
    u = np.array([4e3, 4e3, 4e3, 16e3, 32e3, 64e3])
    rank, condition = rank_and_condition(get_law("interaction"), p, u, p * 2)
    assert rank == 3
    assert condition == np.inf
    rank, condition = rank_and_condition(get_law("interaction"), p, u, [1e5, 2e5, 3e5, 3e5, 1e5, 2e5])
    assert rank == 4
    assert 1 < condition < 1e3


def test_one_model_size_leaves_the_separable_law_short() -> None:
    u, c = (a.ravel() for a in np.meshgrid([4e3, 8e3, 16e3], [1e5, 2e5]))
    assert rank_and_condition(get_law("separable"), 163_840, u, c)[0] == 3
    assert rank_and_condition(get_law("interaction"), 163_840, u, c)[0] == 4


def test_condition_does_not_depend_on_units() -> None:
    design = get_law("separable").design([1e5, 1e6, 1e5, 1e6], [1e4, 1e4, 1e5, 3e5], [1e6, 3e6, 1e6, 5e6])
    other = design * np.array([1e3, 1.0, 1e-3, 1.0])
    assert design_rank(design) == pytest.approx(design_rank(other))


@pytest.mark.parametrize("coefficients", [{"A": 1.0}, {**INTERACTION, "E": 1.0}, {**INTERACTION, "A": float("nan")}])
def test_wrong_coefficients_are_refused(coefficients: dict[str, float]) -> None:
    with pytest.raises(UserError):
        get_law("interaction").dropout(coefficients, 1e5, 1e4, 1e5)


def test_unknown_law_and_bad_quantities_are_refused() -> None:
    with pytest.raises(UserError, match="not one of interaction"):
        get_law("cubic")
    with pytest.raises(UserError, match="unique_tokens"):
        get_law("interaction").dropout(INTERACTION, 1e5, 0, 1e5)


def test_the_saturating_form_is_the_pinned_one_where_dropout_is_small_and_bends_towards_the_clamp() -> None:
    saturating, pinned, coefficients = get_law("saturating"), get_law("pinned"), {"B": 1.0, "C0": -5.5}
    p, u = 163_840, np.geomspace(2_000, 200_000, 40)
    straight = pinned.predictor(coefficients, p, u, 262_144)
    bent = saturating.dropout(coefficients, p, u, 262_144)
    np.testing.assert_allclose(bent, np.maximum(P_MAX * np.tanh(straight / P_MAX), 0.0))
    small, large = (straight > 0) & (straight < 0.1), straight > 0.65
    assert small.any()
    assert large.any()
    np.testing.assert_allclose(bent[small], straight[small], rtol=0.01)
    assert ((bent[large] > 0.45) & (bent[large] < P_MAX)).all()
    assert get_law("saturating_capped").at_most(5, P_MAX) == 0.5


@pytest.mark.parametrize("name", LAWS)
def test_link_and_inverse_belong_together_and_the_slope_is_the_rates(name: str) -> None:
    law = LAWS[name]
    rates = np.linspace(0.02, 0.6 if law.link is SATURATION else 0.9, 12)
    raw = np.array([law.predictor_of(rate) for rate in rates])
    np.testing.assert_allclose(law.link.rate(raw), rates, rtol=1e-12)
    rise = (law.link.rate(raw + 1e-6) - law.link.rate(raw - 1e-6)) / 2e-6
    np.testing.assert_allclose(law.link.slope(raw), rise, rtol=1e-6)


def test_the_odds_are_a_power_law() -> None:
    law = get_law("odds")
    coefficients = {"a_P": 1.0, "a_U": -2.0, "a_C": 1.5, "C0": -4.0}
    p, u, c = 163_840, 16_000, 262_144
    odds = 10**-4.0 * p * float(u) ** -2 * c**1.5
    assert law.dropout(coefficients, p, u, c, p_max=0.99) == pytest.approx(odds / (1 + odds))
    assert law.dropout(coefficients, 1e12, 10, 1e12) == P_MAX
    assert law.dropout(coefficients, 10, 1e12, 10) == P_MIN


def test_a_diluted_law_weighs_draws_by_the_share_of_the_prefix_that_they_repeat() -> None:
    unique, sampled = (4_000, 16_000), (100_000, 300_000)
    assert get_law("odds").along(unique, sampled) == sampled
    assert get_law("odds_diluted").along(unique, sampled) == (100_000, 100_000 / 4 + 200_000)
    assert get_law("odds_half_diluted").along(unique, sampled) == (100_000, 100_000 / 2 + 200_000)


def test_a_diluted_law_is_fitted_as_the_one_that_it_dilutes() -> None:
    for law in LAWS.values():
        base = LAWS[law.cells]
        assert base.cells == base.name
        assert (law.coefficients, law.columns, law.link) == (base.coefficients, base.columns, base.link)
        assert law.fit_max == base.fit_max
        assert law.scale is base.scale
        assert (law.dilution > 0 or law.stream_max < P_MAX) == (law is not base)


def test_onset_is_where_the_sampled_tokens_pass_a_power_of_unique_tokens_over_parameters() -> None:
    law, coefficients = get_law("onset"), {"A": 0.4, "B": 0.8, "C0": -4.4}
    p, u = np.array([50_000, 163_840, 900_000]), np.array([4_000, 16_000, 64_000])
    onset = 10 ** (4.4 / 0.8) * (u / p) ** (0.4 / 0.8)
    np.testing.assert_allclose(law.predictor(coefficients, p, u, onset), 0, atol=1e-12)
    beyond = 0.8 * np.log10(2) * 10_000 / u
    np.testing.assert_allclose(law.dropout(coefficients, p, u, 2 * onset, p_min=0.0, p_max=0.99), beyond)


def test_the_pinned_form_is_the_onset_with_its_exponents_held() -> None:
    pinned, onset = get_law("pinned"), get_law("onset")
    p, u, c = np.array([45_056, 2_850_816]), np.array([4_000, 128_000]), np.array([65_536, 1_048_576])
    slope, place = 0.9, -5.0
    same = {"A": slope * PINNED_ONSET, "B": slope, "C0": place}
    np.testing.assert_allclose(
        pinned.predictor({"B": slope, "C0": place}, p, u, c) * (10_000 / u) ** (1 - PINNED_SLOPE),
        onset.predictor(same, p, u, c),
    )
    assert get_law("pinned_capped").at_most(5, P_MAX) == 0.5
    before = 10 ** (-place / slope) * (u / p) ** PINNED_ONSET / 2
    assert (pinned.dropout({"B": slope, "C0": place}, p, u, before) == 0).all(), "no dropout before the onset"
    assert (onset.dropout(same, p, u, before) == P_MIN).all()


def test_rank_does_not_depend_on_the_scale_of_a_cell() -> None:
    p, u, c = np.array([1e5, 1e5, 1e5, 1e5]), np.array([4e3, 8e3, 4e3, 8e3]), np.array([1e5, 1e5, 2e5, 2e5])
    assert rank_and_condition(get_law("onset"), p, u, c)[0] == 3
    assert rank_and_condition(get_law("onset"), p, u, 1e5)[0] == 2


def test_the_epochs_form_is_the_saturating_one_from_the_end_of_the_second_pass_on() -> None:
    epochs, saturating, coefficients = get_law("epochs"), get_law("saturating"), {"B": 1.0, "C0": -5.0}
    u = np.array([4e3, 16e3, 64e3])
    past = epochs.dropout(coefficients, 2.85e6, u, 262_144 + 2 * u)
    np.testing.assert_allclose(past, saturating.dropout(coefficients, 2.85e6, u, 262_144), rtol=1e-12)
    assert past.min() > 0
    assert epochs.dropout(coefficients, 2.85e6, 64_000, 2 * 64_000) == 0
    assert epochs.dropout(coefficients, 2.85e6, 64_000, 64_000) == 0
    many = 1e4 * u  # passes: two more are nothing
    np.testing.assert_allclose(
        epochs.dropout(coefficients, 2.85e6, u, many), saturating.dropout(coefficients, 2.85e6, u, many), rtol=1e-3
    )


def test_the_floored_form_s_onset_is_learning_and_a_few_passes_over_the_prefix() -> None:
    law, coefficients = get_law("floored"), {"B": 0.7, "C0": 0.0}  # C0 = 0: the onset is C* itself

    def onset(n_params: float, unique_tokens: float) -> float:
        slope = (10_000 / unique_tokens) ** 0.65
        return float(10 ** (-law.predictor({"B": 1.0, "C0": 0.0}, n_params, unique_tokens, 1.0) / slope))

    assert onset(1e5, 1e4) == pytest.approx(1e5 + 2.5 * 1e4)
    assert onset(1e5, 2e4) == pytest.approx(1e5 * 2**0.30 + 2.5 * 2e4)
    assert onset(2e5, 1e4) == pytest.approx(1e5 * 2**-0.60 + 2.5 * 1e4)
    # No model is large enough to overfit what it read twice.
    assert onset(1e9, 1e6) == pytest.approx(2.5 * 1e6, rel=0.01)
    for n_params, unique_tokens in ((1e5, 1e4), (1e7, 1e6)):
        begins = onset(n_params, unique_tokens)
        assert law.dropout(coefficients, n_params, unique_tokens, 0.99 * begins) == 0
        assert 0 < law.dropout(coefficients, n_params, unique_tokens, 1.01 * begins) < 0.01


@pytest.mark.parametrize("law", LAWS.values(), ids=lambda law: law.name)
def test_carried_coefficients_say_of_u_what_the_others_say_of_its_multiple(law: Law) -> None:
    rng = np.random.default_rng(0)
    coefficients = dict(zip(law.coefficients, rng.normal(size=len(law.coefficients)), strict=True))
    p, u, c = 10 ** rng.uniform(4, 8, 50), 10 ** rng.uniform(3, 7, 50), 10 ** rng.uniform(4, 10, 50)
    carried = law.carried(coefficients, 1.7)
    plain, counted = law, c
    if law.carried_as is not None:  # passes are not scaled: they are counted in C beforehand
        plain = law.carried_as
        scale = np.ones_like(u) if law.scale is None else law.scale(np.log10(u))
        counted = c * 10 ** ((law.design(p, u, c) - plain.design(p, u, c))[:, 0] / scale)
    there = plain.predictor(coefficients, p, 1.7 * u, counted)
    np.testing.assert_allclose(law.predictor(carried, p, u, c), there, rtol=1e-7, atol=1e-10)
    back = law.carried(carried, 1 / 1.7)
    assert list(back.values()) == pytest.approx(list(coefficients.values()), rel=1e-6, abs=1e-9)
    with pytest.raises(UserError, match="positive and finite"):
        law.carried(coefficients, 0.0)


def test_what_is_carried_of_passes() -> None:
    """Free epochs are passes whatever U counts as; the floored onset moves as a whole, its floor with it."""
    epochs = get_law("epochs").carried({"B": 1.0, "C0": -5.0}, 4.0)
    assert get_law("epochs").dropout(epochs, 1e9, 1e6, 2e6) == 0
    floored, coefficients = get_law("floored"), {"B": 0.7, "C0": 0.0}
    carried = floored.carried(coefficients, 4.0)
    moved = 4.0**0.30  # the exponent of U in its onset
    for n_params, unique_tokens, onset in ((1e5, 1e4, 1.25e5), (1e12, 1e6, 2.5e6)):
        assert floored.dropout(coefficients, n_params, unique_tokens, 0.98 * onset) == 0
        assert floored.dropout(carried, n_params, unique_tokens, 0.98 * moved * onset) == 0
        assert floored.dropout(carried, n_params, unique_tokens, 1.05 * moved * onset) > 0


def test_a_form_that_is_tied_to_a_unit_of_u_cannot_be_carried() -> None:
    tied = replace(LAWS["x_only"], columns=lambda p, u, c: (np.sin(5 * u), np.ones_like(p)))
    with pytest.raises(UserError, match="another unit of U"):
        tied.carried({"A": 1.0, "C0": 0.0}, 1.7)


# The paths that the reference study prints: P, U by stage, tokens a stage, dropout by stage.
PUBLISHED = {
    "owt": (31_457_280, (250e3, 500e3, 1e6, 2e6, 4e6), 8.192e6, (0.39, 0.32, 0.23, 0.14, 0.07)),
    "tinystories": (17_367_040, (500e3, 1e6, 2e6, 4e6), 16.384e6, (0.18, 0.14, 0.08, 0.04)),
}


@pytest.mark.parametrize(("name", "within"), [("owt", 0.025), ("tinystories", 0.006)])
def test_the_reference_s_published_paths_are_nearly_of_the_pinned_form(name: str, within: float) -> None:
    """Two coefficients, at a hundred times the size that its exponents are from; tokens a stage shift C0 alone."""
    n_params, prefixes, stage_tokens, published = PUBLISHED[name]
    design = get_law("pinned").design(n_params, prefixes, stage_tokens * np.arange(1, len(prefixes) + 1))
    fitted = np.linalg.lstsq(design, np.array(published), rcond=None)[0]
    assert np.abs(design @ fitted - published).max() < within


@pytest.mark.parametrize(("name", "within"), [("owt", 0.04), ("tinystories", 0.018)])
def test_the_reference_s_published_paths_are_nearly_of_the_floored_form_with_the_slope_of_small_models(
    name: str, within: float
) -> None:
    """One coefficient: B is what small models have, at a hundredth of the size."""
    n_params, prefixes, stage_tokens, published = PUBLISHED[name]
    law, sampled = get_law("floored"), stage_tokens * np.arange(1, len(prefixes) + 1)
    slope, constant = law.design(n_params, prefixes, sampled).T
    wanted = law.link.predictor(np.array(published)) - law.expected["B"][0] * slope
    found = {"B": law.expected["B"][0], "C0": float(wanted @ constant / (constant @ constant))}
    assert np.abs(law.dropout(found, n_params, prefixes, sampled) - published).max() < within

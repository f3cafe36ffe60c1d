"""Paired comparison of streams."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import simulated, simulation
from analysis.comparison import COLUMNS, best_static_elsewhere, compare, outcomes
from tune_dd.errors import UserError


def stream(seed: int = 0, n_seeds: int = 5) -> pd.DataFrame:
    return simulated.simulate_stream(np.random.default_rng(seed), n_seeds=n_seeds)


def exact(losses: dict[str, list[list[float]]], kinds: dict[str, str]) -> pd.DataFrame:
    """condition -> seeds -> loss at each stage's end, at C = 100, 200, ..."""
    rows = []
    for condition, seeds in losses.items():
        for seed, path in enumerate(seeds):
            for stage, loss in enumerate(path):
                row = simulated.simulate_stream(np.random.default_rng(0), n_seeds=1).iloc[0].to_dict()
                row |= {"condition": condition, "kind": kinds[condition], "seed": seed, "stage": stage}
                row |= {"sampled_tokens": 100 * (stage + 1), "val_loss": loss, "val_bpb": loss / 2}
                rows.append(row)
    return pd.DataFrame(rows)


KINDS = {"law": "law", "static_0.10": "static", "static_0.20": "static"}
PATHS = {
    "law": [[5.0, 4.0], [5.1, 4.1], [5.3, 4.0]],
    "static_0.10": [[5.0, 4.2], [5.2, 4.3], [5.2, 4.2]],
    "static_0.20": [[5.2, 4.3], [5.4, 4.4], [5.5, 4.3]],
}


def test_columns_of_the_contract_and_the_primary_contrast_first() -> None:
    found = compare(stream())
    assert list(found.columns[: len(COLUMNS)]) == COLUMNS
    first = found.iloc[0]
    assert (first["metric"], first["condition"], first["baseline"]) == ("final_val_loss", "law", "best_static")
    assert first["primary"]
    assert found["primary"].sum() == 1
    assert set(found["metric"]) == {"final_val_loss", "trajectory_val_loss"}


def test_paired_difference_and_t_by_hand() -> None:
    found = compare(exact(PATHS, KINDS), metrics=("final_val_loss", "trajectory_val_loss"))
    final = found[(found["metric"] == "final_val_loss") & found["primary"]].iloc[0]
    difference = np.array([4.0 - 4.2, 4.1 - 4.3, 4.0 - 4.2])
    assert final["difference"] == pytest.approx(difference.mean())
    assert final["difference_bpb"] == pytest.approx(difference.mean() / 2)
    trajectory = found[found["metric"] == "trajectory_val_loss"].iloc[0]
    assert (trajectory["condition"], trajectory["baseline"]) == ("law", "best_static")
    pairs = np.array([4.5 - 4.6, 4.6 - 4.75, 4.65 - 4.7])
    assert trajectory["difference"] == pytest.approx(pairs.mean())
    assert trajectory["p_paired_t"] == pytest.approx(stats.ttest_1samp(pairs, 0).pvalue)
    assert trajectory["t_low"] < trajectory["difference"] < trajectory["t_high"]


@pytest.mark.parametrize("n", [3, 5, 7])
def test_sign_flip_reaches_its_floor_and_no_less(n: int) -> None:
    table = simulated.simulate_stream(np.random.default_rng(3), n_seeds=n)
    table.loc[table["condition"] == "law", "val_loss"] -= 1.0  # every pair agrees
    first = compare(table, metrics=("final_val_loss",)).iloc[0]
    assert first["p_sign_flip"] == pytest.approx(2 / 2**n)
    assert first["p_floor"] == pytest.approx(2 / 2**n)
    assert first["n_pairs"] == n


def test_the_best_static_is_chosen_on_the_other_seeds() -> None:
    # On its own seed 0.20 is best once, on the others' mean never: it must not be chosen for that seed.
    loss = np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 0.5, 2.0], [0.0, 0.0, 0.0, 0.0]])
    static = np.array([True, True, False])
    assert best_static_elsewhere(loss, static).tolist() == [0, 0, 0, 0]
    # Two statics that each win one of two seeds: each is chosen for the seed on which it loses.
    loss = np.array([[1.0, 2.0], [2.0, 1.0]])
    assert best_static_elsewhere(loss, np.array([True, True])).tolist() == [1, 0]
    # A static that lacks a seed is no candidate.
    loss = np.array([[1.0, np.nan, 1.0], [2.0, 2.0, 2.0]])
    assert best_static_elsewhere(loss, np.array([True, True])).tolist() == [1, 1, 1]


def test_choosing_among_equals_is_not_rewarded() -> None:
    """Twelve equal statics and an equal law: a peeking baseline would make the law look worse than it is."""
    rng = np.random.default_rng(0)
    peeked, honest = [], []
    for _ in range(200):
        loss = 0.02 * rng.standard_normal((13, 5))
        static = np.arange(13) > 0
        choice = best_static_elsewhere(loss, static)
        honest.append((loss[0] - loss[choice, np.arange(5)]).mean())
        peeked.append((loss[0] - loss[1 + loss[1:].mean(axis=1).argmin()]).mean())
    assert abs(np.mean(honest)) < 0.004
    assert np.mean(peeked) > 0.008


def test_intervals_cover_the_true_difference() -> None:
    """300 streams cover 93 % with three seeds and with five (docs/methodology.md)."""
    found = simulation.coverage_of_comparison(60, seed=1).set_index("interval")
    assert found.loc["bootstrap", "coverage"] >= 0.87, found


def test_holm_is_the_step_down_adjustment_over_secondary_contrasts() -> None:
    found = compare(stream(), metrics=("final_val_loss",))
    own = found["p_paired_t"].to_numpy()
    secondary = np.sort(own[1:])
    expected = np.maximum.accumulate(np.minimum(secondary * np.arange(len(secondary), 0, -1), 1.0))
    np.testing.assert_allclose(np.sort(found["p_holm"].to_numpy()[1:]), np.sort(expected))
    assert found["p_holm"][0] == own[0]


def test_the_second_metric_has_no_primary_contrast_and_pays_for_all_of_its_own() -> None:
    found = compare(stream())
    trajectory = found[found["metric"] == "trajectory_val_loss"]
    assert not trajectory["primary"].any()
    smallest = trajectory["p_paired_t"].min()
    tested = int(trajectory["p_paired_t"].notna().sum())  # a static that is the chosen one everywhere differs by 0
    assert trajectory["p_holm"].min() == pytest.approx(min(1.0, tested * smallest))


def test_unmatched_seeds_fall_to_welch() -> None:
    table = stream(n_seeds=6)
    law = table["condition"] == "law"
    table = table[(law & (table["seed"] >= 3)) | (~law & (table["seed"] < 3))]
    first = compare(table, baseline="static_0.20", metrics=("final_val_loss",)).iloc[0]
    last = table[table["stage"] == 4].set_index("condition")["val_loss"]
    expected = stats.ttest_ind(last["law"], last["static_0.20"], equal_var=False)
    assert (first["method"], first["n_pairs"]) == ("welch", 0)
    assert first["p_welch"] == pytest.approx(expected.pvalue)
    assert np.isnan(first["p_paired_t"])
    assert first["low"] < first["difference"] < first["high"]


def test_missing_trials_leave_the_matched_pairs() -> None:
    table = stream()
    gone = ((table["condition"] == "law") & (table["seed"] == 1)) | (
        (table["condition"] == "static_0.20") & (table["seed"] == 2)
    )
    first = compare(table[~gone], metrics=("final_val_loss",)).iloc[0]
    assert first["n_pairs"] == 4
    assert first["low"] < first["difference"] < first["high"]
    assert "static_0.20" not in first["notes"]


def test_unfinished_streams_are_left_out_and_named() -> None:
    table = stream()
    cut = table[~((table["condition"] == "law") & (table["seed"] == 1) & (table["stage"] == 4))]
    data = outcomes(cut)
    assert data.unfinished == ("law seed 1",)
    first = compare(cut).iloc[0]
    assert first["n_pairs"] == 4
    assert "law seed 1" in first["notes"]


def test_tokens_saved_interpolates_the_better_ones_path() -> None:
    table = exact(
        {"law": [[5.0, 4.0, 3.0]] * 2, "static_0.10": [[5.5, 4.5, 3.5]] * 2}, {"law": "law", "static_0.10": "static"}
    )
    first = compare(table, metrics=("final_val_loss",)).iloc[0]
    reached = np.exp((np.log(200) + np.log(300)) / 2)  # 3.5 is half way from 4.0 to 3.0 in log C
    assert first["tokens_saved"] == pytest.approx(300 - reached)
    turned = compare(table, primary="static_0.10", baseline="law", metrics=("final_val_loss",)).iloc[0]
    assert turned["tokens_saved"] == pytest.approx(-(300 - reached))


def test_tokens_saved_is_paired_by_seed() -> None:
    """The law lacks an easy seed, and each seed's static is the one chosen on the others."""
    paths = {
        "law": [[5.0, 4.0], [5.0, 4.0]],
        "static_0.10": [[5.2, 4.5], [5.2, 4.4], [2.0, 1.0]],
        "static_0.20": [[5.4, 4.6], [5.4, 4.6], [3.0, 2.0]],
    }
    first = compare(exact(paths, KINDS), metrics=("final_val_loss",)).iloc[0]
    reached = np.exp(np.log(100) + (5.0 - 4.45) * np.log(2))  # 4.45, the static's mean on the law's two seeds
    assert (first["n_pairs"], first["difference"]) == (2, pytest.approx(-0.45))
    assert first["tokens_saved"] == pytest.approx(200 - reached)
    # Each static wins one seed and is chosen for the other: the paths are those of the losers.
    crossed = {
        "law": [[5.0, 4.0], [5.0, 4.0]],
        "static_0.10": [[5.0, 4.2], [5.0, 4.6]],
        "static_0.20": [[5.0, 4.8], [5.0, 4.1]],
    }
    first = compare(exact(crossed, KINDS), metrics=("final_val_loss",)).iloc[0]
    assert first["difference"] == pytest.approx(4.0 - 4.7)
    assert first["tokens_saved"] == pytest.approx(200 - np.exp(np.log(100) + (5.0 - 4.7) * np.log(2)))


@pytest.mark.parametrize(
    ("column", "stage", "value"), [("dropout", 1, 0.3), ("unique_tokens", 2, 999), ("sampled_tokens", 1, 262_000)]
)
def test_streams_of_different_designs_are_not_pooled(column: str, stage: int, value: float) -> None:
    table = stream()
    place = (table["condition"] == "law") & (table["seed"] == 3) & (table["stage"] == stage)
    table.loc[place, column] = value
    with pytest.raises(UserError, match=f"column '{column}' is both .* stage .*{stage} of the stream rows"):
        compare(table)


def test_one_seed_says_that_it_cannot_test() -> None:
    first = compare(stream(n_seeds=1)).iloc[0]
    assert np.isnan([first["low"], first["p_paired_t"], first["p_sign_flip"]]).all()
    assert np.isfinite(first["difference"])
    assert "no test" in first["notes"]


def test_same_seed_same_digits() -> None:
    table = stream()
    pd.testing.assert_frame_equal(compare(table, seed=1), compare(table.sample(frac=1, random_state=0), seed=1))


def test_what_cannot_be_compared_is_refused() -> None:
    table = stream()
    cases = {
        "no rows of the stream phase": (table.assign(phase="calibrate"), {}),
        "no finished stream of condition 'best'": (table, {"primary": "best"}),
        "differ in regime": (pd.concat([table, table.assign(regime="other")]), {}),
        "no static condition": (table[table["kind"] != "static"], {}),
        "metric 'accuracy'": (table, {"metrics": ("accuracy",)}),
    }
    for words, (bad, options) in cases.items():
        with pytest.raises(UserError, match=words):
            compare(bad, **options)


def test_a_law_no_better_than_the_best_static_is_seldom_called_different() -> None:
    """Of 300 streams 3 % are, by interval and t test together (docs/methodology.md)."""
    found = simulation.level_of_comparison(50, seed=3).set_index("rejects")["share"]
    assert found["both"] <= min(found["paired t"], found["bootstrap interval"])
    assert found["both"] <= 0.1
    assert found["paired t"] <= 0.2

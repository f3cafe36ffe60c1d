"""The gates: a model passes by cells whose best dropout is inside the grid and above 0."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
from tests_support import row

from analysis.decision import decide
from analysis.optimum import cell_fits

CURVES = {
    "pays": {0.0: 5.0, 0.1: 4.7, 0.3: 4.5, 0.5: 4.8},
    "pays less": {0.0: 4.9, 0.1: 4.6, 0.3: 4.7, 0.5: 5.0},
    "never": {0.0: 4.0, 0.1: 4.1, 0.3: 4.3, 0.5: 4.9},
    "edge": {0.0: 6.0, 0.1: 5.8, 0.3: 5.5, 0.5: 5.2},
}


def fits(models: dict[str, tuple[str, ...]], seeds: tuple[int, ...] = (0,), phase: str = "screen"):
    """Cells of models whose prefixes have the named curves; read out twice, early with dropout of no use."""
    rows = []
    for size, (model, curves) in enumerate(models.items(), start=1):
        for number, curve in enumerate(curves):
            for p, loss in CURVES[curve].items():
                for seed in seeds:
                    for sampled, value in ((1000, CURVES["never"][p] + 2), (2000, loss + 0.003 * seed * (p - 0.2))):
                        what = {"model": model, "n_params": size * 1000, "unique_tokens": 100 * (number + 1)}
                        rows.append(
                            row(phase=phase, kind="static", stage=0, seed=seed, dropout=p, condition=f"static_{p:.2f}")
                            | what
                            | {"sampled_tokens": sampled, "val_loss": value, "trial_id": f"{model}{number}{p}{seed}"}
                        )
    return cell_fits(pd.DataFrame(rows), n_bootstrap=200)


def test_of_those_with_a_real_optimum_the_lowest_loss_is_chosen() -> None:
    decision = decide(
        fits({"small": ("never",), "middle": ("pays", "edge"), "large": ("pays less", "never")}), "screen"
    )
    assert decision.chosen == "large"
    found = {c.model: (c.n_cells, c.n_interior, c.kept) for c in decision.candidates}
    assert found == {"small": (1, 0, False), "middle": (2, 1, True), "large": (2, 1, True)}
    assert [c.best_loss for c in decision.candidates] == [4.0, 5.2, 4.0]
    assert "of the 2 models" in decision.reason


def test_what_counts_is_the_largest_prefix() -> None:
    assert decide(fits({"small": ("pays less", "pays less"), "large": ("edge", "pays")}), "screen").chosen == "large"


def test_without_one_the_study_ends_with_that_finding() -> None:
    decision = decide(fits({"small": ("never",), "large": ("edge",)}), "screen")
    assert decision.chosen is None
    assert "ends here" in decision.reason
    assert decision.to_dict()["models"][0]["kept"] is False


def test_with_several_seeds_the_gain_must_stand_out() -> None:
    assert decide(fits({"one": ("pays",)}, seeds=(0, 1, 2), phase="confirm"), "confirm").chosen == "one"
    assert decide(fits({"one": ("never",)}, seeds=(0, 1, 2), phase="confirm"), "confirm").chosen is None


def test_a_gain_whose_interval_holds_0_is_none() -> None:
    fit = fits({"one": ("pays",)}, seeds=(0, 1, 2), phase="confirm")[-1]  # of the last read-out
    assert fit.improvement_low > 0
    assert decide([replace(fit, improvement_low=1e-9)], "confirm").chosen == "one"
    assert decide([replace(fit, improvement_low=-1e-9)], "confirm").chosen is None
    assert decide([replace(fit, improvement_low=float("nan"))], "confirm").chosen == "one", "noise that nobody knows"


def test_another_phase_is_not_judged() -> None:
    assert decide(fits({"one": ("pays",)}, phase="calibrate"), "screen").candidates == ()

"""Pictures: their data are the statistics' own, and their bytes the same on every run."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis import figures
from analysis.coefficients import Coefficients, fit_law
from analysis.drawing import legend_below, render
from analysis.optimum import CellFit, cell_fits, selection_table
from analysis.palette import STYLE, named_styles
from analysis.tables import load_experiment


@pytest.fixture(scope="module")
def table(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    rows = synthetic.calibration()
    return load_experiment([synthetic.write_run(tmp_path_factory.mktemp("run"), rows)]).table


@pytest.fixture(scope="module")
def fits(table: pd.DataFrame) -> list[CellFit]:
    return cell_fits(table, n_bootstrap=200)


@pytest.fixture(scope="module")
def coefficients(table: pd.DataFrame) -> Coefficients:
    return fit_law(None, table, n_bootstrap=40)


def test_a_cell_shows_its_seeds_means_and_curves(table: pd.DataFrame, fits: list[CellFit]) -> None:
    fit = next(f for f in fits if (f.unique_tokens, f.sampled_tokens) == (8_000, 262_144))
    data = figures.cell_picture(fit).data
    own = table[(table["unique_tokens"] == 8_000) & (table["sampled_tokens"] == 262_144)]
    seeds = data[data["series"] == "seed"].sort_values(["seed", "dropout"])
    assert seeds["val_loss"].tolist() == own.sort_values(["seed", "dropout"])["val_loss"].tolist()
    means = data[data["series"] == "mean"]["val_loss"]
    np.testing.assert_allclose(means, own.groupby("dropout")["val_loss"].mean(), rtol=1e-12)
    assert fit.quadratic is not None
    curve = data[data["series"] == "quadratic"]
    lowest = curve.loc[curve["val_loss"].idxmin(), "dropout"]
    assert lowest == pytest.approx(fit.fitted_optimum, abs=(fit.quadratic.high - fit.quadratic.low) / 60)


def test_many_cells_are_cut_to_the_last_readouts(synthetic: ModuleType, tmp_path: Path) -> None:
    prefixes = tuple(range(4_000, 14_000, 1_000))
    rows = synthetic.calibration(prefixes=prefixes, dropouts=(0.0, 0.2, 0.4), seeds=(0,))
    fits = cell_fits(load_experiment([synthetic.write_run(tmp_path, rows)]).table, n_bootstrap=10)
    pictures = figures.cell_pictures(fits)
    assert len(fits) == 40
    assert len(pictures) == figures.MAX_PANELS
    assert sum("C262144" in picture.name for picture in pictures) == 10
    assert len({picture.name for picture in pictures}) == len(pictures)


def test_many_models_and_levels_are_cut(fits: list[CellFit], coefficients: Coefficients) -> None:
    one = selection_table(fits)
    assert one["unique_tokens"].nunique() == 5
    several = [one.assign(model=f"m{i}", n_params=1_000 * (i + 1)) for i in range(6)]
    finer = one.assign(model="m0", n_params=1_000, unique_tokens=one["unique_tokens"] + 1)
    third = one.assign(model="m0", n_params=1_000, unique_tokens=one["unique_tokens"] + 2)
    pictures = figures.optimum_pictures(pd.concat([*several, finer, third]), coefficients)
    models = [picture.name.split("-")[2] for picture in pictures[::2]]
    assert models == ["m0", "m3", "m4", "m5"]  # the one with most cells, and the largest of the others
    against_c = pictures[1]
    lines = against_c.data.loc[against_c.data["series"] == "law", "unique_tokens"].unique()
    assert (len(lines), lines.min(), lines.max()) == (figures.MAX_LEVELS, 4_000, 64_002)
    assert "9 of 15 values of U are shown" in against_c.caption
    assert "are shown" not in pictures[0].caption


def test_the_law_is_drawn_where_it_predicts(fits: list[CellFit], coefficients: Coefficients) -> None:
    selection = selection_table(fits)
    against_u = figures.optimum_pictures(selection, coefficients)[0].data
    law = against_u[(against_u["series"] == "law") & (against_u["sampled_tokens"] == 262_144)]
    ends = law.iloc[[0, -1]]
    assert ends["unique_tokens"].tolist() == pytest.approx([4_000, 64_000])
    expected = coefficients.predict(163_840, [4_000, 64_000], 262_144)
    np.testing.assert_allclose(ends["dropout"], expected)
    assert (law["low"] <= law["dropout"] + 1e-12).all()
    assert (law["dropout"] <= law["high"] + 1e-12).all()
    cells = against_u[against_u["series"] == "cell"]
    assert len(cells) == 20
    censored = cells[cells["status"] == "censored_low"]
    assert (censored["dropout"] == 0).all()


def test_residuals_are_law_less_target(coefficients: Coefficients) -> None:
    data = figures.law_fit_picture(coefficients).data
    interior = data[data["status"] == "interior"]
    assert len(interior) == coefficients.n_cells
    assert np.sqrt(np.mean(interior["residual"] ** 2)) == pytest.approx(coefficients.rmse)


def test_training_curves_are_means_over_seeds(table: pd.DataFrame) -> None:
    pictures = figures.curve_pictures(table)
    assert len(pictures) == 5
    first = pictures[0].data
    row = first[(first["dropout"] == 0.3) & (first["sampled_tokens"] == 131_072)].iloc[0]
    own = table[(table["unique_tokens"] == 4_000) & (table["dropout"] == 0.3) & (table["sampled_tokens"] == 131_072)]
    assert row["val_loss"] == pytest.approx(own["val_loss"].mean())
    assert row["n_seeds"] == 3


def test_the_trace_is_joined_with_its_trials(table: pd.DataFrame) -> None:
    ids = table["trial_id"].unique()[:2]
    trace = pd.DataFrame({"trial_id": [ids[0], ids[0], ids[1], "unknown"], "step": [1, 2, 1, 1], "train_loss": 5.0})
    (picture,) = figures.trace_pictures(table, trace)
    assert picture.name == "trace"
    assert picture.data["trial_id"].tolist() == [ids[0], ids[0], ids[1]]
    assert picture.data["dropout"].notna().all()


def test_a_stream_s_trials_are_told_apart_by_condition(
    synthetic: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = load_experiment([synthetic.write_run(tmp_path, synthetic.stream(seeds=(10, 11)))]).table
    ids = stream["trial_id"].unique()
    trace = pd.DataFrame({"trial_id": list(ids), "step": 1, "train_loss": 5.0})
    monkeypatch.setattr(figures, "MAX_TRACES", 7)
    (picture,) = figures.trace_pictures(stream, trace)
    assert picture.caption.startswith("Training loss of 7 of 14 trials as training went, a colour per condition")
    assert set(picture.data["condition"]) == set(stream["condition"]), "one seed of each"
    svg, _ = render(picture)
    assert "reversed_law" in svg
    assert "p = 0.0" not in svg
    monkeypatch.setattr(figures, "MAX_NAMES", 3)
    (picture,) = figures.trace_pictures(stream, trace)
    assert picture.caption.endswith("of more conditions than colours.")
    assert "reversed_law" not in render(picture)[0]
    assert figures.trace_pictures(stream, None) == []


@pytest.mark.parametrize(("letters", "names", "columns"), [(6, 12, 5), (18, 12, 3), (90, 3, 1)])
def test_a_legend_has_as_many_columns_as_there_is_room_for(letters: int, names: int, columns: int) -> None:
    figure = Figure(figsize=figures.WIDE, layout="constrained", dpi=100)
    ax = figure.add_subplot()
    for number in range(names):
        ax.plot([0, 1], [0, 1], label=f"{number:02}{'n' * (letters - 2)}")
    with mpl.rc_context(STYLE):
        legend_below(figure, 5)
    FigureCanvasAgg(figure).draw()
    assert figure.legends[0]._ncols == columns
    if letters < 90:
        box = figure.legends[0].get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert ax.get_window_extent().height > 100


def test_names_of_one_colour_differ_in_dash_and_marker() -> None:
    styles = list(named_styles([str(number) for number in range(28)]).values())
    assert len({tuple(map(str, style.values())) for style in styles}) == 28
    for first, later in zip(styles, styles[7:], strict=False):
        assert first["color"] == later["color"]
        assert first["linestyle"] != later["linestyle"]
        assert first["marker"] != later["marker"]


def test_every_picture_draws_to_the_same_bytes(
    synthetic: ModuleType, fits: list[CellFit], coefficients: Coefficients, table: pd.DataFrame, tmp_path: Path
) -> None:
    stream = load_experiment([synthetic.write_run(tmp_path, synthetic.stream())]).table
    comparison = pd.DataFrame(
        {
            "metric": "final_val_loss",
            "condition": ["law", "$a_b$ <x>"],
            "baseline": "static_0.20",
            "primary": [True, False],
            "n_pairs": 5,
            "difference": [-0.057, 0.01],
            "low": [-0.08, -0.01],
            "high": [-0.03, 0.03],
        }
    )
    trace = pd.DataFrame({"trial_id": table["trial_id"].iloc[0], "step": [1, 2], "train_loss": [6.0, 5.0]})
    held_out = pd.DataFrame({"law": ["interaction", "constant"], "holdout": "cell", "regret_mean": [0.01, 0.1]})
    pictures = [
        figures.cell_picture(fits[0]),
        figures.cell_picture(fits[3]),
        figures.optimum_pictures(selection_table(fits), coefficients)[0],
        *figures.law_pictures(coefficients, held_out),
        *figures.comparison_pictures(comparison),
        figures.curve_pictures(table)[0],
        *figures.trace_pictures(table, trace),
        *figures.stream_pictures(stream),
    ]
    assert {picture.kind for picture in pictures} == {
        "draw_cell",
        "draw_optimum",
        "draw_residuals",
        "draw_pairs",
        "draw_held_out",
        "draw_comparison",
        "draw_curves",
        "draw_trace",
        "draw_paths",
        "draw_stream",
    }
    ids: list[str] = []
    for picture in pictures:
        svg, png = render(picture)
        root = ET.fromstring(svg)  # well-formed, users' texts included
        ids += [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        assert png.startswith(b"\x89PNG")
        assert picture.caption
        if picture.kind in ("draw_cell", "draw_pairs"):
            assert render(picture) == (svg, png)
    assert len(ids) == len(set(ids))  # pictures share one page

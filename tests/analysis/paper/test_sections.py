"""What the paper's sections say: claims that follow the numbers, tables of one class, labels that tell apart."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest
from matplotlib.figure import Figure as Canvas

from analysis.bakeoff import judge_cells, judge_texts, sort_runs, summarise_cells
from analysis.foretell import fit_rule, measured_texts
from analysis.paper import bakeoff, contrasts, figures, holdouts, laws, search, streams, texts
from analysis.paper.blocks import DASH, MINUS, Number, Table, plain
from analysis.paper.studies import Study, find_studies
from analysis.report import calibration_rows
from analysis.targets import make_targets, regret_floors
from analysis.verdict import stream_leader, winner
from tune_dd.laws import DEFAULT_LAW, FLOORED_SLOPE, LAWS


def test_no_table_mixes_classes_and_every_caption_names_its_own(
    synthetic: ModuleType, results: Path, tmp_path: Path
) -> None:
    shutil.copytree(results / "pydocs-stream-pocket", tmp_path / "pydocs-stream-pocket")
    rows = [row | {"evidence": "run", "device": "cuda"} for row in synthetic.stream()]
    synthetic.write_finished(tmp_path / "pydocs-stream-full" / "1", rows)
    studies = find_studies(tmp_path)
    assert [study.evidence for study in studies] == ["run", "rehearsal"]
    section = streams.section(studies)
    captions = [plain(block.caption) for block in section.blocks if hasattr(block, "caption")]
    assert len(captions) == 8
    for caption, evidence in zip(captions, ["run"] * 4 + ["rehearsal"] * 4, strict=True):
        assert f"Evidence class: {evidence} (" in caption
    tables = [block for block in section.blocks if hasattr(block, "groups")]
    sources = [
        {n.source for group in t.groups for row in group for p in row for n in p if isinstance(n, Number)}
        for t in tables
    ]
    assert sources == [{"pydocs-stream-full/1"}] * 2 + [{"pydocs-stream-pocket/2"}] * 2
    said = plain(section.sentences["StreamsAbstract"])
    assert said.count("(class: run)") == said.count("(class: rehearsal)") == 1


@pytest.mark.parametrize(
    ("shift", "verb", "counts"),
    [(0.0, "beats", "100"), (0.055, "is not shown to differ from", "010"), (0.15, "loses to", "001")],
)
def test_the_claim_follows_the_numbers(
    synthetic: ModuleType, tmp_path: Path, shift: float, verb: str, counts: str
) -> None:
    rows = [
        row | {"val_loss": row["val_loss"] + shift} if row["condition"] == "law" else row for row in synthetic.stream()
    ]
    synthetic.write_finished(tmp_path / "pydocs-stream-pocket" / "1", rows)
    section = streams.section(find_studies(tmp_path))
    beaten, neither, lost = counts
    said = plain(section.sentences["StreamsAbstract"])
    assert said == (
        f"By the contrast named beforehand the fitted law beats the best fixed dropout on {beaten} of 1 streams, is "
        f"not shown to differ from it on {neither} and loses to it on {lost}."
    )
    assert said in plain(section.blocks[0].parts)
    assert f"On Docstrings the law {verb} the best fixed dropout" in plain(section.details[0].parts)


def test_the_abstract_does_not_grow_with_the_streams(synthetic: ModuleType, tmp_path: Path) -> None:
    words = []
    for number in range(1, 4):
        synthetic.write_finished(tmp_path / "pydocs-stream-pocket" / str(number), synthetic.stream())
        section = streams.section(find_studies(tmp_path))
        words.append({name: len(plain(parts).split()) for name, parts in section.sentences.items()})
        law, paths = (block for block in section.blocks if isinstance(block, Table))
        assert sum(map(len, law.groups)) == number
        assert [plain(row[1]) for row in paths.groups[0]] == [str(number)] * 3
    assert words[0] == words[1] == words[2]


def test_of_many_streams_one_of_each_corpus_is_drawn(synthetic: ModuleType, tmp_path: Path) -> None:
    for regime in ("pydocs", "owt"):
        rows = synthetic.stream(regime=regime)
        synthetic.write_finished(tmp_path / f"{regime}-stream-pocket" / "1", rows, title=regime)
    one, other = find_studies(tmp_path)
    assert streams.panels([one, other]) == [one, other]
    assert streams.panels([one] * 4 + [other] * 3) == [one, other]


def test_of_a_corpus_a_stream_of_the_default_form_is_drawn(synthetic: ModuleType, tmp_path: Path) -> None:
    synthetic.write_finished(tmp_path / "pydocs-stream-pocket" / "1", synthetic.stream())
    (study,) = find_studies(tmp_path)
    former, newer = (
        replace(study, configs={"stream": {"coefficients": [{"condition": "law", "law": law}]}})
        for law in ("interaction", DEFAULT_LAW)
    )
    assert streams.panels([newer, *[former] * 6])[0] is newer
    assert streams.panels([former] * 7)[0] is former


def test_a_hold_out_is_what_was_predicted_beside_what_was_measured(studies: list[Study]) -> None:
    (study,) = [study for study in studies if study.regime == "tinystories"]
    frame = holdouts.held_out_cells(study)
    assert list(frame["dropout"]) == [0.3, 0.25]
    fits = {fit.unique_tokens: fit for fit in study.analysis.fits if fit.sampled_tokens == 262_144}
    assert frame["regret"].tolist() == [float(fits[u].regret(p)) for u, p in ((8_000, 0.3), (16_000, 0.25))]
    targets = make_targets(None, calibration_rows(study.analysis.experiment.table)[0])
    floors = dict(
        zip(((fit.unique_tokens, fit.sampled_tokens) for fit in targets.fits), regret_floors(targets), strict=True)
    )
    charged = [floors[u, 262_144] for u in (8_000, 16_000)]
    assert frame["corrected"].to_numpy() == pytest.approx(frame["regret"].to_numpy() - charged)
    assert min(charged) > 0
    section = holdouts.section([study])
    assert "On TinyStories the interaction law, frozen beforehand, is off by" in plain(section.details[1].parts)
    assert plain(section.sentences["HoldoutsAbstract"]) == (
        "The interaction form predicted 2 cells before these were trained; its mean regret (loss above the best "
        f"rate's) is {frame['regret'].mean():.3f} nats per token."
    )
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    (((label, law, *_, share),),) = table.groups
    assert (plain(label), plain(law)) == (frame["model"].iloc[0], "interaction")
    assert plain(section.details[0].groups[0][0][0]) == "TinyStories"
    cells = study.analysis.selection.set_index(["unique_tokens", "sampled_tokens"])
    plateaus = [cells.loc[(u, 262_144), ["plateau_low", "plateau_high"]] for u in (8_000, 16_000)]
    inside = [low <= p <= high for (low, high), p in zip(plateaus, (0.3, 0.25), strict=True)]
    assert plain(share) == f"{sum(inside) / 2:.2f}"
    assert holdouts.section([other for other in studies if other.regime == "pydocs"]).blocks == []


def test_forms_are_summed_up_by_model_over_the_cells_that_most_were_frozen_for(studies: list[Study]) -> None:
    columns = [
        "law",
        "model",
        "n_params",
        "unique_tokens",
        "sampled_tokens",
        "regret",
        "corrected",
        "error",
        "in_plateau",
    ]
    small, large = ("L2_H2_D64", 163_840), ("L6_H6_D192", 2_850_816)
    frames = [
        pd.DataFrame(
            [
                (law, *model, u, 262_144, regret, regret - 0.05, 0.1, 1.0)
                for model, u, laws in cells
                for law, regret in laws.items()
            ],
            columns=columns,
        )
        for cells in (
            [(small, 8_000, {"odds": 0.0, "onset": 0.9})],  # fewer forms
            [
                (small, 8_000, {"odds": 0.3, "onset": 0.1, "epochs": 0.2}),
                (large, 8_000, {"odds": 0.2, "onset": 0.4, "epochs": 0.1}),
            ],
            [(large, 8_000, {"odds": 0.4, "onset": 0.6, "epochs": 0.1})],
        )
    ]
    named = [replace(studies[0], name=str(number)) for number in range(3)]
    table = holdouts.together_table("rehearsal", list(zip(named, frames, strict=True)))
    shown = [[[plain(parts) for parts in row] for row in group] for group in table.groups]
    assert shown == [
        [
            ["L6_H6_D192", "epochs", "2 of 2", "0.1000", "0.0500", "0.100", "1.00"],
            ["", "odds", "2 of 2", "0.3000", "0.2500", "0.100", "1.00"],
            ["", "onset", "2 of 2", "0.5000", "0.4500", "0.100", "1.00"],
        ],
        [
            ["L2_H2_D64", "onset", "1 of 1", "0.1000", "0.0500", "0.100", "1.00"],
            ["", "epochs", "1 of 1", "0.2000", "0.1500", "0.100", "1.00"],
            ["", "odds", "1 of 1", "0.3000", "0.2500", "0.100", "1.00"],
        ],
    ]
    own = [frame.replace({"law": {"odds": "floored"}}) for frame in frames[:1]]
    former = [frame.replace({"law": {"odds": "former_floored"}}) for frame in frames[1:]]
    judged = holdouts.judged_together(list(zip(named, [*own, *former], strict=True)))
    assert set(judged["study"]) == {"0"}, (
        "of the default form's own, where it was frozen for any, however few forms were"
    )


def test_a_form_whose_fits_expected_something_else_is_called_former(
    studies: list[Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    (study,) = [study for study in studies if study.regime == "tinystories"]
    (said,) = holdouts.read_predictions(tuple(study.analysis.experiment.folders))
    for expected, name in (({"B": list(FLOORED_SLOPE)}, "floored"), ({"B": [0.74, 0.22]}, "former_floored")):
        frozen = [{"law": "floored", "expected": expected}, {"law": "odds"}]
        entries = [entry | {"law": law} for entry in said["predictions"] for law in ("floored", "odds")]
        data = {"coefficients": frozen, "predictions": entries}
        monkeypatch.setattr(holdouts, "read_predictions", lambda folders, data=data: [data])
        frame = holdouts.held_out_cells(study)
        assert frame["law"].value_counts().to_dict() == {name: 2, "odds": 2}


def test_laws_are_put_side_by_side_beyond_what_they_were_fitted_to(synthetic: ModuleType, tmp_path: Path) -> None:
    for regime, corpus in (("pydocs", "docstrings"), ("owt", "web")):
        rows = synthetic.calibration(regime=regime, corpus=corpus, prefixes=(4_000, 8_000, 16_000, 32_000))
        synthetic.write_finished(tmp_path / f"{regime}-calibrate-pocket" / "1", rows, title=regime)
    studies = find_studies(tmp_path)
    section = bakeoff.section(studies)
    forms, of_texts = (block for block in section.blocks if isinstance(block, Table))
    assert all("Evidence class: rehearsal" in plain(table.caption) for table in (forms, of_texts))
    runs = sort_runs([study.analysis.experiment for study in studies])
    cells = summarise_cells(judge_cells(runs))
    shown = {number.column: number.value for _, number in section.paper_numbers()}
    for row in cells.to_dict("records"):
        assert shown[f"law_cells.regret_mean, {row['kind']}, {row['law']}"] == row["regret_mean"]
    preferred = LAWS[winner(cells, pd.DataFrame())[0]].cells
    own = cells[cells["law"] == preferred].iloc[0]
    assert shown[f"law_cells.corrected_mean, {own['kind']}, {preferred}"] == own["corrected_mean"]
    less = f"{own['corrected_mean']:.4f}".replace("-", MINUS)
    assert f"less that charge {preferred} loses: another corpus {less} [" in plain(section.blocks[0].parts)
    assert bakeoff.corrected(cells[cells["law"] != preferred], preferred) == ()
    best = cells.iloc[0]["law"].replace("_", " ")
    assert f"the least mean regret is that of {best} for another corpus (" in plain(section.blocks[0].parts)
    pairs = judge_texts(runs).set_index("regime")
    assert [plain(row[0]) for row in of_texts.groups[0]] == ["owt", "pydocs"]
    assert [plain(parts) for parts in of_texts.groups[0][1][2:]] == [
        *(f"{pairs.at['pydocs', 'regret_raw']:.4f}", DASH, f"{pairs.at['pydocs', 'regret_piloted']:.4f}"),
        *(f"{pairs.at['pydocs', f'regret_{way}']:.4f}" for way in ("best", "own")),
        DASH,  # its overlap was not measured
    ]
    said = plain(section.blocks[2].parts)
    assert f"Over 2 pairs of 2 texts the {LAWS[DEFAULT_LAW].cells} form loses" in said
    assert f"{pairs['regret_piloted'].mean():.4f} carried by a pilot" in said
    assert bakeoff.section(studies[:1]).blocks == []


def test_the_paper_tells_the_rule_of_the_texts_that_were_counted(
    synthetic: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("owt", "pydocs"):
        config = synthetic.text_config(name, name, 3.5, overlap=0.01)
        synthetic.write_finished(tmp_path / f"{name}-calibrate-pocket" / "1", synthetic.calibration(regime=name))
        study = next(study for study in find_studies(tmp_path) if study.regime == name)
        study.analysis.experiment.configs[0]["data"]["manifest"].update(config["data"]["manifest"])
        assert texts.overlaps([study]) == {name: 0.01}
    measured = measured_texts()
    pairs = pd.DataFrame(
        [(1.0, 0.5, 2.0), (3.0, 0.5, 2.0), (float("nan"),) * 3], columns=["best_scale", "low", "high"]
    ).assign(scale=[1.1, 1.1, float("nan")])
    pairs = pairs.assign(fitted_on=["a", "b", "c"], regime=["b", "c", "a"])
    runs = SimpleNamespace(texts={})
    assert texts.counted(pairs, runs, {}) == ()
    monkeypatch.setattr(texts, "measure", lambda *_: list(measured))
    rule = fit_rule(measured)
    assert rule is not None
    said = plain(texts.counted(pairs, runs, {"b": "Beta"}))
    assert f"Over {len(measured)} texts what a text's U counts as goes with {rule.per_nat:.2f} decades per nat" in said
    assert f"and {rule.per_root:.2f} per root of its overlap" in said
    assert f"are told to {rule.spread:.3f} decades." in said
    assert "holds the best scale in 0.50 of the pairs; of the 1 that it misses, 1 are from or to Beta." in said
    assert "misses" not in plain(texts.counted(pairs[:1], runs, {}))


CELLS = pd.DataFrame(
    [
        ("larger P", "onset", 0.0100),
        ("larger P", "interaction", 0.0400),
        ("longer C", "onset", 0.0200),
        ("longer C", "interaction", 0.0500),
        ("some new kind", "interaction", 0.0300),
        ("some new kind", "some_new_form", 0.0600),
    ],
    columns=["kind", "law", "regret_mean"],
).assign(n_cells=7, low=0.001, high=0.099, floor_mean=0.002)
STREAMS = pd.DataFrame(
    [
        ("1", "interaction", -0.010, 0.030),
        ("2", "interaction", -0.030, 0.005),
        ("3", "interaction", +0.500, 0.500),
        ("1", "onset_capped", -0.040, 0.000),
        ("2", "onset_capped", -0.050, 0.002),
    ],
    columns=["run", "law", "against_static", "against_best"],
)


def test_forms_that_lead_stand_beside_the_reference_form(studies: list[Study]) -> None:
    assert plain(bakeoff.ahead(CELLS)) == (
        "On cells beyond the calibrations the least mean regret is that of onset for larger models (0.010 nats per "
        "token, the reference form 0.040) and longer training (0.020, 0.050); interaction for some new kind (0.030)."
    )
    table = bakeoff.forms_table("rehearsal", studies, CELLS)
    assert table.header == ("form", "larger P", "longer C", "some new kind")
    assert [plain(group[0][0]) for group in table.groups] == [
        *("cells", "onset", "interaction", "some new form"),
        bakeoff.FLOOR,
    ]
    assert [plain(parts) for parts in table.groups[1][0]] == ["onset", "0.010", "0.020", "–"]


def test_on_streams_the_leader_is_held_against_the_reference_form_where_both_ran(studies: list[Study]) -> None:
    assert plain(bakeoff.ahead_on_streams(STREAMS)) == (
        "On streams onset capped ends no higher than any other form on those that both ran on, on average: over 2 that "
        "the reference form ran on too it ends −0.045 (the reference form −0.020) nats per token from the best fixed "
        "dropout on average; less than 0.01 above the best of all paths there on 2 (the reference form on 1)."
    )
    alone = STREAMS[STREAMS["law"] == "interaction"]
    told = plain(bakeoff.ahead_on_streams(alone))
    assert "On streams interaction ends no higher than any other form" in told
    assert "over 3 it ends +0.153 nats" in told
    circle = pd.DataFrame(
        [("1", "a", 0), ("1", "b", 1), ("2", "b", 0), ("2", "c", 1), ("3", "c", 0), ("3", "a", 1)],
        columns=["run", "law", "against_static"],
    )
    assert "no form ends as low as every other" in plain(bakeoff.ahead_on_streams(circle))
    table = bakeoff.stream_forms_table("rehearsal", studies, STREAMS)
    assert [[plain(parts) for parts in row] for row in table.groups[0]] == [
        ["interaction", "3", "+0.153", "+0.153", "+0.178", "1"],
        ["onset capped", "2", "−0.045", "−0.020", "+0.001", "2"],
    ]


def test_a_law_that_ran_on_few_of_the_streams_leads_none() -> None:
    nan = float("nan")
    ends = pd.DataFrame({"a": [0.0, 0.1, 0.0, nan], "b": [0.1, 0.2, 0.1, 0.1], "c": [nan, nan, nan, -0.2]})
    assert stream_leader(ends) == "a", "c ended lower where it ran, once in four"
    assert stream_leader(ends.iloc[3:]) == "c"
    assert stream_leader(ends[["c"]]) == "c", "alone it was held against none"
    assert stream_leader(ends.assign(c=[-0.1, nan, nan, nan])) is None, "a ended higher than it where both ran"
    star = pd.DataFrame({"a": [0.1] * 3, "b": [0, nan, nan], "c": [nan, 0, nan], "d": [nan, nan, 0]})
    assert stream_leader(star) is None, "a ended higher than each of its rivals"


def test_the_mean_along_the_stream_is_told_where_the_reference_form_ran(
    studies: list[Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"condition": "law", "baseline": baseline, "low": low, "high": low + 0.01, "p_holm": 0.01}
        for baseline, low in (("law_interaction", 0.01), ("law_onset", -0.03), ("best_static", -0.03))
    ]
    monkeypatch.setattr(contrasts, "rows_of", lambda study, metric: rows if metric == "trajectory_val_loss" else [])
    assert plain(bakeoff.along(studies[:2])) == (
        "In the mean over the ends of a stream's stages the law is shown lower than the reference form on 0 of 2 and "
        "higher on 2."
    )
    rows[:] = rows[1:]
    assert bakeoff.along(studies[:2]) == ()


def test_forms_are_pooled_over_the_same_cells(monkeypatch: pytest.MonkeyPatch, studies: list[Study]) -> None:
    nan = float("nan")
    held = [
        pd.DataFrame(rows, columns=["holdout", "law", "n_cells", "regret_mean"])
        for rows in (
            [("cell", "onset", 10, 0.01), ("cell", "odds", 10, 0.02), ("largest n_params", "onset", 4, 0.03)],
            [("cell", "onset", 30, 0.05), ("cell", "odds", 30, 0.04), ("largest n_params", "onset", 2, 0.06)],
            [("cell", "onset", 99, 9.00), ("cell", "odds", 99, nan), ("largest n_params", "odds", 2, nan)],
        )
    ]
    three = [replace(studies[0], name=str(number)) for number in range(3)]
    monkeypatch.setattr(laws, "held_out_rows", lambda study: held[int(study.name)])
    pooled = laws.pool(three)
    assert pooled.loc["cell", ["cells", "onset", "odds"]].tolist() == pytest.approx([40, 0.04, 0.035])
    assert pooled.loc["largest n_params", ["cells", "onset"]].tolist() == pytest.approx([6, 0.04])
    assert laws.ahead(pooled) == (
        "The least mean regret is that of odds with one cell left out and onset with the largest P left out."
    )


def test_searches_are_summed_up_in_one_sentence(studies: list[Study]) -> None:
    (study,) = [study for study in studies if study.analysis.search is not None]
    assert plain(search.lead([study], ["static"])) == (
        "Direct search ends −0.199 from the fixed dropout (1 search), flattered: its best was chosen on these seeds."
    )
    assert plain(search.lead([study] * 3)).count("(3 searches)") == 1


def test_no_panel_cuts_what_another_scale_would_show(studies: list[Study]) -> None:
    chain = next(study for study in studies if study.chain is not None)
    frames = figures.optimum_frames([chain])
    assert len(frames) == 2
    for order in (frames, frames[::-1]):
        canvas = Canvas()
        figures.draw_optima(canvas, order)
        low, high = canvas.axes[0].get_ylim()
        shown = pd.concat([data for _, data in frames])[["dropout", "low", "high"]]
        assert {ax.get_ylim() for ax in canvas.axes} == {(low, high)}
        assert low < shown.min().min()
        assert high > shown.max().max()


def test_of_more_panels_than_a_page_holds_each_corpus_largest_model_stays(
    studies: list[Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = next(study for study in studies if study.chain is not None)
    every = [title for title, _ in figures.optimum_frames([chain])]
    assert len(every) == 2
    monkeypatch.setattr(figures, "PAGE", 1)
    assert [title for title, _ in figures.optimum_frames([chain])] == every[-1:], "the models stand by size"


def test_several_studies_of_a_text_are_told_apart(synthetic: ModuleType, tmp_path: Path) -> None:
    for name in ("1", "2"):
        synthetic.write_finished(tmp_path / "pydocs-stream-pocket" / name, synthetic.stream())
    labels = [study.label for study in find_studies(tmp_path)]
    assert labels == ["Docstrings (stream, L2_H2_D64, run 1)", "Docstrings (stream, L2_H2_D64, run 2)"]
    shutil.rmtree(tmp_path / "pydocs-stream-pocket" / "2")
    synthetic.write_finished(tmp_path / "pydocs-stream-pocket" / "2", synthetic.stream(seeds=(30, 31, 32, 33, 34)))
    labels = [study.label for study in find_studies(tmp_path)]
    assert labels == [
        "Docstrings (stream, L2_H2_D64, seeds 10 to 14)",
        "Docstrings (stream, L2_H2_D64, seeds 30 to 34)",
    ]
    rows = synthetic.calibration(prefixes=(8_000,), readouts=(262_144,), dropouts=(0.0, 0.2, 0.4), seeds=(0, 1))
    synthetic.write_finished(tmp_path / "pydocs-calibrate-pocket" / "1", rows)
    shutil.rmtree(tmp_path / "pydocs-stream-pocket" / "2")
    labels = [study.label for study in find_studies(tmp_path)]
    assert labels == ["Docstrings (calibration, L2_H2_D64)", "Docstrings (stream, L2_H2_D64)"]


def test_a_stream_without_the_contrast_named_beforehand_claims_nothing_by_it(studies: list[Study]) -> None:
    study = next(study for study in studies if study.analysis.comparison is not None)
    unnamed = replace(
        study, analysis=replace(study.analysis, comparison=study.analysis.comparison.assign(primary=False))
    )
    section = streams.section([unnamed])
    assert plain(section.sentences["StreamsAbstract"]) == "No stream was run with the contrast named beforehand."
    assert [block.name for block in section.blocks if isinstance(block, Table)] == ["paths-rehearsal"]

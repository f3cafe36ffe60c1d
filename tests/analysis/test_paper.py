"""The paper from saved runs: the same bytes, every number from its run, claims that follow the numbers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure as Canvas
from tests_support import REPOSITORY

from analysis.bakeoff import judge_cells, sort_runs, summarise_cells
from analysis.paper import bakeoff, figures, holdouts, streams, tex
from analysis.paper.__main__ import main
from analysis.paper.blocks import Cited, Number, Table, plain
from analysis.paper.build import SECTIONS, build
from analysis.paper.studies import Study, find_studies
from analysis.report import analyse
from analysis.saved import save
from tune_dd.artifacts import read_json, write_json
from tune_dd.errors import UserError
from tune_dd.regimes import ModelSpec
from tune_dd.trial import Stage

PAPER = REPOSITORY / "paper" / "dropout_decay_regime_specific_pressure_law.tex"
SMALL = ModelSpec(1, 2, 32)
REFUSE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'ray'):
            raise ImportError(f'{name} is refused here')
sys.meta_path.insert(0, Refuse())
from analysis.paper.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def calibration(synthetic: ModuleType, **changes: Any) -> list[dict[str, Any]]:
    grid = {
        "prefixes": (4_000, 8_000, 16_000),
        "readouts": (196_608, 262_144),
        "dropouts": (0.0, 0.1, 0.2, 0.3, 0.4, 0.6),
        "models": (SMALL, synthetic.POCKET_MODEL),
    }
    rows: list[dict[str, Any]] = synthetic.calibration(**grid | changes)
    return rows


def write_search(synthetic: ModuleType, folder: Path) -> None:
    """A search of three points over two seeds, with its suggestions.json."""
    points, rows = [], []
    for index, (role, path, loss) in enumerate(
        (("fitted", (0.4, 0.1), 3.9), ("static", (0.2, 0.2), 4.0), ("sampled", (0.5, 0.05), 3.8))
    ):
        condition = f"point_{index:03d}"
        points.append({"index": index, "condition": condition, "role": role, "params": {"p_first": path[0]}})
        points[-1] |= {"coefficients": {"A": 0.1}, "dropouts": list(path)}
        for seed in (0, 1):
            stages = [Stage(u, p, (64 * t + 64,)) for t, (u, p) in enumerate(zip((4_000, 8_000), path, strict=True))]
            trial = synthetic.spec(seed, condition, "law", stages, model=SMALL, regime="pydocs", corpus="docstrings")
            rows += synthetic.rows_of(trial, [5.0, loss + seed / 50 + index * seed / 500], run_id="s", phase="search")
    synthetic.write_finished(folder, rows)
    about = {"space": "ends", "law": "interaction", "sampler": "tpe", "objective": "final", "search_seed": 0}
    write_json(
        folder / "suggestions.json", {**about, "seeds": [0, 1], "bounds": {"p_first": [0.02, 0.65]}, "points": points}
    )


@pytest.fixture(scope="module")
def results(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved chain with a stream, a saved hold-out on another text, and a saved search."""
    storage, saved = tmp_path_factory.mktemp("ray_results"), tmp_path_factory.mktemp("saved")
    chain = synthetic.write_chain(storage, {"calibrate": calibration(synthetic), "stream": synthetic.stream()})
    held = storage / "tinystories-calibrate-pocket" / "9"
    rows = calibration(synthetic, regime="tinystories", corpus="stories", models=(synthetic.POCKET_MODEL,))
    synthetic.write_finished(held, rows, title="TinyStories")
    entry = {"law": "interaction", "model": "L2_H2_D64", "sampled_tokens": 262_144, "low": 0.1, "high": 0.6}
    said = [{**entry, "unique_tokens": 8_000, "dropout": 0.3}, {**entry, "unique_tokens": 16_000, "dropout": 0.25}]
    write_json(held / "predictions.json", {"coefficients": [], "predictions": said})
    search = storage / "pydocs-search-pocket" / "8"
    write_search(synthetic, search)
    save([chain, held, search], saved)
    return saved


@pytest.fixture(scope="module")
def studies(results: Path) -> list[Study]:
    return find_studies(results)


@pytest.fixture(scope="module")
def built(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``paper`` and ``docs`` made from ``results``."""
    folder = tmp_path_factory.mktemp("built")
    build(results, folder / "paper", folder / "docs")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_again_elsewhere_without_torch_and_ray_it_gives_the_same_bytes(
    results: Path, built: Path, tmp_path: Path
) -> None:
    shutil.copytree(results, tmp_path / "copied")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    arguments = ["--results", "copied", "--output", "paper", "--docs", "docs"]
    done = subprocess.run(
        [sys.executable, "-c", REFUSE, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    shutil.rmtree(tmp_path / "copied")
    assert files_of(tmp_path) == files_of(built)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(["--results", str(results), "--output", str(tmp_path / "paper"), "--docs", str(tmp_path / "docs")]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}  # what is the same is not touched


def test_every_number_is_shown_and_knows_its_run_and_column(results: Path, built: Path) -> None:
    summary = read_json(built / "paper" / "paper_results_summary.json")
    shown = "".join(path.read_text() for path in (built / "paper" / "generated").glob("*.tex"))
    runs = {path.parent.relative_to(results).as_posix() for path in results.glob("*/*/*.json")}
    assert len(summary["numbers"]) > 300
    for number in summary["numbers"]:
        assert tex.escape(number["text"]) in shown, number
        assert number["column"], number
        assert number["source"] in runs or not number["source"].count("/") or "doi" in number["source"], number


def test_the_numbers_are_those_of_the_analysis(results: Path, built: Path, tmp_path: Path) -> None:
    runs = [results / "pydocs-calibrate-pocket" / "1", results / "pydocs-stream-pocket" / "2"]
    analysis = analyse(runs, out=tmp_path, report=False, export=False)
    (primary,) = [row for row in read_json(tmp_path / "comparison.json") if row["primary"]]
    numbers = read_json(built / "paper" / "paper_results_summary.json")["numbers"]
    for column in ("difference", "low", "high", "p_paired_t", "n_pairs", "p_sign_flip"):
        place = f"comparison.{column}, law less best_static, final_val_loss"
        found = {n["value"] for n in numbers if n["column"] == place}
        assert found == {primary[column]}
        assert {n["source"] for n in numbers if n["column"] == place} == {"pydocs-stream-pocket/2"}
    assert analysis.coefficients is not None
    for name, value in analysis.coefficients.coefficients.items():
        found = {n["value"] for n in numbers if n["column"] == f"coefficients.{name}" and "pydocs-all" in n["source"]}
        assert found == {value}
    cell = analysis.selection[(analysis.selection["status"] == "interior")].iloc[-1]
    optima = {n["value"] for n in numbers if n["column"] == "model_selection.fitted_optimum"}
    assert cell["fitted_optimum"] in optima


def test_no_number_is_typed_in_the_abstract_and_the_results() -> None:
    text = re.sub(r"(?<!\\)%.*", "", PAPER.read_text())
    abstract = text[text.index(r"\begin{abstract}") : text.index(r"\end{abstract}")]
    results = text[text.index(r"\section{Results}") : text.index(r"\section{Limits}")]
    assert r"\input{generated/streams}" in results
    words = "two|three|four|five|six|seven|eight|nine|ten|twelve|half|twice|percent"
    for part in (abstract, results):
        typed = re.findall(rf"\d+|\b(?:{words})\b", part, flags=re.IGNORECASE)
        assert not typed, typed


def test_no_claim_is_typed_in_the_abstract_and_the_results() -> None:
    text = PAPER.read_text()
    abstract = text[text.index(r"\begin{abstract}") : text.index(r"\end{abstract}")]
    results = text[text.index(r"\section{Results}") : text.index(r"\section{Limits}")]
    assert not re.findall(r"\b(beats?|loses|better|worse|lower|higher|falls|rises|significant)\b", abstract + results)


def test_the_paper_uses_what_is_generated_and_nothing_else(built: Path) -> None:
    macros = (built / "paper" / "generated" / "macros.tex").read_text()
    defined = set(re.findall(r"\\newcommand\{\\(\w+)\}", macros))
    switches = set(re.findall(r"\\newif\\if(\w+)", macros))
    text = PAPER.read_text()
    assert {name for name in defined if not re.search(rf"\\{name}\b", text)} == set()
    assert set(re.findall(r"\\input\{generated/(\w+)\}", text)) == switches | {"macros"}
    for switch in switches:
        assert re.search(rf"\\if{switch}\b", text)
        assert f"\\{switch}true" in macros


def test_what_is_not_saved_is_left_out_and_what_is_removed_goes(results: Path, built: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "saved")
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    (tmp_path / "docs" / "own.md").write_text("written by hand")
    for name in ("pydocs-search-pocket", "tinystories-calibrate-pocket", "pydocs-all-pocket", "pydocs-stream-pocket"):
        shutil.rmtree(tmp_path / "saved" / name)
    build(tmp_path / "saved", tmp_path / "paper", tmp_path / "docs")
    assert {path.name for path in (tmp_path / "paper" / "generated").iterdir()} == {
        *("macros.tex", "setup.tex", "cells.tex", "laws.tex", "reference.tex")
    }
    assert [path.name for path in (tmp_path / "paper" / "figures").iterdir()] == ["optimum-rehearsal.pdf"]
    macros = (tmp_path / "paper" / "generated" / "macros.tex").read_text()
    assert "\\streamstrue" not in macros
    assert "\\newif\\ifstreams" in macros
    assert {path.name for path in (tmp_path / "docs").glob("*.md")} == {"pydocs_report.md", "own.md"}
    assert (tmp_path / "paper" / "generated" / "cells.tex").read_bytes() != (
        built / "paper" / "generated" / "cells.tex"
    ).read_bytes()


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
    assert len(captions) == 6
    for caption, evidence in zip(captions, ["run"] * 3 + ["rehearsal"] * 3, strict=True):
        assert f"Evidence class: {evidence} (" in caption
    tables = [block for block in section.blocks if hasattr(block, "groups")]
    sources = [
        {n.source for group in t.groups for row in group for p in row for n in p if isinstance(n, Number)}
        for t in tables
    ]
    assert sources == [{"pydocs-stream-full/1"}, {"pydocs-stream-pocket/2"}]
    said = plain(section.sentences["StreamsAbstract"])
    assert said.count("(class: run)") == said.count("(class: rehearsal)") == 1


@pytest.mark.parametrize(
    ("shift", "verb"), [(0.0, "beats"), (0.055, "is not shown to differ from"), (0.15, "loses to")]
)
def test_the_claim_follows_the_numbers(synthetic: ModuleType, tmp_path: Path, shift: float, verb: str) -> None:
    rows = [
        row | {"val_loss": row["val_loss"] + shift} if row["condition"] == "law" else row for row in synthetic.stream()
    ]
    synthetic.write_finished(tmp_path / "pydocs-stream-pocket" / "1", rows)
    section = streams.section(find_studies(tmp_path))
    assert f"the fitted law {verb} the best fixed dropout on Docstrings" in plain(section.sentences["StreamsAbstract"])
    assert f"On Docstrings the law {verb} the best fixed dropout" in plain(section.blocks[0].parts)


def test_a_hold_out_is_what_was_predicted_beside_what_was_measured(studies: list[Study]) -> None:
    (study,) = [study for study in studies if study.regime == "tinystories"]
    frame = holdouts.held_out_cells(study)
    assert list(frame["dropout"]) == [0.3, 0.25]
    fits = {fit.unique_tokens: fit for fit in study.analysis.fits if fit.sampled_tokens == 262_144}
    assert frame["regret"].tolist() == [float(fits[u].regret(p)) for u, p in ((8_000, 0.3), (16_000, 0.25))]
    section = holdouts.section([study])
    assert "On TinyStories the interaction law, frozen beforehand, is off by" in plain(section.blocks[0].parts)
    mean = f"{frame['regret'].mean():.4f} nats per token on average"
    assert mean in plain(section.sentences["HoldoutsAbstract"])
    assert holdouts.section([other for other in studies if other.regime == "pydocs"]).blocks == []


def test_laws_are_put_side_by_side_beyond_what_they_were_fitted_to(synthetic: ModuleType, tmp_path: Path) -> None:
    for regime, corpus in (("pydocs", "docstrings"), ("owt", "web")):
        rows = synthetic.calibration(regime=regime, corpus=corpus, prefixes=(4_000, 8_000, 16_000, 32_000))
        synthetic.write_finished(tmp_path / f"{regime}-calibrate-pocket" / "1", rows)
    studies = find_studies(tmp_path)
    section = bakeoff.section(studies)
    (table,) = (block for block in section.blocks if hasattr(block, "groups"))
    assert "Evidence class: rehearsal" in plain(table.caption)
    cells = summarise_cells(judge_cells(sort_runs([study.analysis.experiment for study in studies])))
    shown = {number.column: number.value for place, number in section.numbers() if "mean regret" in place}
    for row in cells.to_dict("records"):
        assert shown[f"law_cells.regret_mean, {row['kind']}, {row['law']}"] == row["regret_mean"]
    best = cells.iloc[0]["law"].replace("_", " ")
    assert f"The least mean regret is that of {best} for another corpus." in plain(section.blocks[0].parts)
    assert bakeoff.section(studies[:1]).blocks == []


def test_no_panel_cuts_what_another_scale_would_show(studies: list[Study]) -> None:
    chain = next(study for study in studies if study.chain is not None)
    frames = figures.optimum_frames([chain])
    assert len(frames) == 2
    for order in (frames, [(1 - row, *rest) for row, *rest in frames]):
        canvas = Canvas()
        figures.draw_optima(canvas, order)
        low, high = canvas.axes[0].get_ylim()
        shown = pd.concat([data for *_, data in frames])[["dropout", "low", "high"]]
        assert {ax.get_ylim() for ax in canvas.axes} == {(low, high)}
        assert low < shown.min().min()
        assert high > shown.max().max()


def test_several_studies_of_a_text_are_told_apart(synthetic: ModuleType, tmp_path: Path) -> None:
    for name in ("1", "2"):
        synthetic.write_finished(tmp_path / "pydocs-stream-pocket" / name, synthetic.stream())
    labels = [study.label for study in find_studies(tmp_path)]
    assert labels == ["Docstrings (pydocs-stream-pocket/1)", "Docstrings (pydocs-stream-pocket/2)"]
    rows = synthetic.calibration(prefixes=(8_000,), readouts=(262_144,), dropouts=(0.0, 0.2, 0.4), seeds=(0, 1))
    synthetic.write_finished(tmp_path / "pydocs-calibrate-pocket" / "1", rows)
    shutil.rmtree(tmp_path / "pydocs-stream-pocket" / "2")
    labels = [study.label for study in find_studies(tmp_path)]
    assert labels == ["Docstrings (calibrate)", "Docstrings (stream)"]


def test_the_report_of_a_regime_is_marked_and_complete(built: Path) -> None:
    text = (built / "docs" / "pydocs_report.md").read_text()
    assert text.startswith("<!-- Generated by `python -m analysis.paper`")
    assert "Rehearsal: pocket scale" in text
    images = re.findall(r"\]\((images/[^)]+\.png)\)", text)
    assert len(images) == 3
    for image in images:
        assert (built / "docs" / image).read_bytes().startswith(b"\x89PNG")
    for section in SECTIONS:
        title = section([]).title
        absent = ("Predictions written down before training", "Which law holds beyond its calibration")
        assert (f"\n## {title}\n" in text) == (title not in absent)
    header = next(line for line in text.splitlines() if line.startswith("| corpus | path |"))
    rows = [line for line in text.splitlines() if line.count("|") == header.count("|") and "the law" in line]
    assert len(rows) == 2


def test_nothing_names_a_path_of_the_machine(built: Path) -> None:
    for path in built.rglob("*"):
        if path.suffix in (".tex", ".json", ".md"):
            assert not re.search(r"(/home/|/tmp/|/root/|/mnt/)", path.read_text()), path


def one_line(captured: str) -> bool:
    return bool(re.fullmatch(r"error: [^\n]+\n", captured))


def test_without_saved_runs_one_line_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "paper"), "--docs", str(tmp_path / "docs")]
    assert main(["--results", str(tmp_path / "absent"), *output]) == 2
    assert one_line(capsys.readouterr().err)
    (tmp_path / "empty").mkdir()
    assert main(["--results", str(tmp_path / "empty"), *output]) == 2
    assert "python -m analysis save" in capsys.readouterr().err
    assert main(["--resutls", "x"]) == 2
    assert one_line(capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_a_chain_whose_run_is_not_there_is_refused_before_anything_is_written(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "saved")
    shutil.rmtree(tmp_path / "saved" / "pydocs-stream-pocket")
    with pytest.raises(UserError, match="pydocs-stream-pocket/2, which is not there: save it too"):
        build(tmp_path / "saved", tmp_path / "paper", tmp_path / "docs")
    assert not (tmp_path / "paper").exists()


@pytest.mark.parametrize(
    ("value", "digits", "signed", "text"),
    [
        (-0.0316, 3, True, "−0.032"),
        (0.0135, 3, True, "+0.013"),
        (-0.0001, 3, True, "0.000"),
        (float("nan"), 3, False, "–"),
        (0.5, 2, False, "0.50"),
    ],
)
def test_a_number_as_it_is_shown(value: float, digits: int, signed: bool, text: str) -> None:
    assert Cited("run").number(value, "column", digits, signed=signed).text == text


def test_latex_is_escaped() -> None:
    assert tex.escape("L2_H2_D64: 5 % & −0.1 ≤ x {#}") == (
        r"L2\_H2\_D64: 5 \% \& \ensuremath{-}0.1 \ensuremath{\le} x \{\#\}"
    )


def compiled(folder: Path) -> Iterator[str]:
    """Compile the paper in a folder that has its parts; the lines of LaTeX's log."""
    shutil.copy(PAPER, folder)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", PAPER.name]
    for _ in range(2):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]
    yield from (folder / PAPER.name).with_suffix(".log").read_text(errors="replace").splitlines()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
@pytest.mark.parametrize("which", ["all", "one run"])
def test_the_paper_compiles(results: Path, built: Path, tmp_path: Path, which: str) -> None:
    if which == "all":
        shutil.copytree(built / "paper", tmp_path / "paper")
    else:
        shutil.copytree(results / "pydocs-stream-pocket", tmp_path / "saved" / "pydocs-stream-pocket")
        build(tmp_path / "saved", tmp_path / "paper", tmp_path / "docs")
    log = list(compiled(tmp_path / "paper"))
    assert not [line for line in log if "undefined" in line or line.startswith("Overfull")]
    assert json.loads((tmp_path / "paper" / "paper_results_summary.json").read_text())["studies"]


def test_a_table_longer_than_a_page_goes_on_in_parts() -> None:
    groups = [[[(f"row {group}.{number}",)] for number in range(20)] for group in range(7)]
    table = Table("long", ("What it shows.",), ("name",), "l", groups)
    text = tex.table_text(table)
    assert text.count("begin{table}") == text.count("end{table}") == 4
    assert text.count("label{tab:long}") == 1
    assert text.count("(continued)") == 3
    rows = re.findall(r"row \d\.\d+", text)
    assert rows == [f"row {group}.{number}" for group in range(7) for number in range(20)]
    assert max(part.count("row ") for part in text.split("begin{table}")) <= tex.PAGE_LINES
    assert "continued" not in tex.table_text(Table("short", ("It.",), ("name",), "l", groups[:2]))

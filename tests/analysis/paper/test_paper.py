"""The paper from saved runs: the same bytes, every number from its run, claims that follow the numbers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests_support import REFUSE_TORCH_AND_RAY, REPOSITORY

from analysis.paper import markdown, tex
from analysis.paper.__main__ import main
from analysis.paper.blocks import Table, plain
from analysis.paper.build import SECTIONS, build, sections_of
from analysis.paper.contrasts import paths
from analysis.paper.removed import read_removed
from analysis.paper.studies import Study
from analysis.report import analyse
from tune_dd.artifacts import read_json
from tune_dd.errors import UserError

PAPER = REPOSITORY / "paper" / "dropout_decay_regime_specific_pressure_law.tex"
REFUSE = f"""{REFUSE_TORCH_AND_RAY}
from analysis.paper.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


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
    paper = "".join(path.read_text() for path in (built / "paper" / "generated").glob("*.tex"))
    runs = {path.parent.relative_to(results).as_posix() for path in results.glob("*/*/*.json")}
    pages = {name: (built / "docs" / name).read_text() for name in summary["docs"] if name.endswith(".md")}
    assert summary["reports"].keys() == pages.keys()
    assert len(summary["numbers"]) > 200
    assert sum(map(len, summary["reports"].values())) > 500
    places = [(number, tex.escape(number["text"]), paper) for number in summary["numbers"]]
    places += [
        (number, markdown.escape((number["text"],)), pages[name])
        for name, own in summary["reports"].items()
        for number in own
    ]
    for number, text, page in places:
        assert text in page, number
        assert number["column"], number
        assert number["source"] in runs or not number["source"].count("/") or "doi" in number["source"], number


def test_what_is_listed_in_full_is_in_the_reports_and_not_in_the_paper(
    results: Path, studies: list[Study], built: Path
) -> None:
    paper = "".join(path.read_text() for path in (built / "paper" / "generated").glob("*.tex"))
    pages = "".join(path.read_text() for path in (built / "docs").glob("*.md"))
    own = [[study for study in studies if study.regime == regime] for regime in ("pydocs", "tinystories")]
    sections = [section for group in own for section in sections_of(group, read_removed(results))]
    found = [block for section in sections for block in section.details if isinstance(block, Table)]
    names = {table.name.removesuffix("-rehearsal") for table in found}
    assert names == {
        *("runs", "plateau", "heldout-studies", "stream-paths", "holdouts", "holdout-cells", "search", "removed-runs")
    }
    for table in found:
        caption = plain(table.caption).split(":")[0].split(" (")[0]
        assert caption in pages
        assert caption not in paper
        assert f"tab:{table.name}}}" not in paper
    assert paper.count("\\begin{table}") < 14


def test_the_abstract_is_read_in_a_minute(built: Path) -> None:
    macros = dict(
        re.findall(r"\\newcommand\{\\(\w+)\}\{(.*)\}\n", (built / "paper" / "generated" / "macros.tex").read_text())
    )
    text = PAPER.read_text()
    abstract = text[text.index(r"\begin{abstract}") : text.index(r"\end{abstract}")]
    for name, said in macros.items():
        abstract = re.sub(rf"\\{name}\b", lambda _, said=said: said, abstract)
    assert "Abstract" not in abstract
    assert 120 < len(re.sub(r"\\\w+|[{}]", " ", abstract).split()) < 270


def test_the_numbers_are_those_of_the_analysis(results: Path, built: Path, tmp_path: Path) -> None:
    runs = [results / "pydocs-calibrate-pocket" / "1", results / "pydocs-stream-pocket" / "2"]
    analysis = analyse(runs, out=tmp_path, report=False, export=False)
    (primary,) = [row for row in read_json(tmp_path / "comparison.json") if row["primary"]]
    summary = read_json(built / "paper" / "paper_results_summary.json")
    numbers = [*summary["numbers"], *summary["reports"]["pydocs_report.md"]]
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
        *("macros.tex", "setup.tex", "cells.tex", "laws.tex", "reference.tex", "removed.tex")
    }
    assert [path.name for path in (tmp_path / "paper" / "figures").iterdir()] == ["optimum-rehearsal.pdf"]
    macros = (tmp_path / "paper" / "generated" / "macros.tex").read_text()
    assert "\\streamstrue" not in macros
    assert "\\newif\\ifstreams" in macros
    assert {path.name for path in (tmp_path / "docs").glob("*.md")} == {"pydocs_report.md", "own.md"}
    assert (tmp_path / "paper" / "generated" / "cells.tex").read_bytes() != (
        built / "paper" / "generated" / "cells.tex"
    ).read_bytes()


def study_of(studies: list[Study], regime: str) -> Study:
    return next(study for study in studies if study.regime == regime and study.chain is not None)


def test_the_report_of_a_regime_is_marked_and_complete(studies: list[Study], built: Path) -> None:
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
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| corpus | path |"))
    rows = lines[start + 2 : start + 2 + len(paths(study_of(studies, "pydocs")))]
    assert [row.split(" | ")[1] for row in rows] == ["the law", "the law reversed", "hold 35 then decay"]


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

"""From runs to files and a page: what is written, what is said, and what can never get out of a user's text."""

from __future__ import annotations

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import figures, html
from analysis.__main__ import main
from analysis.report import Analysis, analyse, print_tables
from analysis.terminal import STATUS_WORDS, selection_table
from tune_dd.artifacts import read_json, read_rows
from tune_dd.console import Console
from tune_dd.errors import UserError
from tune_dd.laws import DEFAULT_LAW

CONFIG: dict[str, Any] = {
    "command": "python -m tune_dd.sweep pydocs --quick",
    "n_trials": 121,
    "regime": {"name": "pydocs", "title": "Python docstrings"},
    "git_commit": "0123abc",
    "libraries": {"torch": "2.13.0"},
}


@pytest.fixture(scope="module")
def analysis(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    folder = tmp_path_factory.mktemp("run")
    rows = synthetic.calibration(prefixes=(4_000, 8_000, 16_000), readouts=(196_608, 262_144))
    synthetic.write_run(folder, rows, config=CONFIG)
    (folder / "trace.jsonl").write_text(
        "".join(
            json.dumps({"trial_id": rows[0]["trial_id"], "step": step, "train_loss": 6.0 - step / 100}) + "\n"
            for step in range(20)
        )
        + '{"trial_id": "ab'
    )
    prediction = {"n_params": 163_840, "unique_tokens": 8_000, "sampled_tokens": 262_144, "dropout": 0.35}
    predictions = {"coefficients_hash": "ab", "time": "2026-01-01", "predictions": [prediction]}
    (folder / "predictions.json").write_text(json.dumps(predictions))
    return analyse([folder], n_bootstrap=200)


class Page(HTMLParser):
    """Collects tags, attributes and text; raises nothing, so the assertions do."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(analysis: Analysis) -> Page:
    return Page(analysis.report.read_text())


def test_every_file_is_written_and_agrees_with_metrics(analysis: Analysis) -> None:
    folder = analysis.folder
    expected = ["summary.csv", "summary.json", "model_selection.csv", "model_selection.json", "coefficients.json"]
    for name in [*expected, "table.csv", "table.parquet", "report.html"]:
        assert (folder / name).is_file(), name
    assert not (folder / "comparison.csv").exists()
    rows = [row for _, row in read_rows(folder / "metrics.jsonl")]
    for record in read_json(folder / "summary.json")[::7]:
        own = {
            row["seed"]: row["val_loss"]
            for row in rows
            if row["condition"] == record["condition"]
            and (row["unique_tokens"], row["sampled_tokens"]) == (record["unique_tokens"], record["sampled_tokens"])
        }
        assert {seed["seed"]: seed["val_loss"] for seed in record["seeds"]} == own
        assert record["val_loss_mean"] == pytest.approx(np.mean(list(own.values())))
    selection = pd.read_csv(folder / "model_selection.csv")
    assert len(selection) == 6
    assert read_json(folder / "coefficients.json")["law"] == DEFAULT_LAW


def test_figures_come_as_png_svg_and_their_data(analysis: Analysis) -> None:
    figures = analysis.folder / "figures"
    stems = {path.stem for path in figures.glob("*.png")}
    assert stems == {path.stem for path in figures.glob("*.svg")} == {path.stem for path in figures.glob("*.csv")}
    assert {"law-residuals", "coefficient-pairs", "trace", "optimum-calibrate-L2_H2_D64-against-U"} <= stems
    assert sum(stem.startswith("cell-") for stem in stems) == 6


def test_the_page_is_self_contained(analysis: Analysis) -> None:
    html = analysis.report.read_text()
    page = read_page(analysis)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("href", "xlink:href", "src"):
            assert (value or "").startswith(("#", "data:image/png;")), (tag, name, value)
    # Namespaces are names, not requests.
    addresses = set(re.findall(r"https?://[^\"' <)]+", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "url(http" not in html
    assert ("meta", "name", "viewport") in page.attributes
    assert len(html) < 3_000_000


def test_the_page_answers_and_names_its_class(analysis: Analysis) -> None:
    page = read_page(analysis)
    assert "Rehearsal: pocket scale" in page.text
    assert "falls from" in page.text
    assert "72 with results of 121 planned, 1 crashed" in page.text
    assert "loss is not finite at step 12" in page.text
    assert "python -m tune_dd.sweep pydocs --quick" in page.text
    assert "trace.jsonl, line 21: torn" in page.text
    assert page.tags.count("svg") == len(list((analysis.folder / "figures").glob("*.svg")))
    cell = analysis.selection.query("unique_tokens == 8000 and sampled_tokens == 262144").iloc[0]
    assert f"{cell['fitted_optimum']:.4f}".rstrip("0") in page.text  # beside what was predicted


def test_the_same_run_gives_the_same_bytes(analysis: Analysis, tmp_path: Path) -> None:
    again = analyse([analysis.folder], out=tmp_path / "again", n_bootstrap=200)
    for path in sorted(p for p in again.folder.rglob("*") if p.is_file() and p.suffix != ".html"):
        twin = analysis.folder / path.relative_to(again.folder)
        assert path.read_bytes() == twin.read_bytes(), path.name
    there = shlex.join(["--out", str(tmp_path / "again")])
    assert again.report.read_text().replace(f" {there}</pre>", "</pre>") == analysis.report.read_text()


def test_the_page_says_how_it_was_made(synthetic: ModuleType, tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path / "a run", synthetic.calibration(readouts=(196_608, 262_144), seeds=(0, 1)))
    out = tmp_path / "out"
    found = analyse([run], out=out, law="first_order", margin=0.05, n_bootstrap=30, seed=4)
    page = read_page(found)
    command = next(line for line in page.text.split("python -m analysis ") if line.startswith("'"))
    command = command[: command.index("Every number")]
    assert shlex.split(command) == [
        str(run), "--law", "first_order", "--margin", "0.05", "--bootstrap", "30", "--seed", "4", "--out", str(out)
    ]  # fmt: skip
    assert "within 0.05 nats per token, the margin given" in page.text
    assert "standard error" not in page.text[page.text.index("The plateau is") :][:200]
    assert found.coefficients is not None
    assert (found.coefficients.n_bootstrap, found.coefficients.seed) == (30, 4)
    before = found.report.read_bytes()
    assert main(shlex.split(command)) == 0
    assert found.report.read_bytes() == before


def test_a_page_that_is_cut_says_so(
    synthetic: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, analysis: Analysis
) -> None:
    assert "model_selection.csv has them all" not in read_page(analysis).text
    assert "Drawn are" not in read_page(analysis).text
    monkeypatch.setattr(html, "MAX_ROWS", 5)
    monkeypatch.setattr(figures, "MAX_PANELS", 3)
    page = read_page(analyse([analysis.folder], out=tmp_path, n_bootstrap=20))
    assert "The first 5 of 6 cells; model_selection.csv has them all." in page.text
    assert "Drawn are 3 of the 6 cells, those of the last read-outs." in page.text
    assert "The first 5 of 72 other trials; results.tsv has them all." in page.text


def test_no_text_of_a_user_becomes_markup(synthetic: ModuleType, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    rows = synthetic.calibration(prefixes=(8_000,), readouts=(262_144,), dropouts=(0.0, 0.2, 0.4), seeds=(0, 1))
    texts = ("regime", "model", "condition", "device_name", "trial_name", "corpus_hash", "evidence", "phase")
    rows = [{**row, **{name: evil for name in texts if name not in ("phase",)}} for row in rows]
    for row, u in zip(rows, (row["dropout"] for row in rows), strict=True):
        row["condition"] = f"{evil}{u}"
    config = {"command": evil, "regime": {"title": evil}, "libraries": {evil: evil}, "attribution": evil}
    run = synthetic.write_run(tmp_path / "run", rows, config=config)
    with open(run / "results.tsv", "a") as file:
        file.write(f"{evil}\t1\t1\t{evil}\t{evil}\n")
    page = read_page(analyse([run], n_bootstrap=20, optuna=True))
    assert "script" not in page.tags
    assert evil in page.text  # shown as it was written
    names = [path.name for path in (run / "figures").iterdir()]
    assert all(re.fullmatch(r"[\w.+-]+", name) for name in names)


def test_the_terminal_tables_fit_a_hundred_columns(analysis: Analysis) -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_tables(analysis, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert "(rehearsal)" in text
    assert text.count("L2_H2_D64 |") == 6
    assert "[bold]" not in text


def test_the_terminal_tables_lose_no_cell_on_a_narrow_terminal(analysis: Analysis) -> None:
    rows = {}
    for width in (100, 40):
        console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        print_tables(analysis, console)
        lines = [line for line in console.export_text().splitlines() if line.startswith("|")]
        rows[width] = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]
    assert rows[40] == rows[100]


def test_no_row_of_the_terminals_cells_wraps() -> None:
    row = {
        "phase": "calibrate",
        "model": "L20_H8_D448",
        "n_params": 51_838_976,
        "unique_tokens": 524_288,
        "sampled_tokens": 16_384_000,
        "n_seeds": 3,
        "fitted_optimum": 0.31,
        "fitted_low": 0.27,
        "fitted_high": 0.32,
        "grid_optimum": 0.6,
        "plateau_low": 0.1,
        "plateau_high": 0.2,
        "improvement": -1.639,
    }
    selection = pd.DataFrame([{**row, "status": status} for status in STATUS_WORDS])
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(selection_table(selection, "rehearsal", console))
    lines = [line for line in console.export_text().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(STATUS_WORDS)  # heading, rule, one line per cell
    assert "[0.27, 0.32]" in lines[2]
    assert sum("censored high" in line for line in lines) == 1
    assert not any("…" in line for line in lines)


def test_a_stream_is_compared_and_drawn(synthetic: ModuleType, tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path, synthetic.stream())
    found = analyse([run], n_bootstrap=200)
    comparison = pd.read_csv(run / "comparison.csv")
    row = comparison[comparison["primary"] & (comparison["metric"] == "final_val_loss")].iloc[0]
    assert (row["condition"], row["n_pairs"]) == ("law", 5)
    assert -0.10 < row["difference"] < -0.02
    page = read_page(found)
    assert "law ends lower than the best static dropout" in page.text
    assert f"{row['difference']:+.4f}" in page.text
    assert "no two-sided sign-flip p is below 0.0625" in page.text
    assert {"stream-L2_H2_D64-dropout", "comparison-final-val-loss"} <= {p.stem for p in (run / "figures").iterdir()}
    assert not (run / "model_selection.csv").exists()


def test_a_stream_without_its_law_is_told(synthetic: ModuleType, tmp_path: Path) -> None:
    rows = [row for row in synthetic.stream(seeds=(1, 2)) if row["condition"] != "law"]
    found = analyse([synthetic.write_run(tmp_path, rows)], n_bootstrap=20, report=False)
    assert found.comparison is None
    assert any("not compared: no finished stream of condition 'law'" in note for note in found.notes)


def test_several_runs_combine_beside_the_first(synthetic: ModuleType, tmp_path: Path) -> None:
    small: dict[str, Any] = {"prefixes": (4_000, 8_000), "dropouts": (0.0, 0.2, 0.4, 0.6)}
    for name, seeds in (("a", (0, 1)), ("b", (1, 2))):
        synthetic.write_run(tmp_path / name, synthetic.calibration(**small, seeds=seeds), config=CONFIG)
    both = analyse([tmp_path / "a", tmp_path / "b"], n_bootstrap=20, report=False)
    assert both.folder == tmp_path / "combined"
    assert set(both.selection["n_seeds"]) == {3}
    assert not (tmp_path / "a" / "summary.csv").exists()


def test_a_design_below_rank_goes_on_without_a_law(synthetic: ModuleType, tmp_path: Path) -> None:
    rows = synthetic.calibration(prefixes=(8_000,), readouts=(196_608,))
    run = synthetic.write_run(tmp_path, rows)
    found = analyse([run], n_bootstrap=20)
    assert found.coefficients is None
    assert "No law is fitted" in found.law_note
    assert found.law_note in read_page(found).text
    assert not (run / "coefficients.json").exists()
    (run / "coefficients.json").write_text("{}")  # of a former analysis, of other rows
    analyse([run], n_bootstrap=20, report=False)
    assert not (run / "coefficients.json").exists()
    with pytest.raises(UserError, match="rank"):
        analyse([run], law="interaction", n_bootstrap=20)


def test_one_dropout_is_refused_and_a_cell_under_way_left_out(synthetic: ModuleType, tmp_path: Path) -> None:
    rows = synthetic.calibration(prefixes=(4_000,), dropouts=(0.2,))
    with pytest.raises(UserError, match="one dropout only"):
        analyse([synthetic.write_run(tmp_path / "one", rows)])
    assert not (tmp_path / "one" / "summary.csv").exists()
    rows += synthetic.calibration(prefixes=(8_000,), dropouts=(0.0, 0.2, 0.4))
    found = analyse([synthetic.write_run(tmp_path / "under_way", rows)], n_bootstrap=20, report=False)
    assert set(found.selection["unique_tokens"]) == {8_000}
    assert sum("U=4000" in note for note in found.notes) == 4


def test_losses_that_no_parabola_fits_are_told(synthetic: ModuleType, tmp_path: Path) -> None:
    rows = synthetic.calibration(prefixes=(4_000, 8_000), dropouts=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5))
    smooth = analyse([synthetic.write_run(tmp_path / "smooth", rows)], n_bootstrap=20, report=False)
    assert not any("rough" in note for note in smooth.notes)
    for row in rows:
        if (row["unique_tokens"], row["dropout"]) == (4_000, 0.3):
            row["val_loss"] += 0.3
    found = analyse([synthetic.write_run(tmp_path / "jumps", rows)], n_bootstrap=20, report=False)
    told = found.selection["notes"].str.contains("the parabola misses a level")
    assert set(found.selection["unique_tokens"][told]) == {4_000}
    assert f"In {told.sum()} of {len(told)} cells the losses lie about the fitted curve" in " ".join(found.notes)


def test_one_seed_says_what_it_cannot_say(synthetic: ModuleType, tmp_path: Path) -> None:
    rows = synthetic.calibration(seeds=(0,), dropouts=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5))
    found = analyse([synthetic.write_run(tmp_path, rows)], n_bootstrap=50, report=False)
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_tables(found, console)
    assert "with one seed nothing says how sure this is" in " ".join(console.export_text().split())


def test_a_law_without_intervals_is_shown_without_them(
    synthetic: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = synthetic.calibration(seeds=(0,), dropouts=(0.0, 0.1, 0.3, 0.5))
    found = analyse([synthetic.write_run(tmp_path, rows)], law="first_order", n_bootstrap=20)
    assert found.coefficients is not None
    assert not found.coefficients.draws
    page = read_page(found)
    assert "nan" not in page.text.lower().split()
    assert not (tmp_path / "figures" / "coefficient-pairs.png").exists()
    print_tables(found, Console(width=100))
    assert main(["advise", "--coefficients", str(tmp_path), "--params", "163840", "--stages", "4k:131k,8k:262k"]) == 0
    out = capsys.readouterr().out
    assert "[nan" not in out
    assert "No interval can be given for the law's own value" in " ".join(out.split())


def test_an_output_that_cannot_be_made_is_told(analysis: Analysis, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        analyse([analysis.folder], out=tmp_path / "file" / "below")
    with pytest.raises(UserError, match="law 'cubic' is not one of"):
        analyse([analysis.folder], law="cubic")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("predictions.json", '{"predictions": 3}', "holds no list of predictions"),
        ("trace.jsonl", '{"trial_id": "a"}\n', "line 1: no 'step'"),
        ("trace.jsonl", 'x\n{"trial_id": "a", "step": 1, "train_loss": 2.0}\n', "line 1: not JSON"),
    ],
)
def test_damaged_companions_are_refused(
    synthetic: ModuleType, tmp_path: Path, name: str, content: str, expected: str
) -> None:
    rows = synthetic.calibration(prefixes=(4_000,), dropouts=(0.0, 0.2, 0.4), seeds=(0, 1))
    run = synthetic.write_run(tmp_path, rows)
    (run / name).write_text(content)
    with pytest.raises(UserError, match=expected):
        analyse([run], n_bootstrap=20)


def test_a_run_under_way_says_so_first_and_advises_on_no_grid(
    synthetic: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = synthetic.calibration(prefixes=(4_000,), dropouts=(0.0, 0.1), seeds=(0,))
    run = synthetic.write_run(tmp_path / "run", rows, config=CONFIG | {"n_trials": 24})
    found = analyse([run], n_bootstrap=20)
    print_tables(found, Console(width=200))
    out = capsys.readouterr().out
    page = read_page(found).text
    assert out.startswith("pydocs: 2 of 24 planned trials so far, 8 read-outs on cpu")
    assert "So far: On pydocs" in out
    assert page.index("Not finished: 2 of 24 planned trials so far") < page.index("On pydocs, L2_H2_D64")
    for text in (out, page):
        assert "No law is fitted yet: 2 of 24 planned trials so far." in text
        assert "add " not in text.replace("--resume", "")
    # One has crashed and the others have results.
    whole = analyse(
        [synthetic.write_run(tmp_path / "whole", rows, config=CONFIG | {"n_trials": 3})], n_bootstrap=20, report=False
    )
    assert whole.experiment.so_far == ""
    assert whole.why_no_law == whole.law_note != ""
    one = synthetic.write_run(tmp_path / "one", rows[:4], config=CONFIG | {"n_trials": 24})
    with pytest.raises(UserError, match=r"^1 of 24 planned trials so far: every cell has one dropout .*--resume it$"):
        analyse([one], n_bootstrap=20)

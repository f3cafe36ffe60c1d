"""Every command in the documents exists, and is run by a test or listed with what it needs; every link leads on."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import documents_support
import pytest
import yaml
from documented_runs import CHAIN, PLANNED, RECIPES, SEARCHES, SMALL_SHAPE, STEPS, STUDY, UNPLANNED
from documents_support import DOCUMENTS, Run, documented, listed, newest, normalised
from tests_support import REPOSITORY

import analysis.__main__
import analysis.advise
import analysis.carry_command
import analysis.exponents_command
import analysis.laws_command
import analysis.paper.__main__
import analysis.saved
from analysis.simulation import main as simulation
from benchmarks.__main__ import BENCHMARKS
from tune_dd import artifacts
from tune_dd.corpus.command import build_parser
from tune_dd.sweep.__main__ import main as sweep
from tune_dd.sweep.options import parse

ROOT = REPOSITORY
SUBCOMMANDS: dict[str, Callable[[], object]] = {
    "advise": analysis.advise.parser,
    "carry": analysis.carry_command.parser,
    "exponents": analysis.exponents_command.parser,
    "laws": analysis.laws_command.parser,
    "save": analysis.saved.parser,
}


def check(words: list[str]) -> None:
    """Hand a command to the parser that it is meant for; that one raises where it does not take it."""
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[1] in targets
        return
    module, arguments = words[2], ["odds" if word == "NAME" else word for word in words[3:]]
    if any(word.startswith("[") for word in arguments):  # a synopsis
        return
    if module == "tune_dd.sweep":
        if arguments:
            parse(["pydocs" if word == "REGIME" else word for word in arguments])
    elif module == "tune_dd.corpus":
        if arguments:
            # Named in passing, `fetch` stands without the text that it would fetch.
            build_parser().parse_args([*arguments, "owt"] if arguments == ["fetch"] else arguments)
    elif module == "benchmarks":
        assert {word for word in arguments if not word.startswith("-")} <= set(BENCHMARKS)
    elif module == "analysis.paper":
        analysis.paper.__main__.parser().parse_args(arguments)
    elif module == "analysis.simulation":
        assert callable(simulation)
    else:
        assert module == "analysis"
        first = arguments[0] if arguments else ""
        make = SUBCOMMANDS.get(first)
        rest = arguments[1:] if make else arguments
        (make or analysis.__main__.parser)().parse_args(rest)  # type: ignore[attr-defined]


def test_every_command_in_the_documents_is_one() -> None:
    found = documented()
    assert len(found) > 90
    for command, documents in found.items():
        try:
            check([word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=.*", word)])
        except (Exception, SystemExit) as error:
            pytest.fail(f"{documents}: {command}: {error}")


def test_every_command_is_run_by_a_test_or_listed_with_what_it_needs() -> None:
    """In one place each; and nothing is run or listed that no document has."""
    runs = {command for run in (CHAIN, *STUDY, *SEARCHES) for command in run.held}
    steps = {command for command, _ in STEPS}
    places = Counter([*runs, *steps, *listed()])
    assert {command for command, count in places.items() if count > 1} == set(), "in two places"
    found = documented()
    missing = {command: found[command] for command in found.keys() - places.keys() - records()}
    assert missing == {}, "neither run nor listed"
    assert places.keys() - found.keys() == set(), "run or listed, and in no document"


def test_a_command_that_a_document_gains_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = tmp_path / "more.md"
    more.write_text("Or `python -m tune_dd.sweep\npydocs --phase screen`,\n\n```\nmake sweep   # again\n```\n")
    monkeypatch.setattr(documents_support, "DOCUMENTS", [*DOCUMENTS, more])
    with pytest.raises(AssertionError, match=r"python -m tune_dd.sweep pydocs --phase screen': \['more.md'\]"):
        test_every_command_is_run_by_a_test_or_listed_with_what_it_needs()


def test_what_is_listed_is_planned_or_made_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweeps = {command for command in listed() if "tune_dd.sweep" in command}
    assert sweeps == PLANNED | UNPLANNED
    monkeypatch.chdir(ROOT)
    put = {"RUN": str(newest(ROOT, "saved/owt-all-pocket")), "my_corpus.toml": "examples/my_corpus.toml"}
    for command in sorted(PLANNED):
        run = Run(command, put=put, more=f"{SMALL_SHAPE} --dry-run", prints="")
        assert sweep(run.words(ROOT)[3:]) == 0, command
        told = capsys.readouterr().out
        assert re.search(r"trials +[\d,]+ trials, [\d,]+ result rows", told), told
        assert all(re.search(rf"time +{device}: ", told) for device in ("mps", "cuda", "cpu")), told


@pytest.mark.parametrize("command", RECIPES)
def test_a_target_of_make_calls_what_it_is_for(command: str) -> None:
    shown = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert RECIPES[command] in shown.stdout


def test_every_target_that_the_documents_name_is_looked_at() -> None:
    assert {command for command in documented() if command.startswith("make ")} == RECIPES.keys()


def records() -> set[str]:
    """Commands that only generated reports have: what was run for them, and nobody is told to type."""
    found = documented().items()
    return {command for command, documents in found if all(name.endswith("_report.md") for name in documents)}


def test_a_report_s_commands_are_those_that_its_saved_runs_record() -> None:
    kept = (artifacts.read_json(path) for path in ROOT.glob("ray_results/saved/*/*/config.json"))
    assert len(records()) > 20
    commands = {normalised(word) for each in kept for word in (each["command"], *each.get("extensions", ()))}
    assert records() <= commands


def test_the_like_of_a_report_s_command_is_run() -> None:
    """A command with its phase, and with all of its options: other values, another text."""

    def shape(command: str) -> tuple[str, set[str]]:
        words = shlex.split(command)
        phase = words[words.index("--phase") + 1] if "--phase" in words else ""
        return phase, {word for word in words if word.startswith("--")}

    run = [shape(command) for one in (CHAIN, *STUDY, *SEARCHES) for command in one.held]
    run += [shape(command) for command, _ in STEPS]
    for command in records():
        phase, options = shape(command)
        assert any(phase == other and options <= others for other, others in run), command


def test_a_command_that_is_none_is_told() -> None:
    for words in (["make", "coffee"], ["python", "-m", "tune_dd.sweep", "owt", "--drop"], ["python", "-m", "analyse"]):
        with pytest.raises((Exception, SystemExit)):
            check(words)


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_citation_is_well_formed_and_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "version"} <= set(citation)
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert any(reference.get("doi") == "10.5281/zenodo.20616633" for reference in citation["references"])

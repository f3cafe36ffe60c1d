"""Every command in the documents exists: the program that it names takes it, and every make target is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import analysis.__main__
import analysis.advise
import analysis.bakeoff
import analysis.paper.__main__
import analysis.saved
from analysis.simulation import main as simulation
from benchmarks.__main__ import BENCHMARKS
from tune_dd.corpus.command import build_parser
from tune_dd.sweep.options import parse

ROOT = Path(__file__).parents[1]
NAMED = [ROOT / name for name in ("README.md", "REPRODUCING.md", "CHANGELOG.md")]
DOCUMENTS = [*NAMED, *sorted((ROOT / "docs").glob("*.md"))]
# In a block, a line; in running text, what stands between backquotes, which may be broken over two lines.
_LINE = re.compile(r"^(?:python -m|make) .*", re.MULTILINE)
_QUOTED = re.compile(r"`((?:python -m|make)\s[^`]*)`")
SUBCOMMANDS: dict[str, Callable[[], object]] = {
    "advise": analysis.advise.parser,
    "laws": analysis.bakeoff.parser,
    "save": analysis.saved.parser,
}


def commands() -> Iterator[tuple[str, list[str]]]:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for found in (*_LINE.findall(text), *_QUOTED.findall(text)):
            words = shlex.split(found.split(" #")[0].replace("\n", " "))
            yield document.name, [word for word in words if word != "..."]


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
    found = list(commands())
    assert len(found) > 40
    for document, words in found:
        try:
            check(words)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{document}: {shlex.join(words)}: {error}")


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

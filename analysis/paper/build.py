"""All files of the paper and of the regimes' reports, computed first and written then."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.exports import safe_name
from analysis.paper import bakeoff, cells, holdouts, laws, markdown, reference, removed, search, setup, streams, tex
from analysis.paper.blocks import Block, Figure, Number, Section, plain
from analysis.paper.figures import render
from analysis.paper.studies import Study, find_studies
from tune_dd.artifacts import read_json, write_atomic
from tune_dd.errors import UserError

Reports = dict[str, tuple[list[Study], list[Section]]]  # name -> studies and sections of a regime's report
SUMMARY = "paper_results_summary.json"
GENERATED, FIGURES = "generated", "figures"
# A section more is a function here and, in the paper, its \input within \if<name>.
SECTIONS: tuple[Callable[[Sequence[Study]], Section], ...] = (
    setup.section,
    cells.section,
    laws.section,
    streams.section,
    holdouts.section,
    bakeoff.section,
    search.section,
)


def build(results: Path, output: Path, docs: Path) -> list[Path]:
    """Write the paper's parts and the regimes' reports from what is saved.

    Args:
        results: folder of saved runs.
        output: the paper's: ``generated/``, ``figures/`` and the summary of every number go there.
        docs: ``<regime>_report.md`` and ``images/<regime>-*.png`` go there.

    Returns:
        The files, in order; what an earlier call wrote and this one does not is removed.

    Raises:
        UserError: nothing is saved, a saved run is damaged, a folder cannot be written. Nothing is written before
            everything is computed.
    """
    studies, gone = find_studies(results), removed.read_removed(results)
    sections = [*sections_of(studies, gone), reference.section(studies)]
    reports = {safe_name(regime): own for regime, own in report_sections(studies, gone).items()}
    paper = paper_files(sections)
    pages = docs_files(reports)
    summary = summarise(studies, sections, reports, sorted(paper), sorted(pages))
    for folder, files, former in (
        (output, paper, former_files(output, "files")),
        (docs, pages, former_files(output, "docs")),
    ):
        for name in sorted(former - set(files)):
            (folder / name).unlink(missing_ok=True)
        for name, data in files.items():
            write_file(folder / name, data)
    write_file(output / SUMMARY, summary)
    return [*(output / name for name in paper), output / SUMMARY, *(docs / name for name in pages)]


def write_file(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {path.parent} ({error.strerror}): name another folder with --output or --docs"
        ) from None
    if not path.is_file() or path.read_bytes() != data:
        write_atomic(path, data)


def paper_files(sections: Sequence[Section]) -> dict[str, bytes]:
    """Name below the paper's folder -> bytes."""
    files = {f"{GENERATED}/macros.tex": tex.macros_file(sections).encode()}
    for section in sections:
        if section.blocks:
            files[f"{GENERATED}/{section.name}.tex"] = tex.section_file(section).encode()
        for figure in figures_of(section.blocks):
            files[f"{FIGURES}/{figure.name}.pdf"] = render(figure.draw, figure.size)[0]
    return files


def sections_of(studies: Sequence[Study], gone: pd.DataFrame) -> list[Section]:
    """What these studies say, and what those that were removed said."""
    return [*(section(studies) for section in SECTIONS), removed.section(gone, studies)]


def report_sections(studies: Sequence[Study], gone: pd.DataFrame) -> Reports:
    """Of each regime its studies and what they say by themselves."""
    reports = {}
    for regime in dict.fromkeys(study.regime for study in studies):
        own = [study for study in studies if study.regime == regime]
        reports[regime] = own, sections_of(own, gone)
    return reports


def report_name(name: str) -> str:
    return f"{name}_report.md"


def docs_files(reports: Reports) -> dict[str, bytes]:
    """The report of each regime and its pictures."""
    files = {}
    for name, (own, sections) in reports.items():
        files[report_name(name)] = markdown.report(name, own, sections).encode()
        for section in sections:
            for figure in figures_of([*section.blocks, *section.details]):
                image = f"{markdown.IMAGES}/{markdown.image_name(figure, name)}"
                files[image] = render(figure.draw, figure.size)[1]
    return files


def figures_of(blocks: Sequence[Block]) -> list[Figure]:
    return [block for block in blocks if isinstance(block, Figure)]


def former_files(output: Path, key: str) -> set[str]:
    """What an earlier call wrote; nothing where its summary cannot be read."""
    try:
        names = read_json(output / SUMMARY)[key]
    except (UserError, KeyError, TypeError):
        return set()
    inside = (name for name in names if isinstance(name, str) and ".." not in Path(name).parts)
    return {name for name in inside if not Path(name).is_absolute()}


def summarise(
    studies: Sequence[Study],
    sections: Sequence[Section],
    reports: Reports,
    files: Sequence[str],
    docs: Sequence[str],
) -> bytes:
    """Every number of the paper and the reports with its value, its run and its column; the sentences; the studies."""
    value = {
        "schema": 2,
        "studies": [describe(study) for study in studies],
        "sentences": {name: plain(parts) for section in sections for name, parts in section.sentences.items()},
        "numbers": [record(place, number) for section in sections for place, number in section.paper_numbers()],
        "reports": {
            report_name(name): [record(place, number) for section in own for place, number in section.report_numbers()]
            for name, (_, own) in reports.items()
        },
        "files": list(files),
        "docs": list(docs),
    }
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def describe(study: Study) -> dict[str, Any]:
    kept = ("created", "git_commit", "libraries", "python", "platform", "command", "extensions")
    configs = {
        phase: {name: config[name] for name in kept if name in config} for phase, config in study.configs.items()
    }
    return {
        "name": study.name,
        "label": study.label,
        "regime": study.regime,
        "evidence": study.evidence,
        "runs": study.runs,
        "configs": configs,
        "notes": list(study.analysis.notes),
    }


def record(place: str, number: Number) -> dict[str, Any]:
    return {
        "place": place,
        "value": number.value,
        "text": number.text,
        "source": number.source,
        "column": number.column,
    }

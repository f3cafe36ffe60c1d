"""Every command in the documents exists: it is parsed by the program that it names, and its files are there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from analysis.__main__ import parser as analysis_parser
from analysis.advise import parser as advise_parser
from analysis.bakeoff import parser as laws_parser
from benchmarks.__main__ import parser as benchmarks_parser
from tune_dd.corpus.command import parser as corpus_parser
from tune_dd.sweep.options import parse

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "REPRODUCING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
# A command in running text or in a block; `...` stands for what the reader fills in.
_COMMAND = re.compile(r"(?:^|`)((?:[A-Z_]+=\S+ )?(?:python -m [\w.]+|make)(?: [^`#|\n]*)?)", re.MULTILINE)


def commands() -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        # A command may be broken over two lines of a paragraph.
        joined = re.sub(r"(`[^`\n]*)\n([^`\n]*`)", r"\1 \2", text)
        for match in _COMMAND.finditer(joined):
            yield document.name, match.group(1).strip()

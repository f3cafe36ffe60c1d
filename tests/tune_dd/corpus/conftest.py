"""A hub on loopback for what fetches, and its refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_support import FILES, Hub, Refused, serve

from tune_dd.corpus import hub as client
from tune_dd.corpus.__main__ import main
from tune_dd.corpus.fetch import TEXTS


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, asked by a process in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(client, "RESUME_SECONDS", 0.01)
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 2.0)
    pinned = {text.commit: FILES for text in TEXTS.values() if text.commit is not None}
    with serve(Hub(dict(FILES), past=pinned)) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command in this process, which refuses; gives its one line on standard error."""

    def run(*argv: str) -> str:
        assert main(list(argv)) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return run

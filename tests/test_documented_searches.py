"""The documents' commands that fetch, search, resume and extend, run in their order; each does what it promises."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from documented_runs import SEARCHES
from hub_support import Hub, serve
from tests_support import TINY_REGIME, synthetic_text

from tune_dd.corpus.fetch import TEXTS

N_DOCUMENTS = 16_000  # of some fifty tokens: a tenth of them is more than pocket scale evaluates on


@pytest.mark.timeout(600)  # some 60 s of work, and whatever else the machine does
def test_every_other_command_of_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = synthetic_text(N_DOCUMENTS)
    pyarrow.parquet.write_table(pyarrow.table({"text": text.split("\n\n")}), sink := io.BytesIO())
    for name in ("tinystories", "stories"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.parquet").write_bytes(sink.getvalue())
    own = tmp_path / "path" / "to"
    own.mkdir(parents=True)
    (own / "regime.toml").write_text(TINY_REGIME, encoding="utf-8")
    (own / "text.txt").write_text(text[:20_000], encoding="utf-8")
    names = {name: entry.file.path.replace("*", "-2d5a1467fff1081b") for name, entry in TEXTS.items()}
    files = {(TEXTS[name].file.repo, path): sink.getvalue() for name, path in names.items()}
    pinned = {entry.commit: files for entry in TEXTS.values() if entry.commit is not None}
    with serve(Hub(files, past=pinned)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        for run in SEARCHES:
            run.check(tmp_path)

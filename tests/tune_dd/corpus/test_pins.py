"""Which commit of a text is fetched: the recorded one, else the pinned one, and with --update what the branch has."""

from __future__ import annotations

import re
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hub_support import FILES, OWT, TARGET, Hub, Refused

from tune_dd.corpus.__main__ import main
from tune_dd.corpus.fetch import TEXTS, read_record
from tune_dd.corpus.sources import RECORD
from tune_dd.sweep.__main__ import main as sweep

PINNED = {name: text.commit for name, text in TEXTS.items() if text.commit is not None}


def test_the_record_pins_the_file(hub: Hub, refused: Refused) -> None:
    main(["fetch", "owt"])
    TARGET.unlink()
    hub.past, hub.commit = {hub.commit: hub.files}, "d" * 40
    assert main(["fetch", "owt"]) == 0  # the branch moved on, the recorded commit is still asked for
    record = read_record(TARGET)
    assert record is not None
    assert (record["commit"], record["revision"]) == ("c" * 40, "refs/convert/parquet")
    TARGET.unlink()
    hub.files[OWT] = b"another"
    assert "another file than SOURCE.json records" in refused("fetch", "owt")
    hub.past.clear()
    assert f"commit {'c' * 12} of {OWT[0]}, which {RECORD} names, is not on the hub" in refused("fetch", "owt")
    assert main(["fetch", "owt", "--update"]) == 0
    assert TARGET.read_bytes() == b"another"
    record = read_record(TARGET)
    assert record is not None
    assert record["commit"] == "d" * 40


@pytest.mark.parametrize("name", PINNED)
def test_the_first_fetch_is_of_the_pinned_commit_wherever_the_branch_is(
    hub: Hub, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    target, pinned = TEXTS[name].under(Path("data")), PINNED[name]
    assert re.fullmatch(r"[0-9a-f]{40}", pinned)
    file = TEXTS[name].file
    then = next(
        content for (repo, path), content in FILES.items() if repo == file.repo and fnmatchcase(path, file.path)
    )
    hub.files = dict.fromkeys(FILES, b"what the branch has since")
    assert main(["fetch", name]) == 0
    assert f"commit {pinned[:12]}" in capsys.readouterr().out
    assert hub.asked("/revision/") == [f"GET /api/datasets/{file.repo}/revision/{pinned}"]
    assert all(f"/{pinned}/" in request for request in hub.asked("/resolve/"))
    assert target.read_bytes() == then
    assert main(["fetch", name, "--update"]) == 0
    assert target.read_bytes() == b"what the branch has since"
    record = read_record(target)
    assert record is not None
    assert (record["commit"], record["revision"]) == (hub.commit, "main")
    target.unlink()  # from now on the record is the pin
    assert main(["fetch", name]) == 0
    assert target.read_bytes() == b"what the branch has since"


@pytest.mark.parametrize("gone", ["the commit", "the file"])
@pytest.mark.parametrize("name", PINNED)
def test_a_pinned_commit_that_is_gone_is_one_line_and_leaves_nothing(
    hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, gone: str, refused: Refused
) -> None:
    hub.past = {} if gone == "the commit" else {PINNED[name]: {}}
    expected = f"commit {PINNED[name][:12]} of {TEXTS[name].file.repo}, which this program names, is not on the hub"
    remedy = f"python -m tune_dd.corpus fetch {name} --update"
    line = refused("fetch", name)
    assert expected in line
    assert remedy in line
    assert sweep([name, "--device", "cpu"]) == 2  # a sweep that lacks its text says the same
    assert remedy in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(["fetch", name, "--update"]) == 0
    record = read_record(TEXTS[name].under(Path("data")))
    assert record is not None
    assert record["commit"] == hub.commit


def test_a_file_of_another_commit_than_the_pinned_one_is_left_alone(hub: Hub, refused: Refused) -> None:
    target = TEXTS["wikitext103"].under(Path("data"))
    target.parent.mkdir(parents=True)
    target.write_bytes(b"what the branch has since")
    hub.files = dict.fromkeys(FILES, b"what the branch has since")
    line = refused("fetch", "wikitext103")
    assert f"is not the hub's file (commit {PINNED['wikitext103'][:12]})" in line
    assert main(["fetch", "wikitext103", "--update"]) == 0
    assert hub.asked("GET /storage/") == []  # it is the branch's, so nothing is fetched
    assert read_record(target) is not None


def test_a_branch_that_is_gone(hub: Hub, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    owt = TEXTS["owt"]
    monkeypatch.setitem(TEXTS, "owt", replace(owt, file=replace(owt.file, revision="refs/convert/other")))
    assert "the hub has no such revision" in refused("fetch", "owt")

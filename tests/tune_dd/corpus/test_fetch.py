"""Fetching a regime's text from a hub on loopback: whole and verified, or one clear line and nothing lost."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hub_support import CONTENT, OWT, TARGET, Hub, Refused
from tests_support import REPOSITORY, synthetic_text, wait_until

from tune_dd.builtin_regimes import REGIMES
from tune_dd.corpus import hub as client
from tune_dd.corpus.__main__ import main
from tune_dd.corpus.fetch import TEXTS, read_record
from tune_dd.corpus.sources import RECORD, source_files
from tune_dd.sweep.__main__ import main as sweep


def partials() -> list[Path]:
    return list(TARGET.parent.glob(".*.partial"))


def test_all_three_texts_arrive_under_their_names_with_a_record(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "all"]) == 0
    told = capsys.readouterr().out
    assert "fetching 0.3 MB" in told
    for name, content in (("owt", CONTENT), ("tinystories", CONTENT[:5000]), ("wikitext103", CONTENT[:7000])):
        target = TEXTS[name].under(Path("data"))
        assert target.read_bytes() == content
        assert not target.is_symlink()
        record = read_record(target)
        assert record is not None
        assert (record["sha256"], record["size"]) == (hashlib.sha256(content).hexdigest(), len(content))
        assert (record["commit"], record["repo"]) == (TEXTS[name].commit or hub.commit, TEXTS[name].file.repo)
        assert record["revision"] == ("refs/convert/parquet" if name == "owt" else "main")
    assert set(json.loads((TARGET.parent / RECORD).read_text())) == {
        "file", "fetched", "repo", "revision", "commit", "path", "sha256", "size"
    }  # fmt: skip
    assert sorted(p.name for p in TARGET.parent.iterdir()) == [".lock", TARGET.name, RECORD]


def test_a_folder_of_fetched_text_can_be_named_as_a_corpus(hub: Hub) -> None:
    main(["fetch", "owt", "--data-dir", "elsewhere"])
    folder = Path("elsewhere", "openwebtext10k")
    assert source_files([str(folder / "*")]) == source_files([str(folder)]) == [(folder / TARGET.name).absolute()]


def test_every_text_lies_where_its_regime_looks_for_it() -> None:
    for name, text in TEXTS.items():
        (pattern,) = REGIMES[name].corpus.globs
        assert text.under(Path("data")).match(pattern)


def test_what_is_there_as_recorded_is_not_asked_for_again(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fetch", "owt"])
    hub.requests.clear()
    assert main(["fetch", "owt"]) == 0
    assert hub.requests == []
    assert "as recorded" in capsys.readouterr().out


def test_a_transfer_that_breaks_off_goes_on_from_there(hub: Hub) -> None:
    hub.cut = [100_000, 50_000]
    assert main(["fetch", "owt"]) == 0
    assert TARGET.read_bytes() == CONTENT
    assert [r.split(" ", 2)[2] for r in hub.asked("GET /storage/")[1:]] == ["bytes=100000-", "bytes=150000-"]


def test_a_broken_fetch_keeps_what_came_and_the_next_goes_on(
    hub: Hub, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    hub.cut = [120_000, 0, 0, 0]
    line = refused("fetch", "owt")
    assert "broke off" in line
    assert "the same command goes on from there" in line
    assert not TARGET.exists()
    assert [part.stat().st_size for part in partials()] == [120_000]
    hub.cut.clear()
    hub.requests.clear()
    assert main(["fetch", "owt"]) == 0
    assert "of which 0.1 MB are there" in capsys.readouterr().out
    assert hub.asked("GET /storage/")[0].endswith("bytes=120000-")
    assert TARGET.read_bytes() == CONTENT
    assert not partials()


def test_a_host_without_ranges_sends_all_of_it_again(hub: Hub) -> None:
    hub.cut, hub.ranges = [100_000], False
    assert main(["fetch", "owt"]) == 0
    assert TARGET.read_bytes() == CONTENT


def test_what_an_older_version_left_is_not_mixed_in(hub: Hub, refused: Refused) -> None:
    hub.cut = [120_000, 0, 0, 0]
    refused("fetch", "owt")
    hub.cut.clear()
    hub.files[OWT] = CONTENT[::-1]
    assert main(["fetch", "owt"]) == 0
    assert TARGET.read_bytes() == CONTENT[::-1]
    assert not partials()


def test_a_wrong_hash_leaves_nothing(hub: Hub, refused: Refused) -> None:
    hub.lie = "0" * 64
    assert "another hash than the hub gives" in refused("fetch", "owt")
    assert not TARGET.exists()
    assert not partials()
    assert not (TARGET.parent / RECORD).exists()


def test_a_partial_file_of_other_bytes_is_found_out(hub: Hub, refused: Refused) -> None:
    part = client.partial_path(TARGET, hashlib.sha256(CONTENT).hexdigest())
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    assert "another hash" in refused("fetch", "owt")
    assert main(["fetch", "owt"]) == 0
    assert TARGET.read_bytes() == CONTENT


def test_a_file_that_is_shorter_than_the_hub_says_is_asked_for_anew_and_not_for_ever(
    hub: Hub, refused: Refused
) -> None:
    hub.longer = 1000
    assert "broke off" in refused("fetch", "owt")
    ranges = [request.split(" ")[2:] for request in hub.asked("GET /storage/")]
    assert ranges == [[], [f"bytes={len(CONTENT)}-"], [], [f"bytes={len(CONTENT)}-"]]
    assert [part.stat().st_size for part in partials()] == [0]
    assert not TARGET.exists()


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {}, "HF_TOKEN"),
        (403, {}, "HF_TOKEN"),
        (403, {"X-Error-Code": "GatedRepo"}, "is gated"),
        (404, {}, "(404): it was moved or removed"),
        (429, {"Retry-After": "77"}, "wait 77 seconds"),
        (429, {}, "wait a few minutes"),
        (503, {}, "out of order (503"),
    ],
)
def test_each_refusal_says_what_to_do(
    hub: Hub, tmp_path: Path, status: int, headers: dict[str, str], words: str, refused: Refused
) -> None:
    hub.refuse = (status, headers)
    assert words in refused("fetch", "owt")
    assert len(hub.requests) == 1  # and does not insist
    assert list(tmp_path.iterdir()) == []


def test_a_missing_repository_revision_or_file(hub: Hub, refused: Refused) -> None:
    hub.files.clear()
    assert "moved or removed" in refused("fetch", "owt")
    hub.files["stas/openwebtext-10k", "README.md"] = b""
    assert "the hub has no file" in refused("fetch", "owt")


def test_an_answer_that_is_no_hub_s(hub: Hub, refused: Refused) -> None:
    hub.refuse = (200, {"Content-Type": "text/html"})
    assert "does not answer like the hub" in refused("fetch", "owt")


def test_no_route_and_no_answer(hub: Hub, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "cannot be reached (no answer in time)" in refused("fetch", "owt")
    message = refused("fetch", "owt")  # nobody listens any more
    assert "cannot be reached" in message
    assert message.endswith("check the network and give the command again")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    hub.stall = 0
    assert "broke off (no answer in time)" in refused("fetch", "owt")


def test_a_full_disk_is_seen_before_the_transfer(hub: Hub, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    monkeypatch.setattr(client, "SPARE_BYTES", 1 << 60)
    assert "make space" in refused("fetch", "owt")
    assert hub.asked("GET /storage/") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_on_the_way(hub: Hub, refused: Refused) -> None:
    part = client.partial_path(TARGET, hashlib.sha256(CONTENT).hexdigest())
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    assert "is full" in refused("fetch", "owt")


def test_ctrl_c_keeps_what_came(hub: Hub, tmp_path: Path) -> None:
    hub.stall = 90_000
    command = [sys.executable, "-m", "tune_dd.corpus", "fetch", "owt"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: partials() and partials()[0].stat().st_size > 0, seconds=60)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert told.strip().splitlines()[-1].startswith("interrupted: ")
    hub.stall = None
    (part,) = partials()
    assert part.read_bytes() == CONTENT[:90_000]
    assert main(["fetch", "owt"]) == 0
    assert TARGET.read_bytes() == CONTENT


def test_a_copied_file_is_compared_with_the_hub(hub: Hub, refused: Refused) -> None:
    TARGET.parent.mkdir(parents=True)
    TARGET.write_bytes(CONTENT)
    assert main(["fetch", "owt"]) == 0
    assert hub.asked("GET /storage/") == []
    assert read_record(TARGET) is not None
    (TARGET.parent / RECORD).unlink()
    TARGET.write_bytes(b"mine")
    assert "--update replaces it by what the hub has now" in refused("fetch", "owt")
    assert TARGET.read_bytes() == b"mine"
    assert main(["fetch", "owt", "--update"]) == 0
    assert TARGET.read_bytes() == CONTENT


def test_verify_finds_a_changed_byte_and_list_a_changed_size(
    hub: Hub, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    assert main(["list"]) == 0
    assert "missing" in capsys.readouterr().out
    main(["fetch", "owt"])
    assert main(["verify"]) == 0
    assert "is as recorded" in capsys.readouterr().out
    TARGET.write_bytes(b"x" + CONTENT[1:])
    assert "is not the file that SOURCE.json beside it records" in refused("verify", "owt")
    assert "is not the file that SOURCE.json beside it records" in refused("fetch", "owt")
    TARGET.write_bytes(b"x")
    main(["list"])
    assert "differs from SOURCE.json" in capsys.readouterr().out
    (TARGET.parent / RECORD).write_text("{")
    assert "is damaged" in refused("verify", "owt")
    (TARGET.parent / RECORD).write_text('{"sources": []}')  # somebody else's
    assert main(["verify", "owt"]) == 0
    assert "has no record" in capsys.readouterr().out


def test_a_sweep_fetches_what_it_lacks(hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = pyarrow.table({"text": synthetic_text(30).split("\n\n")})
    pyarrow.parquet.write_table(table, sink := io.BytesIO())
    hub.files[OWT] = sink.getvalue()
    assert sweep(["owt", "--scale", "pocket", "--device", "cpu"]) == 2  # so little text makes no vocabulary
    told = capsys.readouterr()
    assert "owt: fetching 0.0 MB" in told.out
    assert "vocabulary" in told.err or "tokens" in told.err
    assert TARGET.read_bytes() == sink.getvalue()
    assert not (tmp_path / "ray_results").exists()


@pytest.mark.parametrize("why", ["offline", "no route", "rate limit"])
@pytest.mark.parametrize("phase", ["calibrate", "all"])
def test_where_nothing_can_be_fetched_there_are_three_ways_out(
    hub: Hub,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    why: str,
    phase: str,
) -> None:
    if why == "no route":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    if why == "rate limit":
        hub.refuse = (429, {})
    argv = ["owt", "--device", "cpu", "--phase", phase, *(["--offline"] if why == "offline" else [])]
    assert sweep(argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    for way in ("python -m tune_dd.corpus fetch owt", "--corpus-glob", "--quick"):
        assert way in line
    assert list(tmp_path.iterdir()) == []
    assert (hub.requests == []) == (why != "rate limit")


def test_a_text_of_one_s_own_is_not_fetched(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(["owt", "--device", "cpu", "--corpus-glob", "nothing/*.txt"]) == 2
    assert "no file matches" in capsys.readouterr().err
    assert sweep(["owt", "--device", "cpu", "--use-cached-data"]) == 2
    assert hub.requests == []


def test_build_makes_the_cache_and_verify_reads_it(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_regime: Path, refused: Refused
) -> None:
    assert main(["build", str(tiny_regime), "--scale", "full"]) == 0
    told = capsys.readouterr().out
    assert "training and" in told
    assert (tmp_path / ".cache" / "dropout_decay_tiny" / "tokens-v300-uint16.npy").exists()
    assert hub.requests == []
    assert "no scale" in refused("build", "pydocs", "--scale", "full-8m")
    assert main(["list"]) == 0
    assert "cache of tiny: .cache/dropout_decay_tiny, vocabulary 300" in capsys.readouterr().out
    for name in (str(tiny_regime), "tiny", "all"):
        assert main(["verify", name]) == 0
        assert "tiny: .cache/dropout_decay_tiny, vocabulary 300: as its manifest says" in capsys.readouterr().out
    tokens = tmp_path / ".cache" / "dropout_decay_tiny" / "tokens-v300-uint16.npy"
    data = bytearray(tokens.read_bytes())
    data[-1] ^= 1
    tokens.write_bytes(data)
    assert "is damaged" in refused("verify")
    assert "unknown regime 'none'" in refused("verify", "none")
    assert main(["verify", "pydocs"]) == 0
    assert "pydocs: there is no cache of it" in capsys.readouterr().out


def test_build_takes_another_text_as_a_sweep_does(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_regime: Path, refused: Refused
) -> None:
    lines = [json.dumps({"body": document}) for document in synthetic_text(120).split("\n\n")]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text("\n".join(lines))
    build = ["build", str(tiny_regime), "--scale", "full", "--cache-dir", "here"]
    for named in (["--corpus", "texts"], ["--corpus-glob", "texts/*.jsonl"]):
        assert "--column" in refused(*build, *named)
        assert main([*build, *named, "--column", "body"]) == 0
        assert "training and" in capsys.readouterr().out
        assert [Path(entry["path"]).name for entry in sources_of(tmp_path / "here")] == ["a.jsonl"]
    assert "not allowed with argument" in refused(*build, "--corpus", "a", "--corpus-glob", "b")
    assert hub.requests == []


@pytest.mark.parametrize("argv", [[], ["fetch"], ["fetch", "pydocs"], ["fetch", "owt", "--what"], ["dance"]])
def test_a_wrong_command_line(argv: list[str], refused: Refused) -> None:
    assert "--help" in refused(*argv)


def sources_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads(next(folder.glob("manifest-*.json")).read_text())["sources"]


def test_the_cache_s_manifest_says_which_commit_its_text_is_of(hub: Hub, tmp_path: Path) -> None:
    from tune_dd.corpus import prepare_corpus
    from tune_dd.errors import UserError
    from tune_dd.regimes import CorpusSource

    table = pyarrow.table({"text": synthetic_text(200).split("\n\n")})
    pyarrow.parquet.write_table(table, sink := io.BytesIO())
    hub.files[OWT] = sink.getvalue()
    main(["fetch", "owt"])
    settings: dict[str, Any] = {"vocab_size": 300, "train_tokens": 9000, "validation_tokens": 500}
    source = CorpusSource(globs=("data/openwebtext10k/*.parquet",))
    prepare_corpus(source, **settings, min_train_tokens=1, cache_dir=tmp_path / "cache")
    (entry,) = sources_of(tmp_path / "cache")
    assert entry["hub"]["commit"] == hub.commit
    assert entry["hub"]["sha256"] == entry["sha256"] == hashlib.sha256(sink.getvalue()).hexdigest()
    TARGET.write_bytes(b"x")
    with pytest.raises(UserError, match="is not the file that SOURCE"):
        prepare_corpus(source, **settings, min_train_tokens=1, cache_dir=tmp_path / "other")

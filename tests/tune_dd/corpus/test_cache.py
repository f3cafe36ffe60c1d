"""A cache is whole or not there: damage is found out, a kill at any point costs a build, two builders agree."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests_support import synthetic_text

from tune_dd.corpus import Corpus, load_corpus, prepare_corpus
from tune_dd.corpus.cache import locked, manifest_checksum
from tune_dd.errors import UserError
from tune_dd.regimes import CorpusSource

pytestmark = pytest.mark.faults

NAMES = ("tokenizer-v300.json", "tokens-v300-uint16.npy", "manifest-v300.json")
# What a process of its own runs: argv is text, cache folder, and a point to be killed at.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from tune_dd import artifacts
from tune_dd.corpus import prepare_corpus
from tune_dd.errors import UserError
from tune_dd.regimes import CorpusSource
text, cache, point, file_limit = sys.argv[1:]
if file_limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(file_limit), int(file_limit)))
artifacts.reach = lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == point else None
try:
    corpus = prepare_corpus(CorpusSource(globs=(text,)), vocab_size=300, train_tokens=5000, validation_tokens=500,
                            min_train_tokens=1000, cache_dir=Path(cache), n_workers=1)
    print(corpus.corpus_hash)
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n\n".join(synthetic_text(200).split("\n\n")))
    return path


def prepare(text: Path, **changes: Any) -> Corpus:
    settings: dict[str, Any] = {"vocab_size": 300, "train_tokens": 5000, "validation_tokens": 500}
    settings |= {"min_train_tokens": 1000, "cache_dir": text.parent / "cache", "n_workers": 1, **changes}
    return prepare_corpus(CorpusSource(globs=(str(text),)), **settings)


def start(text: Path, cache: Path, point: str = "", file_limit: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(text), str(cache), point, file_limit]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", [flip_bit, truncate, empty])
def test_damage_is_set_aside_told_once_and_built_anew(
    text: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Any
) -> None:
    sound = prepare(text)
    path = text.parent / "cache" / name
    for number in (1, 2):
        damage(path)
        damaged = path.read_bytes()
        with pytest.raises(UserError, match=rf"the corpus cache in .* is damaged: {name} .*build it anew") as caught:
            prepare(text, use_cached=True)
        assert "\n" not in str(caught.value)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "tune_dd"):
            assert prepare(text).corpus_hash == sound.corpus_hash
            prepare(text)
        assert [f"{name}.damaged-{number}" in r.getMessage() for r in caplog.records] == [True]
        assert path.with_name(f"{name}.damaged-{number}").read_bytes() == damaged
    assert load_corpus(text.parent / "cache", 300).corpus_hash == sound.corpus_hash


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_missing_file_is_built_anew(text: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    sound = prepare(text)
    (text.parent / "cache" / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_corpus(text.parent / "cache", 300)
    assert prepare(text).corpus_hash == sound.corpus_hash
    assert len(caplog.records) == 1


def test_a_cache_of_another_kind_is_refused_even_if_its_hashes_are_right(text: Path) -> None:
    """A pickle in place of the tokens, vouched for by a forged manifest, is not run."""
    prepare(text)
    cache = text.parent / "cache"
    proof = text.parent / "executed"
    program = f"cposix\nsystem\n(S'touch {proof}'\ntR.".encode()
    (cache / NAMES[1]).write_bytes(program)
    manifest = json.loads((cache / NAMES[2]).read_text())
    manifest["files"][NAMES[1]] = {"bytes": len(program), "sha256": hashlib.sha256(program).hexdigest()}
    manifest["checksum"] = manifest_checksum(manifest)
    (cache / NAMES[2]).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"is damaged: tokens-v300-uint16.npy is not an array of tokens"):
        load_corpus(cache, 300)
    assert not proof.exists()


def test_a_worker_may_skip_the_hashes_but_not_the_sizes(text: Path) -> None:
    sound = prepare(text)
    flip_bit(text.parent / "cache" / NAMES[1])
    assert load_corpus(text.parent / "cache", 300, verify=False).corpus_hash == sound.corpus_hash
    truncate(text.parent / "cache" / NAMES[1])
    with pytest.raises(UserError, match=r"does not match manifest-v300.json"):
        load_corpus(text.parent / "cache", 300, verify=False)


POINTS = ("install", "tokenizer", "tokens", "manifest", "sync")


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_replacing_a_cache(text: Path, caplog: pytest.LogCaptureFixture, point: str) -> None:
    """Over an older cache of other sources: what is left is the old cache, none, or the new one; never a mixture."""
    cache = text.parent / "cache"
    old = prepare(text)
    text.write_text(text.read_text().replace("ka", "kakaka"))
    builder = start(text, cache, f"cache_before_{point}")
    builder.communicate()
    assert builder.returncode == -signal.SIGKILL
    try:
        left = load_corpus(cache, 300).corpus_hash
    except UserError as error:
        left = "none" if "no corpus cache" in str(error) else str(error)
    expected = prepare(text, cache_dir=text.parent / "other").corpus_hash
    assert left == {"install": old.corpus_hash, "sync": expected}.get(point, "none")
    assert prepare(text).corpus_hash == expected
    assert names_in(cache) == set(NAMES)
    assert not caplog.records


def test_two_builders_at_once_agree(text: Path) -> None:
    builders = [start(text, text.parent / "cache") for _ in range(3)]
    results = [builder.communicate() for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0, 0], results
    assert len({out for out, _ in results}) == 1
    assert names_in(text.parent / "cache") == set(NAMES)


def test_the_second_builder_waits_for_the_lock_and_says_so(text: Path) -> None:
    cache = text.parent / "cache"
    cache.mkdir()
    with locked(cache):
        builder = start(text, cache)
        assert builder.stderr is not None
        assert "another command is building the corpus" in builder.stderr.readline()
        assert builder.poll() is None
        assert not names_in(cache)
    out, _ = builder.communicate()
    assert out.strip() == load_corpus(cache, 300).corpus_hash


def test_what_a_dead_builder_left_is_swept_away(text: Path) -> None:
    stale = text.parent / "cache" / ".building-1"
    stale.mkdir(parents=True)
    (stale / "train.tokens").write_bytes(b"half")
    prepare(text)
    assert names_in(text.parent / "cache") == set(NAMES)


def test_a_file_that_grows_past_the_limit_leaves_the_old_cache_whole(text: Path) -> None:
    """A real failing write, by the limit on file size, which reads like a full disk."""
    old = prepare(text)
    text.write_text(text.read_text().replace("ka", "kakaka"))
    builder = start(text, text.parent / "cache", file_limit="6000")
    _, error = builder.communicate()
    assert builder.returncode == 2, error
    assert error.startswith("the disk of ")
    assert "--cache-dir" in error
    assert error.count("\n") == 1
    assert load_corpus(text.parent / "cache", 300).corpus_hash == old.corpus_hash
    assert names_in(text.parent / "cache") == set(NAMES)


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "the disk of .* is full: make space"), (errno.EROFS, "cannot write .*Read-only")],
)
def test_a_disk_that_refuses_leaves_nothing(
    text: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    def refuse(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(UserError, match=message):
            prepare(text)
    assert not names_in(text.parent / "cache")


def test_an_unwritable_cache_folder(text: Path) -> None:
    (text.parent / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write the corpus cache .*file/cache.*--cache-dir"):
        prepare(text, cache_dir=text.parent / "file" / "cache")
    with pytest.raises(UserError, match="no corpus cache in"):
        prepare(text, cache_dir=text.parent / "file" / "cache", use_cached=True)

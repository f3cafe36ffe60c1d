"""The library of compiled kernels: built once, found again, done without where it cannot be had."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from tests_support import REPOSITORY

from tune_dd import kernels


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if kernels.load() is None:
        pytest.skip("no C compiler here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tune_dd"


def fresh_load() -> object:
    return kernels.load.__wrapped__()


def test_one_build_serves_every_process_that_asks_at_once(cache: Path) -> None:
    program = "from tune_dd import kernels; assert kernels.load() is not None"
    at_once = [subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY) for _ in range(2)]
    assert [process.wait() for process in at_once] == [0, 0]
    (library,) = cache.glob("*.so")
    assert sorted(cache.iterdir()) == [library.with_suffix(".sha256"), library]
    built = library.stat().st_mtime_ns
    assert fresh_load() is not None
    assert library.stat().st_mtime_ns == built


@pytest.mark.parametrize(("name", "value"), [("CC", "no-such-compiler"), ("CC", "false"), ("TUNE_DD_KERNELS", "off")])
def test_without_a_compiler_there_is_no_library(
    cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert fresh_load() is None


def test_a_compiler_that_fails_leaves_nothing_behind(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = cache.parent / "cc"
    compiler.write_text('#!/bin/sh\ntest "$1" = --version\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert fresh_load() is None
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_written_is_done_without(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache.parent / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent / "file"))
    assert fresh_load() is None


def test_a_torn_library_is_built_again_and_never_loaded(cache: Path) -> None:
    """In a process of its own: one that loads part of a library dies of it."""
    path = kernels._path("cc")
    whole = Path(kernels.load()._name).read_bytes()
    path.parent.mkdir()
    path.with_suffix(".sha256").write_text(hashlib.sha256(whole).hexdigest())
    path.write_bytes(whole)
    assert kernels._is_whole(path)
    for share in (0.0, 0.1, 0.7, 0.3):
        path.write_bytes(whole[: int(share * len(whole))])
        assert not kernels._is_whole(path)
    program = "from tune_dd import kernels; assert kernels.load() is not None"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0
    assert path.stat().st_size == len(whole)
    assert kernels._is_whole(path)
    path.with_suffix(".sha256").unlink()  # as of a version that kept none
    assert not kernels._is_whole(path)

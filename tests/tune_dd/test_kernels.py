"""The library of compiled kernels: built once, found again, done without where it cannot be had."""

from __future__ import annotations

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
    (library,) = cache.iterdir()
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


def test_an_empty_library_is_built_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kernels._path("cc")
    path.parent.mkdir()
    path.touch()
    assert fresh_load() is not None
    assert path.stat().st_size > 0

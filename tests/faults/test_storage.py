"""Full disks, read-only folders and damaged files in mid-search."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults_support import FEW, prepare, rows, rows_of, run, start, the_run
from tests_support import wait_until

from tune_dd import artifacts, journal

pytestmark = pytest.mark.faults

LONGER = ("--device", "cpu", "--readouts", "6400,12800,19200", "--seeds", "0,1")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("file systems can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = prepare(tmp_path_factory.mktemp("unbroken"))
    assert run(folder, "tiny.toml", *LONGER).returncode == 0
    return rows(folder)


def check_whole(folder: Path) -> None:
    """What is on disk can be read, to the last byte."""
    for path in folder.glob(f"*/*/{artifacts.JOURNALS}/*{journal.SUFFIX}"):
        journal.load_journal(path)
    for path in folder.glob(f"*/*/{artifacts.METRICS}"):
        list(artifacts.read_rows(path))


def stopped(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 2, out + err
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    return lines[0]


def test_a_full_disk_stops_the_search_and_space_lets_it_finish(unbroken, small_disk: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    process = start(tmp_path, "tiny.toml", *LONGER, "--storage", str(small_disk))
    wait_until(lambda: list(small_disk.glob(f"*/*/{artifacts.JOURNALS}/*{journal.SUFFIX}")))
    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass
    assert "is full: make space" in stopped(process)
    check_whole(small_disk)
    filler.unlink()
    (path,) = [p.parent for p in small_disk.glob(f"*/*/{artifacts.CONFIG}")]
    done = run(tmp_path, "--resume", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows_of(path) == unbroken


def test_a_folder_turned_read_only_stops_the_search(unbroken, small_disk: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    process = start(tmp_path, "tiny.toml", *LONGER, "--storage", str(small_disk))
    wait_until(lambda: list(small_disk.glob(f"*/*/{artifacts.JOURNALS}/*{journal.SUFFIX}")))
    # A bind mount turns read-only even while files are open for writing.
    (path,) = [p.parent for p in small_disk.glob(f"*/*/{artifacts.CONFIG}")]
    journals = path / artifacts.JOURNALS
    subprocess.run(["mount", "--bind", str(journals), str(journals)], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", str(journals)], check=True)
    try:
        assert "make the folder writable" in stopped(process)
        check_whole(small_disk)
    finally:
        subprocess.run(["umount", "-l", str(journals)], check=True)
    done = run(tmp_path, "--resume", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows_of(path) == unbroken


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "foreign"])
def test_a_damaged_journal_is_set_aside_told_once_and_redone(tmp_path: Path, damage: str, whole_search: Path) -> None:
    shutil.copytree(whole_search, tmp_path / "search")
    folder = tmp_path / "search"
    before = rows(folder)
    victim = sorted((the_run(folder) / artifacts.JOURNALS).glob(f"*{journal.SUFFIX}"))[1]
    data = victim.read_bytes()
    victim.write_bytes(
        {
            "torn": data[: len(data) // 2],
            "flipped": data[:400] + bytes([data[400] ^ 1]) + data[401:],
            "empty": b"",
            "foreign": b"PK\x03\x04" + bytes(500),
        }[damage]
    )
    done = run(folder, "--resume", str(the_run(folder)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("set aside as") == 1
    assert victim.with_name(f"{victim.name}.damaged-1").exists()
    assert rows(folder) == before
    if damage == "torn":  # once is told once, whatever the damage
        assert "set aside" not in run(folder, "--resume", str(the_run(folder))).stdout


@pytest.fixture(scope="module")
def whole_search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("whole"))
    assert run(folder, "tiny.toml", *FEW).returncode == 0
    return folder


def test_a_damaged_corpus_cache_is_rebuilt_and_told(tmp_path: Path, whole_search: Path) -> None:
    shutil.copytree(whole_search, tmp_path / "search")
    folder = tmp_path / "search"
    (tokens,) = folder.glob(".cache/*/tokens-*.npy")
    data = bytearray(tokens.read_bytes())
    data[-1] ^= 1
    tokens.chmod(0o644)
    tokens.write_bytes(bytes(data))
    done = run(folder, "tiny.toml", *FEW)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(folder.glob(".cache/*/tokens-*.npy.damaged-1"))
    assert "damaged-1" in done.stdout + done.stderr

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest
from tests_support import row

from tune_dd import artifacts
from tune_dd.errors import UserError


def test_rows_round_trip_exactly(tmp_path: Path) -> None:
    path = tmp_path / artifacts.METRICS
    rows = [row(seed=0, val_loss=1 / 3), row(seed=1)]
    artifacts.write_rows(path, rows)
    assert [r for _, r in artifacts.read_rows(path)] == rows
    assert list(json.loads(path.read_text().splitlines()[0])) == list(artifacts.COLUMNS)


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    # A folder stands for a file without permission, which root may read all the same.
    with pytest.raises(UserError, match=rf"cannot read {tmp_path} \(.+\): make it readable"):
        list(artifacts.read_rows(tmp_path))


def test_unknown_columns_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / artifacts.METRICS
    path.write_text(json.dumps(row() | {"new": 1}) + "\n")
    assert len(list(artifacts.read_rows(path))) == 1


@pytest.mark.parametrize("column", [c for c in artifacts.COLUMNS if c not in artifacts.OPTIONAL_COLUMNS])
def test_a_missing_column_names_file_line_and_column(tmp_path: Path, column: str) -> None:
    path = tmp_path / artifacts.METRICS
    broken = row()
    del broken[column]
    path.write_text(json.dumps(row()) + "\n" + json.dumps(broken) + "\n")
    with pytest.raises(UserError, match=rf"metrics.jsonl, line 2: column '{column}'"):
        list(artifacts.read_rows(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not json\n", "line 1: not JSON"),
        (b"[1, 2]\n", "line 1: not a row"),
        (b"\xff\xfe\n", "not UTF-8"),
        ((json.dumps(row() | {"val_loss": "low"}) + "\n").encode(), "'val_loss' holds 'low'"),
        ((json.dumps(row() | {"schema": 2}) + "\n").encode(), "schema 2"),
    ],
)
def test_a_foreign_file_is_one_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / artifacts.METRICS
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(artifacts.read_rows(path))


def test_a_row_with_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        artifacts.write_rows(tmp_path / artifacts.METRICS, [row(val_loss=float("nan"))])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown to the file system"])
def test_on_macos_a_write_goes_through_the_drive_s_cache(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    fsync = os.fsync

    def control(fd: int, command: int) -> int:
        asked.append("full")
        if not known:
            raise OSError(errno.ENOTSUP, "not supported")
        return 0

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", lambda fd: (asked.append("fsync"), fsync(fd)))
    artifacts.write_atomic(tmp_path / "file", b"text")
    assert (tmp_path / "file").read_bytes() == b"text"
    assert asked == (["full"] * 2 if known else ["full", "fsync"] * 2)  # the file and its folder

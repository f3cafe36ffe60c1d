"""A file read whole gives what it gives line by line, and what is not quite as it should be is read line by line."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from pandas.testing import assert_frame_equal

from analysis import sources
from analysis.sources import read_metrics, read_whole
from analysis.tables import to_frame
from tune_dd.artifacts import encode_row
from tune_dd.errors import UserError


@pytest.fixture
def lines(synthetic: ModuleType) -> list[str]:
    return [encode_row(row) for row in synthetic.calibration(prefixes=(4_000,), dropouts=(0.0, 0.2), seeds=(0,))]


def changed(line: str, **values: object) -> str:
    return json.dumps({**json.loads(line), **values})


def write(folder: Path, lines: list[str], end: str = "\n") -> Path:
    path = folder / "metrics.jsonl"
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def test_both_ways_give_the_same_table(lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines[0] = changed(lines[0], val_loss=4, train_loss=3.2999999999999994, gap=1e-17, trial_name='a "é"\u2028\n,')
    lines[1] = changed(lines[1], more={"column": [1, None]}, n_params=2**62 + 1)
    path = write(tmp_path, lines)
    whole = read_metrics(path)
    assert whole.table is not None
    monkeypatch.setattr(sources, "read_whole", lambda path: None)
    by_line = read_metrics(path)
    assert len(by_line.rows) == len(lines)
    assert whole.places == by_line.places
    assert_frame_equal(to_frame(whole), to_frame(by_line), check_exact=True)


@pytest.mark.parametrize("end", ["\n\n", "\r\n"])
def test_blank_lines_and_other_ends_of_lines_keep_their_numbers(lines: list[str], end: str, tmp_path: Path) -> None:
    path = write(tmp_path, lines, end)
    assert read_whole(path) is None
    assert read_metrics(path).places[1] == f"{path}, line {3 if end == chr(10) * 2 else 2}"


def test_a_table_without_the_optional_column_is_read(lines: list[str], tmp_path: Path) -> None:
    without = [json.dumps({k: v for k, v in json.loads(line).items() if k != "validation_hash"}) for line in lines]
    frame = to_frame(read_metrics(write(tmp_path, without)))
    assert set(frame["validation_hash"]) == {""}


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 1.0},
        {"steps": True},
        {"seed": None},
        {"seed": 2**63},
        {"schema": 2},
        {"model": 3},
        {"val_loss": float("nan")},
        {"val_loss": float("inf")},
        {"val_loss": "4.0"},
        {"tokens_per_second": 1e19},
        {"dropout": 1.0},
        {"n_params": 0},
        {"validation_hash": None},
        {"readout": 0},
    ],
)
def test_what_no_row_may_hold_is_refused_by_line(lines: list[str], values: dict[str, object], tmp_path: Path) -> None:
    path = write(tmp_path, [lines[0], changed(lines[1], **values)])
    assert read_whole(path) is None
    with pytest.raises(UserError, match=r"line 2"):
        read_metrics(path)


@pytest.mark.parametrize("number", [0, 1])
def test_a_null_in_place_of_a_row_is_refused_by_line(lines: list[str], number: int, tmp_path: Path) -> None:
    lines[number] = "null"  # as the first value it kills pyarrow, and the process with it
    with pytest.raises(UserError, match=f"line {number + 1}: not a row of results"):
        read_metrics(write(tmp_path, lines))


@pytest.mark.parametrize("text", [b"", b"\xff\n", b"[]\n", b"{", b'{"a": 1} {"a": 2}\n'])
def test_what_is_no_table_is_refused(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(text)
    assert read_whole(path) is None
    with pytest.raises(UserError):
        read_metrics(path)

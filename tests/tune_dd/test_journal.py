from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests_support import REPOSITORY
from tests_support import spec as make_spec

from tune_dd import artifacts, journal
from tune_dd.errors import UserError

TENSORS = {
    "model/w": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),
    "optimizer/0/step": torch.tensor(7.0),
    "b": torch.ones(3, dtype=torch.bfloat16),
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    spec = make_spec()
    journal.write_journal(tmp_path, spec, step=7, rows=[{"a": 1}], counters={"step": 7}, tensors=TENSORS)
    return journal.journal_path(tmp_path, spec.trial_id)


def test_a_journal_comes_back_bit_for_bit(written: Path) -> None:
    found, tensors = journal.load_journal(written)
    assert (found.step, found.rows, found.counters, found.finished, found.has_weights) == (
        7,
        [{"a": 1}],
        {"step": 7},
        False,
        True,
    )
    assert tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[name], TENSORS[name]) and tensors[name].dtype == TENSORS[name].dtype for name in tensors
    )
    assert journal.read_journal(written) == found


def test_a_finished_journal_says_so_and_needs_no_weights(tmp_path: Path) -> None:
    spec = make_spec()
    rows = [{"a": 1}] * spec.n_readouts
    journal.write_journal(tmp_path, spec, step=20, rows=rows, counters={}, tensors={})
    found, tensors = journal.load_journal(journal.journal_path(tmp_path, spec.trial_id))
    assert found.finished
    assert not found.has_weights
    assert tensors == {}


def test_weights_are_dropped_of_what_is_finished_alone(tmp_path: Path) -> None:
    spec = make_spec()
    path = journal.journal_path(tmp_path, spec.trial_id)
    for rows in ([{"a": 1}], [{"a": 1}] * spec.n_readouts):
        journal.write_journal(tmp_path, spec, step=20, rows=rows, counters={"step": 20}, tensors=TENSORS)
        before = path.read_bytes()
        journal.drop_weights(path)
        found, tensors = journal.load_journal(path)
        assert (found.rows, found.counters, found.step) == (rows, {"step": 20}, 20)
        assert found.has_weights == bool(tensors) == (not found.finished)
        assert (path.read_bytes() == before) == (not found.finished)


def test_every_flipped_bit_is_found(written: Path) -> None:
    data = bytearray(written.read_bytes())
    missed = []
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        written.write_bytes(damaged)
        try:
            found, tensors = journal.load_journal(written)
        except journal.DamagedJournal:
            continue
        # A flip in the header's padding or in a key that nothing reads changes nothing.
        same = found.rows == [{"a": 1}] and all(torch.equal(tensors[n], TENSORS[n]) for n in TENSORS)
        if not same or tensors.keys() != TENSORS.keys():
            missed.append(position)
    assert missed == []


def test_every_truncation_is_found_without_torch(written: Path) -> None:
    data = written.read_bytes()
    for length in range(len(data)):
        written.write_bytes(data[:length])
        with pytest.raises(journal.DamagedJournal):
            journal.read_journal(written)


def test_a_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Malicious:
        def __reduce__(self):
            return (Path.touch, (marker,))

    spec = make_spec()
    path = journal.journal_path(tmp_path, spec.trial_id)
    for payload in (pickle.dumps(Malicious()), _torch_file(tmp_path, Malicious())):
        path.write_bytes(payload)
        for read in (journal.read_journal, journal.load_journal):
            with pytest.raises(journal.DamagedJournal):
                read(path)
    assert not marker.exists()


def _torch_file(folder: Path, value: object) -> bytes:
    path = folder / "x.pt"
    torch.save(value, path)
    return path.read_bytes()


def test_a_journal_of_another_trial_is_refused(written: Path) -> None:
    other = written.with_name("0" * 16 + journal.SUFFIX)
    written.rename(other)
    with pytest.raises(journal.DamagedJournal, match="belongs to"):
        journal.read_journal(other)


def test_setting_aside_keeps_every_damaged_file(written: Path) -> None:
    first = journal.set_aside(written)
    written.write_bytes(b"x")
    second = journal.set_aside(written)
    assert [first.name, second.name] == [f"{written.name}.damaged-1", f"{written.name}.damaged-2"]
    assert not written.exists()


def test_rows_are_read_without_torch(written: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from tune_dd import journal\n"
        f"print(journal.read_journal(Path({str(written)!r})).rows)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == "[{'a': 1}]", done.stderr


POINTS = ["before_temp", "half_written", "before_rename", "after_rename", "after_sync"]


@pytest.mark.parametrize("point", POINTS)
def test_a_process_killed_inside_a_write_leaves_the_old_or_the_new_file(tmp_path: Path, point: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old" * 1000)
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom tune_dd import artifacts\n"
        f"def die(point):\n    if point == {point!r}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "artifacts.reach = die\n"
        f"artifacts.write_atomic(Path({str(path)!r}), b'new' * 1000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY)
    assert done.returncode == -9
    expected = b"new" if POINTS.index(point) >= POINTS.index("after_rename") else b"old"
    assert path.read_bytes() == expected * 1000


def test_an_unwritable_folder_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--storage"):
        artifacts.write_atomic(tmp_path / "missing" / "file", b"x")
    assert list(tmp_path.iterdir()) == []


def test_crashes_are_remembered(tmp_path: Path) -> None:
    spec = make_spec()
    journal.record_crash(tmp_path, spec, "ValueError: two\nlines", 3)
    assert journal.read_crashes(tmp_path) == {spec.trial_id: "ValueError: two lines"}


@pytest.mark.parametrize("record", ["", "[]", "null", '"text"', "{}", '{"reason"'])
def test_a_damaged_record_of_a_crash_still_counts_as_one(record: str, tmp_path: Path) -> None:
    spec = make_spec()
    journal.record_crash(tmp_path, spec, "ValueError", 3)
    journal.crash_path(tmp_path, spec.trial_id).write_text(record)
    assert journal.read_crashes(tmp_path) == {spec.trial_id: "its record is damaged"}

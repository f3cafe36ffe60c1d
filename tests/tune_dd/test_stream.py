"""Batches are a pure function of (seed, stage, step) and uniform; evaluation windows are fixed and disjoint."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_dd.errors import UserError
from tune_dd.stream import Tokens, evaluation_windows, sample_batch

TOKENS: Tokens = np.random.Generator(np.random.PCG64(0)).integers(0, 500, 5000).astype(np.uint16)
COUNTING: Tokens = np.arange(5000, dtype=np.uint16)  # token i is its own position


def test_targets_are_the_inputs_shifted_and_all_within_the_prefix() -> None:
    inputs, targets = sample_batch(COUNTING, 300, 64, 16, seed=3, stage=1, step=7)
    assert inputs.shape == targets.shape == (64, 16)
    assert inputs.dtype == targets.dtype == np.int64
    assert inputs.flags.c_contiguous
    assert targets.flags.c_contiguous
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(16))
    assert targets.max() < 300


def test_offsets_are_uniform_over_every_window_of_the_prefix() -> None:
    context, unique = 16, 80
    starts = np.concatenate(
        [sample_batch(COUNTING, unique, 64, context, seed=0, stage=0, step=s)[0][:, 0] for s in range(200)]
    )
    counts = np.bincount(starts, minlength=unique - context)
    assert len(counts) == unique - context  # offsets 0 to 63, the last window ending on the prefix's last token
    expected = len(starts) / len(counts)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 104  # 99.9 % of a chi-square with 63 degrees of freedom


def test_each_of_seed_stage_and_step_gives_another_batch_and_none_depends_on_history() -> None:
    base = {"seed": 1, "stage": 2, "step": 3}
    first, _ = sample_batch(TOKENS, 5000, 8, 32, **base)
    for name in base:
        other, _ = sample_batch(TOKENS, 5000, 8, 32, **{**base, name: 9})
        assert not np.array_equal(first, other)
    again, _ = sample_batch(TOKENS, 5000, 8, 32, **base)
    np.testing.assert_array_equal(first, again)


def test_swapped_seed_and_stage_and_step_are_different_streams() -> None:
    batches = {
        sample_batch(TOKENS, 5000, 8, 32, seed=a, stage=b, step=c)[0].tobytes()
        for a in (1, 2)
        for b in (1, 2)
        for c in (1, 2)
    }
    assert len(batches) == 8


def test_the_same_numbers_in_a_fresh_process_and_forever() -> None:
    """The offsets are written down: a change of them would silently change what every trial trains on."""
    code = (
        "import numpy as np; from tune_dd.stream import sample_batch; "
        "print(sample_batch(np.arange(5000, dtype=np.uint16), 4000, 6, 16, seed=5, stage=1, step=42)[0][:, 0].tolist())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = sample_batch(COUNTING, 4000, 6, 16, seed=5, stage=1, step=42)[0][:, 0].tolist()
    assert printed.strip() == str(here) == "[2189, 1797, 3520, 2820, 1468, 2796]"


def test_a_batch_from_a_memory_map_equals_one_from_memory(tmp_path: object) -> None:
    path = f"{tmp_path}/tokens.npy"
    np.save(path, TOKENS)
    mapped = np.load(path, mmap_mode="r")
    here = sample_batch(TOKENS, 1000, 8, 32, seed=0, stage=0, step=0)
    there = sample_batch(mapped, 1000, 8, 32, seed=0, stage=0, step=0)
    np.testing.assert_array_equal(here, there)
    assert type(there[0]) is np.ndarray


@pytest.mark.parametrize(
    ("unique", "message"), [(16, "does not fill one window"), (5001, "longer than the train split")]
)
def test_unfit_prefixes_are_refused(unique: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample_batch(TOKENS, unique, 4, 16, seed=0, stage=0, step=0)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 3000), context=st.integers(1, 64), wanted=st.integers(1, 4000), salt=st.integers(0, 9))
def test_windows_are_disjoint_inside_the_text_and_as_many_as_fit(n: int, context: int, wanted: int, salt: int) -> None:
    tokens = COUNTING[:n]
    expected = min(wanted, n - 1) // context
    if expected == 0:
        with pytest.raises(UserError, match="do not fill one evaluation window"):
            evaluation_windows(tokens, context, wanted, salt=salt)
        return
    windows = evaluation_windows(tokens, context, wanted, salt=salt)
    assert windows.n_tokens == expected * context
    targets = np.concatenate([y.ravel() for _, y in windows.batches(tokens, 7)])
    assert len(np.unique(targets)) == len(targets) == windows.n_tokens
    assert targets.min() >= 1
    assert targets.max() < n


def test_batches_are_the_windows_in_order_whatever_the_batch_size() -> None:
    windows = evaluation_windows(TOKENS, 32, 1000, salt="validation")
    whole = next(iter(windows.batches(TOKENS, 1000)))
    for size in (1, 4, 31):
        parts = list(windows.batches(TOKENS, size))
        assert {len(x) for x, _ in parts[:-1]} <= {size}
        np.testing.assert_array_equal(np.concatenate([x for x, _ in parts]), whole[0])
        np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), whole[1])


def test_windows_are_spread_over_the_whole_text() -> None:
    """Contiguous windows double the standard error of a loss: each fifth of the text must have its share."""
    windows = evaluation_windows(np.zeros(100_000, dtype=np.uint16), 64, 20_000, salt=0)
    shares = np.histogram(windows.starts, bins=5, range=(0, 100_000))[0] / len(windows.starts)
    assert shares.min() > 0.12
    assert shares.max() < 0.28


def test_a_short_text_is_taken_whole() -> None:
    windows = evaluation_windows(TOKENS[:1025], 128, 65_536, salt=0)
    assert windows.starts.tolist() == [128 * i for i in range(8)]


def test_the_hash_changes_with_a_token_in_a_window_and_with_the_spread_and_with_nothing_else() -> None:
    windows = evaluation_windows(TOKENS, 32, 1000, salt="validation")
    assert evaluation_windows(TOKENS.copy(), 32, 1000, salt="validation").hash == windows.hash
    assert evaluation_windows(TOKENS, 32, 1000, salt="other").hash != windows.hash
    for position in (windows.starts[3], windows.starts[3] + 32):
        changed = TOKENS.copy()
        changed[position] += 1
        assert evaluation_windows(changed, 32, 1000, salt="validation").hash != windows.hash
    inside = np.unique(windows.starts[:, None] + np.arange(33))
    outside = np.setdiff1d(np.arange(len(TOKENS)), inside)[0]
    changed = TOKENS.copy()
    changed[outside] += 1
    assert evaluation_windows(changed, 32, 1000, salt="validation").hash == windows.hash

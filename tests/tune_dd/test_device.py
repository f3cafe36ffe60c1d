"""The device policy: who is refused, with which words, and before torch is imported where possible."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tune_dd import device
from tune_dd.errors import UserError

REMEDY = "python -m tune_dd.sweep tinystories --device cpu --scale pocket"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)


def refusal(name: str) -> str:
    with pytest.raises(UserError) as caught:
        device.check_device(name, "tinystories")
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(REMEDY)
    return message


def mps(monkeypatch: pytest.MonkeyPatch, *, built: bool, available: bool) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: built)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: available)


def test_each_refusal_has_its_own_message(monkeypatch: pytest.MonkeyPatch) -> None:
    mps(monkeypatch, built=False, available=False)
    not_built = refusal("mps")
    mps(monkeypatch, built=True, available=False)
    unavailable = refusal("mps")
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    fallback = refusal("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    no_cuda, unknown = refusal("cuda"), refusal("tpu")
    assert len({not_built, unavailable, fallback, no_cuda, unknown}) == 5
    assert "without MPS" in not_built
    assert "not available" in unavailable
    assert "PYTORCH_ENABLE_MPS_FALLBACK=1" in fallback
    assert "cuda" in no_cuda
    assert "'tpu'" in unknown


def test_the_fallback_is_refused_even_where_mps_works(monkeypatch: pytest.MonkeyPatch) -> None:
    mps(monkeypatch, built=True, available=True)
    device.check_device("mps")
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "0")
    device.check_device("mps")
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    refusal("mps")


def test_cpu_is_always_accepted_whatever_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    device.check_device("cpu")


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    device.check_precision("cpu", "bfloat16")
    device.check_precision("cuda", "float32")
    names = ["cuda"] if torch.backends.mps.is_available() else ["cuda", "mps"]
    for name in names:
        with pytest.raises(UserError, match=f'this {name} device has no bfloat16 .* precision = "float32"'):
            device.check_precision(name, "bfloat16")


def test_what_needs_no_torch_is_decided_without_it() -> None:
    program = """
import os, sys
sys.modules["torch"] = None  # importing it now raises
from tune_dd import device
from tune_dd.errors import UserError
os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] = "1"
for name in ("mps", "nonsense"):
    try:
        device.check_device(name)
    except UserError:
        continue
    sys.exit(f"{name} was accepted")
device.check_device("cpu")
assert device.device_count("cpu") >= 1 and device.device_count("mps") == 1
"""
    repository = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=repository)


def test_opening_the_cpu_pins_the_threads_and_names_the_processor() -> None:
    before = torch.get_num_threads()
    try:
        opened = device.open_device("cpu", 1)
        assert opened == torch.device("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    device.synchronize(opened)
    assert device.device_name(opened).strip()


def test_peak_memory_is_in_bytes_and_grows_with_use() -> None:
    cpu = torch.device("cpu")
    before = device.peak_memory_bytes(cpu)
    held = torch.ones(before // 4 + (16 << 20))  # more than the process has ever held
    after = device.peak_memory_bytes(cpu)
    assert after - before >= 16 << 20
    assert after < 4 * held.nbytes + before

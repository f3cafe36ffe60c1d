"""Searches on an accelerator, as far as a machine without one goes: all but where the tensors lie."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests_support import TINY_REGIME, synthetic_text

from tune_dd import artifacts

# In every Python process of the search, Ray's workers too: the device is there, and its tensors lie on the cpu.
SITECUSTOMIZE = """
from tune_dd import device

opened = device.open_device
device.why_unusable = lambda name: None
device.device_count = lambda name: {"mps": 1, "cuda": 2, "cpu": 2}[name]
device.open_device = lambda name, n_threads: opened("cpu", n_threads)
"""


# The first worker that waits for its device finds it lost; each worker leaves its pid where it opens the device.
LOST = """
import os, sys
from pathlib import Path

folder = Path(__file__).parent


def note(name):
    with open(folder / name, "a") as file:
        file.write(f"{os.getpid()}\\n")


def open_and_note(name, n_threads, open=device.open_device):
    if in_a_worker():
        note("opened")
    return open(name, n_threads)


def lose(torch_device):
    import torch

    if in_a_worker() and not (folder / "lost").exists():
        note("lost")
        (folder / "opened").unlink()
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def in_a_worker():
    return Path("/proc/self/cmdline").read_bytes().startswith(b"ray::")


device.open_device, device.synchronize = open_and_note, lose
"""


def search(folder: Path, site_code: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "text.txt").write_text(synthetic_text(120), encoding="utf-8")
    (folder / "tiny.toml").write_text(TINY_REGIME, encoding="utf-8")
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(site_code)
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "tune_dd.sweep", "tiny.toml", "--seeds", "0", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize(("device", "n_devices"), [("mps", 1), ("cuda", 2)])
def test_ray_gives_each_trial_a_device(tmp_path: Path, device: str, n_devices: int) -> None:
    done = search(tmp_path, SITECUSTOMIZE, "--device", device)
    assert done.returncode == 0, done.stderr
    assert f"{device}, {n_devices} trial(s) at a time" in done.stdout
    (metrics,) = tmp_path.glob(f"ray_results/*/*/{artifacts.METRICS}")
    rows = [row for _, row in artifacts.read_rows(metrics)]
    assert {row["device"] for row in rows} == {device}
    assert len({row["trial_id"] for row in rows}) > 1


def test_a_worker_whose_device_is_lost_gets_no_further_trial(tmp_path: Path) -> None:
    done = search(tmp_path, SITECUSTOMIZE + LOST, "--device", "cuda", "--devices", "1")
    assert done.returncode == 3, done.stderr
    (config,) = tmp_path.glob(f"ray_results/*/*/{artifacts.CONFIG}")
    assert len(list((config.parent / artifacts.JOURNALS).glob("*.crash*"))) == 1
    (lost,) = (tmp_path / "site/lost").read_text().split()
    opened = (tmp_path / "site/opened").read_text().split()
    assert opened
    assert lost not in opened

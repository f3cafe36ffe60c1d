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


@pytest.mark.parametrize(("device", "n_devices"), [("mps", 1), ("cuda", 2)])
def test_ray_gives_each_trial_a_device(tmp_path: Path, device: str, n_devices: int) -> None:
    (tmp_path / "text.txt").write_text(synthetic_text(120), encoding="utf-8")
    (tmp_path / "tiny.toml").write_text(TINY_REGIME, encoding="utf-8")
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE)
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "tune_dd.sweep", "tiny.toml", "--device", device, "--seeds", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert f"{device}, {n_devices} trial(s) at a time" in done.stdout
    (metrics,) = tmp_path.glob(f"ray_results/*/*/{artifacts.METRICS}")
    rows = [row for _, row in artifacts.read_rows(metrics)]
    assert {row["device"] for row in rows} == {device}
    assert len({row["trial_id"] for row in rows}) > 1

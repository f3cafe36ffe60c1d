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
from pathlib import Path

from tune_dd import device

opened = device.open_device
device.why_unusable = lambda name: None
device.device_count = lambda name: {"mps": 1, "cuda": 2, "cpu": 2}[name]


def open_cpu(name, n_threads):
    from tune_dd import training  # not before a trial: it brings torch

    if not hasattr(training, "begin_trial"):
        training.begin_trial = training.TrialRun.__init__
        training.TrialRun.__init__ = as_accelerator
    return opened("cpu", n_threads)


def as_accelerator(trial, spec, data, torch_device):
    from tune_dd import training

    training.begin_trial(trial, spec, data, torch_device, as_accelerator=True)


def in_a_worker():
    return Path("/proc/self/cmdline").read_bytes().startswith(b"ray::")


device.open_device = open_cpu
"""


# The first worker that waits for its device finds it lost; each worker leaves its pid where it opens the device.
LOST = """
import os

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


device.open_device, device.synchronize = open_and_note, lose
"""

# On the device of the first worker that opens one, the embedding's gradients are a tenth too large.
ERRS = """
import os

mark = Path(__file__).with_name("errs")


def begin(trial, *how, as_accelerator=as_accelerator):
    as_accelerator(trial, *how)
    if in_a_worker():
        if not mark.exists():
            mark.write_text(str(os.getpid()))
        if mark.read_text() == str(os.getpid()):
            trial.model.embedding.weight.register_hook(lambda gradient: 1.1 * gradient)


as_accelerator = begin
"""


def search(folder: Path, site_code: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "text.txt").write_text(synthetic_text(120), encoding="utf-8")
    (folder / "tiny.toml").write_text(TINY_REGIME, encoding="utf-8")
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(site_code)
    return command(folder, "tiny.toml", "--seeds", "0", *options)


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "tune_dd.sweep", *words],
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


def test_what_a_device_that_errs_has_trained_is_not_kept(tmp_path: Path) -> None:
    done = search(tmp_path, SITECUSTOMIZE + ERRS, "--device", "mps")
    assert done.returncode == 3, done.stderr
    assert "computes other numbers than the cpu" in done.stdout
    (run,) = (path.parent for path in tmp_path.glob(f"ray_results/*/*/{artifacts.CONFIG}"))
    (crash,) = (run / artifacts.JOURNALS).glob("*.crash*")
    rows = [row for _, row in artifacts.read_rows(run / artifacts.METRICS)]
    assert rows  # another worker has trained the other trials
    assert not [row for row in rows if row["trial_id"] in crash.name]
    again = command(tmp_path, "--resume", str(run), "--retry-crashed")
    assert again.returncode == 0, again.stderr
    rows = [row for _, row in artifacts.read_rows(run / artifacts.METRICS)]
    assert [row for row in rows if row["trial_id"] in crash.name]

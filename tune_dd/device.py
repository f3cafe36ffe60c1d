"""The device policy, threads, synchronisation and memory.

What can be decided without torch is decided before torch is imported, so that a refused command says so
at once. ``mps`` is the default because the reference study's evidence is on MPS only.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import resource
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tune_dd.errors import UserError

if TYPE_CHECKING:
    import torch

DEVICES = ("mps", "cuda", "cpu")


def check_device(name: str, regime: str = "REGIME") -> None:
    """Refuse a device that this machine or this environment cannot honestly run on.

    Args:
        regime: named in the command that the message offers.

    Raises:
        UserError: unknown name; for mps: the cpu fallback is switched on, torch was built without MPS,
            or MPS is unavailable; for cuda: unavailable. Each with the command for a rehearsal on cpu.
    """
    remedy = f"for a rehearsal on cpu: python -m tune_dd.sweep {shlex.quote(regime)} --device cpu --scale pocket"
    if name not in DEVICES:
        raise UserError(f"device {name!r} is not one of {', '.join(DEVICES)}; {remedy}")
    if reason := why_unusable(name):
        raise UserError(f"{reason}; or, {remedy}")


def why_unusable(name: str) -> str | None:
    """What keeps a known device from being used here, and what to do about it; None if nothing does."""
    if name == "mps" and os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK", "0") == "1":
        return (
            "PYTORCH_ENABLE_MPS_FALLBACK=1 lets operators run on the cpu unseen, so no result would be MPS "
            "evidence: unset it"
        )
    if name == "cpu":
        return None
    import torch

    if name == "mps":
        if not torch.backends.mps.is_built():
            return f"this torch ({torch.__version__}) was built without MPS: install one for macOS"
        if not torch.backends.mps.is_available():
            return "MPS is not available: it needs macOS 14 or later on Apple silicon"
    elif not torch.cuda.is_available():
        return f"cuda is not available: torch {torch.__version__} sees no usable GPU"
    return None


def check_precision(name: str, precision: str) -> None:
    """Refuse a protocol's precision that a usable device has no arithmetic for.

    Raises:
        UserError: bfloat16 on a device without it.
    """
    if precision == "float32" or name == "cpu":  # every cpu has bfloat16, emulated if need be
        return
    import torch

    if name == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        try:
            able = bool(torch.ones(1, device=name, dtype=torch.bfloat16).add_(1).item() == 2.0)
        except (RuntimeError, TypeError):
            able = False
    if not able:
        raise UserError(
            f'this {name} device has no {precision} arithmetic: set precision = "float32" in the protocol of the regime'
        )


def open_device(name: str, n_threads: int) -> torch.device:
    """Set this process up for reproducible training on a device, and give it back.

    Threads are pinned because sums over millions of elements depend on their number.
    """
    import torch

    torch.set_num_threads(n_threads)
    if name == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)  # with warnings alone attention's backward stays as it is
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device(name)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def free_cached_memory(device: torch.device) -> None:
    """Give back what torch holds of the device for tensors to come."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def reset_peak_memory(device: torch.device) -> None:
    """Begin a trial's peak anew where the device can; on cpu and mps it is the worker's, over all its trials."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: of the device on cuda, else of this process, over all the trials that it has run.

    On mps, whose memory is the machine's, with what Metal gives torch now: at least, since torch may have given some
    back.
    """
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
    return peak + torch.mps.driver_allocated_memory() if device.type == "mps" else peak


def device_name(device: torch.device) -> str:
    """The model of the GPU, or of the processor."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()


@functools.cache
def processor_name() -> str:
    """What the system calls its processor."""
    if sys.platform == "darwin":
        size = ctypes.c_size_t(256)
        text = ctypes.create_string_buffer(size.value)
        libc = ctypes.CDLL(None)
        if libc.sysctlbyname(b"machdep.cpu.brand_string", text, ctypes.byref(size), None, 0) == 0:
            return text.value.decode()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def device_count(name: str) -> int:
    """How many trials the device can run side by side: GPUs, the one MPS device, or usable cores."""
    if name == "cpu":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if name == "mps":
        return 1
    import torch

    return torch.cuda.device_count()

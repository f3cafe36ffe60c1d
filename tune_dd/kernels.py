"""The compiled code behind ``native.py``: ``csrc/``, built once by the machine's own C compiler.

The library lies in the user's cache, named by what it was made from, by what and for which processor, so one build of
two seconds serves every worker of every search; a file beside it has its hash, since a process that runs a torn library
dies of it. Where it cannot be had (no compiler, no place to write to, or
``TUNE_DD_KERNELS=off``), steps are torch's operations: the same to rounding, and slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from tune_dd.device import processor_name

_SOURCES = Path(__file__).with_name("csrc")
# No -ffast-math: sums keep their order, NaN its meaning, and the process its denormal numbers.
_COMMON = ("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
# Tried in turn until the compiler takes one. OpenMP's library is the one that torch has brought along.
_FLAGS = (
    ("-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    ("-mcpu=native", "-fopenmp"),
    ("-mcpu=native",),
)
_BUILD_SECONDS = 120.0


class Sizes(ctypes.Structure):
    """Shape of a step: ``sizes`` in ``csrc/step.c``."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("layers", "heads", "width", "vocab", "context", "batch", "group", "chunk")),
        ("eps", ctypes.c_float),
    )


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library, built if it is not there yet; None where it cannot be had."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or os.environ.get("TUNE_DD_KERNELS", "on") == "off":
        return None
    try:
        path = _path(compiler)
        if _is_whole(path):
            with contextlib.suppress(OSError):  # not for this machine: built again
                return _open(path)
        return _open(path) if _build(compiler, path) else None
    except (OSError, subprocess.SubprocessError):
        return None


def identity() -> str:
    """What computes a step in float32 on this cpu, for a run's record: its last digits depend on it."""
    library = load()
    return "torch" if library is None else Path(library._name).stem


def _path(compiler: str) -> Path:
    """Where the library of these sources, this compiler and this processor is kept."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    sources = [path.read_text() for path in sorted(_SOURCES.glob("*.[ch]"))]
    made_from = (*sources, repr((_COMMON, _FLAGS)), version, platform.platform(), processor_name(), _instructions())
    name = hashlib.sha256("\n".join(made_from).encode()).hexdigest()[:16]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tune_dd", f"kernels-{name}.so")


def _instructions() -> str:
    """What Linux says that the processor can do: a home folder may be shared by machines that differ."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _record(path: Path) -> Path:
    """Where the SHA-256 of a library is kept."""
    return path.with_suffix(".sha256")


def _is_whole(path: Path) -> bool:
    """Whether the library is there as it was built."""
    try:
        return _record(path).read_text(encoding="ascii").strip() == hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, UnicodeDecodeError):
        return False


def _build(compiler: str, path: Path) -> bool:
    """Whether the compiler takes one of the sets of flags."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for flags in _FLAGS:
        # Built beside its place and moved there: workers that build at the same time do not see half a file.
        handle, name = tempfile.mkstemp(".so", "building-", path.parent)
        os.close(handle)
        record = _record(Path(name))
        try:
            command = [compiler, *_COMMON, *flags, "-o", name, str(_SOURCES / "step.c"), "-lm"]
            if subprocess.run(command, capture_output=True, timeout=_BUILD_SECONDS).returncode == 0:
                with open(name, "rb") as built:
                    os.fsync(built.fileno())
                    digest = hashlib.file_digest(built, "sha256").hexdigest()
                # The record first: a library that is there has one, be it that of another build at the same time.
                record.write_text(digest + "\n", encoding="ascii")
                os.replace(record, _record(path))
                os.replace(name, path)
                return True
        finally:
            Path(name).unlink(missing_ok=True)
            record.unlink(missing_ok=True)
    return False


def _open(path: Path) -> ctypes.CDLL:
    """The library with the types of its functions set."""
    library = ctypes.CDLL(str(path))
    pointer = ctypes.c_void_p
    library.padded_head.argtypes = (ctypes.c_int64,)
    library.padded_head.restype = ctypes.c_int64
    library.workspace_floats.argtypes = (pointer,)
    library.workspace_floats.restype = ctypes.c_int64
    library.run.argtypes = (
        *(pointer,) * 8,  # sizes, weights, gradients, cos, sin, inputs, targets, losses
        ctypes.c_int64,  # sequences
        *(pointer,) * 2,  # random state, random bits
        ctypes.c_int32,  # a unit is kept where its bits are below this
        ctypes.c_float,  # and multiplied by this
        pointer,  # workspace
    )
    library.run.restype = ctypes.c_int32
    return library

"""Run folders: where they lie, who holds one, what its config says.

A run lives in ``STORAGE/<regime>-<phase>-<scale>/<timestamp>/``. Its ``config.json`` holds the whole
plan, so that a resumed search needs no option repeated.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_dd import artifacts
from tune_dd.errors import UserError

DEFAULT_STORAGE = Path("ray_results")
LOCK = "lock"


@dataclass(frozen=True)
class RunFolder:
    """One run on disk."""

    path: Path

    @property
    def journals(self) -> Path:
        return self.path / artifacts.JOURNALS

    @property
    def live(self) -> Path:
        return self.path / artifacts.LIVE

    @property
    def ray(self) -> Path:
        """Tune's own directory: disposable."""
        return self.path / "ray"

    @property
    def log(self) -> Path:
        return self.path / "ray.log"

    def config(self) -> dict[str, Any]:
        """The run's config.json.

        Raises:
            UserError: it is missing, damaged or of another schema.
        """
        config = artifacts.read_json(self.path / artifacts.CONFIG)
        if not isinstance(config, dict) or config.get("schema") != artifacts.SCHEMA:
            found = config.get("schema") if isinstance(config, dict) else None
            raise UserError(
                f"{self.path} is a run of schema {found!r} and this version reads {artifacts.SCHEMA}: "
                "use the version that wrote it, or start a new run"
            )
        return config


def group_name(regime: str, phase: str, scale: str) -> str:
    return f"{regime}-{phase}-{scale}"


def new_folder(storage: Path, regime: str, phase: str, scale: str) -> RunFolder:
    """An empty, uniquely named run folder.

    Raises:
        UserError: the storage cannot be written.
    """
    group = storage / group_name(regime, phase, scale)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    try:
        group.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            path = group / (stamp if number == 1 else f"{stamp}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            (path / artifacts.JOURNALS).mkdir()
            return RunFolder(path)
    except OSError as error:
        raise artifacts.storage_error(group / stamp, error) from None
    raise UserError(f"{group} already holds a thousand runs of this second: wait a second and try again")


def find_runs(storage: Path) -> Iterator[RunFolder]:
    """Every run under the storage, oldest first within its group."""
    for config in sorted(storage.glob(f"*/*/{artifacts.CONFIG}")):
        yield RunFolder(config.parent)


@contextmanager
def hold(run: RunFolder) -> Iterator[None]:
    """Hold the run's lock. A lock whose holder died is free: the kernel drops it with the process.

    Raises:
        UserError: another command holds the run (its pid, host and start are named).
    """
    try:
        fd = os.open(run.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise artifacts.storage_error(run.path / LOCK, error) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run.path} is held by another command ({_holder(fd)}): wait for it or stop it") from None
        since = datetime.datetime.now().isoformat(timespec="seconds")
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, holder.encode(), 0)
        except OSError as error:
            raise artifacts.storage_error(run.path / LOCK, error) from None
        yield
    finally:
        os.close(fd)


def _holder(fd: int) -> str:
    try:
        holder = json.loads(os.pread(fd, 4096, 0))
        return f"pid {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "it has not said which"


def clear_disposable(run: RunFolder) -> None:
    """Drop what the last attempt left behind that nothing is read from: live files, Ray's directory."""
    shutil.rmtree(run.live, ignore_errors=True)
    shutil.rmtree(run.ray, ignore_errors=True)
    for temp in run.journals.glob(".*.tmp"):
        temp.unlink(missing_ok=True)

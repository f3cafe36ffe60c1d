"""Run folders: where they lie, who holds one, what its config says.

A run lives in ``STORAGE/<regime>-<phase>-<scale>/<timestamp>/``. Its ``config.json`` holds the whole
plan, so that a resumed search needs no option repeated.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import shlex
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_dd import artifacts
from tune_dd.errors import UserError
from tune_dd.journal import set_aside
from tune_dd.snapshots import FOLDER as SNAPSHOTS

DEFAULT_STORAGE = Path("ray_results")
LOCK = "lock"
CONFIG_COPY = "config.copy.json"
RAY_TEMP = "ray_temp"  # in the live folder: where Ray keeps its sockets and logs, to be removed after a kill
RAY_TEMP_PREFIX = "tune_dd-"


class DamagedConfig(UserError):
    """A config.json that is missing, torn or altered."""


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
            DamagedConfig: it is missing, torn or altered.
            UserError: it is of another schema.
        """
        path = self.path / artifacts.CONFIG
        try:
            config = artifacts.read_json(path)
        except UserError as damage:
            raise DamagedConfig(str(damage)) from None
        if not isinstance(config, dict) or config.get("checksum", "") != artifacts.checksum(config):
            if isinstance(config, dict) and config.get("schema") != artifacts.SCHEMA and "checksum" not in config:
                raise UserError(_other_schema(self.path, config))
            raise DamagedConfig(f"{path} was altered (its checksum fails): restore it or start a new run")
        if config["schema"] != artifacts.SCHEMA:
            raise UserError(_other_schema(self.path, config))
        return config

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.json and the copy that a damaged one is restored from."""
        sealed = config | {"checksum": artifacts.checksum(config)}
        artifacts.write_json(self.path / CONFIG_COPY, sealed)
        artifacts.write_json(self.path / artifacts.CONFIG, sealed)

    def mend_config(self) -> str | None:
        """Restore a damaged config.json from its copy; returns what was done, None if nothing was needed.

        Raises:
            UserError: neither the file nor its copy can be read.
        """
        try:
            self.config()
            return None
        except DamagedConfig:
            path, copy = self.path / artifacts.CONFIG, self.path / CONFIG_COPY
            if not copy.exists():
                raise
            whole = copy.read_bytes()
            if not _is_sealed(whole):
                raise
            aside = f", the damaged one set aside as {set_aside(path).name}" if path.exists() else ""
            artifacts.write_atomic(path, whole)
            return f"{path.name} was damaged or missing: restored from its copy{aside}"


def _is_sealed(data: bytes) -> bool:
    try:
        config = json.loads(data)
        return bool(config["checksum"] == artifacts.checksum(config))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _other_schema(path: Path, config: dict[str, Any]) -> str:
    return (
        f"{path} is a run of schema {config.get('schema')!r} and this version reads {artifacts.SCHEMA}: "
        "use the version that wrote it, or start a new run"
    )


def group_name(regime: str, phase: str, scale: str) -> str:
    return f"{regime}-{phase}-{scale}"


def new_folder(storage: Path, regime: str, phase: str, scale: str) -> RunFolder:
    """An empty, uniquely named run folder.

    Raises:
        UserError: the storage cannot be written.
    """
    path = make_folder(storage, group_name(regime, phase, scale))
    try:
        (path / artifacts.JOURNALS).mkdir()
    except OSError as error:
        raise artifacts.storage_error(path, error) from None
    return RunFolder(path)


def make_folder(storage: Path, name: str) -> Path:
    """An empty folder of the group, named by the time.

    Raises:
        UserError: the storage cannot be written.
    """
    group = storage / name
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    try:
        group.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            path = group / (stamp if number == 1 else f"{stamp}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    except OSError as error:
        raise artifacts.storage_error(group / stamp, error) from None
    raise UserError(f"{group} already holds a thousand runs of this second: wait a second and try again")


def find_runs(storage: Path) -> Iterator[RunFolder]:
    """Every run under the storage, oldest first within its group; one too whose config is left as its copy alone."""
    configs = [path for name in (artifacts.CONFIG, CONFIG_COPY) for path in storage.glob(f"*/*/{name}")]
    for folder in sorted({path.parent for path in configs}):
        yield RunFolder(folder)


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
            _lock(fd)
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


def _lock(fd: int) -> None:
    """Take the lock; a moment's wait lets a --list that is only looking pass."""
    for _ in range(3):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.1)
    return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(run: RunFolder) -> bool:
    """Whether a command holds the run, found without writing anything."""
    try:
        with open(run.path / LOCK, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def _holder(fd: int) -> str:
    try:
        holder = json.loads(os.pread(fd, 4096, 0))
        return f"pid {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "it has not said which"


def clear_disposable(run: RunFolder) -> None:
    """Drop what a killed attempt left behind: temp files, a request to stop, Ray's directory.

    Its heartbeats are kept under another name: they say how far the trials had come when it was killed.
    """
    try:
        for beat in run.live.glob("*.json"):
            beat.replace(beat.with_suffix(".past"))
        (run.live / artifacts.STOP).unlink(missing_ok=True)
        shutil.rmtree(run.ray, ignore_errors=True)
        for folder in (run.journals, run.path / SNAPSHOTS):
            for temp in folder.glob(".*.tmp"):
                temp.unlink(missing_ok=True)
    except OSError as error:
        raise artifacts.storage_error(run.journals, error) from None
    with contextlib.suppress(OSError):
        ray_temp = Path((run.live / RAY_TEMP).read_text())
        if ray_temp.parent == Path("/tmp") and ray_temp.name.startswith(RAY_TEMP_PREFIX):
            shutil.rmtree(ray_temp, ignore_errors=True)


def append_log(early: Path, log: Path) -> None:
    """Move what an early log holds to the end of another; nothing where it has been moved."""
    if early.exists():
        with open(log, "ab") as file:
            file.write(early.read_bytes())
        early.unlink()


def shown_path(path: Path) -> str:
    """A path as short as it can be typed."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def resume_command(run: RunFolder) -> str:
    return f"python -m tune_dd.sweep --resume {shlex.quote(shown_path(run.path))}"

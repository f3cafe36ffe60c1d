"""The files of a corpus cache: their names, whether they are whole, and how they are replaced.

Three files vouch for each other: ``tokenizer-v4096.json``, ``tokens-v4096-uint16.npy`` and
``manifest-v4096.json``, which holds the hashes of the other two, of the sources, and of itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import mmap
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tune_dd import artifacts
from tune_dd.errors import UserError
from tune_dd.regimes import SCALES
from tune_dd.tokenizer import token_byte_counts

FORMAT = 3  # of the three files; raise it when what is built from the same sources changes
PART_BYTES = 1 << 25  # of a file whose parts are hashed side by side

LOCK = ".lock"
BUILDING = ".building-"

log = logging.getLogger("tune_dd")


class NoCacheError(Exception):
    """There is no manifest, so no cache."""


class DamagedCacheError(Exception):
    """Files of a cache do not say what its manifest says."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file.name} {reason}")
        self.file = file


@dataclass(frozen=True)
class CacheFiles:
    """Where the cache of one vocabulary lies in a folder."""

    folder: Path
    vocab_size: int

    @property
    def tokenizer(self) -> Path:
        return self.folder / f"tokenizer-v{self.vocab_size}.json"

    @property
    def tokens(self) -> Path:
        return self.folder / f"tokens-v{self.vocab_size}-uint16.npy"

    @property
    def manifest(self) -> Path:
        return self.folder / f"manifest-v{self.vocab_size}.json"


def cache_folder(regime: str, scale: str) -> Path:
    """Where a regime's cache lies by default, relative to the working directory.

    Scales of one vocabulary that differ in how much is encoded need folders of their own.
    """
    return Path(".cache", f"dropout_decay_{regime}{'_8m' if scale == 'full-8m' else ''}")


def caches(regime: str) -> list[CacheFiles]:
    """The caches of a regime that lie in their default folders."""
    folders = dict.fromkeys(cache_folder(regime, scale) for scale in SCALES)
    found = [path for folder in folders for path in sorted(folder.glob("manifest-v*.json"))]
    sizes = [(path.parent, path.stem.removeprefix("manifest-v")) for path in found]
    return [CacheFiles(folder, int(size)) for folder, size in sizes if size.isdecimal()]


def cached_regimes() -> list[str]:
    """Names of the regimes that have a cache in its default folder, whoever's regimes they are."""
    folders = {path.parent.name for path in Path(".cache").glob("dropout_decay_*/manifest-v*.json")}
    return sorted({folder.removeprefix("dropout_decay_").removesuffix("_8m") for folder in folders})


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits: what the Hugging Face hub gives for a large file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def part_hashes(path: Path) -> list[str]:
    """SHA-256 of each part of a file, 64 hex digits, side by side on all cores: a large file is compared faster so."""
    size = path.stat().st_size
    if not size:  # nothing can be mapped
        return []
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:

        def digest(start: int) -> str:
            with memoryview(mapped) as whole, whole[start : start + PART_BYTES] as part:
                return hashlib.sha256(part).hexdigest()

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(digest, range(0, size, PART_BYTES)))


def file_record(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    size = path.stat().st_size
    parts = {"parts": part_hashes(path)} if size > PART_BYTES else {}
    return {"bytes": size, "sha256": file_hash(path), **parts}


def matches(path: Path, recorded: dict[str, Any]) -> bool:
    """Whether a file's bytes are those of its record."""
    if "parts" in recorded:
        return part_hashes(path) == list(recorded["parts"])
    return file_hash(path) == str(recorded["sha256"])


def manifest_checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 over all of a manifest but its own ``checksum``."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(files: CacheFiles) -> dict[str, Any]:
    """Raises NoCacheError or DamagedCacheError."""
    try:
        manifest = json.loads(files.manifest.read_text(encoding="utf-8"))
        if manifest["checksum"] != manifest_checksum(manifest):
            raise DamagedCacheError(files.manifest, "does not match its checksum")
    except (FileNotFoundError, NotADirectoryError):
        raise NoCacheError from None
    except (ValueError, KeyError, TypeError):
        raise DamagedCacheError(files.manifest, "is not a manifest") from None
    return manifest  # type: ignore[no-any-return]


def read_cache(
    files: CacheFiles, manifest: dict[str, Any], *, verify: bool
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
    """The tokens, (n,), memory-mapped read-only, and the bytes per token, (vocab_size,).

    Raises:
        DamagedCacheError: a file is missing, or has not the hash (with ``verify``) or the shape of the manifest.
    """
    for file in (files.tokenizer, files.tokens):
        recorded = manifest["files"][file.name]
        if not file.exists():
            raise DamagedCacheError(file, "is missing")
        if file.stat().st_size != recorded["bytes"] or (verify and not matches(file, recorded)):
            raise DamagedCacheError(file, f"does not match {files.manifest.name}")
    try:
        tokens = np.load(files.tokens, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise DamagedCacheError(files.tokens, f"is not an array of tokens ({error})") from None
    if tokens.dtype != np.uint16 or tokens.shape != (sum(manifest["tokens"].values()),):
        raise DamagedCacheError(files.tokens, f"does not match {files.manifest.name}")
    try:
        token_bytes = token_byte_counts(files.tokenizer.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedCacheError(files.tokenizer, f"is {error}") from None
    return tokens, token_bytes


def set_aside(damaged: DamagedCacheError) -> None:
    """Rename a damaged file to ``NAME.damaged-1`` (or -2, ...) and tell the user, once."""
    if not damaged.file.exists():
        log.warning("the corpus cache in %s is damaged: %s; it is built anew", damaged.file.parent, damaged)
        return
    number = 1
    while (aside := damaged.file.with_name(f"{damaged.file.name}.damaged-{number}")).exists():
        number += 1
    damaged.file.rename(aside)
    log.warning(
        "the corpus cache in %s is damaged: %s; set aside as %s, it is built anew",
        damaged.file.parent,
        damaged,
        aside.name,
    )


@contextlib.contextmanager
def locked(folder: Path, busy: str = "building the corpus") -> Iterator[None]:
    """Hold a folder against other commands, waiting for one that is ``busy`` there; dies with the process.

    In a folder that cannot be written there is nothing to hold: a whole cache there can still be loaded.
    """
    fd = _open_lock(folder)
    if fd is None:
        yield
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another command is %s in %s: waiting for it", busy, folder)
            fcntl.flock(fd, fcntl.LOCK_EX)
        for stale in folder.glob(f"{BUILDING}*"):  # of a builder that was killed: nobody else holds the lock
            shutil.rmtree(stale, ignore_errors=True)
        yield
    finally:
        os.close(fd)


def _open_lock(folder: Path) -> int | None:
    """The lock's descriptor; None where the folder cannot be written."""
    try:
        return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        if not os.access(folder, os.W_OK):
            return None
    return os.open(folder / LOCK, os.O_RDONLY)  # another user's: it can be held all the same


@contextlib.contextmanager
def held(files: CacheFiles, *, to_replace: bool = False) -> Iterator[None]:
    """Hold a cache, together with others who read it or alone ``to_replace`` it; dies with the process.

    The lock is on the tokens themselves. Where there are none, or the file system knows no locks, nothing is held.

    Raises:
        UserError: a running search reads what is to be replaced; or what is to be read is being replaced.
    """
    try:
        tokens = open(files.tokens, "rb")  # noqa: SIM115
    except OSError:
        yield
        return
    with tokens:
        try:
            fcntl.flock(tokens, (fcntl.LOCK_EX if to_replace else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            if to_replace:
                raise UserError(
                    f"the corpus cache {files.folder} has to be built anew for these sources and settings, and a "
                    "search that is running reads it: wait for its end, or choose another place with --cache-dir"
                ) from None
            raise UserError(
                f"the corpus cache {files.folder} is being replaced by another command: wait for its end and go on "
                "with --resume, or choose another place with --cache-dir"
            ) from None
        except OSError:
            pass
        yield


@contextlib.contextmanager
def build_folder(files: CacheFiles) -> Iterator[CacheFiles]:
    """A fresh folder beside the cache to build in, removed in the end; for the holder of the lock."""
    folder = files.folder / f"{BUILDING}{os.getpid()}"
    folder.mkdir()
    try:
        yield CacheFiles(folder, files.vocab_size)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def install(built: CacheFiles, files: CacheFiles) -> None:
    """Put a built cache in the place of another.

    The former manifest goes first and the new one comes last, so that a kill in between leaves no cache
    rather than one that looks damaged.
    """
    artifacts.reach("cache_before_install")
    files.manifest.unlink(missing_ok=True)
    for source, target in zip((built.tokenizer, built.tokens, built.manifest), _in_order(files), strict=True):
        artifacts.reach(f"cache_before_{target.name.split('-')[0]}")
        os.replace(source, target)
    artifacts.reach("cache_before_sync")
    artifacts.sync_folder(files.folder)


def _in_order(files: CacheFiles) -> tuple[Path, Path, Path]:
    return files.tokenizer, files.tokens, files.manifest

"""Files from the Hugging Face hub, fetched so that an interrupted fetch goes on, and verified by the hub's hash.

``huggingface_hub`` finds the commit and the file, knows the hub's hash of it and speaks its protocol. The
transfer itself is here: since version 1.18 the library's own download keeps no part of a broken one, and
its retries may wait for minutes. Plain HTTP with ranges is used, not xet, for the same reason.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from tune_dd import artifacts
from tune_dd.corpus.bars import Report
from tune_dd.corpus.cache import file_hash
from tune_dd.errors import UserError

if TYPE_CHECKING:
    import httpx2

# Read by huggingface_hub as it is imported, which is later than this.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

TIMEOUT_SECONDS = 10.0  # to connect, and between two pieces of an answer
RESUMES = 3  # of a transfer that breaks off, in a row without a byte of progress
RESUME_SECONDS = 1.0
SPARE_BYTES = 1 << 26  # left free on the disk beside a file

_OTHERWISE = "give the sweep your own text with --corpus-glob, or rehearse on the embedded corpus with its --quick"
_AGAIN = "what came is kept, and the same command goes on from there"


@dataclass(frozen=True)
class HubFile:
    """A file of a dataset repository: ``path`` may be a pattern, of which the first match is meant."""

    repo: str
    revision: str
    path: str


@dataclass(frozen=True)
class Resolved:
    """A file as the hub has it now.

    Attributes:
        commit: 40 hex digits that the revision stands for.
        sha256: 64 hex digits, the hub's own hash of a large file.
        size: bytes.
    """

    repo: str
    revision: str
    commit: str
    path: str
    sha256: str
    size: int


class Unreachable(UserError):
    """The hub could not be reached, or would not answer now."""


class Gone(UserError):
    """The hub has no such revision, or no such file at it."""


def endpoint() -> str:
    """The hub's address: ``HF_ENDPOINT``, or huggingface.co."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def resolve(file: HubFile) -> Resolved:
    """Ask the hub for the commit that a revision stands for and for the file's name, hash and size.

    Raises:
        Unreachable: no route, no answer in time, a rate limit, or the hub is out of order.
        Gone: there is no such revision or file.
        UserError: there is no such repository, or the file is not a large one.
    """
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

    what = f"{file.path} of {file.repo} ({file.revision})"
    address = endpoint()
    try:
        info = HfApi(endpoint=address).dataset_info(file.repo, revision=file.revision, timeout=TIMEOUT_SECONDS)
        names = sorted(s.rfilename for s in info.siblings or () if fnmatch.fnmatchcase(s.rfilename, file.path))
        if not names or info.sha is None:
            raise Gone(f"the hub has no file {what}: it was moved or removed; {_OTHERWISE}")
        url = hf_hub_url(file.repo, names[0], repo_type="dataset", revision=info.sha, endpoint=address)
        found = get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS, endpoint=address)
    except UserError:
        raise
    except Exception as error:
        _refuse(error, what)
    if found.size is None or not re.fullmatch(r"[0-9a-f]{64}", found.etag or ""):
        raise UserError(f"the hub gives no SHA-256 or no size for {what}, so it could not be verified; {_OTHERWISE}")
    assert found.etag is not None
    return Resolved(file.repo, file.revision, info.sha, names[0], found.etag, found.size)


def partial_path(target: Path, sha256: str) -> Path:
    """Where a fetch that is not finished lies; named by the hash, so that two versions never mix."""
    return target.with_name(f".{target.name}.{sha256[:12]}.partial")


def download(file: Resolved, target: Path, report: Report) -> None:
    """Fetch a file into ``target``, going on from what an interrupted fetch left; whole and verified, or not at all.

    Args:
        report: told the bytes that are there and those there will be.

    Raises:
        Unreachable: the transfer broke off and could not be taken up again; what came is kept.
        UserError: the hash is wrong (what came is deleted), or the disk is full or cannot be written.
    """
    partial = partial_path(target, file.sha256)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for other in target.parent.glob(f".{target.name}.*.partial"):
            if other != partial:
                other.unlink()
        _check_space(file, partial)
        _transfer(file, partial, report)
        if file_hash(partial) != file.sha256:
            partial.unlink()
            raise UserError(
                f"{file.path} of {file.repo} arrived with another hash than the hub gives for it, and was deleted: "
                "give the command again"
            )
        os.replace(partial, target)
        artifacts.sync_folder(target.parent)
    except OSError as error:
        raise cannot_write(target.parent, error) from None


def _transfer(file: Resolved, partial: Path, report: Report) -> None:
    """Append to ``partial`` until it has the file's size."""
    import httpx2

    what = f"{file.path} of {file.repo}"
    failures, furthest, reason = 0, 0, ""
    with open(partial, "ab") as out:
        while (have := os.fstat(out.fileno()).st_size) != file.size:
            if have > file.size:
                out.truncate(0)
                raise UserError(f"{what} is longer than the hub says, and was deleted: give the command again")
            report(have, file.size)
            try:
                _receive(file, out, have, report)
            except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
                reason = _reason(error)
            except httpx2.HTTPError as error:
                _refuse(error, what)
            out.flush()
            reached = os.fstat(out.fileno()).st_size
            # Not where it had been before: of a file that is shorter than the hub says, all comes again and again.
            failures = 0 if reached > max(have, furthest) else failures + 1
            furthest = max(reached, furthest)
            if failures >= RESUMES:
                raise Unreachable(f"the transfer of {what} broke off ({reason or 'nothing came'}): {_AGAIN}")
            if failures:
                time.sleep(RESUME_SECONDS)
        os.fsync(out.fileno())
    report(file.size, file.size)


def _receive(file: Resolved, out: BinaryIO, have: int, report: Report) -> None:
    """Append one answer of the hub to ``out``, which holds the first ``have`` bytes."""
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(file.repo, file.path, repo_type="dataset", revision=file.commit, endpoint=endpoint())
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECONDS) as response:
        if response.status_code == 416:  # more is there than the file has
            out.truncate(0)
            return
        hf_raise_for_status(response)
        if have and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            out.truncate(0)  # the whole file comes, whatever was asked for
            have = 0
        for chunk in response.iter_bytes():  # as they come: pieces of a fixed size would be lost when it breaks off
            out.write(chunk)
            have += len(chunk)
            report(have, file.size)


def _check_space(file: Resolved, partial: Path) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    free = shutil.disk_usage(partial.parent).free
    if free < file.size - have + SPARE_BYTES:
        raise UserError(
            f"{file.path} needs {(file.size - have) / 1e6:,.1f} MB in {partial.parent} and the disk has "
            f"{free / 1e6:,.1f} MB free: make space, or choose another place with --data-dir"
        )


def _refuse(error: Exception, what: str) -> NoReturn:
    """Any failure of a question to the hub, as one line with its remedy."""
    import httpx2
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        raise Unreachable("the hub may not be asked while HF_HUB_OFFLINE is set: unset it") from None
    if isinstance(error, errors.GatedRepoError):
        raise UserError(
            f"{what} is gated: ask for access on the hub and give a token in HF_TOKEN; or, {_OTHERWISE}"
        ) from None
    if isinstance(error, errors.RevisionNotFoundError):
        raise Gone(f"the hub has no such revision: {what} was moved or removed; {_OTHERWISE}") from None
    response: httpx2.Response | None = getattr(error, "response", None)
    status = None if response is None else response.status_code
    if status in (401, 403):
        raise UserError(
            f"the hub has no {what} or refuses it ({status}): give a valid token in HF_TOKEN; or, {_OTHERWISE}"
        ) from None
    if status == 404:
        raise UserError(f"the hub has no {what} (404): it was moved or removed; {_OTHERWISE}") from None
    if status == 429:
        assert response is not None
        wait = response.headers.get("Retry-After", "")
        seconds = f" {wait} seconds" if wait.isdecimal() else " a few minutes"
        raise Unreachable(
            f"the hub limits how often it may be asked (429): wait{seconds} and give the command again, or give a "
            "token in HF_TOKEN"
        ) from None
    if status is not None:
        raise Unreachable(f"the hub is out of order ({status} for {what}): give the command again later") from None
    if isinstance(error, (httpx2.HTTPError, OSError)):
        raise Unreachable(
            f"{endpoint()} cannot be reached ({_reason(error)}): check the network and give the command again"
        ) from None
    raise UserError(f"{endpoint()} does not answer like the hub ({_reason(error)}): check HF_ENDPOINT") from None


def _reason(error: Exception) -> str:
    import httpx2

    if isinstance(error, httpx2.TimeoutException):
        return "no answer in time"
    return " ".join(str(error).split()) or type(error).__name__


def cannot_write(folder: Path, error: OSError) -> UserError:
    """What to do about a data folder that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"the disk of {folder} is full: make space and give the same command again; {_AGAIN}")
    return UserError(
        f"cannot write {folder} ({error.strerror or error}): make it writable, or choose another with --data-dir"
    )

"""A Hugging Face hub of a few files, on loopback: as much of its protocol as fetching a dataset's file needs.

    GET  /api/datasets/REPO/revision/REVISION     commit and file names
    HEAD /datasets/REPO/resolve/REVISION/PATH     hash, size and commit in headers, a redirect to the storage host
    GET  the same, then the storage host           the bytes, from a ``Range`` on

What it does wrong is set from outside.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

CONTENT = random.Random(0).randbytes(300_000)
OWT = ("stas/openwebtext-10k", "plain_text/train/0000.parquet")
TARGET = Path("data/openwebtext10k/0000.parquet")  # where that goes
FILES = {
    OWT: CONTENT,
    ("roneneldan/TinyStories", "data/train-00000-of-00004-aaaaaaaaaaaaaaaa.parquet"): CONTENT[:5000],
    ("roneneldan/TinyStories", "data/train-00001-of-00004-bbbbbbbbbbbbbbbb.parquet"): b"another",
    ("Salesforce/wikitext", "wikitext-103-raw-v1/train-00000-of-00002.parquet"): b"another",
    ("Salesforce/wikitext", "wikitext-103-raw-v1/train-00001-of-00002.parquet"): CONTENT[:7000],
}

Refused = Callable[..., str]  # the words of a command that is refused -> its one line


@dataclass
class Hub:
    """
    Attributes:
        files: (repository, path) -> content, as the branches have it now.
        commit: what every branch stands for now; it and those in ``past`` can be asked for by name.
        past: an older commit -> the files that it had.
        refuse: a status and headers with which every question is answered.
        cut: bytes after which each of the next transfers breaks off.
        stall: bytes after which every transfer says nothing more until ``release`` is set.
        ranges: whether a ``Range`` is honoured.
        lie: a hash to give in place of the true one.
        longer: bytes that every file is said to have beyond those that it has.
        requests: method and path, with the ``Range`` that was asked for, of every question so far.
    """

    files: dict[tuple[str, str], bytes]
    commit: str = "c" * 40
    past: dict[str, dict[tuple[str, str], bytes]] = field(default_factory=dict)
    refuse: tuple[int, dict[str, str]] | None = None
    cut: list[int] = field(default_factory=list)
    stall: int | None = None
    ranges: bool = True
    lie: str | None = None
    longer: int = 0
    requests: list[str] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def asked(self, kind: str) -> list[str]:
        return [request for request in self.requests if kind in request]

    def at(self, commit: str) -> dict[tuple[str, str], bytes] | None:
        return self.files if commit == self.commit else self.past.get(commit)


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.served, unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if hub.refuse is not None:
            return self._status(*hub.refuse)
        head, _, rest = path[1:].partition("datasets/")
        if head == "api/":
            repo, _, revision = rest.partition("/revision/")
            return self._info(repo, revision)
        if head == "storage/":
            return self._bytes(rest)
        repo, _, rest = rest.partition("/resolve/")
        revision, _, name = rest.partition("/")
        files = hub.at(revision)
        if files is None:
            return self._status(404, {"X-Error-Code": "RevisionNotFound"})
        content = files.get((repo, name))
        if content is None:
            return self._status(404, {"X-Error-Code": "EntryNotFound"})
        # Another name of this host, so that it is another host to the library.
        port = urlsplit(hub.url).port
        return self._status(
            302,
            {
                "Location": f"http://localhost:{port}/storage/datasets/{repo}/{revision}/{name}",
                "X-Repo-Commit": revision,
                "X-Linked-Etag": f'"{hub.lie or hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(len(content) + hub.longer),
                "ETag": '"of the pointer"',
            },
        )

    def _info(self, repo: str, revision: str) -> None:
        commit = self.served.commit if revision in ("main", "refs/convert/parquet") else revision
        if not any(other == repo for other, _ in self.served.files):
            return self._status(404, {"X-Error-Code": "RepoNotFound"})
        files = self.served.at(commit)
        if files is None:
            return self._status(404, {"X-Error-Code": "RevisionNotFound"})
        body = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for other, name in files if other == repo]}
        return self._status(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _bytes(self, rest: str) -> None:
        hub = self.served
        content = next(
            content
            for commit in (hub.commit, *hub.past)
            for (repo, name), content in (hub.at(commit) or {}).items()
            if rest == f"{repo}/{commit}/{name}"
        )
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and hub.ranges else 0
        if start >= len(content):
            return self._status(416, {})
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        part = content[start:]
        if hub.cut:
            part = part[: hub.cut.pop(0)]
        if hub.stall is not None:
            self.wfile.write(part[: hub.stall])
            self.wfile.flush()
            hub.release.wait()
            return None
        self.wfile.write(part)
        return None

    def _status(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

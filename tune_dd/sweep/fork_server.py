"""One process that loads what every worker needs and forks each worker that Ray starts.

Torch, Ray and what Tune needs take a worker some two seconds of cpu to load. Here they are loaded once, while Ray
itself still starts, and the workers share the memory. Only where trials run on a Linux cpu: a process that has loaded
torch cannot be forked safely on macOS, nor use an accelerator afterwards. Where there is no server, or none that
answers, workers start as Ray starts them and load everything themselves.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from tune_dd.loading import deferred, no_collection
from tune_dd.sweep import fork_client

_TITLE = "tune_dd.sweep.fork_server"  # in lists of processes; a worker's is Ray's to give
MARKS = "TUNE_DD_WORKER_MARKS"  # names the folder of the marks of workers that have loaded
# Not Tune itself: as it is loaded Ray begins to draw random ids, and every worker would go on to draw the same.
_SHARED = ("tune_dd.trainable", "tune_dd.sweep.worker", "fsspec", "pyarrow.fs", "requests", "rich.layout", "rich.live")
_UNUSED = ("pandas", "ray.data")  # that Tune imports and no trial uses


def load() -> None:
    """Load all that a trial needs but Tune, and what Tune needs."""
    with no_collection():
        for name in _SHARED:
            importlib.import_module(name)


def started(folder: str) -> int:
    """How many workers have said that they are loaded."""
    return len(list(Path(folder).glob("worker-*")))


def import_ray() -> None:
    """Import Ray in the process that is to be forked.

    Ray's library keeps what the environment says of a worker's job and raylet when it is loaded. A worker that is
    started before there is work has no job, and of its raylet it only asks whether it lives: this process, which ends
    with the raylet, stands for it.
    """
    told = {"RAY_JOB_ID": fork_client.NO_JOB, "RAY_RAYLET_PID": str(os.getpid())}
    os.environ.update(told)
    with deferred("requests"):  # which Ray uses in a cloud
        importlib.import_module("ray")
    for name in told:
        del os.environ[name]


def load_tune() -> None:
    with no_collection(), deferred(*_UNUSED):
        importlib.import_module("ray.tune")


class ForkServer:
    """The server, forked from this process, which has imported Ray by ``import_ray`` and which it does not outlive.

    Args:
        folder: its socket is made there; the path must stay under 108 bytes.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "workers"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self._path))
        listener.listen()
        reading, self._lifeline = os.pipe()
        if os.fork() == 0:
            try:
                os.close(self._lifeline)
                _serve(listener, reading)
            finally:
                os._exit(1)
        listener.close()
        os.close(reading)

    def take_over(self, word: str) -> str:
        """A word of the raylet's command line: where it tells how to start a worker, with the client before that."""
        option, equals, command = word.partition("=")
        if option != "--python_worker_command":
            return word
        client = subprocess.list2cmdline([sys.executable, "-I", "-S", fork_client.__file__, str(self._path)])
        return f"{option}{equals}{client} {command}"


def _serve(listener: socket.socket, lifeline: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # standard output is the command's
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # Arrow's allocator: no thread before the fork
    sys.modules["ray"]._raylet.setproctitle(_TITLE)
    load()
    gc.freeze()  # what is there stays; a collection in a worker would copy its memory to look at it
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        return  # a thread would be missing in a fork, with all that it holds
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    waited_for: list[socket.socket | int] = [listener, lifeline]
    while lifeline not in select.select(waited_for, [], [])[0]:
        connection, _ = listener.accept()
        with contextlib.suppress(OSError, ValueError), connection:
            size, outputs, _, _ = socket.recv_fds(connection, 4, 2)
            with connection.makefile("rb") as stream:
                request = json.loads(stream.read(int.from_bytes(size, "big")))
            if os.fork() == 0:
                os.close(lifeline)
                listener.close()
                connection.close()
                _become(request, outputs)
            for output in outputs:
                os.close(output)
            connection.sendall(b"1")


def _become(request: dict[str, Any], outputs: list[int]) -> None:
    """Run a worker's script in this process, which ends with it."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setpgid(0, 0)  # as the raylet does
        for number, output in enumerate(outputs, start=1):
            os.dup2(output, number)
            os.close(output)
        os.nice(request["niceness"] - os.nice(0))
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = request["script"]
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)

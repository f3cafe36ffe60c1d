"""The scheduler process as the command sees it: started early, told its search later, ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tune_dd import artifacts
from tune_dd.sweep.runs import RAY_TEMP, RAY_TEMP_PREFIX, RunFolder, append_log

if TYPE_CHECKING:
    from tune_dd.sweep.plan import Plan

_LAST_ROWS_SECONDS = 1.5  # what Tune gets to note the last rows in files of its own; the journals have them
_END_SECONDS = 1.5  # what the scheduler gets to end by itself; nothing is lost without
_EARLY_LOG = "early.log"  # in Ray's temp folder: what is printed before there is a run folder


class RayProcess:
    """The process that runs Ray.

    Use as a context manager around the planning and the search: Ray takes two seconds to start, most of them
    waiting, and so it is started while the command still plans. At the end no process of it is left, nor what they
    leave in the temp folder. Nothing is started before ``start``.

    Attributes:
        events: what the process tells, in order; after its end the event ``ended``.
    """

    def __init__(self, address: str, *, verbose: bool = False) -> None:
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._address, self._verbose = address, verbose
        self._child: subprocess.Popen[str] | None = None
        self._temp: Path | None = None
        self._run: RunFolder | None = None
        self._ending: threading.Thread | None = None
        self._finished = threading.Event()  # set once Tune is done, or the process failed or ended

    @property
    def is_local(self) -> bool:
        """Whether every process of Ray runs on this machine."""
        return self._address == "local"

    def __enter__(self) -> RayProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def start(self, plan: Plan) -> None:
        """Start Ray for the devices of a plan, unless that is done.

        Raises:
            UserError: the folder for temporary files cannot be written.
        """
        if self._ending is not None:
            self.end()
        if self._child is not None:
            return
        cluster: dict[str, float] = {"CPU": plan.n_devices}
        if plan.device == "mps":
            cluster["mps"] = plan.n_devices
        elif plan.device == "cuda":
            cluster["GPU"] = plan.n_devices
        try:
            # A short path: the sockets in it must stay under the 104 bytes that macOS allows.
            self._temp = Path(tempfile.mkdtemp(prefix=RAY_TEMP_PREFIX, dir="/tmp"))
            log = None if self._verbose else open(self._temp / _EARLY_LOG, "ab")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise artifacts.storage_error(Path("/tmp"), error) from None
        self.events = queue.Queue()
        # Not a child of the terminal's process group: Ctrl-C reaches the command alone.
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tune_dd.sweep.scheduler"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        if log is not None:
            log.close()
        self._finished = threading.Event()
        reader = threading.Thread(target=_read_events, args=(self._child, self.events, self._finished), daemon=True)
        reader.start()
        self.send(
            [
                {
                    "address": self._address,
                    "ray_temp": str(self._temp),
                    "cluster": cluster,
                    "cluster_needs": cluster if self.is_local else dict.fromkeys(cluster, 1),
                }
            ]
        )

    def search(self, run: RunFolder, request: dict[str, Any]) -> None:
        """Tell the started process its search, and from here on keep its log in the run's folder.

        Raises:
            UserError: the run's folder cannot be written.
        """
        assert self._temp is not None
        try:
            (run.live / RAY_TEMP).write_text(str(self._temp))
            if not self._verbose:
                run.log.write_bytes(b"")
        except OSError as error:
            raise artifacts.storage_error(run.log, error) from None
        self._run = run
        early, log = (None, None) if self._verbose else (str(self._temp / _EARLY_LOG), str(run.log))
        self.send([request | {"early_log": early, "log": log}])

    def send(self, lines: Sequence[Any]) -> None:
        """Send lines of JSON; to a process that died, nothing: its event or its end tells."""
        assert self._child is not None
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write("".join(json.dumps(line) + "\n" for line in lines))
            self._child.stdin.flush()

    def let_go(self) -> None:
        """Begin to end it, for when every journal is whole: once Tune is done too. ``end`` waits until that is done."""
        self._begin_to_end(_LAST_ROWS_SECONDS)

    def end(self) -> None:
        """End the scheduler and every Ray process; remove what they leave in the temp folder."""
        self._begin_to_end(0.0).join()
        self._ending = None

    def _begin_to_end(self, patience: float) -> threading.Thread:
        if self._ending is None:
            self._ending = threading.Thread(target=self._end, args=(patience,))
            self._ending.start()
        return self._ending

    def _end(self, patience: float) -> None:
        child, temp = self._child, self._temp
        if child is not None:
            self._finished.wait(patience)
        if temp is not None and self._run is not None:
            with contextlib.suppress(OSError):
                append_log(temp / _EARLY_LOG, self._run.log)  # the process may remove it as it ends
        if child is not None:
            with contextlib.suppress(OSError):
                assert child.stdin is not None
                child.stdin.close()  # its lifeline
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=_END_SECONDS)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if temp is not None:
            shutil.rmtree(temp, ignore_errors=True)
        self._child = self._temp = self._run = None


def _read_events(child: subprocess.Popen[str], events: queue.Queue[dict[str, Any]], finished: threading.Event) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            events.put(event)
            if event["event"] in ("done", "failed"):
                finished.set()
    finished.set()
    events.put({"event": "ended"})

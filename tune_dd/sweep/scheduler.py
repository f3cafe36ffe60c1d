"""The process that runs Ray Tune: it schedules trials and remembers nothing.

The command starts it as ``python -m tune_dd.sweep.scheduler`` while it still plans, and speaks to it in lines of JSON
on standard input: first what Ray is to be started with, then, once the plan is accepted, the search, and where trials
are suggested as it goes a line each (``tune_dd.sweep.feed``). It keeps that pipe open: when the command dies, however
it dies, or refuses the plan, the pipe closes and this process ends with everything it started. Events go back as lines
of JSON on standard output; whatever Ray prints goes to standard error, which the command sends to a log file.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tune_dd.sweep import local_ray
from tune_dd.sweep.events import open_events, send
from tune_dd.sweep.runs import append_log

# Before Ray is imported. No usage statistics leave the machine.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Tune's own state, which it would write for up to a twentieth of the time: nothing reads it, the journals remember.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}

# A worker that dies from outside is started again on its journal this many times before the trial
# counts as crashed.
MAX_WORKER_DEATHS = 3
_KNOCK_SECONDS = 10.0
Feed = queue.SimpleQueue[dict[str, Any] | None]


def main() -> int:
    start = json.loads(sys.stdin.readline())
    address, temp, cluster = start["address"], start["ray_temp"], start["cluster"]
    os.environ.update(RAY_ENVIRONMENT)
    server = local_ray.prepare(temp, cluster) if address == "local" else None
    open_events(os.fdopen(os.dup(sys.stdout.fileno()), "w"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    fed: Feed = queue.SimpleQueue()
    threading.Thread(target=_end_with_the_command, args=(temp, fed), daemon=True).start()
    import ray

    try:
        if address == "local":
            local_ray.start(temp, cluster, server)
        else:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level="error")
    except Exception as error:
        send("failed", message=f"Ray did not start: {' '.join(str(error).split())[:300]}")
        return 1
    available = ray.cluster_resources()
    for name, amount in start["cluster_needs"].items():
        if available.get(name, 0) < amount:  # a trial would wait for it for ever, without an error
            send(
                "failed",
                message=f"the Ray cluster offers {available.get(name, 0):g} of the resource {name!r} and the search "
                f"needs {amount:g}: start the cluster with it, or leave --address out",
            )
            return 1
    threading.Thread(target=_watch_ray, args=(address,), daemon=True).start()
    request = fed.get()
    assert request is not None
    _move_log(request)
    send("ready", pid=os.getpid())
    _fit(request, fed)
    ray.shutdown()
    return 0


def _move_log(request: dict[str, Any]) -> None:
    """What is printed from here on goes to the run's log, after what has been printed before there was a run."""
    if request["log"] is None:
        return
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    os.close(log)
    append_log(Path(request["early_log"]), Path(request["log"]))


def _fit(request: dict[str, Any], fed: Feed) -> None:
    from ray import tune
    from ray.tune.execution import experiment_state
    from ray.tune.logger import JsonLoggerCallback

    from search_spaces.static_dropout import param_space
    from tune_dd.sweep.feed import FedTrials, open_feed
    from tune_dd.sweep.watch import Watch
    from tune_dd.sweep.worker import train_trial

    # Of Tune's own state, for trials that hold data sets of Ray's: none does, and it would load all of Ray's data.
    experiment_state.out_of_band_serialize_dataset = contextlib.nullcontext
    open_feed(fed)
    one_by_one = request["trials"] is None
    tune.Tuner(
        tune.with_resources(train_trial, request["trial_resources"]),
        param_space={"run": request["run"]} if one_by_one else param_space(request["trials"], request["run"]),
        tune_config=tune.TuneConfig(
            search_alg=FedTrials() if one_by_one else None,
            num_samples=-1 if one_by_one else 1,  # until the feed ends
            # 2.9 s a trial without it; safe, since every trial seeds everything it draws.
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["trial"]["name"],
            # The id too: a trial that extends another has its name.
            trial_dirname_creator=lambda t: f"{t.config['trial']['name']}-{t.config['trial']['id'][:6]}",
        ),
        run_config=tune.RunConfig(
            name=request["experiment"],
            storage_path=request["storage"],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=MAX_WORKER_DEATHS),
            callbacks=[Watch(), JsonLoggerCallback()],
        ),
    ).fit()


def _end_with_the_command(ray_temp: str, fed: Feed) -> None:
    """Pass on what comes; at the end of standard input leave at once: the journals hold everything."""
    for line in sys.stdin:
        if line.endswith("\n"):  # else the command died within it
            fed.put(json.loads(line))
    kill_ray()
    shutil.rmtree(ray_temp, ignore_errors=True)
    # With all that was just being started: one of Ray's agents looks for its raylet only now and then.
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def kill_ray() -> None:
    """End the Ray processes that this one started. Where the kernel ties them to us they die anyway."""
    ray = sys.modules.get("ray")
    if ray is None:
        return
    with contextlib.suppress(Exception):
        node = ray._private.worker._global_node
        if node is not None:
            node.kill_all_processes(check_alive=False, allow_graceful=False)


def _knock(address: str) -> None:
    """Raises OSError if nobody listens at a ``host:port``: Ray would ask there for minutes, and tell its log alone."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()
        except OSError as error:
            raise OSError(f"nothing answers at --address {address} ({error.strerror or error})") from None


def _watch_ray(address: str) -> None:
    """A driver whose raylet or GCS died waits for ever: say so and leave."""
    import ray

    while True:
        time.sleep(1.0)
        try:
            if address == "local":
                node = ray._private.worker._global_node
                dead = [name for name, _ in node.dead_processes() if name in ("raylet", "gcs_server")]
                if not dead:
                    continue
                message = f"Ray's {dead[0]} died"
            else:
                if any(node["Alive"] for node in ray.nodes()):
                    continue
                message = f"the Ray cluster at {address} has no node left alive"
        except Exception as error:
            message = f"the Ray cluster went away ({type(error).__name__})"
        send("failed", message=message)
        kill_ray()
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())

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
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tune_dd.sweep import preload
from tune_dd.sweep.events import open_events, send
from tune_dd.sweep.runs import append_log

# Before Ray is imported. No usage statistics leave the machine; a local Ray listens on loopback only
# (by default every Ray process on Linux listens on all interfaces); clients need the token.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Tune's own state, which it would write for up to a twentieth of the time: nothing reads it, the journals remember.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
# Usage statistics off, one of Ray's processes still asks the metadata services of three clouds where it runs
# (ray/_common/usage/usage_lib.py); a proxy that refuses keeps that question on this machine.
LOCAL_RAY_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "http_proxy": "http://127.0.0.1:9",
    "no_proxy": "localhost,127.0.0.1,::1",
    # Of two threads of the raylet one connects to the other's socket, which may not be there yet: it looks again after
    # 20 ms instead of a second, for as long in all.
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
    # Workers load what every trial needs as they start, while the command still plans.
    "RAY_preload_python_modules": "tune_dd.sweep.preload",
}

# A worker that dies from outside is started again on its journal this many times before the trial
# counts as crashed.
MAX_WORKER_DEATHS = 3
Feed = queue.SimpleQueue[dict[str, Any] | None]
_NODE_SECONDS = 20.0
_WORKER_SECONDS = 20.0  # nothing is lost but time where workers take longer
_AGENT_PORTS = ("METRICS_AGENT", "METRICS_EXPORT", "DASHBOARD_AGENT_LISTEN", "RUNTIME_ENV_AGENT")
_NO_PORT = -1  # as Ray's agents themselves say of what they do not offer
_OBJECT_STORE_BYTES = 80 * 2**20  # rows are all that passes through it; Ray's minimum is 75 MB


def main() -> int:
    start = json.loads(sys.stdin.readline())
    open_events(os.fdopen(os.dup(sys.stdout.fileno()), "w"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    fed: Feed = queue.SimpleQueue()
    threading.Thread(target=_end_with_the_command, args=(start["ray_temp"], fed), daemon=True).start()
    os.environ.update(RAY_ENVIRONMENT)
    address = start["address"]
    if address == "local":
        os.environ.update(LOCAL_RAY_ENVIRONMENT)
        # As Ray sets it for a trial of one cpu, but before the workers load torch; a trial pins its own threads.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # Ray would end waiting workers as Tune reserves the cpus that they wait for, and start others.
        os.environ.update(RAY_num_workers_soft_limit=f"{start['cluster']['CPU']:g}")
        os.environ[preload.MARKS] = start["ray_temp"]
    import ray

    try:
        _connect(start)
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
    if address == "local":
        _take_waiting_workers(start)
    request = fed.get()
    assert request is not None
    _move_log(request)
    send("ready", pid=os.getpid())
    _fit(request, fed)
    send("done")
    ray.shutdown()
    return 0


def _look_for_the_node_sooner() -> None:
    """Go on as soon as a local Ray's node is there, for which Ray itself looks once a second.

    Where a Ray has no such method it looks as it will.
    """
    from ray._private.node import Node

    start: Callable[..., None] | None = getattr(Node, "start_ray_processes", None)
    if start is None:
        return

    def start_and_wait(node: Any) -> None:
        start(node)
        deadline = time.monotonic() + _NODE_SECONDS
        with contextlib.suppress(Exception):  # Ray's own look tells what is wrong
            while not node.get_gcs_client().get_all_node_info() and time.monotonic() < deadline:
                time.sleep(0.02)

    Node.start_ray_processes = start_and_wait


def _take_waiting_workers(start: dict[str, Any]) -> None:
    """Let trials have the workers that Ray has started by itself, once those have loaded what they need.

    Asked before, Ray would start others; and so it would for Tune's actors with environment variables of their own,
    which a local worker has from here anyway. Tune is loaded here, while the workers load theirs.
    """
    from ray.tune.execution import class_cache

    class_cache.DEFAULT_ENV_VARS.clear()
    class_cache.ENV_VARS_TO_PROPAGATE.clear()
    deadline = time.monotonic() + _WORKER_SECONDS
    while preload.started(start["ray_temp"]) < start["cluster"]["CPU"] and time.monotonic() < deadline:
        time.sleep(0.02)


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


def _connect(start: dict[str, Any]) -> None:
    import ray

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    if start["address"] == "local":
        _leave_out_what_no_search_uses()
        _look_for_the_node_sooner()
        resources = dict(start["cluster"])
        ray.init(
            address="local",
            num_cpus=resources.pop("CPU"),
            num_gpus=resources.pop("GPU", 0),
            resources=resources,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=start["ray_temp"],
            **quiet,
        )
    else:
        ray.init(address=start["address"], log_to_driver=False, logging_level="error")


def _leave_out_what_no_search_uses() -> None:
    """Start a local Ray without its autoscaler, the forwarder of its logs, the server of its dashboard and its agents.

    Processes that cost three seconds of cpu at the start and are waited for; Ray has no option for it. Where a Ray has
    no such methods it starts as it will.
    """
    from ray._private.node import Node

    for name in ("start_monitor", "start_log_monitor", "start_api_server"):
        if hasattr(Node, name):
            setattr(Node, name, lambda node, *args, **kwargs: None)
    _leave_out_agents()


def _leave_out_agents() -> None:
    """Give the raylet, which insists on its two agents, ``cat`` in their place.

    One of them measures Ray, the other makes environments for actors that ask for one of their own; the raylet starts
    no worker before both have said where they listen, or that they do not. That is said here. What stands in for an
    agent has a pipe from the raylet, and ends with it.
    """
    from ray import _raylet
    from ray._private import services
    from ray._private.node import Node

    ports = [getattr(_raylet, f"{name}_PORT_NAME", None) for name in _AGENT_PORTS]
    tell_port = getattr(_raylet, "persist_port", None)
    if tell_port is None or None in ports:
        return
    start_raylet, start_process = Node.start_raylet, services.start_ray_process

    def start_raylet_alone(node: Any, *args: Any, **kwargs: Any) -> None:
        for port in ports:
            tell_port(node.get_session_dir_path(), node.node_id, port, _NO_PORT)
        start_raylet(node, *args, **kwargs)

    def start_without_agents(command: list[str], *args: Any, **kwargs: Any) -> Any:
        words = [re.sub(r"^(--\w+_agent_command)=.*", r"\1=cat", word, flags=re.DOTALL) for word in command]
        return start_process(words, *args, **kwargs)

    Node.start_raylet = start_raylet_alone
    services.start_ray_process = start_without_agents


def _fit(request: dict[str, Any], fed: Feed) -> None:
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback

    from search_spaces.static_dropout import param_space
    from tune_dd.sweep.feed import FedTrials, open_feed
    from tune_dd.sweep.watch import Watch
    from tune_dd.sweep.worker import train_trial

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

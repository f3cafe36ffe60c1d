"""A Ray of this machine's own, started fast and without what no search uses, with workers that are loaded already."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tune_dd.sweep import fork_server
from tune_dd.sweep.fork_server import ForkServer

# Usage statistics off, one of Ray's processes still asks the metadata services of three clouds where it runs
# (ray/_common/usage/usage_lib.py); a proxy that refuses keeps that question on this machine.
LOCAL_RAY_ENVIRONMENT = {
    # On loopback only (by default every Ray process on Linux listens on all interfaces), and for who has the token.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "http_proxy": "http://127.0.0.1:9",
    "no_proxy": "localhost,127.0.0.1,::1",
    # Of two threads of the raylet one connects to the other's socket, which may not be there yet: it looks again after
    # 20 ms instead of a second, for as long in all.
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
    # Workers load what every trial needs as they start, while the command still plans.
    "RAY_preload_python_modules": "tune_dd.sweep.preload",
}

_NODE_SECONDS = 20.0
_WORKER_SECONDS = 20.0  # nothing is lost but time where workers take longer
_AGENT_PORTS = ("METRICS_AGENT", "METRICS_EXPORT", "DASHBOARD_AGENT_LISTEN", "RUNTIME_ENV_AGENT")
_NO_PORT = -1  # as Ray's agents themselves say of what they do not offer
_OBJECT_STORE_BYTES = 80 * 2**20  # rows are all that passes through it; Ray's minimum is 75 MB


def prepare(temp: str, cluster: dict[str, float]) -> ForkServer | None:
    """Import Ray, for a cluster of these resources and files in the folder ``temp``, and begin to load its workers.

    For a process that has no threads yet, and no files open that a worker must not hold.
    """
    os.environ.update(LOCAL_RAY_ENVIRONMENT)
    # As Ray sets it for a trial of one cpu, but before the workers load torch; a trial pins its own threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Ray would end waiting workers that their cpus are reserved for, and start others.
    os.environ.update(RAY_num_workers_soft_limit=f"{cluster['CPU']:g}")
    os.environ[fork_server.MARKS] = temp
    if sys.platform != "linux" or set(cluster) != {"CPU"}:
        return None
    fork_server.import_ray()
    return ForkServer(Path(temp))


def start(temp: str, cluster: dict[str, float], server: ForkServer | None) -> None:
    """Start it and connect to it; on return its workers have loaded what trials need."""
    import ray

    if server is not None:
        fork_server.load_tune()  # there is time: Ray is up before the server has loaded
    _leave_out_what_no_search_uses(server)
    _look_for_the_node_sooner()
    resources = dict(cluster)
    ray.init(
        address="local",
        num_cpus=resources.pop("CPU"),
        num_gpus=resources.pop("GPU", 0),
        resources=resources,
        object_store_memory=_OBJECT_STORE_BYTES,
        _temp_dir=temp,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    _take_waiting_workers(temp, cluster)


def _take_waiting_workers(temp: str, cluster: dict[str, float]) -> None:
    """Let trials have the workers that Ray has started by itself, once those have loaded what they need.

    Asked before, Ray would start others; and so it would for Tune's actors with environment variables of their own,
    which a local worker has from here anyway. Tune is loaded here, while the workers load theirs.
    """
    fork_server.load_tune()
    from ray.air.execution import FixedResourceManager
    from ray.tune.execution import class_cache, tune_controller

    # One machine, one kind of trial: no need to reserve places, each with a task that asks whether it is there.
    tune_controller.PlacementGroupResourceManager = FixedResourceManager
    class_cache.DEFAULT_ENV_VARS.clear()
    class_cache.ENV_VARS_TO_PROPAGATE.clear()
    deadline = time.monotonic() + _WORKER_SECONDS
    while fork_server.started(temp) < cluster["CPU"] and time.monotonic() < deadline:
        time.sleep(0.02)


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


def _leave_out_what_no_search_uses(server: fork_server.ForkServer | None) -> None:
    """Start a local Ray without its autoscaler, the forwarder of its logs, the server of its dashboard and its agents.

    Processes that cost three seconds of cpu at the start and are waited for; Ray has no option for it. Where a Ray has
    no such methods it starts as it will.
    """
    from ray._private.node import Node

    for name in ("start_monitor", "start_log_monitor", "start_api_server"):
        if hasattr(Node, name):
            setattr(Node, name, lambda node, *args, **kwargs: None)
    _leave_out_agents(server)


def _leave_out_agents(server: fork_server.ForkServer | None) -> None:
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
        if server is not None:
            words = [server.take_over(word) for word in words]
        return start_process(words, *args, **kwargs)

    Node.start_raylet = start_raylet_alone
    services.start_ray_process = start_without_agents

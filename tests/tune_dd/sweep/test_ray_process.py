"""The scheduler process as the command holds it: started early, and gone whatever comes of the plan."""

from __future__ import annotations

import importlib.util
import mmap
import socket
import time
from pathlib import Path

import pytest

from tune_dd.errors import UserError
from tune_dd.sweep import fork_server, scheduler
from tune_dd.sweep.local_ray import LOCAL_RAY_ENVIRONMENT
from tune_dd.sweep.options import choose_plan, choose_regime, parse
from tune_dd.sweep.plan import Plan
from tune_dd.sweep.ray_process import RayProcess
from tune_dd.sweep.runs import RAY_TEMP, RunFolder


@pytest.fixture
def plan() -> Plan:
    args = parse(["--quick"])
    return choose_plan(args, choose_regime(args))


def running(temp: Path) -> dict[str, list[str]]:
    """Pid -> words of the processes whose command line names Ray's temp folder."""
    found = {}
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes().decode().split("\0")
        except OSError:
            continue
        if any(str(temp) in word for word in words):
            found[line.parent.name] = words
    return found


def session(leader: int) -> set[str]:
    """Pids of the processes of a session that are not over, whatever their command line says."""
    found = set()
    for line in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, leads = line.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(leads) == leader and state != "Z":
            found.add(line.parent.name)
    return found


def test_what_is_not_started_needs_no_end() -> None:
    with RayProcess("local") as ray:
        assert ray.events.empty()
    ray.end()


def test_an_address_that_nothing_answers_at_is_named_at_once(plan: Plan) -> None:
    with socket.socket() as taken:  # bound and not listening: refused
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with RayProcess(address) as ray:
            ray.start(plan)
            event = ray.events.get(timeout=60)
    assert event is not None
    assert event["event"] == "failed"
    assert f"nothing answers at --address {address}" in event["message"]


def test_addresses_of_other_kinds_are_left_to_ray() -> None:
    for address in ("auto", "ray://127.0.0.1:1"):
        scheduler._knock(address)
    with socket.socket(socket.AF_INET6) as server:
        server.bind(("::1", 0))
        server.listen()
        scheduler._knock(f"[::1]:{server.getsockname()[1]}")


@pytest.mark.parametrize("seconds", [0.0, 1.5])
def test_a_refused_plan_leaves_no_process_and_no_folder(plan: Plan, seconds: float) -> None:
    ray = RayProcess("local")
    ray.start(plan)
    temp, child = ray._temp, ray._child
    assert temp is not None
    assert child is not None
    ray.start(plan)
    assert ray._child is child, "it is there already"
    assert temp.is_dir()
    time.sleep(seconds)
    assert child.poll() is None
    with pytest.raises(UserError, match="refused"), ray:
        raise UserError("refused")
    assert child.poll() is not None
    deadline = time.monotonic() + 20
    while (running(temp) or session(child.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(temp)
    assert not session(child.pid)
    assert not temp.exists()


def test_it_is_let_go_and_may_be_started_anew(plan: Plan) -> None:
    with RayProcess("local") as ray:
        ray.start(plan)
        temp, child = ray._temp, ray._child
        assert temp is not None
        assert child is not None
        ray.let_go()
        ray.let_go()
        ray.start(plan)  # waits for the end of the first
        assert child.poll() is not None
        assert not temp.exists()
        again = ray._child
        assert again is not None
        assert again.poll() is None
    assert again.poll() is not None


def test_a_local_ray_has_workers_and_no_process_that_no_search_uses(plan: Plan) -> None:
    with RayProcess("local") as ray:
        ray.start(plan)
        assert ray._temp is not None
        deadline = time.monotonic() + 60
        while fork_server.started(str(ray._temp)) < plan.n_devices and time.monotonic() < deadline:
            time.sleep(0.05)
        assert fork_server.started(str(ray._temp)) == plan.n_devices
        programs = {Path(word).name for words in running(ray._temp).values() for word in words[:3]}
    assert {"raylet", "gcs_server"} <= programs
    assert not programs & {"agent.py", "main.py", "monitor.py", "log_monitor.py", "dashboard.py"}


def test_what_was_printed_before_there_was_a_run_comes_into_its_log(plan: Plan, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.live.mkdir()
    with RayProcess("127.0.0.1:1") as ray:  # no cluster is there, which Ray finds after a while
        ray.start(plan)
        temp = ray._temp
        assert temp is not None
        (temp / "early.log").write_text("what Ray printed\n")
        ray.search(run, {})
        assert (run.live / RAY_TEMP).read_text() == str(temp)
    assert "what Ray printed\n" in run.log.read_text()
    assert not temp.exists()


def test_ray_knows_the_settings_that_it_is_started_with() -> None:
    """It passes over in silence what it does not know."""
    settings = [name for name in LOCAL_RAY_ENVIRONMENT if name.startswith("RAY_") and name[4:].islower()]
    assert "RAY_raylet_client_connect_timeout_milliseconds" in settings
    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.origin is not None
    raylet = Path(found.origin).parent / "core/src/ray/raylet/raylet"
    with open(raylet, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as program:
        assert [name for name in settings if program.find(name.encode() + b"\0") < 0] == []

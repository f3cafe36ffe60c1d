"""Workers come out of one process that is loaded already; where it is not there they start as Ray starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests_support import wait_until

from tune_dd.sweep import fork_client, fork_server
from tune_dd.sweep.options import choose_plan, choose_regime, parse
from tune_dd.sweep.ray_process import RayProcess

linux = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")


def parent(pid: int) -> int:
    """Of a process that is there; its name in the file may hold anything, a bracket too."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@linux
def test_the_workers_of_a_local_ray_are_forks_that_have_loaded_no_pandas() -> None:
    args = parse(["--quick"])
    plan = choose_plan(args, choose_regime(args))
    with RayProcess("local") as ray:
        ray.start(plan)
        assert ray._temp is not None
        assert ray._child is not None
        temp = str(ray._temp)
        wait_until(lambda: fork_server.started(temp) == plan.n_devices)
        workers = [int(mark.name.partition("-")[2]) for mark in ray._temp.glob("worker-*")]
        servers = {parent(worker) for worker in workers}
        assert {parent(server) for server in servers} == {ray._child.pid}
        for worker in workers:
            loaded = Path(f"/proc/{worker}/maps").read_text()
            assert "/torch/lib/" in loaded
            assert "/pandas/" not in loaded
    wait_until(lambda: all(ended(pid) for pid in {*workers, *servers}))


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@linux
def test_forks_of_what_is_loaded_draw_ids_of_their_own() -> None:
    """As Tune is loaded Ray draws some: forks of a process that has loaded it would all draw the same from there on."""
    drawn = run_python(
        "import os; from tune_dd.sweep import fork_server\n"
        "fork_server.import_ray(); fork_server.load()\n"
        "import ray\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        print(ray.ObjectID.from_random().hex(), flush=True); os._exit(0)\n"
        "    os.wait()"
    ).split()
    assert len(set(drawn)) == 3


@linux
def test_the_server_ends_with_the_process_that_it_was_forked_from(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tune_dd.sweep.fork_server import ForkServer, import_ray\n"
        f"import_ray(); server = ForkServer(Path({str(tmp_path)!r})); print('there', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    server = int(children.read_text())
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: ended(server))


@linux
def test_a_fork_runs_the_script_with_the_environment_and_the_output_of_the_one_who_asked(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys\n"
        "loaded = 'torch' in sys.modules\n"
        "print(json.dumps([sys.argv, os.environ['ASKED'], os.nice(0), os.getpgrp() == os.getpid(), loaded]))\n"
        "sys.exit('to standard error')\n"
    )
    command = [sys.executable, "setup_worker.py", str(script), "a b", "--language=PYTHON", "--worker-id=1"]
    option = f"--python_worker_command={subprocess.list2cmdline(command)}"
    code = (
        "import json, os, subprocess, sys; os.environ['OMP_NUM_THREADS'] = '1'\n"
        "from pathlib import Path; from tune_dd.sweep.fork_server import ForkServer, import_ray\n"
        f"import_ray(); server = ForkServer(Path({str(tmp_path)!r}))\n"
        f"command = server.take_over({option!r}).partition('=')[2]\n"
        f"environment = {{**os.environ, 'ASKED': 'ü', 'RAY_JOB_ID': {fork_client.NO_JOB!r}}}\n"
        "subprocess.run(['nice', '-n', '3', 'sh', '-c', command], env=environment, check=True)\n"
        "assert server.take_over('--other=1') == '--other=1'"
    )
    out = run_python(code)
    assert json.loads(out) == [[str(script), "a b", "--worker-id=1"], "ü", os.nice(0) + 3, True, True]


@pytest.mark.parametrize("job", [fork_client.NO_JOB, "01000000"])
def test_where_no_server_answers_the_client_becomes_the_worker(tmp_path: Path, job: str) -> None:
    command = [sys.executable, "-c", "import sys; print(sys.argv[1:])", "script.py", "--language=PYTHON"]
    run = subprocess.run(
        [sys.executable, "-I", "-S", fork_client.__file__, str(tmp_path / "nothing"), *command],
        env={**os.environ, "RAY_JOB_ID": job},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "['script.py', '--language=PYTHON']\n"

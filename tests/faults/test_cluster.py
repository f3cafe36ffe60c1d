"""An existing Ray cluster that goes away, and a machine without a network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults_support import FEW, environment, prepare, rows, run, the_run
from tests_support import wait_until

from tune_dd import artifacts, journal

pytestmark = pytest.mark.faults

LONGER = ("--device", "cpu", "--readouts", "12800,25600,38400", "--seeds", "0,1")


def test_the_loss_of_a_cluster_stops_the_search_and_a_local_ray_finishes_it(tmp_path: Path) -> None:
    prepare(tmp_path)
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef0123456789abcdef")
    env = environment(None) | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    port = 20000 + os.getpid() % 20000
    head = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "ray"),
            *("start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=1"),
            *("--include-dashboard=false", f"--temp-dir=/tmp/tdc-{os.getpid()}", "--object-store-memory=80000000"),
        ],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "tune_dd.sweep", "tiny.toml", *LONGER, "--address", f"127.0.0.1:{port}"],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(
            lambda: (
                list(tmp_path.glob(f"ray_results/*/*/{artifacts.JOURNALS}/*{journal.SUFFIX}"))
                or process.poll() is not None
            )
        )
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(f"/tmp/tdc-{os.getpid()}", ignore_errors=True)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, out + err
    assert len(err.strip().splitlines()) == 1, err
    assert "--resume" in err
    done = run(tmp_path, "--resume", str(the_run(tmp_path)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(set(rows(tmp_path))) == 2 * 2 * 2 * 3


def test_a_search_tries_to_reach_no_other_host(tmp_path: Path) -> None:
    """In a network namespace with loopback alone: the kernel counts no packet that had no route."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("network namespaces cannot be made here")
    prepare(tmp_path)
    script = (
        "import fcntl, socket, struct, subprocess, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "flags = fcntl.ioctl(s, 0x8913, struct.pack('16sH14x', b'lo', 0))\n"
        "up = struct.unpack('16sH14x', flags)[1] | 1\n"
        "fcntl.ioctl(s, 0x8914, struct.pack('16sH14x', b'lo', up))\n"
        "def unrouted():\n"
        "    head, values = [l.split() for l in open('/proc/net/snmp') if l.startswith('Ip:')]\n"
        "    return int(values[head.index('OutNoRoutes')])\n"
        "before = unrouted()\n"
        f"code = subprocess.run([sys.executable, '-m', 'tune_dd.sweep', 'tiny.toml', *{FEW!r}]).returncode\n"
        "tried = unrouted() - before\n"
        "try: s.connect(('192.0.2.1', 9))\n"
        "except OSError: pass\n"
        "print('RESULT', code, tried, unrouted() - before - tried)\n"
    )
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment(None),
        capture_output=True,
        text=True,
        timeout=200,
    )
    result = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert result, done.stdout + done.stderr
    code, tried, control = map(int, result[0].split()[1:])
    assert code == 0, done.stdout + done.stderr
    assert control > 0, "an attempt would not have been counted"
    assert tried == 0

"""Commands whose standard streams were closed by the shell, or whose reader has gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests_support import REPOSITORY

LISTINGS = ("tune_dd.sweep --list", "tune_dd.corpus list")


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which PYTHON is the interpreter; the exit code is that of a pipe's first command."""
    script = f'PYTHON() {{ "{sys.executable}" "$@"; }}; {line}; exit ${{PIPESTATUS[0]}}'
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("command", LISTINGS)
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_failure(command: str, closed: str, tmp_path: Path) -> None:
    done = shell(f"PYTHON -m {command} {closed}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_to_be_mended_is_told_where_only_the_output_is_closed(tmp_path: Path) -> None:
    done = shell("PYTHON -m tune_dd.sweep nonsense >&-", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown regime 'nonsense'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [*LISTINGS, "tune_dd.sweep --help", "analysis.paper --help", "analysis --help"])
def test_a_reader_that_goes_away_is_no_failure(command: str, tmp_path: Path) -> None:
    # The reader is gone before the command begins.
    done = shell(f"(sleep 1; PYTHON -m {command}) | true", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_opened_later_does_not_come_by_the_descriptor_of_a_closed_stream(tmp_path: Path) -> None:
    program = """
import os
from tune_dd.streams import run_main
def main():
    with open("kept", "w") as file:
        print("for nobody", flush=True)
        os.write(1, b"for nobody")
        return file.fileno() <= 2
raise SystemExit(run_main(main))
"""
    (tmp_path / "program.py").write_text(program)
    done = shell("PYTHON program.py <&- >&- 2>&-", tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "kept").read_text() == ""

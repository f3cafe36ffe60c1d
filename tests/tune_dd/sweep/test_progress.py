"""A search whose output nobody reads any more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tune_dd import artifacts


def test_a_search_goes_on_to_its_end_where_the_reader_of_its_pipe_has_gone(tiny_regime: Path) -> None:
    search = subprocess.Popen(
        [sys.executable, "-m", "tune_dd.sweep", "tiny.toml", "--device", "cpu"],
        cwd=tiny_regime.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert search.stdout is not None
    assert search.stderr is not None
    assert search.stdout.readline().startswith("regime")
    search.stdout.close()  # as head does, after its last line
    told = search.stderr.read()
    assert (search.wait(), told) == (0, "")
    (run,) = tiny_regime.parent.glob(f"ray_results/*/*/{artifacts.METRICS}")
    assert sum(1 for _ in artifacts.read_rows(run)) == 8
    assert (run.parent / artifacts.REPORT).exists()

"""A run's folder: its sealed config and the copy that it is restored from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tune_dd import artifacts
from tune_dd.sweep.runs import DamagedConfig, RunFolder

CONFIG = {"schema": artifacts.SCHEMA, "n_trials": 24}


def test_an_altered_config_is_refused_and_restored_from_its_copy(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_config(CONFIG)
    path = tmp_path / artifacts.CONFIG
    whole = path.read_bytes()
    for altered in (json.loads(whole) | {"n_trials": 25}, json.loads(whole) | {"more": 1}, CONFIG):
        path.write_text(json.dumps(altered))
        with pytest.raises(DamagedConfig, match="its checksum fails"):
            run.config()
        assert "restored from its copy" in str(run.mend_config())
        assert path.read_bytes() == whole
    assert run.mend_config() is None
    assert run.config()["n_trials"] == 24


def test_a_copy_that_was_altered_too_restores_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_config(CONFIG)
    altered = (tmp_path / artifacts.CONFIG).read_text().replace("24", "25")
    for path in tmp_path.iterdir():
        path.write_text(altered)
    with pytest.raises(DamagedConfig, match="its checksum fails"):
        run.mend_config()
    assert (tmp_path / artifacts.CONFIG).read_text() == altered

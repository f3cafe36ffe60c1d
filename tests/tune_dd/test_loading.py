"""How large libraries are loaded."""

from __future__ import annotations

import gc

import pytest

from tune_dd.loading import no_collection


def test_the_collector_rests_within_and_no_longer() -> None:
    assert gc.isenabled()
    with no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), no_collection():
        raise ImportError("no such library")
    assert gc.isenabled()

"""How large libraries are loaded."""

from __future__ import annotations

import gc
import subprocess
import sys

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


def test_a_deferred_library_is_loaded_once_it_is_used() -> None:
    code = (
        "import sys; from tune_dd.loading import deferred\n"
        "with deferred('wave', 'sys'):\n"
        "    import wave\n"
        "    from wave import Wave_read\n"
        "    assert isinstance(Wave_read, type)\n"
        "    assert sys.modules['sys'] is sys, 'what is loaded stays'\n"
        "assert 'wave' not in sys.modules\n"
        "assert not hasattr(wave, '__nothing__')\n"
        "assert 'wave' not in sys.modules\n"
        "assert wave.WAVE_FORMAT_PCM == 1\n"
        "assert sys.modules['wave'].Wave_read is wave.Wave_read is not Wave_read\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

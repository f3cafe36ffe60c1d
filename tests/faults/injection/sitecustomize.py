"""Makes a process fail at a chosen place. Python imports it at start where the tests put it on PYTHONPATH.

TUNE_DD_TEST_FAULT holds a JSON list of faults, {"kind": ..., ...} each. It reaches Ray's workers, which
inherit the environment; the product knows nothing of it.

    kill_at                   SIGKILL at the ``count``-th reach of ``point`` in a write of a path with ``file`` in it
    raise, nan, hang, kill    at step ``step`` of the trials on ``unique_tokens``
    slow                      every step of every trial takes ``seconds`` more
    count                     no fault: every step is told, so that the steps done twice are counted exactly

With ``once`` (a path) the fault strikes only where that file is missing, and makes it.
"""

import json
import os
import signal
import sys
import time


def _install(fault):
    def strikes():
        once = fault.get("once")
        if once is None:
            return True
        try:
            os.close(os.open(once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    if fault["kind"] == "kill_at":
        from tune_dd import artifacts

        seen = [0]

        def reach(point):
            if point != fault["point"]:
                return
            if fault.get("file") and fault["file"] not in str(sys._getframe(1).f_locals.get("path", "")):
                return
            seen[0] += 1
            if seen[0] == fault.get("count", 1) and strikes():
                die()

        artifacts.reach = reach
        return

    from tune_dd import stream

    sample = stream.sample_batch

    def sample_batch(tokens, unique_tokens, *args, **kwargs):
        if fault["kind"] == "slow":
            time.sleep(fault["seconds"])
        elif fault["kind"] == "count":
            if "tune_dd.trainable" in sys.modules:  # in a worker, that is
                sys.modules["tune_dd.trainable"]._HEARTBEAT_SECONDS = 0.0
        elif unique_tokens == fault["unique_tokens"] and kwargs["step"] == fault["step"] and strikes():
            if fault["kind"] == "raise":
                raise ValueError("made to fail")
            if fault["kind"] == "kill":
                die()
            if fault["kind"] == "hang":
                time.sleep(3600)
            if fault["kind"] == "nan":
                frame = sys._getframe(1)
                while not hasattr(frame.f_locals.get("self"), "model"):
                    frame = frame.f_back
                next(frame.f_locals["self"].model.parameters()).data.fill_(float("nan"))
        return sample(tokens, unique_tokens, *args, **kwargs)

    stream.sample_batch = sample_batch


if os.environ.get("TUNE_DD_TEST_FAULT"):
    for _fault in json.loads(os.environ["TUNE_DD_TEST_FAULT"]):
        _install(_fault)

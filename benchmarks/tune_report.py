"""``python -m benchmarks.tune_report N``: seconds of each of N reports of a row to Tune, as one line of JSON.

Timed in the worker: from the call until Tune's driver has processed the row and lets the trial go on. Ray is
started and Tune set up as a search does it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from typing import Any

from tune_dd.artifacts import COLUMNS
from tune_dd.sweep.scheduler import LOCAL_RAY_ENVIRONMENT, RAY_ENVIRONMENT

_PAUSE_SECONDS = 0.3  # between two reports, as training is


def reports(config: dict[str, Any]) -> None:
    """A trial that reports a row of full size again and again, and last how long each report took."""
    from ray import tune

    row = {name: kind(1) for name, kind in COLUMNS.items()}
    seconds: list[float] = []
    for _ in range(config["n"] + 1):
        time.sleep(_PAUSE_SECONDS)
        began = time.perf_counter()
        tune.report({**row, "seconds": list(seconds)})
        seconds.append(time.perf_counter() - began)


def main(n: int) -> None:
    os.environ.update(RAY_ENVIRONMENT | LOCAL_RAY_ENVIRONMENT)
    import ray
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback

    with tempfile.TemporaryDirectory() as storage:
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
        grid = tune.Tuner(
            reports,
            param_space={"n": n},
            run_config=tune.RunConfig(name="tune", storage_path=storage, verbose=0, callbacks=[JsonLoggerCallback()]),
        ).fit()
        found = grid[0].metrics["seconds"]
        ray.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""``python -m benchmarks.tune_report MODEL N``: what each of N read-outs of a model costs beside its training.

One line of JSON, seconds each: ``waited``, for which the training stands still (copying the state); ``until_reported``,
from the read-out until its journal is on disk and Tune has processed its row; ``cpu`` of the worker in that time; and
``driver_cpu`` of Tune's driver from one row to the next. Ray is started and Tune set up as a search does it.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tune_dd.artifacts import COLUMNS
from tune_dd.sweep.local_ray import LOCAL_RAY_ENVIRONMENT
from tune_dd.sweep.scheduler import RAY_ENVIRONMENT

_PAUSE_SECONDS = 0.3  # between two read-outs, for the training


def readouts(config: dict[str, Any]) -> None:
    """A trial that makes a read-out of full size again and again, and last tells what each took."""
    from ray import tune

    from benchmarks.trials import trial_run
    from tune_dd import journal
    from tune_dd.device import open_device
    from tune_dd.regimes import ModelSpec
    from tune_dd.trainable import Aside

    run = trial_run(ModelSpec.parse(config["model"]), open_device("cpu", 1))
    run.advance(2)
    row = {name: kind(1) for name, kind in COLUMNS.items()}
    found: dict[str, list[float]] = {"waited": [], "until_reported": [], "cpu": []}
    with tempfile.TemporaryDirectory() as name, Aside() as aside:
        for _ in range(config["n"] + 1):
            time.sleep(_PAUSE_SECONDS)
            began, cpu = time.perf_counter(), time.process_time()
            tensors, counters = run.state()

            def write(tensors: Any = tensors, counters: Any = counters) -> None:
                rows = [row] * (run.spec.n_readouts - 1)
                journal.write_journal(Path(name), run.spec, step=2, rows=rows, counters=counters, tensors=tensors)
                tune.report({**row, "found": {part: list(seconds) for part, seconds in found.items()}})

            aside.begin(write)
            waited = time.perf_counter() - began
            aside.finish()
            found["waited"].append(waited)
            found["until_reported"].append(time.perf_counter() - began)
            found["cpu"].append(time.process_time() - cpu)


def main(model: str, n: int) -> None:
    os.environ.update(RAY_ENVIRONMENT | LOCAL_RAY_ENVIRONMENT)
    import ray
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback

    stamps: list[float] = []

    class Stamps(tune.Callback):  # type: ignore[misc]  # Ray is untyped
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            stamps.append(time.process_time())

    with tempfile.TemporaryDirectory() as storage:
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
        grid = tune.Tuner(
            readouts,
            param_space={"n": n, "model": model},
            run_config=tune.RunConfig(
                name="tune", storage_path=storage, verbose=0, callbacks=[Stamps(), JsonLoggerCallback()]
            ),
        ).fit()
        found = grid[0].metrics["found"]
        ray.shutdown()
    # The first row is also the first use of much.
    driver = [after - before for before, after in itertools.pairwise(stamps)]
    print(json.dumps({part: seconds[1:] for part, seconds in found.items()} | {"driver_cpu": driver[1:]}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

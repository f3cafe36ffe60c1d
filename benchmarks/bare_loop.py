"""``python -m benchmarks.bare_loop RUN FOLDER``: the trials of a run's plan again, without Ray, into another folder.

One process per device of the plan takes the trials in the plan's order, one after the other.
"""

from __future__ import annotations

import functools
import multiprocessing
import sys
from pathlib import Path

from tune_dd.snapshots import Sharing
from tune_dd.sweep import plan as planning
from tune_dd.sweep.runs import RunFolder
from tune_dd.trainable import run_trial
from tune_dd.trial import RunContext, TrialSpec


def main(run_path: str, folder: str) -> None:
    run, bare = RunFolder(Path(run_path)), RunFolder(Path(folder).absolute())
    config = run.config()
    plan, specs = planning.from_config(config, run.path)
    for place in (bare.journals, bare.live):
        place.mkdir(parents=True)
    context = RunContext(
        folder=str(bare.path),
        cache_folder=config["data"]["cache_folder"],
        run_id=config["run_id"],
        phase=plan.phase,
        device=plan.device,
        n_threads=plan.n_threads,
        eval_tokens=plan.scale.eval_tokens,
    )
    sharing = Sharing.of(specs)
    waiting = {spec.trial_id for spec in specs}
    work = [(s, sharing.save_steps(s.trial_id, waiting), sharing.starts(s.trial_id)) for s in specs]
    with multiprocessing.get_context("spawn").Pool(plan.n_devices) as pool:
        finished = pool.map(functools.partial(take, context), work, chunksize=1)
    assert all(finished)


def take(context: RunContext, work: tuple[TrialSpec, list[int], list[str]]) -> bool:
    spec, save_steps, starts = work
    return run_trial(spec, context, lambda row: None, save_steps=save_steps, starts=starts)


if __name__ == "__main__":
    main(*sys.argv[1:])

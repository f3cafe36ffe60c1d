"""One trial as Tune runs it, in a worker. Without torch until a trial is there, since the scheduler imports it too."""

from __future__ import annotations

import os
from typing import Any


def train_trial(config: dict[str, Any]) -> None:
    """The Tune trainable. ``config`` holds ``trial`` ({id, spec}) and ``run`` (a RunContext).

    A trial that raises is recorded as crashed and ends: Ray may not try it again. A worker that dies
    is another matter: Tune starts the trial anew, and it goes on from its journal.
    """
    import torch
    from ray import tune

    from tune_dd import journal
    from tune_dd.arithmetic import DeviceMiscomputes
    from tune_dd.errors import UserError
    from tune_dd.trainable import Heartbeat, run_trial
    from tune_dd.trial import RunContext, TrialSpec

    run = RunContext(**config["run"])
    spec = TrialSpec.from_dict(config["trial"]["spec"])
    if journal.crash_path(run.journals, spec.trial_id).exists():
        return
    try:
        run_trial(
            spec,
            run,
            tune.report,
            save_steps=config["trial"].get("save_steps", ()),
            starts=config["trial"].get("starts", ()),
        )
    except UserError:
        raise
    except Exception as error:
        step = Heartbeat(run, spec).last_step()
        journal.record_crash(run.journals, spec, f"{type(error).__name__}: {error}", step)
        Heartbeat(run, spec).close()
        if isinstance(error, torch.AcceleratorError | DeviceMiscomputes):
            # The device is lost to this process, which would crash every trial that it gets: Ray starts another.
            os._exit(1)

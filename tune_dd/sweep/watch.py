"""What Tune tells of its trials, passed on to the command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune

from tune_dd.errors import UserError
from tune_dd.sweep.events import send


class Watch(tune.Callback):  # type: ignore[misc]  # Ray is untyped
    """Tells the command of trials that failed; rows it reads from the journals itself."""

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._tell(trial, final=False)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._tell(trial, final=True)

    def on_experiment_end(self, trials: Any, **info: Any) -> None:
        # Now, not when Tune has read what it wrote: nobody reads its results. Tune calls this as it handles its own
        # failure, too, which is no end.
        if sys.exc_info()[0] is None:
            send("done")

    def _tell(self, trial: Any, *, final: bool) -> None:
        error = _error_of(trial)
        cause = getattr(error, "cause", error)
        send(
            "trial_failed",
            trial_id=trial.config["trial"]["id"],
            kind="user" if isinstance(cause, UserError) else "worker",
            final=final,
            message=" ".join(str(cause if cause is not None else "its worker died").split())[:500],
        )


def _error_of(trial: Any) -> Any:
    """What ended the trial, None where nothing says so.

    From the driver's own folder: ``trial.get_pickled_error`` looks where Tune copies that folder to, and it is told not
    to (``TUNE_GLOBAL_CHECKPOINT_S``).
    """
    file = trial.pickled_error_file
    try:
        return cloudpickle.loads(Path(file).read_bytes()) if file else None
    except OSError:
        return None

"""Events that the scheduler process sends to the command, one line of JSON each."""

from __future__ import annotations

import json
from typing import Any, TextIO

from ray import tune

from tune_dd.errors import UserError

# Of the module, not of the callback: Tune pickles its callbacks, and a pipe cannot be pickled.
_pipe: TextIO | None = None


def open_events(pipe: TextIO) -> None:
    global _pipe
    _pipe = pipe


def send(event: str, **fields: Any) -> None:
    """Send one event, if anyone listens."""
    if _pipe is not None:
        _pipe.write(json.dumps({"event": event, **fields}) + "\n")
        _pipe.flush()


class Watch(tune.Callback):  # type: ignore[misc]  # Ray is untyped
    """Tells the command of trials that failed; rows it reads from the journals itself."""

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._tell(trial, final=False)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._tell(trial, final=True)

    def _tell(self, trial: Any, *, final: bool) -> None:
        error = trial.get_pickled_error()
        cause = getattr(error, "cause", error)
        send(
            "trial_failed",
            trial_id=trial.config["trial"]["id"],
            kind="user" if isinstance(cause, UserError) else "worker",
            final=final,
            message=" ".join(str(cause if cause is not None else "its worker died").split())[:500],
        )

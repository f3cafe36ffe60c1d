"""Events that the scheduler process sends to the command, one line of JSON each."""

from __future__ import annotations

import json
from typing import Any, TextIO

# Of the module, not of the callback that tells of trials: Tune pickles its callbacks, and a pipe cannot be pickled.
_pipe: TextIO | None = None


def open_events(pipe: TextIO) -> None:
    global _pipe
    _pipe = pipe


def send(event: str, **fields: Any) -> None:
    """Send one event, if anyone listens."""
    if _pipe is not None:
        _pipe.write(json.dumps({"event": event, **fields}) + "\n")
        _pipe.flush()

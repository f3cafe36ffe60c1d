"""How large libraries are loaded."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Import within it what makes many objects that stay: to look through them again and again is a fifth of torch's
    import."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

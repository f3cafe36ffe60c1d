"""How large libraries are loaded."""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Import within it what makes many objects that stay: to look through them again and again is a fifth of torch's
    import."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def deferred(*names: str) -> Iterator[None]:
    """Within it an import of these libraries gives a stand-in, which loads the library once it is used afterwards.

    For libraries that another one imports and seldom uses. What is asked of a stand-in within, the types of
    annotations, is an empty class for good. A library that is loaded already stays as it is.
    """
    stand_ins = [_Deferred(name) for name in names if name not in sys.modules]
    sys.modules.update({stand_in.__name__: stand_in for stand_in in stand_ins})
    try:
        yield
    finally:
        for stand_in in stand_ins:
            del sys.modules[stand_in.__name__]


class _Deferred(ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # a package, none of whose modules is found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            return type(name, (), {})
        return getattr(importlib.import_module(self.__name__), name)

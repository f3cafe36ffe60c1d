"""The embedded corpus: English technical prose that every installation has, offline.

Docstrings of the standard library and of installed packages, and the language reference's topics, some
28 MB; fixed by the pinned versions. Docstrings repeat each other across modules of one package, so a random
split would leak (22 % of validation 13-grams were seen in training). Validation is therefore one whole
package, which shares nearly nothing with the others.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tune_dd.corpus import docstrings
from tune_dd.errors import UserError

HELD_OUT = "networkx"
PACKAGES = ("numpy", "pandas", "torch", "matplotlib", "ray", "scipy", "sympy", HELD_OUT, "optuna")
STANDARD_LIBRARY = "python"
HARVEST = 1  # raise it when the rules here change, so that caches are built anew

# Test code has few docstrings, costs a fifth of the parsing, and is not installed everywhere.
SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
# Licences stand word for word in several packages, the held-out one among them, and are not prose.
_LICENCES = ("Redistribution and use in source and binary forms", "Permission is hereby granted, free of charge")
_FILES_PER_TASK = 400


@dataclass(frozen=True)
class Docstring:
    """One document of the corpus and the package that it is from."""

    package: str
    text: str


def versions() -> list[dict[str, Any]]:
    """What fixes the corpus: the version of each package that is harvested.

    Raises:
        UserError: a package is not installed.
    """
    found = [{"package": STANDARD_LIBRARY, "version": platform.python_version(), "harvest": HARVEST}]
    for name in PACKAGES:
        try:
            found.append({"package": name, "version": importlib.metadata.version(name)})
        except importlib.metadata.PackageNotFoundError:
            raise UserError(
                f"{name} is not installed, and its docstrings are part of pydocs: pip install {name}"
            ) from None
    return found


def harvest(n_workers: int, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Docstring]:
    """All documents, licences and exact duplicates dropped, in the order of their content hash.

    That order makes every prefix a fair sample of all packages. Of a text that the held-out package shares
    with another one, the held-out package keeps the only copy.

    Args:
        n_workers: processes that parse side by side; the result does not depend on it.
        progress: called with files done and files in all.

    Raises:
        UserError: a package is not installed, or its sources cannot be read.
    """
    tasks = [task for package, root in roots() for task in _tasks(package, root)]
    n_files = sum(len(files) for _, files in tasks)
    documents = [Docstring(STANDARD_LIBRARY, text) for text in _topics() if len(text) > docstrings.MIN_CHARACTERS]
    done = 0
    with ThreadPoolExecutor(n_workers, thread_name_prefix="pydocs") as pool:
        try:
            for (package, files), texts in zip(tasks, pool.map(_parse, tasks), strict=True):
                documents += (Docstring(package, text) for text in texts)
                done += len(files)
                progress(done, n_files)
        except BaseException:  # Ctrl-C above all: do not parse the rest first
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    unique: dict[bytes, Docstring] = {}
    for document in documents:
        if any(words in document.text for words in _LICENCES):
            continue
        key = blake2b(document.text.encode(), digest_size=16).digest()
        if key not in unique or document.package == HELD_OUT:
            unique[key] = document
    return [unique[key] for key in sorted(unique)]


def roots() -> list[tuple[str, Path]]:
    """(package, folder of its sources) of every package harvested, found without importing any."""
    found = [(STANDARD_LIBRARY, Path(sysconfig.get_path("stdlib")))]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"{name} is not installed, and its docstrings are part of pydocs: pip install {name}")
        found.append((name, Path(next(iter(spec.submodule_search_locations)))))
    return found


def _tasks(package: str, root: Path) -> Iterator[tuple[str, list[str]]]:
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in SKIPPED_FOLDERS)
        files += [f"{folder}/{name}" for name in sorted(names) if name.endswith(".py")]
    for first in range(0, len(files), _FILES_PER_TASK):
        yield package, files[first : first + _FILES_PER_TASK]


def _parse(task: tuple[str, list[str]]) -> list[str]:
    """Docstrings of some files, parsed by a process of their own: parsing holds the interpreter lock.

    Not multiprocessing: its workers import the main module again, and with it Ray and torch.
    """
    package, files = task
    command = [sys.executable, "-I", docstrings.__file__]
    result = subprocess.run(command, input="\n".join(files).encode(), capture_output=True, check=False)
    if result.returncode:
        reason = (result.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"cannot harvest the docstrings of {package} ({reason}): reinstall it")
    return [text for line in result.stdout.splitlines() for text in json.loads(line)]


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name].strip() for name in sorted(topics)]

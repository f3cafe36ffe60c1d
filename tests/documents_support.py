"""The commands of the documents: where they stand, and how each of them is held to what it says.

A documented command is in exactly one of three places:

- a ``Run`` of documented_runs.py: a test runs it, with the substitutions that stand beside it;
- ``STEPS`` there: a phase of the chain that a test runs, which parses these words and writes them into config.json;
- the table under ``HEADING`` in REPRODUCING.md: it needs hardware, hours, a quiet machine, or cannot run in itself.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests_support import REPOSITORY

from tune_dd import artifacts, journal

NAMED = [REPOSITORY / name for name in ("README.md", "REPRODUCING.md", "CHANGELOG.md")]
DOCUMENTS = [*NAMED, *sorted((REPOSITORY / "docs").glob("*.md"))]
HEADING = "## What no test runs to its end"
# In a block, a line; in running text, what stands between backquotes, which may be broken over two lines.
_COMMAND = r"(?:[A-Z_]+=\S+ )?(?:python -m|make)"
_LINE = re.compile(rf"^{_COMMAND} .*", re.MULTILINE)
_QUOTED = re.compile(rf"`({_COMMAND}\s[^`]*)`")
_TIME = re.compile(r"\b\d{8}-\d{6}\b")


def documented() -> dict[str, list[str]]:
    """Every command, normalised -> the names of the documents that have it, the table itself left out."""
    found: dict[str, list[str]] = {}
    for document in DOCUMENTS:
        before, _, rest = document.read_text(encoding="utf-8").partition(HEADING)
        for command in commands(before + re.sub(r"\A.*?(?=^## |\Z)", "", rest, flags=re.MULTILINE | re.DOTALL)):
            found.setdefault(command, []).append(document.name)
    return found


def listed() -> list[str]:
    """The commands of the table's first column, in its order."""
    _, heading, rest = (REPOSITORY / "REPRODUCING.md").read_text(encoding="utf-8").partition(HEADING)
    assert heading
    rows = re.split(r"^## ", rest, maxsplit=1, flags=re.MULTILINE)[0].splitlines()
    return [command for row in rows if row.startswith("|") for command in commands(row.split("|")[1])]


def commands(text: str) -> Iterable[str]:
    for found in (*_LINE.findall(text), *_QUOTED.findall(text)):
        yield normalised(found.split(" #")[0])


def normalised(command: str) -> str:
    """One space between words, no dots of "and so on", and TIMESTAMP for when a run of ours was begun."""
    return _TIME.sub("TIMESTAMP", shlex.join(word for word in shlex.split(command.replace("\n", " ")) if word != "..."))


@dataclass(frozen=True)
class Run:
    """A command that a test runs.

    Attributes:
        documented: as the documents have it. ``{REGIME}`` stands for each regime in ``regimes``.
        put: a word of it -> the words that stand there in the test; ``@GROUP`` is the newest run of ray_results/GROUP,
            and what ``{REGIME}`` is within a longer word, such as a path, is ``name``.
        more: words appended, of which a later one outdoes an earlier; they make it small, or name a device.
        prints: a pattern that its output holds.
        leaves: a pattern of files, of which at least one is there afterwards and new.
        also: documented commands that this one holds too: their options are among its own, and they differ in
            placeholders, values, number of values, or in whose text is read.
        regimes: the regimes in whose name the documents have it.
        lose: GROUP whose newest run loses a finished trial beforehand, so that there is something to do.
        crash: whether that trial is recorded as crashed instead.
        name: of the regime that stands in their place.
    """

    documented: str
    prints: str
    leaves: str = ""
    put: dict[str, str] = field(default_factory=dict)
    more: str = ""
    also: tuple[str, ...] = ()
    regimes: tuple[str, ...] = ()
    lose: str = ""
    crash: bool = False
    name: str = ""

    @property
    def held(self) -> list[str]:
        return [*every(self.documented, self.regimes), *self.also]

    def words(self, folder: Path) -> list[str]:
        """What is run in a folder."""
        put = [
            word
            for documented in shlex.split(self.documented)
            for word in shlex.split(self.put.get(documented, documented.replace("{REGIME}", self.name)))
        ]
        return [_run_of(word, folder) for word in (*put, *shlex.split(self.more))]

    def check(self, folder: Path) -> None:
        """Run it there, as a user does, and hold it to its exit code, to what it prints and to the files it leaves."""
        if self.lose:
            lose_a_trial(newest(folder, self.lose), crash=self.crash)
        before = {path: path.stat().st_mtime_ns for path in folder.glob(self.leaves)} if self.leaves else {}
        words = self.words(folder)
        assert words[0] == "python"
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=280,
        )
        told = f"{self.documented}\nrun as: {shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, told
        assert re.search(self.prints, done.stdout), f"{self.prints} is not in what it prints: {told}"
        if self.leaves:
            after = [path for path in folder.glob(self.leaves) if path.stat().st_mtime_ns != before.get(path)]
            assert after, f"no new {self.leaves}: {told}"
            assert all(path.stat().st_size for path in after), told


def newest(folder: Path, group: str) -> Path:
    return max((folder / "ray_results" / group).glob("[0-9]*-[0-9]*"), key=lambda path: path.name)


def _run_of(word: str, folder: Path) -> str:
    if not word.startswith("@"):
        return word
    group, slash, rest = word[1:].partition("/")
    return f"{newest(folder, group).relative_to(folder)}{slash}{rest}"


def lose_a_trial(run: Path, *, crash: bool) -> None:
    """Take a finished trial out of a run's memory, as a lost file or a crash does."""
    journals = run / artifacts.JOURNALS
    path = min(journals.glob(f"*{journal.SUFFIX}"))
    lost = journal.read_journal(path)
    path.unlink()
    if crash:
        told = {"trial": lost.trial_id, "reason": "made to fail", "step": 1}
        artifacts.write_json(journal.crash_path(journals, lost.trial_id), told)


def every(template: str, regimes: Iterable[str]) -> list[str]:
    return [template.replace("{REGIME}", name) for name in regimes] or [template]

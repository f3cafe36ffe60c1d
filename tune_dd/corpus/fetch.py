"""The text of the built-in regimes: where the hub has it, where it goes here, and the record that pins it.

The first fetch asks for the commit that ``TEXTS`` names, or, where it names none, for the one that the branch stands
for, and writes ``SOURCE.json`` beside the file: repository, revision, commit, the hub's SHA-256, size and time. From
then on that record is the pin: a file is held against it, and a lost one is fetched again at that commit or refused.
"""

from __future__ import annotations

import datetime
import glob
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tune_dd import artifacts
from tune_dd.builtin_regimes import REGIMES
from tune_dd.corpus import hub
from tune_dd.corpus.bars import Report
from tune_dd.corpus.cache import file_hash, locked
from tune_dd.corpus.hub import HubFile, Resolved
from tune_dd.corpus.sources import RECORD
from tune_dd.errors import UserError
from tune_dd.regimes import Regime

DATA_DIR = Path("data")


@dataclass(frozen=True)
class RegimeText:
    """The one file of a regime on the hub, and its place under the data folder.

    Attributes:
        file: by its branch, which ``--update`` follows.
        commit: 40 hex digits, asked for where no record says another; None: what the branch stands for then.
    """

    file: HubFile
    target: Path
    commit: str | None = None

    def under(self, data_dir: Path) -> Path:
        return data_dir / self.target


# The two commits were read from other projects' code, which pins these data sets by them: the hub itself was not asked.
# Nobody was found to name one of openwebtext-10k's converted branch.
TEXTS: dict[str, RegimeText] = {
    "owt": RegimeText(
        HubFile("stas/openwebtext-10k", "refs/convert/parquet", "plain_text/train/0000.parquet"),
        Path("openwebtext10k", "0000.parquet"),
    ),
    # The names on the hub end in a hash of their own.
    "tinystories": RegimeText(
        HubFile("roneneldan/TinyStories", "main", "data/train-00000-of-00004*.parquet"),
        Path("tinystories", "train-00000-of-00004.parquet"),
        commit="f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
    ),
    "wikitext103": RegimeText(
        HubFile("Salesforce/wikitext", "main", "wikitext-103-raw-v1/train-00001-of-00002.parquet"),
        Path("wikitext103_raw", "train-00001-of-00002.parquet"),
        commit="b08601e04326c79dfdd32d625aee71d232d685c3",
    ),
}

# (label) -> a context that gives the report of a transfer.
Bar = Callable[[str], AbstractContextManager[Report]]
Say = Callable[[str], None]


def read_record(target: Path) -> dict[str, Any] | None:
    """What SOURCE.json beside a file says of it; None if it says nothing.

    Raises:
        UserError: the record cannot be read.
    """
    path = target.with_name(RECORD)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("file") != target.name:
            return None  # of another file, or somebody else's
        return {key: data[key] for key in ("repo", "revision", "commit", "path", "sha256", "size", "fetched")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is damaged: delete it and fetch again, which compares the file with the hub's"
        ) from None


def check_record(target: Path, record: dict[str, Any] | None, sha256: str) -> None:
    """Hold a file's hash against its record.

    Raises:
        UserError: they differ.
    """
    if record is not None and record["sha256"] != sha256:
        raise UserError(
            f"{target} is not the file that {RECORD} beside it records (commit {record['commit'][:12]}): it was "
            "damaged or replaced; delete the file and fetch it again, or delete the record to use the file as it is"
        )


def fetch(name: str, data_dir: Path, *, update: bool, say: Say, bar: Bar) -> None:
    """Bring a regime's text up to its record or its pinned commit; says how much before it does.

    Args:
        name: a key of ``TEXTS``.
        update: take what the branch stands for now, whatever is recorded or pinned, and write a new record.

    Raises:
        Unreachable: the hub cannot be asked; what came of a file is kept.
        UserError: what is there or what the hub has is not what was recorded, or the disk refuses.
    """
    text = TEXTS[name]
    target = text.under(data_dir)
    record = None if update else read_record(target)
    if record is not None and target.exists():
        check_record(target, record, _hash(target))
        say(f"{name}: {target} is there, as recorded (commit {record['commit'][:12]})")
        return
    # Before anything is made, so that a refusal leaves nothing.
    found = hub.resolve(text.file) if update else _resolve(name, record)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise hub.cannot_write(target.parent, error) from None
    with locked(target.parent, "fetching a file"):
        if target.exists() and _hash(target) == found.sha256:
            say(f"{name}: {target} is there, and is the hub's (commit {found.commit[:12]})")
        elif target.exists() and not update:
            raise UserError(
                f"{target} has no record and is not the hub's file (commit {found.commit[:12]}): --update replaces it "
                "by what the hub has now, or leave it there to use it as it is"
            )
        else:
            have = partial_bytes(hub.partial_path(target, found.sha256))
            there = f", of which {have / 1e6:,.1f} MB are there" if have else ""
            say(
                f"{name}: fetching {found.size / 1e6:,.1f} MB{there}: {found.path} of {found.repo} "
                f"(commit {found.commit[:12]}) to {target}"
            )
            with bar(target.name) as report:
                hub.download(found, target, report)
            say(f"{name}: {target} has the hub's SHA-256, {found.sha256[:12]}...")
        _write_record(target, found)


def is_missing(regime: Regime) -> bool:
    """Whether this regime reads a text that the hub has, no other one, and none of it is here."""
    if regime.name not in TEXTS or regime.corpus.globs != REGIMES[regime.name].corpus.globs:
        return False
    return not any(glob.glob(pattern) for pattern in regime.corpus.globs)  # noqa: PTH207


def ensure_text(regime: Regime, *, offline: bool, say: Say, bar: Bar) -> None:
    """Fetch a built-in regime's text if none of it is in the folder where the regime looks for it.

    Raises:
        UserError: it is missing and may not or cannot be fetched; the message names the ways out.
    """
    if not is_missing(regime):
        return
    folder = TEXTS[regime.name].under(DATA_DIR).parent
    try:
        if offline:
            raise hub.Unreachable("--offline")
        fetch(regime.name, DATA_DIR, update=False, say=say, bar=bar)
    except hub.Unreachable as why:
        raise UserError(
            f"the text of {regime.name} is not in {folder} and was not fetched ({why}): fetch it where there is a "
            f"network (python -m tune_dd.corpus fetch {regime.name}) and copy {folder} here; or name your own text "
            "with --corpus-glob; or rehearse on the embedded corpus with --quick"
        ) from None


def partial_bytes(partial: Path) -> int:
    return partial.stat().st_size if partial.exists() else 0


def verify(name: str, data_dir: Path) -> str:
    """Hold a regime's file against its record; returns what there is to say.

    Raises:
        UserError: they differ.
    """
    target = TEXTS[name].under(data_dir)
    if not target.exists():
        return f"{name}: {target} is not there"
    record = read_record(target)
    if record is None:
        return f"{name}: {target} has no record: python -m tune_dd.corpus fetch {name} compares it with the hub"
    check_record(target, record, _hash(target))
    return f"{name}: {target} is as recorded (commit {record['commit'][:12]}, SHA-256 {record['sha256'][:12]})"


def _resolve(name: str, record: dict[str, Any] | None) -> Resolved:
    """A regime's file at the recorded commit, or else at the pinned one, or else at what its branch stands for now."""
    text = TEXTS[name]
    if record is not None:
        asked, commit, whose = HubFile(record["repo"], record["revision"], record["path"]), record["commit"], RECORD
    elif text.commit is not None:
        asked, commit, whose = text.file, text.commit, "this program"
    else:
        return hub.resolve(text.file)
    now = f"python -m tune_dd.corpus fetch {name} --update takes what the hub has now"
    try:
        found = hub.resolve(replace(asked, revision=commit))
    except hub.Gone:
        raise UserError(
            f"commit {commit[:12]} of {asked.repo}, which {whose} names, is not on the hub (any more), or has no "
            f"{asked.path}: {now}"
        ) from None
    if record is not None and found.sha256 != record["sha256"]:
        raise UserError(
            f"the hub has another file than {RECORD} records for {asked.path} of {asked.repo} at commit "
            f"{commit[:12]}: {now}"
        )
    return replace(found, revision=asked.revision)


def _write_record(target: Path, found: Resolved) -> None:
    fetched = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    try:
        artifacts.write_json(target.with_name(RECORD), {"file": target.name, "fetched": fetched, **asdict(found)})
    except UserError as refused:
        if isinstance(refused.__cause__, OSError):
            raise hub.cannot_write(target.parent, refused.__cause__) from None
        raise


def _hash(target: Path) -> str:
    try:
        return file_hash(target)
    except OSError as error:
        raise UserError(f"cannot read {target} ({error.strerror or error}): make it readable") from None

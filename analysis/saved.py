"""Saved evidence: ``python -m analysis save`` copies what a finished run or chain found to where it is kept.

Tables and JSON only: no weights, no pages, no pictures. What is saved is enough for every command of this package
and for ``python -m analysis.paper``. No absolute path of the machine is left in it: paths below the folder that a run
was started in become relative to that folder, of others the last two parts stay. A sealed file whose text changes by
that is sealed anew, and config.json keeps its first seal under ``saved``. What programs read is written without JSON's
blanks, which are a third of it, and timings with two decimals.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tune_dd.arguments import OneLineParser
from tune_dd.artifacts import (
    COEFFICIENTS,
    CONFIG,
    LEDGER,
    METRICS,
    SUGGESTIONS,
    checksum,
    ledger_statuses,
    planned_trials,
    read_json,
    sync_folder,
)
from tune_dd.console import Console
from tune_dd.errors import UserError

SAVED = Path("ray_results/saved")
CHAIN, LAW = "chain.json", "law"
# Not summary.csv and summary.json: means of what metrics.jsonl has, which `python -m analysis` writes again, as it does
# model_selection.json and comparison.json, which say what the tables do.
TABLES = ("model_selection.csv", "comparison.csv", "search.csv", "search.json")
RUN_FILES = (
    CONFIG,
    METRICS,
    LEDGER,
    "decision.json",
    "predictions.json",
    SUGGESTIONS,
    COEFFICIENTS,
    *TABLES,
)
# With JSON's blanks: what people read, and coefficients, which the predictions made by them name by their hash.
WITH_BLANKS = (CHAIN, "decision.json", COEFFICIENTS)
CHAIN_FILES = (CHAIN, COEFFICIENTS, *TABLES)
KEPT_PARTS = 2  # of a path outside the working folder: enough to tell which file was meant
# An absolute path inside a sentence; not the slash of a URL, a DOI or a ratio.
_IN_TEXT = re.compile(r"(?:(?<=^)|(?<=[\s\"'(=,:\[]))/(?=[\w.~])[^\s\"',;:)\]]+")
_WHOLE = re.compile(r"(?:file://)?/[^\s/].*")
_TIMING = re.compile(r'("(?:train_seconds|tokens_per_second)":)(\d+\.\d{3,})(?=[,}])')
_RELEASE = re.compile(r"^(\w+)-.+?-(x86_64|AMD64|aarch64|arm64)")  # of platform.platform(): the kernel's release


@dataclass(frozen=True)
class Paths:
    """How paths are shortened. ``roots``: working folders, absolute and normalised, the longest first."""

    roots: tuple[str, ...]

    @classmethod
    def of(cls, config: dict[str, Any]) -> Paths:
        """The folder that a run was started in (its cache lies below it) and the one that we are in."""
        roots = {str(Path.cwd())}
        data = config.get("data")
        cache = data.get("cache_folder") if isinstance(data, dict) else None
        if isinstance(cache, str) and "/.cache/" in cache:
            roots.add(cache.partition("/.cache/")[0])
        return cls(tuple(sorted((root for root in roots if root.strip("/")), key=len, reverse=True)))

    def short(self, path: str) -> str:
        """A path without the machine in it. What is relative and stays below the working folder is left as it is."""
        if path.startswith("file://"):
            path = path.removeprefix("file://")
        whole = os.path.normpath(path)
        if not whole.startswith(("/", "..")):
            return path
        for root in self.roots:
            if whole == root or whole.startswith(root + "/"):
                return os.path.relpath(whole, root)
        parts = [part for part in PurePosixPath(whole).parts if part not in ("/", "..")]
        return "/".join(["...", *parts[-KEPT_PARTS:]])

    def command(self, line: str) -> str:
        """A command line, word by word; a word that cannot be split is taken as text."""
        try:
            words = shlex.split(line)
        except ValueError:
            return self.text(line)
        return shlex.join(self.word(word) for word in words)

    def word(self, word: str) -> str:
        """``PATH`` or ``--option=PATH``."""
        option, equals, value = word.partition("=")
        if equals and option.startswith("-"):
            return f"{option}={self.word(value)}"
        return self.short(word) if _WHOLE.fullmatch(word) or word.startswith("../") else word

    def text(self, text: str) -> str:
        """A sentence, a line of a table. Whole roots first: a folder's name may hold a blank."""
        for root in self.roots:
            text = text.replace(f"{root}/", "")
        return _IN_TEXT.sub(lambda match: self.short(match[0]), text)

    def value(self, value: Any, key: str = "") -> Any:
        """The same JSON value with every string shortened."""
        if isinstance(value, dict):
            return {name: self.value(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.value(inner, key) for inner in value]
        if not isinstance(value, str):
            return value
        if key == "command":
            return self.command(value)
        if key == "platform":
            return _RELEASE.sub(r"\1-\2", value)
        return self.short(value) if _WHOLE.fullmatch(value) or value.startswith("../") else self.text(value)


def save(sources: Sequence[Path | str], to: Path | str = SAVED) -> list[Path]:
    """Copy finished runs, and finished chains with the runs of all their phases.

    A copy lies in ``to``/<regime>-<phase>-<scale>/<name of the folder>. One that is there already is left alone if it
    is the same and replaced whole if it is not.

    Returns:
        The copies, in order; of a chain its runs first.

    Raises:
        UserError: a source is no run or chain, or is not finished; the disk is full or not writable. Nothing is
            written before every source is checked, and each copy appears whole or not at all.
    """
    copies: dict[Path, dict[str, bytes]] = {}
    for source in (Path(path).resolve() for path in sources):
        for folder, files in (
            chain_copies(source, Path(to)) if (source / CHAIN).is_file() else run_copy(source, Path(to))
        ).items():
            for known in (copies.get(folder), held(folder)):
                if known and not same_origin(known, files):
                    raise UserError(
                        f"{folder} would be a copy of another run, too: rename {source}, or name another --to"
                    )
            copies[folder] = files
    for folder, files in copies.items():
        write_copy(folder, files)
    return list(copies)


def same_origin(one: dict[str, bytes], other: dict[str, bytes]) -> bool:
    """Whether two copies are of one run or chain, which may have grown between them."""

    def origin(files: dict[str, bytes]) -> Any:
        if CHAIN in files:
            return json.loads(files[CHAIN])["runs"].get("screen")
        config = json.loads(files[CONFIG])
        return config.get("run_id"), config.get("created")

    return (CHAIN in one) == (CHAIN in other) and bool(origin(one) == origin(other))


def run_copy(run: Path, to: Path) -> dict[Path, dict[str, bytes]]:
    """Where a run's copy lies, and its files."""
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} has no {CONFIG}: name the folder of a run or chain, as `tune_dd.sweep` printed it")
    config = read_json(run / CONFIG)
    try:
        group = f"{config['regime']['name']}-{config['phase']}-{config['scale_name']}"
        planned = planned_trials(run, config)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{run / CONFIG} is not that of a run: restore it or name another folder") from None
    if config.get("checksum") != checksum(config):
        raise UserError(f"{run / CONFIG} was altered (its checksum fails): restore it from its copy")
    ended = ledger_statuses(run)
    if ended is None or len(ended) < planned or not (run / METRICS).is_file():
        far = "it has not ended" if ended is None else f"{len(ended)} of {planned} trials"
        raise UserError(f"{run} is not finished ({far}): finish it with --resume, then save it")
    # A hold-out's own cells are few; `python -m analysis` writes what law they give again.
    names = [name for name in RUN_FILES if not (name == COEFFICIENTS and config.get("coefficients"))]
    return {to / group / run.name: shortened_files(run, names, Paths.of(config))}


def chain_copies(chain: Path, to: Path) -> dict[Path, dict[str, bytes]]:
    """Where a chain's copy and those of its phases' runs lie, and their files; the chain last."""
    record = read_json(chain / CHAIN)
    if not isinstance(record, dict) or not isinstance(record.get("runs"), dict) or not record["runs"]:
        raise UserError(f"{chain / CHAIN} is damaged or has no runs yet: name a finished chain")
    if not record.get("finished"):
        raise UserError(f"{chain} is not finished: finish it with --phase all --resume, then save it")
    copies: dict[Path, dict[str, bytes]] = {}
    places = {}
    for phase, relative in record["runs"].items():
        made = run_copy((chain / relative).resolve(), to)
        copies |= made
        places[phase] = next(iter(made))
    config = json.loads(copies[next(iter(places.values()))][CONFIG])
    folder = to / f"{config['regime']['name']}-all-{config['scale_name']}" / chain.name
    paths = Paths.of(read_json((chain / next(iter(record["runs"].values()))).resolve() / CONFIG))
    files = shortened_files(chain, CHAIN_FILES, paths)
    inner = shortened_files(chain / LAW, CHAIN_FILES, paths) if (chain / LAW).is_dir() else {}
    files |= {f"{LAW}/{name}": data for name, data in inner.items()}
    runs = {phase: Path(os.path.relpath(place, folder)).as_posix() for phase, place in places.items()}
    files[CHAIN] = to_json(json.loads(files[CHAIN]) | {"runs": runs}, CHAIN)
    return copies | {folder: files}


def shortened_files(folder: Path, names: Sequence[str], paths: Paths) -> dict[str, bytes]:
    """The files of a folder that there are, to the value as they were but for paths and the last digits of timings."""
    files = {}
    for name in names:
        if (folder / name).is_file():
            shorten = shortened_json if name.endswith(".json") else shortened_text
            files[name] = shorten(folder / name, paths)
    return files


def shortened_text(path: Path, paths: Paths) -> bytes:
    try:
        lines = path.read_bytes().decode().split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: restore it or move it away") from None
    short = "\n".join(paths.text(line) for line in lines)
    return (short_timings(short) if path.name == METRICS else short).encode()


def short_timings(rows: str) -> str:
    """Lines of metrics.jsonl whose timings have two decimals: the others are noise, and a twentieth of a saved run."""
    return _TIMING.sub(lambda match: f"{match[1]}{float(match[2]):.2f}", rows)


def shortened_json(path: Path, paths: Paths) -> bytes:
    value = read_json(path)
    short = paths.value(value)
    if short == value and path.name in WITH_BLANKS:
        return path.read_bytes()
    if short != value and isinstance(short, dict) and "checksum" in short:
        if path.name == CONFIG:
            short["saved"] = {"original_checksum": value["checksum"]}
        short["checksum"] = checksum(short)
    return to_json(short, path.name)


def to_json(value: Any, name: str) -> bytes:
    layout: dict[str, Any] = {"indent": 2} if name in WITH_BLANKS else {"separators": (",", ":")}
    return (json.dumps(value, sort_keys=True, allow_nan=False, **layout) + "\n").encode()


def write_copy(folder: Path, files: dict[str, bytes]) -> None:
    """The files as a folder, whole or not at all."""
    if held(folder) == files:
        return
    temp = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    former = folder.with_name(f".{folder.name}.{os.getpid()}.former")
    try:
        shutil.rmtree(temp, ignore_errors=True)
        for name, data in files.items():
            (temp / name).parent.mkdir(parents=True, exist_ok=True)
            with open(temp / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            os.replace(folder, former)
        os.replace(temp, folder)
        sync_folder(folder.parent)
        shutil.rmtree(former, ignore_errors=True)
    except OSError as error:
        if former.exists() and not folder.exists():
            os.replace(former, folder)
        reason = error.strerror or str(error)
        raise UserError(f"cannot write {folder} ({reason}): make space, or name another folder with --to") from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def held(folder: Path) -> dict[str, bytes]:
    """The files that ``save`` writes, of a folder; empty where there is none."""
    names = [*RUN_FILES, *CHAIN_FILES, *(f"{LAW}/{name}" for name in CHAIN_FILES)]
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def save_command(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    console = Console()
    for copy in save(options.sources, options.to):
        console.print(f"Saved: {copy}", soft_wrap=True)
    return 0


def parser() -> OneLineParser:
    result = OneLineParser(prog="python -m analysis save", description=__doc__)
    add = result.add_argument
    add("sources", nargs="+", type=Path, metavar="RUN_OR_CHAIN", help="finished runs, or chains of --phase all")
    add("--to", type=Path, default=SAVED, metavar="FOLDER", help="where saved runs are kept (default: %(default)s)")
    return result

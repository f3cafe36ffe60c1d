"""A user's own regime from a TOML file; docs/regime_file.md documents every key."""

from __future__ import annotations

import dataclasses
import glob
import re
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

from tune_dd.builtin_regimes import POCKET, REGIMES
from tune_dd.errors import UserError
from tune_dd.regimes import SCALES, CorpusSource, ModelSpec, Protocol, Regime, Scale

_TOKEN_FIELDS = ("train_tokens", "validation_tokens", "eval_tokens")
_TOKEN_LISTS = ("prefixes", "readouts", "stream_prefixes")
_MODEL_LISTS = ("models", "calibration_models", "screen_models")
_NUMBER_LISTS = ("dropouts", "stream_dropouts")
_WHOLE_LISTS = ("seeds", "stream_seeds")


def parse_tokens(value: str | int, what: str) -> int:
    """A count of tokens: ``4k`` is 4,000, ``1.5M`` is 1,500,000, ``65536`` is itself.

    Raises:
        UserError: it is not a positive whole number of tokens.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmM]?)", str(value).strip())
    if found:
        factor = {"": 1, "k": 1_000, "m": 1_000_000}[found[2].lower()]
        count = Decimal(found[1]) * factor  # 4.1 times a million is no whole number in floats
        if 1 <= count < 2**63 and count == int(count):
            return int(count)
    raise UserError(f"{what}: {value!r} is not a count of tokens: write 65536, 500k or 1.5M")


def pattern_below(folder: Path, pattern: str) -> str:
    """A pattern of files relative to a folder, whose own name is none; a file of that very name is meant by it."""
    path = Path(pattern).expanduser()
    if path.is_absolute() or (folder / path).exists():
        return str(folder / path)
    return str(Path(glob.escape(str(folder))) / path)


def resolve_regime(name: str) -> Regime:
    """A built-in regime by name, or a user's by the path of its TOML file.

    Raises:
        UserError: there is no such regime, or the file is wrong (the key is named).
    """
    if name in REGIMES:
        return REGIMES[name]
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        return load_regime(path)
    raise UserError(f"unknown regime {name!r}: give one of {', '.join(REGIMES)}, or the path of a .toml file")


def load_regime(path: Path) -> Regime:
    """Read a regime file.

    Raises:
        UserError: missing, not TOML, or a key that is unknown, missing or of a wrong value.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"regime file {path} does not exist: give one of {', '.join(REGIMES)} or a path") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"regime file {path} cannot be read as TOML: {' '.join(str(error).split())}") from None
    try:
        return _regime(data, path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _regime(data: dict[str, Any], path: Path) -> Regime:
    _check_keys(data, {"name", "title", "corpus", "scales"}, required={"name", "corpus"}, where="the top level")
    name = _string(data["name"], "name")
    if name in REGIMES:
        raise UserError(f"name {name!r} is a built-in regime: choose another")
    scales = {"pocket": POCKET}
    for scale_name, fields in _table(data.get("scales", {}), "scales").items():
        if scale_name not in SCALES:
            raise UserError(f"[scales.{scale_name}] is not one of {', '.join(SCALES)}")
        scales[scale_name] = _scale(_table(fields, f"scales.{scale_name}"), f"scales.{scale_name}")
    corpus = _table(data["corpus"], "corpus")
    _check_keys(corpus, {f.name for f in dataclasses.fields(CorpusSource)}, required=set(), where="[corpus]")
    if corpus.get("kind", "files") == "files" and not corpus.get("globs"):
        raise UserError('[corpus] needs globs = ["texts/*.txt"]: the files to train on')
    # Globs are relative to the regime file, so that the command works from any folder.
    globs = tuple(pattern_below(path.parent, pattern) for pattern in _strings(corpus.get("globs", []), "corpus.globs"))
    values: dict[str, Any] = {
        key: _number(value, f"corpus.{key}") if key == "validation_fraction" else _string(value, f"corpus.{key}")
        for key, value in corpus.items()
        if key != "globs"
    }
    return Regime(name, _string(data.get("title", name), "title"), CorpusSource(globs=globs, **values), scales)


def _scale(fields: dict[str, Any], where: str) -> Scale:
    known = {f.name: f for f in dataclasses.fields(Scale) if f.name != "ours"}
    required = {n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING}
    _check_keys(fields, set(known), required=required, where=f"[{where}]")
    values = dict(fields)
    for key in fields:
        what = f"{where}.{key}"
        if key in _TOKEN_FIELDS:
            values[key] = parse_tokens(values[key], what)
        elif key in _TOKEN_LISTS:
            values[key] = tuple(parse_tokens(v, what) for v in _list(values[key], what))
        elif key in _MODEL_LISTS:
            values[key] = tuple(ModelSpec.parse(m) for m in _strings(values[key], what))
        elif key in _NUMBER_LISTS:
            values[key] = _numbers(values[key], what)
        elif key in _WHOLE_LISTS:
            values[key] = tuple(_whole(v, what) for v in _list(values[key], what))
        elif key in ("vocab_size", "stream_steps", "search_points"):
            values[key] = _whole(values[key], what)
        elif key == "anchors":
            values[key] = {name: _numbers(path, f"{what}.{name}") for name, path in _table(values[key], what).items()}
    values["protocol"] = _protocol(_table(values["protocol"], f"{where}.protocol"), f"{where}.protocol")
    return Scale(**values)


def _protocol(fields: dict[str, Any], where: str) -> Protocol:
    known = {f.name: f for f in dataclasses.fields(Protocol)}
    required = {n for n, f in known.items() if f.default is dataclasses.MISSING}
    _check_keys(fields, set(known), required=required, where=f"[{where}]")
    values: dict[str, Any] = {}
    for key, value in fields.items():
        if key == "betas":
            values[key] = tuple(_number(v, f"{where}.betas") for v in _list(value, f"{where}.betas"))
        elif known[key].type == "int":
            values[key] = _whole(value, f"{where}.{key}")
        elif known[key].type == "float":
            values[key] = _number(value, f"{where}.{key}")
        else:
            values[key] = value
    return Protocol(**values)


def _check_keys(table: dict[str, Any], known: set[str], *, required: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise UserError(f"{where} has an unknown key {key!r}: it may hold {', '.join(sorted(known))}")
    for key in sorted(required):
        if key not in table:
            raise UserError(f"{where} lacks the key {key!r}")


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a table")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{where} must be a list")
    return value


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {value!r} is not text in quotes")
    return value


def _strings(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise UserError(f"{where} must be a list of strings")
    return value


def _numbers(value: Any, where: str) -> tuple[float, ...]:
    return tuple(_number(v, where) for v in _list(value, where))


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: {value!r} is not a number")
    try:
        return float(value)
    except OverflowError:  # TOML's whole numbers have no end here
        raise UserError(f"{where}: the number is too large") from None


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{where}: {value!r} is not a whole number")
    return value

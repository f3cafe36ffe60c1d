"""The values of options: lists of tokens, dropouts, seeds and models, and paths by hand."""

from __future__ import annotations

from collections.abc import Sequence

from tune_dd.errors import UserError
from tune_dd.regime_file import parse_tokens
from tune_dd.regimes import ModelSpec, check_dropouts
from tune_dd.trial import format_dropout


def read_items(text: str | None, option: str) -> list[str] | None:
    if text is None:
        return None
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise UserError(f"{option} is empty: give values separated by commas")
    return items


def read_tokens(text: str | None, option: str) -> tuple[int, ...] | None:
    items = read_items(text, option)
    if items is None:
        return None
    values = tuple(parse_tokens(item, option) for item in items)
    if list(values) != sorted(set(values)):
        raise UserError(f"{option} {text}: the values must increase")
    return values


def read_dropouts(text: str | None, *, extending: bool) -> tuple[float, ...] | None:
    items = read_items(text, "--dropouts")
    if items is None:
        return None
    try:
        values = tuple(float(item) for item in items)
    except ValueError:
        raise UserError(f"--dropouts {text}: give numbers such as 0,0.1,0.3") from None
    check_dropouts(values)
    if len(values) < 2 and not extending:
        raise UserError(f"--dropouts {text}: one rate has no best; name at least two")
    return tuple(sorted(values))


def read_seeds(text: str | None) -> tuple[int, ...] | None:
    items = read_items(text, "--seeds")
    if items is None:
        return None
    if not all(item.isdecimal() for item in items) or len(set(items)) != len(items):
        raise UserError(f"--seeds {text}: give distinct whole numbers such as 0,1,2")
    return tuple(int(item) for item in items)


def read_models(text: str | None) -> tuple[ModelSpec, ...] | None:
    items = read_items(text, "--models")
    models = None if items is None else tuple(ModelSpec.parse(item) for item in items)
    if models is not None and len(set(models)) < len(models):
        raise UserError(f"--models {text} has duplicates: name each once")
    return models


def read_anchors(texts: Sequence[str] | None) -> dict[str, tuple[float, ...]]:
    """``NAME=0.3,0.24`` -> {NAME: (0.3, 0.24)}; a path without a name is named after its dropouts."""
    found: dict[str, tuple[float, ...]] = {}
    for text in texts or ():
        name, equals, values = text.rpartition("=")
        try:
            path = tuple(float(value) for value in values.split(","))
        except ValueError:
            raise UserError(f"--anchors {text}: give a dropout per stage such as 0.3,0.24,0.1") from None
        for value in path:
            check_dropouts((value,))
        name = name.strip() if equals else "anchors_" + "_".join(format_dropout(value) for value in path)
        if name in found:
            raise UserError(f"--anchors names {name} twice: give each path its own name")
        found[name] = path
    return found

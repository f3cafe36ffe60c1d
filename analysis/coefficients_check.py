"""Whether what a coefficients.json says is of the kind that its readers count on, key by key."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from tune_dd.errors import UserError
from tune_dd.laws import get_law

Test = Callable[[Any], bool]
CELL = ("n_params", "unique_tokens", "sampled_tokens")  # what every cell must hold: the hull is of these


def check_coefficients(data: Mapping[str, Any]) -> None:
    """Refuse a value that no reader can use; which keys there must be is ``Coefficients.from_dict``'s to say.

    Raises:
        UserError: naming the key; the law is unknown, or the coefficients are not its own.
    """
    _check(data, "law", "text", _text)
    law = get_law(data["law"])
    for key in ("regime", "tokenizer_hash", "corpus_hash", "carried_from"):
        _check(data, key, "text", _text)
    for key in ("rank", "n_cells", "n_bootstrap", "seed"):
        _check(data, key, "a whole number", lambda value: isinstance(value, int) and _number(value))
    for key in ("condition_number", "rmse", "discrepancy"):
        _check(data, key, "a finite number", _number)
    for key in ("loo_rmse", "loo_regret"):
        _check(data, key, "a finite number or null", _number_or_null)
    for key in ("p_min", "p_max"):
        _check(data, key, "a dropout in [0, 1)", lambda value: _number(value) and 0 <= value < 1)
    _check(data, "coefficients", "finite numbers by name", lambda value: _table(value, _number))
    k = len(law.vector(data["coefficients"]))
    pair, names = _list_of(_number_or_null, 2), set(law.coefficients)
    _check(data, "intervals", "low and high by name", lambda value: _table(value, pair) and set(value) == names)
    known = _list_of(_number, 2)
    _check(data, "expected", "pairs of numbers by name", lambda value: _table(value, known) and set(value) <= names)
    _check(data, "cells", f"cells with {', '.join(CELL)}", lambda value: _list_of(_cell)(value) and len(value) > 0)
    _check(data, "draws", f"rows of {k} numbers", _list_of(_list_of(_number, k)))
    _check(data, "notes", "texts", _list_of(_text))
    _check(data, "held_out", "rows of law, holdout, regret_mean and regret_max", _list_of(_held_out))


def _check(data: Mapping[str, Any], key: str, kind: str, test: Test) -> None:
    if key in data and not test(data[key]):
        raise UserError(f"{key} is damaged (not {kind}): write the file again with `python -m analysis`")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    """Finite, and as a float too: JSON's whole numbers have no end."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _number_or_null(value: Any) -> bool:
    return value is None or _number(value)


def _table(value: Any, test: Test) -> bool:
    return isinstance(value, dict) and all(test(each) for each in value.values())


def _list_of(test: Test, length: int | None = None) -> Test:
    return lambda value: (
        isinstance(value, list) and all(test(each) for each in value) and (length is None or len(value) == length)
    )


def _cell(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(_number(value.get(name)) and value[name] > 0 for name in CELL)
        and _number(value.get("start_weight", 1.0))
    )


def _held_out(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(_text(value.get(name)) for name in ("law", "holdout"))
        and all(name in value and _number_or_null(value[name]) for name in ("regret_mean", "regret_max"))
    )

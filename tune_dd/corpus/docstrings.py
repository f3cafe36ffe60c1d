"""Docstrings out of Python source, by its syntax tree: no package is imported and none of its code runs.

Also a small program, so that several processes can parse at once: paths on standard input, one a line;
on standard output one JSON line per path, a list of docstrings. It needs the standard library only.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import warnings
from collections.abc import Iterator

MIN_CHARACTERS = 200

# How numpy and torch document what is written in C: add_newdoc("module", "name", "text") and its kin.
_ADDERS = ("add_docstr", "add_newdoc", "_add_newdocs", "add_newdoc_for_scalar_type")
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


def docstrings_of(source: bytes) -> list[str]:
    """Docstrings over ``MIN_CHARACTERS`` characters, indentation cleaned, in the order of the source.

    Takes in those of modules, classes and functions, and texts that are attached by a call of ``add_newdoc``
    or ``add_docstr``. Source that does not parse has none.
    """
    if b'"""' not in source and b"'''" not in source:
        return []  # no long docstring is written otherwise, and parsing is what costs
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []  # templates and other languages' files with a .py name
    found = (inspect.cleandoc(text) for text in _raw(tree))
    return [text for text in found if len(text) > MIN_CHARACTERS and _is_text(text)]


def _raw(node: ast.AST) -> Iterator[str]:
    """Docstrings of a node and of the statements in it. Not descending into expressions halves the time."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            yield first.value.value
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        function = node.value.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in _ADDERS:
            for argument in node.value.args:
                for part in ast.walk(argument):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield part.value
        return
    for block in _BLOCKS:
        for child in getattr(node, block, ()):
            yield from _raw(child)


def _is_text(text: str) -> bool:
    """Without lone surrogates, which UTF-8 cannot hold, and without NUL."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def main() -> None:
    warnings.simplefilter("ignore")  # invalid escapes in other people's source
    for line in sys.stdin:
        with open(line.removesuffix("\n"), "rb") as file:
            print(json.dumps(docstrings_of(file.read())), flush=False)


if __name__ == "__main__":
    main()

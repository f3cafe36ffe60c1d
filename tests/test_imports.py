"""Imports point one way: the rule of docs/architecture.md, held against the code."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from tests_support import REPOSITORY

# A room of tune_dd may not import these, directly.
FORBIDDEN = {
    "streams": {"torch", "ray"},
    "console": {"torch", "ray"},
    "arguments": {"torch", "ray"},
    "regimes": {"torch", "ray"},
    "regime_file": {"torch", "ray"},
    "trial": {"torch", "ray"},
    "artifacts": {"torch", "ray"},
    "schedule": {"torch", "ray"},
    "law": {"torch", "ray"},
    "laws": {"torch", "ray"},
    "loading": {"torch", "ray"},
    "snapshots": {"torch", "ray", "tune_dd.model", "tune_dd.corpus"},
    "builtin_regimes": {"torch", "ray"},
    "arithmetic": {"ray", "tune_dd.corpus", "tune_dd.artifacts"},
    "memory": {"ray", "tune_dd.corpus", "tune_dd.artifacts"},
    "corpus": {"torch", "ray", "tune_dd.model"},
    "tokenizer": {"torch", "ray", "tune_dd.model"},
    "stream": {"torch", "ray", "tune_dd.model"},
    "model": {"ray", "tune_dd.corpus", "tune_dd.artifacts"},
    "optimizer": {"ray", "tune_dd.corpus", "tune_dd.artifacts"},
    "fused": {"ray", "tune_dd.corpus", "tune_dd.artifacts"},
    "kernels": {"torch", "ray", "tune_dd.corpus", "tune_dd.artifacts"},
    "native": {"ray", "tune_dd.corpus", "tune_dd.artifacts"},
    "training": {"ray", "tune_dd.corpus", "tune_dd.artifacts"},
    "trainable": {"ray", "tune_dd.sweep"},
    "evaluation": {"ray", "tune_dd.corpus", "tune_dd.artifacts"},
}
# Modules that search_spaces and analysis may use: nothing with torch or Ray in it.
TORCH_FREE = {
    "errors",
    "streams",
    "console",
    "arguments",
    "regimes",
    "builtin_regimes",
    "regime_file",
    "trial",
    "artifacts",
    "schedule",
    "law",
    "laws",
    "loading",
}


def imports(path) -> set[str]:
    """Dotted names a file imports anywhere, functions included; type-checking blocks are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= {id(inner) for inner in ast.walk(node)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def hits(names: set[str], forbidden: set[str]) -> set[str]:
    return {n for n in names for f in forbidden if n == f or n.startswith(f + ".")}


@pytest.mark.parametrize(("room", "forbidden"), FORBIDDEN.items())
def test_a_room_does_not_know_what_it_must_not(room: str, forbidden: set[str]) -> None:
    file = REPOSITORY / "tune_dd" / f"{room}.py"
    for path in [file] if file.exists() else sorted((REPOSITORY / "tune_dd" / room).glob("*.py")):
        assert not hits(imports(path), forbidden), path


def test_only_the_command_joins_the_packages() -> None:
    for path in (REPOSITORY / "tune_dd").rglob("*.py"):
        if path.parent.name != "sweep":
            assert not hits(imports(path), {"search_spaces", "analysis"}), path
    for path in (REPOSITORY / "search_spaces").rglob("*.py"):
        assert not hits(imports(path), {"analysis", "torch"}), path
    for path in (REPOSITORY / "analysis").rglob("*.py"):
        assert not hits(imports(path), {"search_spaces", "torch", "ray"}), path


def test_only_the_hub_s_room_knows_the_hub_s_library() -> None:
    for path in (REPOSITORY / "tune_dd").rglob("*.py"):
        assert path.name == "hub.py" or not hits(imports(path), {"huggingface_hub", "httpx2"}), path


@pytest.mark.parametrize("package", ["search_spaces", "analysis"])
def test_the_outer_packages_use_only_what_has_no_torch_and_no_ray(package: str) -> None:
    for path in (REPOSITORY / package).rglob("*.py"):
        used = {n.split(".")[1] for n in imports(path) if n.startswith("tune_dd.")}
        assert used <= TORCH_FREE, f"{path} uses {used - TORCH_FREE}"


def test_the_check_sees_an_import_inside_a_function(tmp_path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from torch import nn\n    return nn\n")
    assert hits(imports(file), {"torch"}) == {"torch", "torch.nn"}


@pytest.mark.parametrize(
    "package",
    [
        "analysis",
        "search_spaces.static_dropout",
        "search_spaces.locked_stream",
        "search_spaces.schedule_coefficients",
        "search_spaces.adaptive_grid",
        "tune_dd.artifacts",
        "tune_dd.trial",
    ],
)
def test_it_imports_where_neither_torch_nor_ray_can_be(package: str) -> None:
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'ray'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"import {package}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

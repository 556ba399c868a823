"""The house rules on files and imports. They are read from the syntax of every file; nothing is imported."""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("gradcheck", "tinygrad_bn")
LINES = 600

# What a module may import beside the standard library: the entry of the longest name that holds it counts.
MAY_IMPORT = {
    "cli": ("gradcheck.cli",),
    "gradcheck": ("gradcheck", "numpy"),
    "gradcheck.adapters.jax": ("gradcheck", "jax", "numpy"),
    "gradcheck.adapters.tinygrad_bn": ("gradcheck", "numpy", "tinygrad_bn"),
    "gradcheck.adapters.torch": ("gradcheck", "numpy", "torch"),
    "gradcheck.calibration": ("gradcheck", "mpmath", "numpy", "tinygrad_bn", "torch"),
    "gradcheck.cli": ("click", "distributed", "gradcheck", "numpy", "rich", "sklearn", "tinygrad_bn"),
    "gradcheck.cli.doctor": ("click", "gradcheck"),
    "gradcheck.cli.doctor.cpu": ("gradcheck", "llvmlite", "numba", "numpy", "tinygrad_bn"),
    "gradcheck.cli.doctor.gpu": ("cuda", "cupy", "gradcheck", "numpy", "tinygrad_bn"),
    "gradcheck.mutants.against": ("autograd", "gradcheck", "jax", "numpy", "torch"),
    "gradcheck.pytest_plugin": ("gradcheck", "numpy", "pytest"),
    "gradcheck.report.html": ("gradcheck", "jinja2", "numpy"),
    "gradcheck.report.table": ("gradcheck", "numpy", "rich"),
    "gradcheck.strategies": ("gradcheck", "hypothesis", "numpy"),
    "tinygrad_bn": ("numpy", "tinygrad_bn"),
    "tinygrad_bn.tape": (),
    "tinygrad_bn.namespace": (),
    "tinygrad_bn.devices": ("cupy", "numpy"),
    "tinygrad_bn.rules": ("numpy",),
    "tinygrad_bn.tensor": (
        "numpy",
        "tinygrad_bn.devices",
        "tinygrad_bn.kernels.cpu.memory",
        "tinygrad_bn.namespace",
        "tinygrad_bn.rules",
        "tinygrad_bn.tape",
    ),
    "tinygrad_bn.bench": ("cupy", "jax", "liger_kernel", "numba", "numpy", "tinygrad_bn", "torch"),
    "tinygrad_bn.kernels": ("numpy", "tinygrad_bn.kernels"),
    "tinygrad_bn.kernels.cpu": ("llvmlite", "numba", "numpy", "tinygrad_bn.kernels"),
    "tinygrad_bn.kernels.cpu.memory": ("numpy",),
    "tinygrad_bn.kernels.cuda": ("numpy", "tinygrad_bn.devices", "tinygrad_bn.kernels"),
    "tinygrad_bn.kernels.cuda.compat": ("cupy", "numba", "numpy", "tinygrad_bn.kernels.cuda"),
    "tinygrad_bn.kernels.cuda.simulator": ("greenlet", "numpy"),
    "tinygrad_bn.kernels.cuda.vectors": ("llvmlite", "numpy", "tinygrad_bn.kernels.cuda"),
    "tinygrad_bn.ops": (
        "numpy",
        "tinygrad_bn.devices",
        "tinygrad_bn.dispatch",
        "tinygrad_bn.fused",
        "tinygrad_bn.kernels",
        "tinygrad_bn.ops",
        "tinygrad_bn.random",
        "tinygrad_bn.registry",
        "tinygrad_bn.tensor",
    ),
}


class Import(NamedTuple):
    """One imported module: by whom, on which line, and whether importing the file imports it."""

    importer: str
    target: str
    line: int
    lazy: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
FILES |= {"cli": ROOT / "cli.py"}


def tree_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"), filename=str(FILES[module]))


def imports_of(module: str, tree: ast.AST, lazy: bool = False) -> Iterator[Import]:
    """The imports in a syntax tree; those inside functions and under TYPE_CHECKING are lazy."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            source = source_of(module, node)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield Import(module, inner if inner in FILES else source, node.lineno, lazy)
        else:
            function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            typing_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
            yield from imports_of(module, node, lazy or function or typing_only)


def source_of(module: str, node: ast.ImportFrom) -> str:
    """The absolute name behind `from`."""
    if not node.level:
        return node.module or ""
    package = module.split(".")
    if FILES[module].name != "__init__.py":
        package.pop()
    package = package[: len(package) - node.level + 1]
    return ".".join(package + ([node.module] if node.module else []))


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def offences(imports: Iterator[Import]) -> list[str]:
    """What is against MAY_IMPORT, in words."""
    found = []
    for importer, target, line, _ in imports:
        layer = max((name for name in MAY_IMPORT if within(importer, name)), key=len)
        if target.partition(".")[0] in sys.stdlib_module_names:
            continue
        if not any(within(target, allowed) for allowed in MAY_IMPORT[layer]):
            allowed = ", ".join(MAY_IMPORT[layer]) or "nothing"
            found.append(f"{importer}, line {line}: imports {target}; {layer} may import {allowed}")
    return found


def every_import() -> Iterator[Import]:
    for module in FILES:
        yield from imports_of(module, tree_of(module))


def test_nobody_imports_what_is_above_them():
    assert offences(every_import()) == []


@pytest.mark.parametrize(
    ("module", "line", "message"),
    [
        ("tinygrad_bn.tape", "import numpy", "imports numpy; tinygrad_bn.tape may import nothing"),
        ("tinygrad_bn.namespace", "from .tensor import Tensor", "imports tinygrad_bn.tensor"),
        ("tinygrad_bn.tensor", "from . import registry", "imports tinygrad_bn.registry"),
        ("tinygrad_bn.tensor", "import numba", "imports numba"),
        ("tinygrad_bn.kernels.views", "from ..tensor import Tensor", "imports tinygrad_bn.tensor"),
        ("tinygrad_bn.kernels.philox", "from numba import njit", "imports numba"),
        ("tinygrad_bn.kernels.cuda.rows", "from numba import cuda", "imports numba"),
        ("tinygrad_bn.ops.norms", "def f():\n    from .. import nn", "imports tinygrad_bn;"),
        ("tinygrad_bn", "from gradcheck import check", "imports gradcheck"),
        ("tinygrad_bn.fused", "import hypothesis.strategies", "imports hypothesis.strategies"),
        ("gradcheck.harness", "import tinygrad_bn", "imports tinygrad_bn"),
        ("gradcheck.report.terminal", "def f():\n    import rich.table", "imports rich.table"),
    ],
)
def test_a_forbidden_import_is_seen(module, line, message):
    (found,) = offences(imports_of(module, ast.parse(line)))
    assert message in found


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("tinygrad_bn.tape", "from itertools import count"),
        ("tinygrad_bn.kernels.cpu.rows", "from ..views import Rows"),
        ("gradcheck.report.table", "from rich.table import Table"),
    ],
)
def test_an_allowed_import_is_not(module, line):
    assert offences(imports_of(module, ast.parse(line))) == []


def test_imports_never_go_in_a_circle():
    graph: dict[str, set[str]] = {}
    for each in every_import():
        if not each.lazy and each.target in FILES:
            graph.setdefault(each.importer, set()).add(each.target)
    assert len(graph) > 10
    graphlib.TopologicalSorter(graph).prepare()  # a CycleError names the modules


def test_no_public_function_bears_the_name_of_a_module_beside_it():
    """A package that offers such a function would hide the module behind it."""
    clashes = []
    for module, path in FILES.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        functions = [node.name for node in tree_of(module).body if isinstance(node, ast.FunctionDef)]
        beside = [f"{package}.{name}" for name in functions]
        clashes += [name for name in beside if name in FILES and name != module]
    assert clashes == []


def test_no_file_is_long():
    files = [*FILES.values(), *(ROOT / "tests").rglob("*.py")]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > LINES} == {}

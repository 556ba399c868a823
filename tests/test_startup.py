"""Starting is quick: what is slow to import is imported by whoever needs it, then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"hypothesis", "jax", "matplotlib", "numba", "sklearn", "torch"}
HELP = """
import runpy
sys.argv = ["cli.py", *WORDS, "--help"]
try:
    runpy.run_path("cli.py", run_name="__main__")
except SystemExit as exit:
    assert not exit.code, exit.code
"""


@pytest.mark.parametrize(
    ("program", "unwanted"),
    [
        ("import tinygrad_bn", HEAVY | {"click", "gradcheck", "rich"}),
        ("import gradcheck; gradcheck.check", HEAVY | {"click", "rich", "tinygrad_bn"}),
        ("import gradcheck.pytest_plugin", HEAVY | {"click", "numpy", "rich", "tinygrad_bn"}),
        (f"WORDS = []{HELP}", HEAVY | {"numpy", "rich", "tinygrad_bn"}),
        (f"WORDS = ['doctor']{HELP}", HEAVY | {"cuda", "cupy", "numpy", "rich", "tinygrad_bn"}),
    ],
    ids=["import tinygrad_bn", "gradcheck.check", "pytest with the plugin", "cli.py --help", "doctor --help"],
)
def test_starting_imports_nothing_heavy(program, unwanted):
    names = {name.partition(".")[0] for name in loaded_by(program)}
    assert "sys" in names
    assert unwanted & names == set()


def test_importing_the_framework_imports_no_more_of_numpy():
    """Above all not numpy.random, which takes as long as half of the framework."""
    more = loaded_by("import tinygrad_bn") - loaded_by("import numpy")
    assert "tinygrad_bn.registry" in more
    assert [name for name in more if name.startswith("numpy")] == []


def loaded_by(program: str) -> set[str]:
    """The modules that a program has imported at its end."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys\n{program}\nprint('loaded:', *sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    words = result.stdout.splitlines()[-1].split()
    assert words[0] == "loaded:"
    return set(words[1:])

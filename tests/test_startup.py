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
sys.argv = ["cli.py", "--help"]
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
        (HELP, HEAVY),
    ],
    ids=["import tinygrad_bn", "gradcheck.check", "pytest with the plugin", "cli.py --help"],
)
def test_starting_imports_nothing_heavy(program, unwanted):
    loaded = "print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys\n{program}\n{loaded}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    words = result.stdout.splitlines()[-1].split()
    assert words[0] == "loaded:"
    assert "sys" in words
    assert unwanted & set(words[1:]) == set()

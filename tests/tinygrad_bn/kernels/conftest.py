from __future__ import annotations

import os
import subprocess
import sys

import pytest

import tinygrad_bn


@pytest.fixture(scope="session")
def run_python():
    """Run a program in a fresh interpreter, where this package and the tests beside it can be imported."""

    def run_python(program, **variables):
        folder = os.path.dirname(os.path.abspath(__file__))
        package = os.path.dirname(os.path.dirname(os.path.abspath(tinygrad_bn.__file__)))
        path = os.pathsep.join([folder, package, *filter(None, [os.environ.get("PYTHONPATH")])])
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            env=os.environ | {"PYTHONPATH": path} | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,  # of a machine that is busy with other things
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    return run_python

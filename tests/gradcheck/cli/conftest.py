"""Running the command line inside the test, with stdout and stderr apart."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from gradcheck.cli import cli


@pytest.fixture
def run():
    """Call the command line with the given words; exceptions that the command does not expect are raised."""

    def invoke(*words):
        return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)

    return invoke


@pytest.fixture
def refused(run):
    """Call it and require exit status 2, nothing on stdout, and one line on what is wrong; return that."""

    def invoke(*words):
        result = run(*words)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("Error: ") and result.stderr.endswith("\n")
        assert result.stderr.count("\n") == 1
        return result.stderr.removeprefix("Error: ").removesuffix("\n")

    return invoke

"""Running the command line inside the test."""

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

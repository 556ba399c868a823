"""A small sweep, and what comes out of it in this process; and a plugin that is trouble."""

from __future__ import annotations

import itertools

import pytest
import troubles

from gradcheck import configurations
from gradcheck.cli.worker import Performer
from gradcheck.sweep import Task


@pytest.fixture(scope="session")
def tasks():
    cases = [
        *itertools.islice(configurations.covering("rms_norm"), 0, None, 9),
        *itertools.islice(configurations.covering("dropout"), 0, None, 20),
    ]
    return [Task(case, 3) for case in cases]


@pytest.fixture(scope="session")
def here(tasks):
    """The figures of the tasks, carried out in this process."""
    perform = Performer()
    results = []
    for task in tasks:
        perform.prepare(task)
        results.append(perform(task))
    return troubles.figures(results)


@pytest.fixture
def plugin(tmp_path):
    return troubles.write(tmp_path)

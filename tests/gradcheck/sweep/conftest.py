"""A small sweep, and what comes out of it in this process; and a plugin that is trouble."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import troubles

import gradcheck
from gradcheck import configurations
from gradcheck.sweep import Task


@pytest.fixture(scope="session")
def tasks():
    cases = [
        *itertools.islice(configurations.covering("rms_norm"), 0, None, 9),
        *itertools.islice(configurations.covering("dropout"), 0, None, 20),
    ]
    return [Task(case, 3) for case in cases]


IN_THIS_PROCESS = """
import json, sys
import troubles
from gradcheck.axes import Configuration
from gradcheck.cli.worker import Performer
from gradcheck.sweep import Task
perform, results = Performer(), []
for case in sys.argv[1:]:
    task = Task(Configuration.parse(case), 3)
    perform.prepare(task)
    results.append(perform(task))
print(json.dumps(troubles.figures(results)))
"""


@pytest.fixture(scope="session")
def here(tasks):
    """The figures of the tasks, carried out one after the other in one process.

    Not in that of the tests, which may have compiled the kernels: those that are loaded differ in the last
    bits of sums, and a sweep sees to it that all are loaded.
    """
    paths = [str(Path(troubles.__file__).parent), str(Path(gradcheck.__file__).parents[1])]
    result = subprocess.run(
        [sys.executable, "-c", IN_THIS_PROCESS, *(str(task.configuration) for task in tasks)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def plugin(tmp_path):
    return troubles.write(tmp_path)

"""Many checks: the tasks, the records that they leave, and the file that keeps these as they come.

tasks = [sweep.Task(configuration, seed=0) for configuration in configurations.covering("layer_norm")]
with concurrent.futures.ThreadPoolExecutor(2) as executor:
    for result in sweep.run(tasks, executor):
        print(result.verdict, result.configuration)
"""

from gradcheck.sweep.lines import Header, Lines, Mismatch, Recorded, read
from gradcheck.sweep.records import SCHEMA_VERSION, Result, SampleCase, Task
from gradcheck.sweep.running import SweepStopped, run

__all__ = [
    "SCHEMA_VERSION",
    "Header",
    "Lines",
    "Mismatch",
    "Recorded",
    "Result",
    "SampleCase",
    "SweepStopped",
    "Task",
    "read",
    "run",
]

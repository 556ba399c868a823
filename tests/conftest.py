"""How every test runs: the same examples everywhere, no oracle missing where none may be, and those of CUDA
kernels where they can.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # or threads that spin for tiny inputs hold the machine

# The same examples at every run and on every machine; `--hypothesis-profile=explore` looks for new ones.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("ci")

REQUIRE_ORACLES = "TGBN_REQUIRE_ORACLES"
ORACLE = re.compile(
    r"\b(autograd|chromium|distributed|jax|jinja2|jsonschema|junitparser|mpi4py|mpich|mpmath|oracle|playwright"
    r"|pre-commit|randomgen|scikit-learn|sklearn|torch)\b"
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    report = yield
    return _without_excuse(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    report = yield
    return _without_excuse(report)


def _without_excuse(report):
    """Where oracles are required, a test skipped for want of one has failed."""
    if report.skipped and os.environ.get(REQUIRE_ORACLES) == "1":
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if ORACLE.search(reason):
            report.outcome = "failed"
            report.longrepr = f"{REQUIRE_ORACLES}=1, but: {reason}"
    return report


def _simulator() -> bool:
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") != "0"  # numba reads it once, when it is imported


def _assembler() -> bool:
    if _simulator() or importlib.util.find_spec("numba_cuda") is None:
        return False
    from cuda.pathfinder import find_nvidia_binary_utility

    return find_nvidia_binary_utility("ptxas") is not None


# The marker of each tier, which everything in the folder of its name has; where it can run, and who runs it.
TIERS: dict[str, tuple[Callable[[], bool], str]] = {
    "cuda_sim": (_simulator, "`make test-cuda-sim` runs these: numba must be started as a simulator of CUDA"),
    "cuda_ptx": (_assembler, "`make test-cuda-ptx` runs these: they need NVIDIA's compiler and assembler"),
}


class Elsewhere(pytest.Dir):
    """The folder of a tier that cannot run here. Its modules are not even imported: they could not be."""

    def collect(self):
        pytest.skip(TIERS[self.path.name][1])


def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Dir | None:
    if path.name in TIERS and not TIERS[path.name][0]():
        return Elsewhere.from_parent(parent, path=path)
    return None


@pytest.hookimpl(tryfirst=True)  # before markers are selected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for name, (can_run, elsewhere) in TIERS.items():
        for item in items:
            if name in item.path.parts:
                item.add_marker(name)
            elif item.get_closest_marker(name) and not can_run():
                item.add_marker(pytest.mark.skip(reason=elsewhere))

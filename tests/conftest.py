"""How every test runs: the same examples everywhere, and no oracle missing where none may be."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

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

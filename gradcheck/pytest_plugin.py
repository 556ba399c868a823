"""The pytest plugin: a fixture `gradcheck` that asserts a PASS and shows the report where there is none.

It is loaded with every pytest run of an environment that has it, so it imports nothing but pytest; the
checker is imported by the first test that uses the fixture.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

import gradcheck as checker

if TYPE_CHECKING:
    from gradcheck.report import Report

__all__ = ["Gradcheck", "gradcheck"]

Configuration = TypeVar("Configuration")


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"wanted an integer of at least 0; got {text!r}")
    return int(text)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("gradcheck").addoption(
        "--gradcheck-seed",
        type=_seed,
        default=0,
        metavar="N",
        help="Of the directions and cotangents of the gradcheck fixture; default 0.",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIXTURE] = Gradcheck(config.getoption("--gradcheck-seed"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    item.config.stash[FIXTURE].item = item


# Of the session, though it knows the test that runs: under @given, Hypothesis refuses fixtures of a function.
@pytest.fixture(scope="session")
def gradcheck(pytestconfig: pytest.Config) -> Gradcheck:
    """Assert that a gradient is right: gradcheck(fn, inputs), gradcheck.pair(forward, backward, inputs)."""
    return pytestconfig.stash[FIXTURE]


@dataclasses.dataclass(eq=False)
class Gradcheck:
    """The fixture. Its checks raise gradcheck.GradcheckError, an AssertionError, unless the verdict is PASS.

    seed: of the checks; where a test draws its inputs from it too, one option repeats them both.
    item: the test that runs.
    """

    seed: int
    item: Any = None

    def __call__(self, fn: Callable[..., Any], inputs: Sequence[Any], **options: Any) -> Report:
        """Check a function of a framework's tensors, as gradcheck.check does; return the report of a PASS."""
        __tracebackhide__ = True
        return self._passed(checker.check(fn, inputs, **{"seed": self.seed, **options}))

    def pair(
        self,
        forward: Callable[..., Any],
        backward: Callable[..., Any],
        inputs: Sequence[Any],
        **options: Any,
    ) -> Report:
        """Check functions of NumPy arrays, as gradcheck.check_pair does; return the report of a PASS."""
        __tracebackhide__ = True
        return self._passed(checker.check_pair(forward, backward, inputs, **{"seed": self.seed, **options}))

    def over(self, configurations: Iterable[Configuration], check: Callable[[Configuration], object]) -> None:
        """Call `check(configuration)` for each, in a subtest of its own, so that every failure is shown."""
        __tracebackhide__ = True
        subtests: pytest.Subtests = self.item._request.getfixturevalue("subtests")
        for configuration in configurations:
            with subtests.test(msg=str(configuration)):
                check(configuration)

    def _passed(self, report: Report) -> Report:
        __tracebackhide__ = True
        if report.verdict is checker.Verdict.PASS:
            return report
        again = f"pytest {shlex.quote(self.item.nodeid)} --gradcheck-seed {report.seed}"
        raise checker.GradcheckError(str(dataclasses.replace(report, again=again)))


FIXTURE = pytest.StashKey[Gradcheck]()

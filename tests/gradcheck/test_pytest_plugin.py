"""The pytest plugin: what its fixture passes and fails, what a failure shows, and what loading it costs."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from pages import blocks, steady

# Runs inside the test forget what they have imported, and NumPy cannot be imported twice.
import gradcheck.adapters.tinygrad_bn  # noqa: F401

ROOT = Path(__file__).parents[2]
HEAVY = {"click", "hypothesis", "jax", "matplotlib", "numba", "rich", "sklearn", "tinygrad_bn", "torch"}
INSTALLED = any(point.value == "gradcheck.pytest_plugin" for point in metadata.entry_points(group="pytest11"))

SQUARE = """
import numpy as np

def forward(x):
    return x * x, x

def backward(x, cotangent):
    return (2 * x * cotangent,)

def forgetful(x, cotangent):
    return (x * cotangent,)
"""


@pytest.fixture
def run(pytester):
    """Run a test file that begins with SQUARE; the plugin is loaded by name where it is not installed."""

    def invoke(tests, *words):
        pytester.makepyfile(test_square=SQUARE + tests)
        plugin = () if INSTALLED else ("-p", "gradcheck.pytest_plugin")
        return pytester.runpytest_inprocess(*plugin, "-p", "no:cacheprovider", *words)

    return invoke


def test_a_right_gradient_passes_and_gives_its_report(run):
    result = run("""
def test_pair(gradcheck):
    report = gradcheck.pair(forward, backward, (np.arange(1.0, 5.0),))
    assert str(report.verdict) == "PASS" and report.seed == 0
""")
    result.assert_outcomes(passed=1)


def test_a_function_of_tensors_is_checked_too(run):
    result = run("""
import tinygrad_bn as tg

def test_right(gradcheck):
    report = gradcheck(lambda x: x * x, (tg.tensor(np.arange(1.0, 5.0)),), name="square", seed=5)
    assert report.name == "square" and report.seed == 5

def test_stochastic(gradcheck):
    noise = np.random.default_rng(0)
    gradcheck(lambda x: x * noise.normal(), (tg.tensor(np.arange(1.0, 5.0)),))
""")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*GradcheckError: INCONCLUSIVE*"])


def test_a_failure_shows_the_report_and_the_line_of_the_test_and_nothing_of_ours(run):
    result = run("""
def test_pair(gradcheck):
    gradcheck.pair(forward, forgetful, (np.arange(1.0, 5.0),), name="square")
""")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">       gradcheck.pair(forward, forgetful*",
            "E       *GradcheckError: FAIL  square   x (4,) float64",
            "E * dx*analytic*numeric*",
            "E * again: pytest test_square.py::test_pair --gradcheck-seed 0",
        ]
    )
    assert "def _passed" not in result.stdout.str() and "harness.py" not in result.stdout.str()


MY_NORM = """
import numpy as np
from my_norm import layer_norm, layer_norm_backward

def test_layer_norm(gradcheck):
    rng = np.random.default_rng(gradcheck.seed)
    x, weight, bias = (rng.normal(size=shape) for shape in ((3, 2, 6), 6, 6))
    gradcheck.pair(layer_norm, layer_norm_backward, (x, weight, bias))
"""


def test_a_failure_looks_as_on_the_page(run, pytester):
    pytester.makepyfile(my_norm=blocks("check-from-the-command-line.md", "python")[0], test_my_norm=MY_NORM)
    pytester.syspathinsert()
    printed = iter(steady("\n".join(run("", "test_my_norm.py").outlines)))
    (block,) = blocks("test-with-pytest.md", "console")
    for line in steady(block)[1:]:
        assert line == "…" or line in printed


def test_the_seed_comes_from_the_command_line_and_an_option_overrides_it(run):
    tests = """
def test_default(gradcheck):
    assert gradcheck.seed == {seed}
    assert gradcheck.pair(forward, backward, (np.ones(3),)).seed == {seed}

def test_own(gradcheck):
    assert gradcheck.pair(forward, backward, (np.ones(3),), seed=5).seed == 5
"""
    run(tests.format(seed=0)).assert_outcomes(passed=2)
    run(tests.format(seed=9), "--gradcheck-seed", "9").assert_outcomes(passed=2)


@pytest.mark.parametrize("seed", ["x", "-1", "1.5"])
def test_a_seed_that_is_none_is_wrong_usage(run, capfd, seed):
    assert run("", f"--gradcheck-seed={seed}").ret == pytest.ExitCode.USAGE_ERROR
    assert (
        f"argument --gradcheck-seed: wanted an integer of at least 0; got '{seed}'" in capfd.readouterr().err
    )


def test_it_goes_with_hypothesis_and_names_the_test_that_runs(run):
    pytest.importorskip("hypothesis")
    result = run("""
from hypothesis import given, settings, strategies as st

def test_before(gradcheck):
    pass

@settings(max_examples=3, database=None)
@given(length=st.integers(1, 3))
def test_right(gradcheck, length):
    gradcheck.pair(forward, backward, (np.arange(1.0, 1 + length),))

@settings(max_examples=3, database=None)
@given(length=st.integers(1, 3))
def test_wrong(gradcheck, length):
    gradcheck.pair(forward, forgetful, (np.arange(1.0, 1 + length),))
""")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*again: pytest test_square.py::test_wrong --gradcheck-seed 0"])


def test_each_configuration_is_a_subtest_and_all_failures_are_shown(run):
    result = run("""
def test_shapes(gradcheck):
    def check(shape):
        x = np.random.default_rng(gradcheck.seed).normal(size=shape)
        gradcheck.pair(forward, forgetful if shape[0] == 1 else backward, (x,))

    gradcheck.over([(3,), (1, 2), (2, 2), (1,)], check)
""")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    failed = [line for line in result.outlines if line.startswith("SUBFAILED")]
    assert len(failed) == 2
    assert "[(1, 2)]" in failed[0] and "[(1,)]" in failed[1]


def test_loading_it_imports_nothing_heavy():
    program = (
        "import pytest, sys, gradcheck.pytest_plugin; print(*{name.split('.')[0] for name in sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert "gradcheck" in loaded and HEAVY & loaded == set()


@pytest.mark.parametrize("copies", [1, 2], ids=["checkout on the path", "checkout and an installed copy"])
def test_it_is_found_by_its_entry_point_once(tmp_path, copies):
    """As in an editable installation, and as where the package is installed and the checkout comes first."""
    entry = tmp_path / "site" / "tinygrad_bn-0.dist-info" / "entry_points.txt"
    entry.parent.mkdir(parents=True)
    entry.write_text("[pytest11]\ngradcheck = gradcheck.pytest_plugin\n")
    (entry.parent / "METADATA").write_text("Metadata-Version: 2.1\nName: tinygrad-bn\nVersion: 0\n")
    if copies == 2:
        (tmp_path / "site" / "gradcheck").symlink_to(ROOT / "gradcheck")
    test = tmp_path / "test_it.py"
    test.write_text(
        f"{SQUARE}\ndef test_it(gradcheck):\n    gradcheck.pair(forward, backward, (np.ones(3),))\n"
    )
    words = ("-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, test)
    path = f"{ROOT}:{tmp_path / 'site'}"
    result = subprocess.run(
        [sys.executable, *map(str, words)], cwd=tmp_path, env={"PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout

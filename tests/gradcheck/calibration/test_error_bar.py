"""The error bar against exact derivatives."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from gradcheck.axes import Configuration
from gradcheck.calibration.coverage import ORACLES, REGIMES, Coverage, coverage
from gradcheck.calibration.pairs import SMALL, pair_for


@pytest.mark.parametrize("operation", SMALL)
def test_the_oracles_agree(operation):
    pytest.importorskip("mpmath")
    configuration = Configuration.parse(SMALL[operation])
    pair = pair_for(configuration, configuration.draw(0))
    for index in range(len(pair.differentiable)):
        u = np.random.default_rng(index).normal(size=pair.inputs[index].shape)
        one, other = (ORACLES[name](pair, index, u) for name in ("complex", "mpmath"))
        assert np.max(np.abs(one)) > 0
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-13 * np.max(np.abs(one)))


def test_the_bar_holds():
    rows = list(coverage("complex", range(2)))
    assert [(row.operation, row.regime) for row in rows] == [(o, r) for o in SMALL for r in REGIMES]
    together = Coverage.joined(rows, "all", "")
    assert together.error.size == sum(row.error.size for row in rows) > 600
    assert together.known.all() and together.within(1) > 0.99 and together.allowed == 1
    assert together.resolution < 1e-12


def test_a_bar_that_does_not_hold_is_seen():
    numbers = np.array([1.0, 2.0, 3.0, np.inf])
    row = Coverage("norm", "normal", error=np.array([0.5, 3.0, 9.0, 1.0]), bar=numbers,
                   analytic_error=numbers, tolerance=np.ones(4), scale=np.ones(4))  # fmt: skip
    assert (row.within(1), row.within(2), row.allowed) == (1 / 3, 2 / 3, 2 / 3)
    assert (row.worst, row.slack) == (3.0, 2 / 3)


def test_without_mpmath_the_command_says_how_to_get_it(monkeypatch, run):
    monkeypatch.setitem(sys.modules, "mpmath", None)
    result = run("calibrate", "coverage", "--oracle", "mpmath", "--seeds", 1)
    assert result.exit_code == 2
    assert "pip install mpmath; or choose --oracle complex" in result.stderr


def test_the_command_prints_every_regime(run):
    result = run("calibrate", "coverage", "--oracle", "complex", "--seeds", 1)
    assert result.exit_code == 0
    assert (
        len(result.stdout.splitlines()) == 3 + len(SMALL) * len(REGIMES) + 1 and "  mean 1e4" in result.stdout
    )

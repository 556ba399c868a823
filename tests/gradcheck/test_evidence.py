"""What a failure carries for a report to show: its elements, the curve of its differences, and its place."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import numpy as np
import pytest

from gradcheck import Verdict, check_pair
from gradcheck.repeating import place_of, place_of_vjp

X = np.random.default_rng(0).standard_normal((3, 4))


def cube(x):
    return x**3, x


def wrong_at_one(x, cotangent):
    gradient = 3 * x**2 * cotangent
    gradient[1, 2] *= 1.5
    return (gradient,)


def right(x, cotangent):
    return (3 * x**2 * cotangent,)


def test_the_elements_are_those_of_the_gradient_and_of_the_derivative():
    (finding,) = check_pair(cube, wrong_at_one, (X,)).findings
    elements = finding.elements
    assert elements.grid == ((0, 1, 2), (0, 1, 2, 3)) and elements.shape == (3, 4)
    analytic, numeric, bar = (
        np.reshape(part, (3, 4)) for part in (elements.analytic, elements.numeric, elements.bar)
    )
    ratio = analytic / numeric
    assert ratio[1, 2] == pytest.approx(1.5) and np.delete(ratio.ravel(), 6) == pytest.approx(1)
    assert np.all(np.delete(np.abs(analytic - numeric).ravel(), 6) <= 2 * np.delete(bar.ravel(), 6))


def test_the_elements_of_a_large_input_are_a_part_of_it():
    x = np.random.default_rng(0).standard_normal((50, 60))

    def wrong(x, cotangent):
        gradient = 3 * x**2 * cotangent
        gradient[7:9, 30:] = 0
        return (gradient,)

    (finding,) = check_pair(cube, wrong, (x,)).findings
    rows, columns = finding.elements.grid
    assert set(rows) <= {7, 8} and min(columns) >= 30 and len(finding.elements.numeric) <= 64


def test_the_curve_of_a_failure_is_a_v_around_the_numeric_derivative():
    report = check_pair(lambda x: (np.sin(x), x), lambda x, c: (1.1 * np.cos(x) * c,), (X,))
    (curve,) = (check.curve for check in report.checks if check.name == "gradient")
    off = np.abs(np.array(curve.differences) - curve.numeric)
    steps = np.array(curve.steps)
    assert np.all(np.diff(steps) < 0) and steps[0] == 0.5 and steps[-1] < 1e-10
    lowest = int(np.argmin(off))
    assert 0 < lowest < len(off) - 1
    # On the left the truncation error, of the square of the step; on the right rounding, against the step.
    slope = np.polyfit(np.log(steps[:4]), np.log(off[:4]), 1)[0]
    assert slope == pytest.approx(2, abs=0.1)
    assert np.all(off[-4:] < 12 * curve.noise / (math.sqrt(2) * steps[-4:]))
    assert steps[-1] < curve.step < steps[0] and curve.bar < off[:4].min()
    assert abs(curve.analytic - curve.numeric) > 2 * curve.bar


def test_a_gradient_that_is_right_carries_no_curve_and_one_without_an_answer_does():
    assert [c.curve for c in check_pair(cube, right, (X,)).checks if c.name == "gradient"] == [None]
    rounded = check_pair(lambda x: (np.round(x**3, 2), x), right, (X,))
    assert rounded.verdict is Verdict.INCONCLUSIVE
    (check,) = (c for c in rounded.checks if c.name == "gradient")
    assert check.curve is not None and np.isfinite(check.curve.differences).all()


def test_the_place_is_the_backward_pass():
    report = check_pair(cube, wrong_at_one, (X,))
    file, _, line = report.place.rpartition(":")
    assert Path(file).resolve() == Path(__file__).resolve()
    assert int(line) == inspect.getsourcelines(wrong_at_one)[1]
    assert check_pair(cube, right, (X,)).place == ""


def test_the_place_of_a_frameworks_rule():
    class Cube:
        @classmethod
        def apply(cls, x):
            return x**3

        @staticmethod
        def backward(context, cotangent):
            return cotangent

    def custom(x):
        return x

    assert place_of_vjp(Cube.apply) == place_of(Cube.backward) != ""
    assert place_of_vjp(custom) == place_of(custom)
    custom.bwd = right
    assert place_of_vjp(custom) == place_of(right)
    assert place_of_vjp(np.exp) == ""

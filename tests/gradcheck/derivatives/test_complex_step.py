"""The derivative of an analytic reference as a third oracle, and references that are none."""

from __future__ import annotations

import numpy as np
import pytest
from pairs import layer_norm, norm_backward

import gradcheck
from gradcheck import Verdict


def inputs():
    rng = np.random.default_rng(3)
    return tuple(rng.standard_normal(shape) for shape in ((6, 4), (4,), (4,)))


def definition(x, weight, bias):
    centre = x - x.mean(1, keepdims=True)
    return centre / np.sqrt((centre * centre).mean(1, keepdims=True) + 1e-5) * weight + bias


def with_var(x, weight, bias):
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * weight + bias


def with_a_cast(x, weight, bias):
    return definition(np.asarray(x, dtype=np.float64), weight, bias)


def with_real(x, weight, bias):
    return definition(*(np.real(array) for array in (x, weight, bias)))


def refusing(x, weight, bias):
    if any(np.iscomplexobj(array) for array in (x, weight, bias)):
        raise TypeError("complex numbers are not supported")
    return definition(x, weight, bias)


def checked(reference, backward=norm_backward):
    report = gradcheck.check_pair(layer_norm, backward, inputs(), reference=reference)
    notes = [note for note in report.notes if note.startswith("complex step")]
    return report, {check.input: check for check in report.checks if check.name == "complex step"}, notes


def test_the_definition_agrees_to_rounding():
    report, checks, notes = checked(definition)
    assert report.verdict is Verdict.PASS, str(report)
    assert list(checks) == ["x", "weight", "bias"] and not notes
    assert all(check.error <= 1e-14 * check.scale for check in checks.values())


def test_an_error_far_below_the_resolution_of_differences_is_seen():
    def backward(saved, cotangent):
        dx, dweight, dbias = norm_backward(saved, cotangent)
        return dx, dweight, dbias * (1 + 3e-12)

    _, checks, _ = checked(definition, backward)
    assert checks["bias"].verdict is Verdict.FAIL
    assert "by complex step through the reference" in checks["bias"].reason
    assert checks["x"].verdict is checks["weight"].verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        (with_var, "is not analytic"),
        (with_real, "drops the imaginary part"),
        (with_a_cast, "does not take complex arrays (ComplexWarning"),
        (refusing, "does not take complex arrays (TypeError: complex numbers are not supported)"),
    ],
)
def test_a_reference_that_is_not_analytic_is_no_oracle(reference, why):
    report, checks, notes = checked(reference)
    assert report.verdict is Verdict.PASS, str(report)
    assert not checks
    (note,) = notes
    assert note.startswith(f"complex step: not made, the reference {why}")


def test_a_reference_that_is_not_analytic_does_not_acquit():
    report, checks, _ = checked(with_var, lambda saved, c: tuple(-each for each in norm_backward(saved, c)))
    assert report.verdict is Verdict.FAIL
    assert not checks

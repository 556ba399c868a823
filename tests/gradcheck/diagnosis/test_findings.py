"""From a failed check to the sentence, in the report; and nothing where nothing can be said."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pairs import Saved, batch_norm, batch_norm_inputs, layer_norm, norm_backward

from gradcheck import check_pair
from gradcheck.diagnosis.findings import Finding, find
from gradcheck.diagnosis.terms import MomentNorm
from gradcheck.judge import OUTLIER, Check, Verdict
from gradcheck.subject import Subject, make_subject

INPUTS = batch_norm_inputs(np.random.default_rng(0))
LAYER_NORM = tuple(np.random.default_rng(k).normal(size=shape) for k, shape in enumerate(((4, 6), 6, 6)))
FAILED = tuple(Check("gradient", Verdict.FAIL, input=name) for name in ("x", "weight", "bias"))


def subject_of(forward: Callable[..., Any], backward: Callable[..., Any], inputs: Any = INPUTS) -> Subject:
    return make_subject(
        forward, backward, inputs,
        differentiable=None, zero=(), input_names=None, name=None, framework=False,
    )  # fmt: skip


def without_mean_path(saved: Saved, cotangent: np.ndarray) -> Any:
    dx, dweight, dbias = norm_backward(saved, cotangent, mean_path=False)
    return dx, dweight / 6, dbias


def test_each_wrong_gradient_is_explained_in_the_report() -> None:
    report = check_pair(batch_norm, without_mean_path, INPUTS)
    assert report.verdict is Verdict.FAIL
    of_x, of_weight = report.findings
    assert (of_x.input, of_x.shape, of_x.differing, of_x.compared) == ("x", (6, 4), 24, 24)
    assert of_x.pattern == "constant along axis 0"
    assert of_x.norm == "batch_norm over axis 0 with eps 1e-05"
    assert of_x.terms == (("direct", 1.0), ("mean path", 0.0), ("variance path", 1.0))
    assert of_x.residual is not None and of_x.residual < 1e-14
    assert of_x.sentence == (
        "the mean path is missing: subtract the mean of the cotangent times weight over axis 0"
    )
    assert abs(of_x.analytic - of_x.numeric) > 1e3 * of_x.bar
    assert of_weight.sentence == "the gradient is a mean, not a sum: do not divide by 6"


def test_a_known_family_is_not_recognised_again() -> None:
    terms = MomentNorm("my_norm", (6, 4), (0,), (1, 4), 1e-5, weight=1, bias=2)
    subject = subject_of(batch_norm, without_mean_path)
    (found,) = find(subject, FAILED[:1], terms, np.random.default_rng(0))
    assert found.norm == ""
    assert found.sentence.startswith("the mean path is missing")


def test_a_declared_family_that_is_not_that_of_the_output() -> None:
    terms = MomentNorm("my_norm", (6, 4), (0,), (1, 4), 1e-3, weight=1, bias=2)
    (found,) = find(subject_of(batch_norm, without_mean_path), FAILED[:1], terms, np.random.default_rng(0))
    assert found.norm == (
        "batch_norm over axis 0 with eps 1e-05; the output is not that of the my_norm that was declared"
    )
    assert found.sentence.startswith("the mean path is missing")
    tanh = subject_of(lambda x: (np.tanh(x), x), lambda x, cotangent: (cotangent / np.cosh(x),), (INPUTS[0],))
    terms = MomentNorm("my_norm", (6, 4), (0,), (1, 4), 1e-3)
    (found,) = find(tanh, FAILED[:1], terms, np.random.default_rng(0))
    assert (found.norm, found.sentence) == ("the output is not that of the my_norm that was declared", "")


def test_what_is_no_norm_has_a_place_and_a_pattern_only() -> None:
    subject = subject_of(
        lambda x: (np.tanh(x), x), lambda x, cotangent: (cotangent / np.cosh(x),), (INPUTS[0],)
    )
    (found,) = find(subject, FAILED[:1], None, np.random.default_rng(0))
    assert (found.norm, found.terms, found.residual, found.sentence) == ("", (), None, "")
    assert found.differing == 24


def test_without_an_explanation_the_verdict_is_the_same_and_costs_less() -> None:
    explained = check_pair(batch_norm, without_mean_path, INPUTS)
    report = check_pair(batch_norm, without_mean_path, INPUTS, explain=False)
    without_curves = tuple(dataclasses.replace(check, curve=None) for check in explained.checks)
    assert report.checks == without_curves and report.findings == ()
    assert report.evaluations < explained.evaluations


def test_checks_that_passed_or_are_of_another_kind_have_no_findings() -> None:
    subject = subject_of(batch_norm, norm_backward)
    others = (Check("gradient", Verdict.PASS, input="x"), Check("linearity", Verdict.FAIL, input="x"))
    assert find(subject, others, None, np.random.default_rng(0)) == ()
    assert subject.evaluations == 0


@pytest.mark.parametrize("after", [0, 1, 5])
def test_what_raises_costs_nothing_but_the_finding(after: int) -> None:
    calls = []

    def forward(x: np.ndarray) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise RuntimeError("no more")
        return x * 2, None

    subject = subject_of(forward, lambda saved, cotangent: (cotangent,), (INPUTS[0],))
    assert find(subject, FAILED[:1], None, np.random.default_rng(0)) == ()


def test_gradients_that_are_not_finite() -> None:
    def backward(saved: Saved, cotangent: np.ndarray) -> Any:
        dx, dweight, dbias = norm_backward(saved, cotangent)
        dx[2] = np.nan
        return dx, dweight, dbias

    (found,) = find(subject_of(batch_norm, backward), FAILED[:1], None, np.random.default_rng(0))
    assert isinstance(found, Finding)
    assert (found.index[0], found.differing) == (2, 4)
    assert found.pattern == "only index 2 of axis 0: not finite"
    assert found.sentence == ""


def test_the_same_seed_finds_the_same() -> None:
    def once() -> tuple[Finding, ...]:
        return find(
            subject_of(layer_norm_of_4, without_mean_path), FAILED[:1], None, np.random.default_rng(3)
        )

    assert once() == once()


def layer_norm_of_4(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> Any:
    return layer_norm(x, weight, bias)


def test_inputs_are_called_by_their_names() -> None:
    def unweighted(saved: Saved, cotangent: np.ndarray) -> Any:
        return norm_backward(saved._replace(weight=saved.weight**0), cotangent)

    report = check_pair(batch_norm, unweighted, INPUTS, input_names=("x", "gamma", "beta"))
    (found,) = report.findings
    assert found.sentence == "gamma is not applied: multiply the cotangent by gamma first"


def relu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.maximum(x, 0), x.copy()


def chosen(x: np.ndarray, condition: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.where(condition, x, 0.0), condition.copy()


def dropped(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask = np.random.default_rng(3).random(x.shape) < 0.5
    return x * mask, mask


def dropped_globally(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask = np.random.random(x.shape) < 0.5
    return x * mask, mask


CONDITION = np.random.default_rng(1).random((6, 4)) < 0.5
OTHER = np.random.default_rng(9).random((6, 4)) < 0.5


@pytest.mark.parametrize(
    ("forward", "others", "drawn"),
    [(relu, (), False), (chosen, (CONDITION,), False), (dropped, (), True), (dropped_globally, (), True)],
)
def test_only_of_a_mask_that_may_be_drawn_the_sentence_says_so(
    forward: Callable[..., Any], others: tuple[np.ndarray, ...], drawn: bool
) -> None:
    def backward(saved: np.ndarray, cotangent: np.ndarray) -> Any:
        return cotangent * OTHER, *(None for _ in others)

    (found,) = check_pair(forward, backward, (INPUTS[0], *others), differentiable=[0]).findings
    assert found.norm.startswith("a mask that keeps")
    if drawn:
        assert found.sentence.endswith("keep the mask, or its seed, and do not draw again")
    else:
        assert found.sentence.startswith("backward lets through other elements than forward")
        assert found.sentence.endswith("look at the condition")


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_rounding_to_float32_is_named_where_no_family_is_known(kind: type) -> None:
    def backward(saved: np.ndarray, cotangent: np.ndarray) -> Any:
        return (((1 - saved * saved) * cotangent).astype(kind).astype(float),)

    (found,) = check_pair(lambda x: (np.tanh(x), np.tanh(x)), backward, (INPUTS[0],)).findings
    asks = "is something rounded to float32 on the way?" in found.sentence
    assert asks == (kind is np.float32) and found.norm == ""


def test_where_no_element_is_wrong_the_reason_stays() -> None:
    """Else the report would show a right gradient, and not say why it failed."""
    report = check_pair(layer_norm, norm_backward, LAYER_NORM, zero=("x",))
    assert report.verdict is Verdict.FAIL and report.findings == ()
    assert "declared to be zero, but the derivative of the forward pass is" in str(report)


def test_a_backward_pass_that_jumps_at_the_input_says_so() -> None:
    def zero_without_spread(saved: Saved, cotangent: np.ndarray) -> Any:
        dx, *others = norm_backward(saved, cotangent)
        return np.where(np.abs(saved.x_hat).max(1, keepdims=True) == 0, 0, dx), *others

    x, *others = LAYER_NORM
    x = np.concatenate((x, np.full((1, x.shape[1]), 0.5)))
    report = check_pair(layer_norm, zero_without_spread, (x, *others))
    (found,) = report.findings
    assert "look at what is done to these" in found.sentence
    assert found.sentence.endswith(OUTLIER) and OUTLIER in str(report)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_tail_of_an_input_too_large_to_look_at_every_element(dtype: type) -> None:
    """The sorted values of 8,000 elements are so close that in float32 64 zeros among them look right."""

    def forward(*inputs: np.ndarray) -> Any:
        if inputs[0].dtype != dtype:
            raise TypeError("another dtype")
        return layer_norm(*inputs)

    def backward(saved: Saved, cotangent: np.ndarray) -> Any:
        dx, dweight, dbias = norm_backward(saved, cotangent)
        dx[:, 128:] = 0
        return dx, dweight, dbias

    rng = np.random.default_rng(0)
    inputs = tuple(rng.standard_normal(shape).astype(dtype) for shape in ((64, 129), 129, 129))
    (finding,) = check_pair(forward, backward, inputs).findings
    assert re.match(r"the other 81\d\d elements follow the formula of layer_norm", finding.sentence)

"""Every broken promise of a pair is found, named, and given the right verdict."""

from __future__ import annotations

import types

import numpy as np
import pytest
from pairs import batch_norm, batch_norm_inputs, norm_backward

import gradcheck
from gradcheck import Verdict
from gradcheck.contract import probes
from gradcheck.subject import make_subject


def report_on(forward, backward, *, framework=False, dtype=np.float64):
    inputs = batch_norm_inputs(np.random.default_rng(5), dtype=dtype)
    return gradcheck.check_pair(forward, backward, inputs, framework=framework)


def after(change):
    """The right gradients of batch_norm, then changed by `change(gradients, saved, cotangent)`."""
    return lambda saved, cotangent: change(norm_backward(saved, cotangent), saved, cotangent)


def raising(gradients, saved, cotangent):
    raise RuntimeError("out of ideas")


BUFFER = np.empty((6, 4))


def buffered(gradients, saved, cotangent):
    BUFFER[...] = gradients[0]
    return BUFFER, *gradients[1:]


def modify_cotangent(saved, cotangent):
    gradients = norm_backward(saved, cotangent)
    if cotangent.flags.writeable:
        cotangent *= 2
    return gradients


def modify_saved(saved, cotangent):
    gradients = norm_backward(saved, cotangent)
    saved.x_hat[...] *= saved.rstd
    return gradients


BROKEN = {
    "None": (
        after(lambda g, s, c: None),
        "backward must return a tuple of gradients; it returned NoneType; does it end without a return?",
    ),
    "list": (after(lambda g, s, c: list(g)), "it returned list; write tuple(…)"),
    "bare array": (after(lambda g, s, c: g[0]), "it returned ndarray; write (gradient,) for one input"),
    "generator": (after(lambda g, s, c: (each for each in g)), "it returned generator"),
    "arity": (
        after(lambda g, s, c: g[:2]),
        "backward returned 2 gradients for 3 inputs; return one entry per input, None where there is none",
    ),
    "object array": (
        after(lambda g, s, c: (g[0].astype(object), *g[1:])),
        "the gradient of x has dtype object; x has float64",
    ),
    "integers": (
        after(lambda g, s, c: (g[0].astype(int), *g[1:])),
        "the gradient of x has dtype int64; x has float64",
    ),
    "nested list": (
        after(lambda g, s, c: (g[0].tolist(), *g[1:])),
        "the gradient of x must be a NumPy array; it is list",
    ),
    "missing": (
        after(lambda g, s, c: (g[0], None, g[2])),
        "the gradient of weight is None; return an array, or leave weight out with differentiable=",
    ),
    "dtype": (
        after(lambda g, s, c: (g[0].astype(np.float32), *g[1:])),
        "the gradient of x has dtype float32; x has float64",
    ),
    "shape": (
        after(lambda g, s, c: (g[0], g[1][None], g[2])),
        "the gradient of weight has shape (1, 4); weight has (4,)",
    ),
    "exception": (after(raising), "backward raised RuntimeError: out of ideas"),
    "arguments": (
        lambda cotangent: None,
        "takes 1 positional argument but 2 were given; it is called as backward(saved, cotangent)",
    ),
    "cotangent modified": (modify_cotangent, "backward modified its cotangent"),
    "saved modified": (modify_saved, "backward modified an array that forward saved"),
    "saved returned": (
        after(lambda g, s, c: (s.x_hat, *g[1:])),
        "the gradient of x shares memory with a saved array",
    ),
    "cotangent returned": (
        after(lambda g, s, c: (c, *g[1:])),
        "the gradient of x shares memory with the cotangent",
    ),
    "one memory": (after(lambda g, s, c: (*g[:2], g[1])), "the gradients of weight and bias share memory"),
    "reused buffer": (after(buffered), "the gradient of x changed after it was returned"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_backward_is_an_error(broken):
    backward, reason = BROKEN[broken]
    report = report_on(batch_norm, backward)
    assert report.verdict is Verdict.ERROR, str(report)
    assert any(reason in line for line in report.reasons), str(report)


def overwriting(x, weight, bias):
    output, saved = batch_norm(x, weight, bias)
    weight += 1
    return output, saved


def forgetful(x, weight, bias):
    output, saved = batch_norm(x, weight, bias)
    BUFFER[...] = output
    return BUFFER, saved


def failing(x, weight, bias):
    raise OverflowError("too much")


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (
            lambda x, weight, bias: batch_norm(x, weight, bias)[0],
            "forward must return a tuple (output, saved)",
        ),
        (lambda x, weight, bias: (None, None), "forward's output must be a NumPy array; it is NoneType"),
        (lambda x, weight, bias: None, "it returned None; does it end without a return?"),
        (lambda x, weight, bias: x, "it returned ndarray; write (output, None) where nothing is saved"),
        (
            lambda x, weight, bias: ((x, weight), None),
            "it is tuple; join several outputs into one array, or check them one at a time",
        ),
        (lambda x, weight, bias: (x, weight, None), "a tuple of 3; join several outputs into one array"),
        (lambda x, weight, bias: (float(x.sum()), None), "it is float; write np.asarray(…) around it"),
        (
            lambda x, weight, bias: (x + 0j, None),
            "dtype complex128; its inputs have float64; return real and imaginary parts as the last axis",
        ),
        (
            lambda x: (x, None),
            "takes 1 positional argument but 3 were given; it is called as forward(*inputs), with 3 inputs",
        ),
        (
            lambda x, weight, bias: (x.astype(np.float32), None),
            "output has dtype float32; its inputs have float64; convert it to float64",
        ),
        (overwriting, "forward modified its input weight"),
        (forgetful, "the next forward overwrites the output of the one before"),
        (failing, "forward raised OverflowError: too much"),
    ],
)
def test_broken_forward_is_an_error(forward, reason):
    report = report_on(forward, norm_backward)
    assert report.verdict is Verdict.ERROR
    assert any(reason in line for line in report.reasons), str(report)


def test_a_framework_may_hand_the_cotangent_on_but_not_tie_gradients_together():
    inputs = np.random.default_rng(1).standard_normal((2, 3, 4))

    def add(a, b):
        return a + b, None

    for backward, verdict in (
        (lambda s, c: (c, c.copy()), Verdict.PASS),
        (lambda s, c: (c, c), Verdict.ERROR),
    ):
        assert gradcheck.check_pair(add, backward, tuple(inputs), framework=True).verdict is verdict
        assert gradcheck.check_pair(add, backward, tuple(inputs)).verdict is Verdict.ERROR


def test_arrays_inside_objects_are_watched():
    def forward(x):
        return x * x, types.SimpleNamespace(inner={"x": x.copy()})

    def backward(saved, cotangent):
        saved.inner["x"] *= 2
        return (cotangent * saved.inner["x"],)

    report = gradcheck.check_pair(forward, backward, (np.ones(3),))
    assert "backward modified an array that forward saved" in report.reasons[0]


class LastCall:
    """A layer that keeps what its last forward saw, and answers for any context from that."""

    def forward(self, x, weight, bias):
        output, self.saved = batch_norm(x, weight, bias)
        return output, None

    def backward(self, saved, cotangent):
        return norm_backward(self.saved, cotangent)


def test_state_of_the_previous_call_fails():
    layer = LastCall()
    report = report_on(layer.forward, layer.backward)
    assert report.verdict is Verdict.FAIL
    assert "backward depends on another call of forward" in report.reasons[0]


def test_a_nondeterministic_backward_fails():
    rng = np.random.default_rng(0)

    def rarely(gradients, saved, cotangent):
        return (gradients[0] * (1 + 1e-12 * (rng.random() < 0.3)), *gradients[1:])

    report = report_on(batch_norm, after(rarely))
    assert report.verdict is Verdict.FAIL
    assert any("gives another result" in reason for reason in report.reasons)


def test_a_context_that_wears_out_fails():
    def forward(x):
        return x * x, (x, [])

    def backward(saved, cotangent):
        x, calls = saved
        calls.append(1)
        return (2 * x * cotangent if len(calls) < 12 else x * cotangent,)

    report = gradcheck.check_pair(forward, backward, (np.ones(3),))
    assert report.verdict is Verdict.FAIL
    assert "a second backward over the same context gives another result" in report.reasons[0]


def raw_memory(array):
    """What a kernel reads that takes the pointer and forgets the strides."""
    if isinstance(array.base, np.ndarray) and array.base.size == array.size + 2:
        return array.base[: array.size].reshape(array.shape)
    if 0 in array.strides or any(stride < 0 for stride in array.strides) or not array.flags.c_contiguous:
        base = array.base if array.base is not None else array
        return np.resize(np.ravel(base, order="K"), array.shape)
    return array


@pytest.mark.parametrize(
    ("ignored", "reason"),
    [
        (lambda array: 0 in array.strides, "stride 0"),
        (lambda array: any(stride < 0 for stride in array.strides), "reversed"),
        (lambda array: array.ndim > 1 and array.flags.f_contiguous, "transposed"),
        (lambda array: array.strides[-1] == 2 * array.itemsize, "strided"),
        (lambda array: array.flags.c_contiguous and array.ctypes.data % 16, "sliced"),
    ],
)
@pytest.mark.parametrize("what", ["cotangent", "inputs"])
def test_misread_layouts_fail(ignored, reason, what):
    def read(array):
        return raw_memory(array) if ignored(array) else array

    def forward(x, weight, bias):
        return batch_norm(read(x) if what == "inputs" else x, weight, bias)

    def backward(saved, cotangent):
        return norm_backward(saved, read(cotangent) if what == "cotangent" else cotangent)

    report = report_on(forward, backward)
    assert report.verdict is Verdict.FAIL, str(report)
    (line,) = (check.reason for check in report.checks if check.name == "memory layouts")
    assert line.startswith("a memory layout is misread, only for ")
    named = line.partition(": ")[0]
    assert reason in named and what.rstrip("s") in named, str(report)
    others = {"stride 0", "reversed", "transposed", "strided", "sliced"} - {reason}
    # One column is transposed and contiguous at once, and expanding one row says nothing about the rest.
    assert not any(other in named for other in others), named
    assert " instead of " in line


def determinant(a):
    return np.linalg.det(a), a.copy()


def determinant_backward(a, cotangent):
    return (cotangent * np.linalg.det(a) * np.linalg.inv(a).T,)


def test_a_layout_that_inputs_and_cotangent_share_is_tried():
    """As where both are channels last, and a path for equal strides walks the memory."""

    def forward(x, weight, bias):
        output, saved = batch_norm(x, weight, bias)
        return output, (x.strides, saved)

    def backward(saved, cotangent):
        strides, saved = saved
        equal = strides == cotangent.strides and not cotangent.flags.c_contiguous
        return norm_backward(
            saved, np.ravel(cotangent, order="K").reshape(cotangent.shape) if equal else cotangent
        )

    report = report_on(forward, backward)
    assert report.verdict is Verdict.FAIL
    assert "misread, only for transposed inputs and cotangent" in report.reasons[0]


def read_densely(array):
    """What a kernel reads that takes the stride of the last axis for 1."""
    strides = (*array.strides[:-1], array.itemsize)
    return np.lib.stride_tricks.as_strided(array, array.shape, strides, writeable=False)


def test_a_layout_of_the_weight_alone_is_tried():
    """As where only x is asked whether it is contiguous; with all inputs strided x takes the other path."""

    def forward(x, weight, bias):
        return batch_norm(x, read_densely(weight) if x.flags.c_contiguous else weight, bias)

    report = report_on(forward, norm_backward)
    assert report.verdict is Verdict.FAIL
    assert "only for strided inputs other than x, reversed inputs other than x: " in report.reasons[0]


def masked(x, mask):
    return x * mask, mask


@pytest.mark.parametrize("dtype", [bool, np.int64, np.float64])
def test_layouts_of_an_input_without_a_gradient_are_tried(dtype):
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((4, 5)), (rng.random((4, 5)) < 0.5).astype(dtype)

    def backward(mask, cotangent):
        return cotangent * mask.ravel("K").reshape(mask.shape), None

    right = gradcheck.check_pair(masked, lambda m, c: (c * m, None), inputs, differentiable=("x",))
    assert right.verdict is Verdict.PASS, str(right)
    report = gradcheck.check_pair(masked, backward, inputs, differentiable=("x",))
    assert report.verdict is Verdict.FAIL
    assert "only for transposed inputs other than x" in report.reasons[0]


def test_the_state_is_laid_out_as_it_was_given():
    seen = set()

    def forward(x, mean):
        seen.add(mean.strides)
        mean += 0.1
        return x * x, x

    inputs = np.random.default_rng(0).standard_normal((3, 4)), np.zeros((3, 4))
    report = gradcheck.check_pair(forward, lambda x, c: (2 * x * c, None), inputs, state=("mean",))
    assert report.verdict is Verdict.PASS, str(report)
    assert seen == {(32, 8)}


def test_a_forward_that_refuses_a_layout_is_not_wrong_and_a_note_says_so():
    def forward(x, weight, bias):
        if not x.flags.c_contiguous:
            raise ValueError("x must be contiguous")
        return batch_norm(x, weight, bias)

    report = report_on(forward, norm_backward)
    assert report.verdict is Verdict.PASS, str(report)
    (note,) = (note for note in report.notes if note.startswith("memory layouts"))
    assert "and 2 others: transposed inputs: forward raised ValueError: x must be contiguous" in note


def test_a_backward_that_refuses_a_layout_is_an_error_that_names_it():
    """Nobody who writes y.sum().backward() can choose how the cotangent lies."""

    def backward(saved, cotangent):
        if not cotangent.flags.c_contiguous:
            raise ValueError("the cotangent must be contiguous")
        return norm_backward(saved, cotangent)

    report = report_on(batch_norm, backward)
    assert report.verdict is Verdict.ERROR
    assert "for a transposed cotangent, backward raised ValueError: the cotangent" in report.reasons[0]


def test_points_made_up_for_the_probes_need_no_gradient():
    a = np.random.default_rng(0).standard_normal((4, 4))
    report = gradcheck.check_pair(determinant, determinant_backward, (a,))
    assert report.verdict is Verdict.PASS, str(report)

    def fussy(saved, cotangent):
        if not np.array_equal(np.sign(saved), np.sign(a)):
            raise ValueError("not here")
        return determinant_backward(saved, cotangent)

    assert gradcheck.check_pair(determinant, fussy, (a,)).verdict is Verdict.PASS


def exp(x):
    y = np.exp(x)
    return y, y


@pytest.mark.parametrize(("values", "dtype"), [((709, 708, 700), np.float64), ((80, 70, 88), np.float32)])
def test_gradients_near_the_end_of_the_range_are_not_blamed_for_overflow(values, dtype):
    for seed in range(20):
        report = gradcheck.check_pair(exp, lambda y, c: (c * y,), (np.array(values, dtype),), seed=seed)
        assert report.verdict in (Verdict.PASS, Verdict.INCONCLUSIVE), str(report)
        assert all(check.name == "gradient" for check in report.checks if check.verdict is not Verdict.PASS)


def test_a_needless_overflow_fails():
    def backward(y, cotangent):
        huge = cotangent.dtype.type(2.0**30)
        return (cotangent * huge * y / huge,)

    x = np.array([80, 70, 88], np.float32)
    assert gradcheck.check_pair(exp, backward, (x,)).verdict is Verdict.FAIL


def test_operations_that_dislike_other_points_are_not_blamed():
    def forward(x):
        if np.any(np.diff(x) < 0):
            raise ValueError("x must be sorted")
        return np.log(x), x

    x = np.array([1.0, 2.0, 4.0, 8.0])
    report = gradcheck.check_pair(forward, lambda x, c: (c / x,), (x,))
    assert not any("must be sorted" in reason and "calls" in reason for reason in report.reasons)


def test_swapped_functions_are_recognised():
    report = gradcheck.check_pair(lambda y, c: (c * y,), exp, (np.ones(3),))
    assert report.verdict is Verdict.ERROR
    assert "are forward and backward swapped?" in report.reasons[0]


def test_the_element_that_differs_is_told():
    def backward(saved, cotangent):
        gradient = 2.0 * cotangent
        if 0 in cotangent.strides:
            gradient[1, 2] += 1
        return (gradient,)

    report = gradcheck.check_pair(lambda x: (2 * x, None), backward, (np.ones((3, 4)),))
    (reason,) = report.reasons
    assert "a cotangent expanded along axis 0 (stride 0)" in reason
    assert "differs by 1.0e+00 at (1, 2)" in reason and "1 of 12 elements differ" in reason


def test_the_rounding_is_not_measured_where_bits_agree():
    """What a check costs is what the pair costs: 22 forward and 57 backward passes."""
    with np.errstate(all="ignore"):
        subject = make_subject(batch_norm, norm_backward, batch_norm_inputs(np.random.default_rng(5)))
        probes.probe(subject, np.random.default_rng(0))
    assert (subject.evaluations, subject.vjps) == (22, 57)


def test_a_fault_that_is_told_is_not_told_again_by_the_questions_after_it():
    """A backward that halves its gradient at every call is not linear either, and misreads every layout."""
    calls = []

    def wearing_out(saved, cotangent):
        calls.append(None)
        return tuple(each * 0.5 ** len(calls) for each in norm_backward(saved, cotangent))

    checks = {check.name: check for check in report_on(batch_norm, wearing_out).checks}
    assert checks["backward repeats"].verdict is Verdict.FAIL
    assert not {"calls are independent", "memory layouts", "linear in the cotangent"} & set(checks)

"""The right pairs are right: output and gradients are torch's."""

from __future__ import annotations

import numpy as np
import pytest

from gradcheck.mutants.cases import CASES
from gradcheck.mutants.operations import EPS, MOMENTUM, OPERATIONS, P

torch = pytest.importorskip("torch", reason="torch is the oracle")
F = torch.nn.functional


def mine(name, inputs, cotangent):
    """Output and gradients of the pair, without those that are None."""
    operation = OPERATIONS[name]
    output, saved = operation.forward(*(array.copy() for array in inputs))
    return [output, *(g for g in operation.backward(saved, cotangent) if g is not None)]


def theirs(function, inputs, cotangent):
    """Output and gradients of a function of torch tensors."""
    tensors = [torch.from_numpy(array).requires_grad_() for array in inputs]
    output = function(*tensors)
    output.backward(torch.from_numpy(cotangent))
    return [output.detach().numpy(), *(tensor.grad.numpy() for tensor in tensors)]


def require_equal(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


VIEWS = {
    "batch norm": ((6, 4, 5), lambda n, c, length: (1, n, c, 1, length)),
    "instance norm": ((3, 4, 5), lambda n, c, length: (n, 1, c, 1, length)),
    "group norm": ((3, 6, 5), lambda n, c, length: (n, 1, 2, c // 2, length)),
    "layer norm": ((4, 7, 1), lambda n, c, length: (n, 1, 1, c, 1)),
}
NORMS = {
    "batch norm": lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True, eps=EPS),
    "instance norm": lambda x, w, b: F.instance_norm(x, weight=w, bias=b, eps=EPS),
    "group norm": lambda x, w, b: F.group_norm(x, 2, w, b, eps=EPS),
    "layer norm": lambda x, w, b: F.layer_norm(x[..., 0], (7,), w, b, eps=EPS)[..., None],
}


@pytest.mark.parametrize("norm", VIEWS)
def test_every_norm_is_the_moment_norm_of_a_view(norm):
    shape, to_view = VIEWS[norm]
    rng = np.random.default_rng(0)
    view = to_view(*shape)
    x, weight, bias = OPERATIONS["moment_norm"].draw(view, rng)
    cotangent = rng.normal(size=view)
    got = mine("moment_norm", (x, weight, bias), cotangent)
    flat = x.reshape(shape), weight.reshape(-1), bias.reshape(-1)
    wanted = theirs(NORMS[norm], flat, cotangent.reshape(shape))
    require_equal([array.reshape(other.shape) for array, other in zip(got, wanted, strict=True)], wanted)


def test_rms_norm():
    rng = np.random.default_rng(0)
    inputs = OPERATIONS["rms_norm"].draw((4, 7), rng)
    cotangent = rng.normal(size=(4, 7))
    wanted = theirs(lambda x, w: F.rms_norm(x, (7,), w, eps=EPS), inputs, cotangent)
    require_equal(mine("rms_norm", inputs, cotangent), wanted)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_norms_with_running_statistics(training):
    rng = np.random.default_rng(0)
    name = "running_norm" if training else "inference_norm"
    *inputs, mean, var = OPERATIONS[name].draw((4, 3, 5), rng)
    cotangent = rng.normal(size=(4, 3, 5))
    their_mean, their_var = torch.from_numpy(mean.copy()), torch.from_numpy(var.copy())

    def norm(x, w, b):
        return F.batch_norm(x, their_mean, their_var, w, b, training=training, momentum=MOMENTUM, eps=EPS)

    require_equal(mine(name, (*inputs, mean, var), cotangent), theirs(norm, inputs, cotangent))
    OPERATIONS[name].forward(*inputs, mean, var)
    require_equal([mean, var], [their_mean.numpy(), their_var.numpy()])


@pytest.mark.parametrize("name", ["dropout", "channel_dropout"])
def test_dropout_scales_what_it_keeps_and_its_gradient_likewise(name):
    rng = np.random.default_rng(0)
    x, key = OPERATIONS[name].draw((40, 50, 4), rng)
    cotangent = rng.normal(size=x.shape)
    y, dx = mine(name, (x, key), cotangent)
    kept = y != 0
    np.testing.assert_allclose(y[kept], x[kept] / (1 - P))
    np.testing.assert_allclose(dx, np.where(kept, cotangent / (1 - P), 0))
    assert abs(kept.mean() - (1 - P)) < 0.04
    assert (kept == kept[:, :, :1]).all() == (name == "channel_dropout")
    np.testing.assert_array_equal(mine(name, (x, key), cotangent)[0], y)
    assert (mine(name, (x, key + 1), cotangent)[0] != y).any()


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_case_can_be_drawn_and_keeps_its_dtype(name):
    operation = OPERATIONS[name]
    for case in CASES[name]:
        inputs = case.inputs(operation, np.random.default_rng(0))
        assert len(inputs) == len(operation.names)
        output, _ = operation.forward(*inputs)
        assert output.shape == inputs[0].shape == case.shape
        assert output.dtype == case.dtype

"""Tensors of 16-bit floats, which only CUDA devices have."""

import ml_dtypes
import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import functional

HALVES = pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 6, 5)) + 3
WEIGHT, BIAS = RNG.normal(size=6) + 1, RNG.normal(size=6)
COTANGENT = RNG.normal(size=X.shape)

OPERATIONS = {
    "layer_norm": lambda x, w, b: functional.layer_norm(x, (6, 5)),
    "rms_norm": lambda x, w, b: functional.rms_norm(x, 5),
    "group_norm": lambda x, w, b: functional.group_norm(x, 2, w, b),
    "instance_norm": lambda x, w, b: functional.instance_norm(x, None, None, w, b),
    "batch_norm": lambda x, w, b: functional.batch_norm(x, None, None, w, b, training=True),
    "dropout": lambda x, w, b: functional.dropout(x, 0.25, generator=tg.Generator(5)),
}


@HALVES
@pytest.mark.parametrize("name", OPERATIONS)
def test_results_are_those_of_float64_rounded(name, dtype):
    halves = [np.asarray(a).astype(dtype) for a in (X, WEIGHT, BIAS)]
    wide = [tg.tensor(a.astype(np.float64), requires_grad=True) for a in halves]
    narrow = [tg.tensor(a, device="cuda-sim", requires_grad=True) for a in halves]
    cotangent = COTANGENT.astype(dtype)
    given = [cotangent.astype(np.float64), tg.tensor(cotangent, device="cuda-sim")]
    unit = float(ml_dtypes.finfo(dtype).eps)
    for tensors, g in zip((wide, narrow), given, strict=True):
        output = OPERATIONS[name](*tensors)
        output.backward(g)
        tensors.append(output)
    for wanted, got in zip(wide, narrow, strict=True):
        for pair in ((wanted, got), (wanted.grad, got.grad)):
            if pair[0] is not None:
                values = [np.asarray(t.numpy(), np.float64) for t in pair]
                assert pair[1].dtype == dtype and pair[1].device == "cuda-sim"
                assert np.abs(values[0] - values[1]).max() <= unit * np.abs(values[0]).max()


@HALVES
def test_the_cpu_has_none(dtype):
    with pytest.raises(
        TypeError, match=r"wanted float32 or float64; convert it.*16 are for CUDA devices alone$"
    ):
        tg.tensor(X.astype(dtype))
    t = tg.tensor(X.astype(dtype), device="cuda-sim")
    with pytest.raises(TypeError, match=r"with \.astype\('float32'\) before \.to\('cpu'\)"):
        t.to("cpu")
    assert t.astype("float32").to("cpu").dtype == np.float32


def test_other_dtypes_are_refused_there_too():
    with pytest.raises(
        TypeError,
        match=r"complex128, wanted float32 or float64; convert it, e\.g\. with dtype='float32'$",
    ):
        tg.tensor(X + 0j, device="cuda-sim")

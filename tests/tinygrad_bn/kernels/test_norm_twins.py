"""The twins of a norm kernel give the same bits, on any number of threads."""

from __future__ import annotations

import pytest
from test_norm_kernels import ALL, DTYPES, EPS, VIEWS, bits, draw, kernel

from tinygrad_bn.kernels.views import Cols, Rows, Split

SEVERAL_TASKS = [
    Rows(150, 1200, EPS),
    Rows(1030, 65, EPS, centred=False),
    Split(1, 3, 7, 1, 1100, EPS),
    Split(3, 1, 5, 3, 400, EPS),
    Cols(1, 700, 37, 1, EPS),
    Cols(3, 300, 1032, 4, EPS),
]


def every_result(view, dtype, twin):
    """All outputs of a kernel in training and, where it has one, in inference."""
    x, weight, bias, cotangent = draw(view, dtype)
    target = kernel(view, twin)
    y, aux = target.forward(view, x, weight, bias)
    results = [y, *aux, *target.vjp(view, ALL, cotangent, (x, weight, bias), aux)]
    if not isinstance(view, Rows):
        target = kernel(view, f"{twin}_inference")
        y, aux = target.forward(view, x, weight, bias, aux[0], aux[1])
        results += [y, *aux, *target.vjp(view, ALL, cotangent, (x, weight, bias), aux)]
    return results


@DTYPES
@pytest.mark.parametrize("view", SEVERAL_TASKS + VIEWS[::3], ids=str)
def test_twins_give_the_same_bits(view, dtype):
    assert bits(every_result(view, dtype, "sequential")) == bits(every_result(view, dtype, "parallel"))


THREADS_PROGRAM = """
import hashlib, numba
from {module} import SEVERAL_TASKS, bits, every_result
for threads in 1, 2, 3, 8:
    numba.set_num_threads(threads)
    digest = hashlib.sha256()
    for view in SEVERAL_TASKS:
        for dtype in "float32", "float64":
            digest.update(repr(bits(every_result(view, dtype, "parallel"))).encode())
    print(digest.hexdigest())
"""


def test_the_number_of_threads_changes_no_bit(run_python):
    digests = run_python(THREADS_PROGRAM.format(module=__name__.rpartition(".")[2]), NUMBA_NUM_THREADS="8")
    assert len(digests) == 4 and len(set(digests)) == 1

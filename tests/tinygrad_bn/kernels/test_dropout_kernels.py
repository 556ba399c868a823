from __future__ import annotations

import dataclasses
import os
import platform
import re
import subprocess
import sys
import tracemalloc

import numba
import numpy as np
import pytest

from tinygrad_bn.kernels.cpu import dropout
from tinygrad_bn.kernels.cpu.memory import release_memory
from tinygrad_bn.kernels.masks import Mask, Scale
from tinygrad_bn.kernels.philox import (
    keep_bits,
    keep_mask,
    low_and_high,
    philox4x32,
    quantise,
)

TWINS = pytest.mark.parametrize(
    "target", [dropout.sequential, dropout.parallel], ids=["sequential", "parallel"]
)
SCALES = pytest.mark.parametrize(
    "target", [dropout.sequential_scale, dropout.parallel_scale], ids=["sequential", "parallel"]
)
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
NARROW, WIDE = 0.3, 0.99995  # of 16 and of 32 bits; hardly anything survives the second
SEVERAL_TASKS = 3 * dropout.TASK + 1013


def plan_for(shape, mask_shape=None, p=NARROW, seed=2**63 + 5, stream=3, call=7):
    quantised = quantise(p)
    return Mask(shape, mask_shape or shape, seed, stream, call, quantised, quantised.survivor_scale)


def normal(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def expected(plan, x):
    mask = keep_mask(plan.seed, plan.stream, plan.call, plan.quantised, plan.mask_shape)
    return np.where(mask, x * x.dtype.type(plan.scale), x.dtype.type(0))


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def check(target, plan, x, cotangent):
    """Forward and backward against NumPy, bit by bit, in new memory, with the arguments untouched."""
    before = x.tobytes(), cotangent.tobytes()
    y, (words,) = target.forward(plan, x)
    assert same_bits(y, expected(plan, x))
    bits = keep_bits(plan.seed, plan.stream, plan.call, plan.quantised, (plan.decisions + 63) // 64 * 64)
    assert same_bits(words, bits.view(np.uint64))
    stored = words.copy()
    words.flags.writeable = False
    (dx,) = target.vjp(plan, (True,), cotangent, (x,), (words,))
    assert same_bits(dx, expected(plan, cotangent))
    assert (x.tobytes(), cotangent.tobytes()) == before
    assert np.array_equal(words, stored)
    arrays = [y, words, dx]
    for i, array in enumerate(arrays):
        assert not any(np.shares_memory(array, other) for other in [x, cotangent, *arrays[:i]])
    assert y.flags.writeable and y.flags.c_contiguous and dx.flags.writeable


@TWINS
@DTYPES
@pytest.mark.parametrize("p", [0.0, NARROW, 0.5, 1e-4, WIDE, 1.0])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 63, 64, 65, 1003, SEVERAL_TASKS])
def test_every_size_and_lane_width(target, dtype, p, size):
    check(target, plan_for((size,), p=p), normal(size, dtype), normal(size, dtype, 1))


PATTERNS = [
    ((), ()),
    ((1, 1), (1, 1)),
    ((5, 7), (1, 1)),
    ((4, 6, 5, 5), (4, 6, 1, 1)),  # spatial, channels first
    ((4, 5, 5, 6), (4, 1, 1, 6)),  # spatial, channels last
    ((4, 9, 20), (4, 1, 20)),  # variational
    ((50, 33), (1, 33)),
    ((50, 33), (50, 1)),
    ((3, 4, 5, 6, 7), (1, 4, 1, 6, 1)),
    ((3, 4, 5, 6, 7), (3, 1, 5, 1, 7)),
    ((2, 3, 2, 3, 2, 3, 2), (2, 1, 2, 1, 2, 1, 2)),
    ((2, 1, 5, 1, 3), (2, 1, 1, 1, 3)),
    ((0, 4), (1, 4)),
    ((4, 0), (4, 0)),
    ((3, 0, 2), (3, 1, 2)),
    ((5, dropout.TASK // 2 + 3), (5, 1)),  # runs that cross from task to task
    ((5, dropout.TASK // 2 + 3), (1, dropout.TASK // 2 + 3)),
    ((700, 3, 101), (700, 1, 101)),
    ((9, 2, 8 * 1024 + 1, 2), (9, 1, 8 * 1024 + 1, 1)),
]


@TWINS
@DTYPES
@pytest.mark.parametrize(("shape", "mask_shape"), PATTERNS)
@pytest.mark.parametrize("p", [0.5, 1e-4])
def test_shared_axes(target, dtype, shape, mask_shape, p):
    check(target, plan_for(shape, mask_shape, p), normal(shape, dtype), normal(shape, dtype, 1))


def test_random_shapes_and_shared_axes():
    rng = np.random.default_rng(8)
    for call in range(300):
        shape = tuple(int(n) for n in rng.integers(1, 7, size=rng.integers(0, 7)))
        mask_shape = tuple(
            n if own else 1 for n, own in zip(shape, rng.random(len(shape)) < 0.5, strict=True)
        )
        plan = plan_for(shape, mask_shape, p=rng.choice([0.5, 0.25, 1e-4, WIDE]), call=call)
        check(dropout.sequential, plan, normal(shape, np.float32, call), normal(shape, np.float32, call + 1))


def layouts(dtype):
    base = normal((6, 10, 22), dtype)
    frozen = base.copy()
    frozen.flags.writeable = False
    raw = np.empty(base.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(dtype).reshape(base.shape)
    unaligned[...] = base
    assert not unaligned.flags.aligned
    return {
        "transposed": normal((22, 10, 6), dtype).T,
        "reversed": base[::-1, :, ::-1],
        "strided": normal((12, 10, 44), dtype)[::2, :, ::2],
        "stride 0": np.broadcast_to(normal((10, 1), dtype), (6, 10, 22)),
        "read-only": frozen,
        "unaligned": unaligned,
        "offset": normal(6 * 10 * 22 + 1, dtype)[1:].reshape(6, 10, 22),
    }


@TWINS
@DTYPES
@pytest.mark.parametrize("layout", layouts(np.float32))
def test_the_mask_follows_the_shape_and_not_the_layout(target, dtype, layout):
    array, other = layouts(dtype)[layout], normal((6, 10, 22), dtype, 1)
    for mask_shape in [(6, 10, 22), (6, 1, 22), (1, 10, 1)]:
        plan = plan_for((6, 10, 22), mask_shape)
        check(target, plan, array, other)
        check(target, plan, other, array)


@TWINS
@DTYPES
@pytest.mark.parametrize("mask_shape", [(40, 11), (40, 1), (1, 11)])
def test_dropped_elements_are_plus_zero_and_kept_ones_keep_their_kind(target, dtype, mask_shape):
    plan = plan_for((40, 11), mask_shape, p=0.5)
    keep = np.broadcast_to(keep_mask(plan.seed, plan.stream, plan.call, 0.5, mask_shape), (40, 11))
    for value in (np.nan, np.inf, -np.inf, -0.0, -1.0):
        x = np.full((40, 11), value, dtype)
        y, aux = target.forward(plan, x)
        (dx,) = target.vjp(plan, (True,), x, (x,), aux)
        for result in (y, dx):
            assert np.array_equal(result[keep], (x * dtype(plan.scale))[keep], equal_nan=True)
            assert np.all(np.signbit(result[keep]) == np.signbit(x[keep]))
            assert np.all(result[~keep] == 0) and not np.signbit(result[~keep]).any()


@TWINS
def test_certain_probabilities(target):
    x = normal((9, 21), np.float32)
    assert same_bits(target.forward(plan_for(x.shape, p=0), x)[0], x)
    assert same_bits(target.forward(plan_for(x.shape, p=1), x)[0], np.zeros_like(x))


@TWINS
def test_scale_is_the_plan_s_own(target):
    x = normal((9, 21), np.float32)
    check(target, dataclasses.replace(plan_for(x.shape), scale=1.0), x, x)
    check(target, dataclasses.replace(plan_for(x.shape), scale=1 / 3), x, x)


@TWINS
def test_backward_uses_the_stored_mask(target):
    plan = plan_for((1000,))
    x, ones = normal(1000, np.float64), np.ones(1000)
    y, aux = target.forward(plan, x)
    assert np.array_equal(y, x * target.vjp(plan, (True,), ones, (x,), aux)[0])
    other = target.forward(dataclasses.replace(plan, call=plan.call + 1), x)[1]
    assert not np.array_equal(y, x * target.vjp(plan, (True,), ones, (x,), other)[0])


@TWINS
def test_a_gradient_nobody_needs_is_not_made(target):
    plan, x = plan_for((4,)), np.ones(4)
    assert target.vjp(plan, (False,), x, (x,), target.forward(plan, x)[1]) == (None,)


@TWINS
def test_the_plan_must_fit_the_array(target):
    plan, x = plan_for((4, 6)), np.ones((6, 4))
    with pytest.raises(
        ValueError, match=r"dropout: x has shape \(6, 4\), but the mask was made for \(4, 6\)"
    ):
        target.forward(plan, x)
    with pytest.raises(ValueError, match=r"dropout: cotangent has shape \(24,\)"):
        target.vjp(plan, (True,), np.ones(24), (x,), (np.zeros(1, np.uint64),))


@TWINS
@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.complex128, ">f4"])
def test_other_dtypes_are_refused(target, dtype):
    with pytest.raises(TypeError, match="float32 and float64"):
        target.forward(plan_for((4,)), np.ones(4, dtype))


@TWINS
def test_no_temporary_of_the_size_of_the_input(target):
    x = normal((64, 32, 40, 40), np.float32)
    for mask_shape in [(64, 32, 1, 1), (64, 1, 1, 40), (1, 32, 1, 40), (1, 1, 40, 1)]:
        plan = plan_for(x.shape, mask_shape)
        target.forward(plan, x)
        release_memory()
        tracemalloc.start()
        target.forward(plan, x)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < x.nbytes + plan.decisions + 100_000


@pytest.mark.parametrize("first", [0, 2**28 - 3, 2**29 - 3, 2**40])
@pytest.mark.parametrize("p", [0.0, NARROW, WIDE, 1.0])
def test_block_numbers_go_beyond_one_word(first, p):
    """Masks of more than 2^32 blocks, without making one: the words of the middle alone."""
    quantised, key = quantise(p), (np.uint64(2**63 + 77), np.uint64(2**32 - 2), np.uint64(2**32 - 1))
    words = np.empty(9, np.uint64)
    wide = quantised.lane_bits == 32
    dropout.draw(words, first, key, np.uint64(quantised.kept), wide)
    per_word = 16 if wide else 8
    block = np.uint64(per_word * first) + np.arange(per_word * words.size, dtype=np.uint64)
    seed, stream, call = key
    low = np.uint64(2**32 - 1)
    drawn = philox4x32(block & low, block >> np.uint64(32), call, stream, *low_and_high(int(seed)))
    lanes = np.stack(drawn, axis=1).astype(np.uint32).reshape(-1)
    lanes = lanes if wide else lanes.view(np.uint16)
    assert np.array_equal(words.view(np.uint8), np.packbits(lanes >= quantised.threshold, bitorder="little"))


def test_no_word_outside_the_mask_is_read():
    checked = numba.njit(boundscheck=True)(dropout.eight_bits_at.py_func)
    words = np.random.default_rng(0).integers(2**64, size=2, dtype=np.uint64)
    every = np.unpackbits(words.view(np.uint8), bitorder="little")
    for at in range(121):
        assert checked(words, np.uint64(at)) == np.packbits(every[at : at + 8], bitorder="little")[0]


@SCALES
@DTYPES
def test_inference_scale(target, dtype):
    plan = Scale(1 / 3)
    for x in [
        *layouts(dtype).values(),
        normal(SEVERAL_TASKS, dtype),
        normal((), dtype),
        normal((0, 3), dtype),
    ]:
        before = x.tobytes()
        y, aux = target.forward(plan, x)
        (dx,) = target.vjp(plan, (True,), x, (x,), aux)
        assert aux == ()
        assert same_bits(y, np.ascontiguousarray(x * dtype(1 / 3)).reshape(x.shape)) and same_bits(dx, y)
        assert x.tobytes() == before and not np.shares_memory(y, x)
    special = np.array([np.nan, np.inf, -0.0], dtype)
    assert np.array_equal(target.forward(Scale(0.0), special)[0], [np.nan, np.nan, 0.0], equal_nan=True)
    assert same_bits(target.forward(Scale(1.0), special)[0], special)
    assert target.vjp(plan, (False,), special, (special,), ()) == (None,)


THREADS = """
import hashlib, sys
import numba
sys.path.insert(0, sys.argv[1])
import test_dropout_kernels as t
from tinygrad_bn.kernels.cpu import dropout

plans = [t.plan_for((t.SEVERAL_TASKS,), p=p) for p in (t.NARROW, t.WIDE)]
plans += [t.plan_for((300, 3, 301), mask) for mask in [(300, 1, 301), (1, 3, 1)]]
for threads, target in [(1, dropout.sequential), *((n, dropout.parallel) for n in (1, 2, 3, 8))]:
    numba.set_num_threads(threads)
    digest = hashlib.sha256()
    for plan in plans:
        x = t.normal(plan.shape, "float32")
        y, aux = target.forward(plan, x)
        digest.update(y.tobytes() + aux[0].tobytes() + target.vjp(plan, (True,), x, (x,), aux)[0].tobytes())
    print(digest.hexdigest())
"""


def test_the_same_bits_for_every_number_of_threads():
    environment = os.environ | {
        "NUMBA_NUM_THREADS": "8",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-W", "error", "-c", THREADS, os.path.dirname(__file__)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) == 5 and len(set(result.stdout.split())) == 1


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86 instructions")
def test_the_hot_loops_are_vectorized():
    """They would be as correct, but several times slower, one value at a time."""
    word, array = numba.uint64, numba.types.Array
    words, index = array(word, 1, "C", readonly=True), array(numba.int64, 1, "C", readonly=True)
    drawn, key = array(word, 1, "C"), numba.types.UniTuple(word, 3)
    drawer = numba.njit((drawn, numba.int64, key, word, numba.boolean))(dropout.draw.py_func)
    code = "".join(drawer.inspect_asm().values())
    assert "pmuludq" in code and re.search(r"pcmp|pmax|pmin|psub", code)
    for real, multiply in [(numba.float32, "mulps"), (numba.float64, "mulpd")]:
        data, out = array(real, 1, "C", readonly=True), array(real, 1, "C")
        expander = numba.njit((data, words, out, real, index, index, numba.int64, numba.int64))(
            dropout.expand_part.py_func
        )
        assert multiply in "".join(expander.inspect_asm().values())

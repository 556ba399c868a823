"""Dropout on a simulated device: the same bits as `kernels/philox.py` and as the CPU's kernels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from harness import (
    LAYOUTS,
    STORAGES,
    Operation,
    check,
    check_layouts,
    check_needs,
    on_device,
    same_bits,
    stored,
)

import tinygrad_bn
import tinygrad_bn.functional as F
from tinygrad_bn.kernels import philox
from tinygrad_bn.kernels.cpu import dropout as cpu
from tinygrad_bn.kernels.cuda import dropout
from tinygrad_bn.kernels.cuda.compat import Pointer, cuda, kernel
from tinygrad_bn.kernels.masks import Mask, Scale

DTYPES = pytest.mark.parametrize("dtype", STORAGES)
NARROW = 0.3  # 16 bits suffice
WIDE = philox.Quantised(32, 0x4CCC_1234, 0x4CCC_1234 / 2**32)
BLOCK = dropout.THREADS * dropout.EIGHT


def plan_for(shape, mask_shape=None, p=NARROW, seed=2**63 + 5, stream=2**32 - 3, call=7):
    quantised = p if isinstance(p, philox.Quantised) else philox.quantise(p)
    return Mask(shape, mask_shape or shape, seed, stream, call, quantised, quantised.survivor_scale)


def normal(shape, dtype="float32", seed=0):
    return stored(np.random.default_rng(seed).standard_normal(shape), dtype)


def expected(plan, x):
    """Kept elements times the scale, calculated in float32 at least and rounded once; else +0."""
    x = np.asarray(x)
    wide = np.float64 if x.dtype == np.float64 else np.float32
    mask = philox.keep_mask(plan.seed, plan.stream, plan.call, plan.quantised, plan.mask_shape)
    return np.where(mask, (x.astype(wide) * wide(plan.scale)).astype(x.dtype), x.dtype.type(0))


def assert_bits(plan, x, cotangent=None):
    """Forward and backward, bit by bit."""
    y, aux = dropout.dropout.forward(plan, x)
    assert aux == () and same_bits(y, expected(plan, x))
    (dx,) = dropout.dropout.vjp(plan, (True,), x if cotangent is None else cotangent, (x,), aux)
    assert same_bits(dx, expected(plan, x if cotangent is None else cotangent))


@DTYPES
@pytest.mark.parametrize("p", [0.0, NARROW, 1e-4, WIDE, 1.0], ids=str)
@pytest.mark.parametrize("size", [0, 1, 8, 9, 259])
def test_every_size_and_width_of_decisions(size, p, dtype):
    assert_bits(plan_for((size,), p=p), normal(size, dtype), normal(size, dtype, 1))


@DTYPES
def test_more_than_a_block(dtype):
    assert_bits(plan_for((BLOCK + 301,)), normal(BLOCK + 301, dtype))


PATTERNS = [
    ((), ()),
    ((1, 1), (1, 1)),
    ((5, 7), (1, 1)),
    ((3, 2, 7, 7), (3, 2, 1, 1)),  # spatial, channels first
    ((3, 5, 5, 6), (3, 1, 1, 6)),  # spatial, channels last
    ((3, 9, 20), (3, 1, 20)),  # variational
    ((3, 4, 16), (3, 1, 16)),
    ((9, 33), (1, 33)),
    ((9, 33), (9, 1)),
    ((40, 3), (40, 1)),
    ((100, 2), (100, 1)),
    ((2, 4, 3, 6, 5), (1, 4, 1, 6, 1)),
    ((2, 4, 3, 6, 5), (2, 1, 3, 1, 5)),
    ((2, 3, 2, 3, 2, 3, 2), (2, 1, 2, 1, 2, 1, 2)),
    ((2, 1, 5, 1, 3), (2, 1, 1, 1, 3)),
    ((0, 4), (1, 4)),
    ((3, 0, 2), (3, 1, 2)),
    ((2, BLOCK // 2 + 9), (2, 1)),
    ((5, BLOCK // 4 + 3), (1, BLOCK // 4 + 3)),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("p", [0.5, WIDE], ids=["16", "32"])
@pytest.mark.parametrize(("shape", "mask_shape"), PATTERNS)
def test_shared_axes(shape, mask_shape, p, dtype):
    assert_bits(plan_for(shape, mask_shape, p), normal(shape, dtype), normal(shape, dtype, 1))


def test_random_shapes_and_shared_axes():
    rng = np.random.default_rng(8)
    for call in range(100):
        shape = tuple(int(n) for n in rng.integers(1, 7, size=rng.integers(0, 6)))
        mask_shape = tuple(
            n if own else 1 for n, own in zip(shape, rng.random(len(shape)) < 0.5, strict=True)
        )
        plan = plan_for(shape, mask_shape, p=[0.5, 0.25, 1e-4, WIDE][rng.integers(4)], call=call)
        assert_bits(plan, normal(shape, STORAGES[call % 4], call))


@DTYPES
@pytest.mark.parametrize("mask_shape", [(4, 3, 11), (4, 1, 11), (1, 3, 1)])
def test_the_mask_follows_the_shape_and_not_the_layout(mask_shape, dtype):
    plan, x = plan_for((4, 3, 11), mask_shape), normal((4, 3, 11), dtype)
    for laid in LAYOUTS.values():
        assert_bits(plan, on_device(laid(x)), x)
        assert_bits(plan, x, on_device(laid(x)))


@DTYPES
@pytest.mark.parametrize("mask_shape", [(20, 11), (20, 1), (1, 11)])
def test_dropped_elements_are_plus_zero_and_kept_ones_keep_their_kind(mask_shape, dtype):
    plan = plan_for((20, 11), mask_shape, p=0.5)
    keep = np.broadcast_to(philox.keep_mask(plan.seed, plan.stream, plan.call, 0.5, mask_shape), (20, 11))
    for value in (np.nan, np.inf, -np.inf, -0.0, -1.0):
        x = stored(np.full((20, 11), value), dtype)
        y, aux = dropout.dropout.forward(plan, x)
        (dx,) = dropout.dropout.vjp(plan, (True,), x, (x,), aux)
        for result in (np.asarray(y), np.asarray(dx)):
            survivors = result[keep].astype(np.float64)
            assert np.array_equal(survivors, np.full(keep.sum(), 2 * value), equal_nan=True)
            assert np.isnan(value) or (np.signbit(survivors) == np.signbit(value)).all()
            assert result[~keep].tobytes() == bytes((~keep).sum() * x.dtype.itemsize)


OPERATIONS = [
    (Operation("dropout::scale", {"factor": 1 / 3}), dropout.scale, (3, 4, 7)),
    *[
        (
            Operation(
                "dropout::dropout",
                {"p": p, "mask_shape": mask, "seed": 5, "stream": 1, "call": 2, "scale": 1 / 3},
            ),
            dropout.dropout,
            (3, 4, 7),
        )
        for p, mask in ((0.25, (3, 4, 7)), (1e-4, (3, 1, 7)), (0.25, (1, 4, 1)))
    ],
]


@DTYPES
@pytest.mark.parametrize(("operation", "target", "shape"), OPERATIONS)
def test_against_the_definition(operation, target, shape, dtype):
    inputs = (np.random.default_rng(4).normal(size=shape),)
    arguments = target, operation.plan(inputs), operation, inputs, dtype
    check(*arguments)
    check_needs(*arguments)
    check_layouts(*arguments)


@DTYPES
def test_constant_scale(dtype):
    for shape in ((), (0, 3), (7,), (BLOCK + 5,)):
        x = normal(shape, dtype)
        wide = np.float64 if dtype == "float64" else np.float32
        wanted = (np.asarray(x).astype(wide) * wide(0.7)).astype(x.dtype)
        y, aux = dropout.scale.forward(Scale(0.7), x)
        assert aux == () and same_bits(y, wanted)
        assert same_bits(dropout.scale.vjp(Scale(0.7), (True,), x, (x,), aux)[0], wanted)
    special = stored([np.nan, np.inf, -0.0], dtype)
    zero = np.asarray(dropout.scale.forward(Scale(0.0), special)[0]).astype(np.float64)
    assert np.array_equal(zero, [np.nan, np.nan, 0.0], equal_nan=True)


def test_the_plan_must_fit_the_array():
    plan, x = plan_for((4, 6)), normal((6, 4))
    with pytest.raises(ValueError, match=r"x has shape \(6, 4\), but the mask was made for \(4, 6\)"):
        dropout.dropout.forward(plan, x)
    with pytest.raises(ValueError, match=r"cotangent has shape \(24,\)"):
        dropout.dropout.vjp(plan, (True,), normal(24), (x,), ())


# The generator itself

WORDS = Pointer(np.dtype(np.uint32))


def philox_of_the_device(counters, keys):
    """`dropout.philox4x32` of rows of counters [n, 4] and keys [n, 2]."""

    @kernel(32, WORDS, WORDS, WORDS)
    def draw(counters, keys, words):
        row = cuda.blockIdx.x
        c, k = 4 * row, 2 * row
        if cuda.threadIdx.x == 0:
            words[c], words[c + 1], words[c + 2], words[c + 3] = dropout.philox4x32(
                counters[c], counters[c + 1], counters[c + 2], counters[c + 3], keys[k], keys[k + 1]
            )

    words = np.zeros((len(counters), 4), np.uint32)
    draw(len(counters), np.array(counters, np.uint32), np.array(keys, np.uint32), words)
    return words


def test_known_answers():
    """Of the authors' library, Random123: ten rounds on nothing, on ones, and on the digits of π."""
    ones = 0xFFFFFFFF
    counters = [[0] * 4, [ones] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]]
    keys = [[0] * 2, [ones] * 2, [0xA4093822, 0x299F31D0]]
    assert philox_of_the_device(counters, keys).tolist() == [
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ]


def test_words_of_32_bits_are_those_of_64():
    rng = np.random.default_rng(1)
    counters = rng.integers(0, 2**32, size=(50, 4), dtype=np.uint64)
    keys = rng.integers(0, 2**32, size=(50, 2), dtype=np.uint64)
    wanted = np.stack(philox.philox4x32(*counters.T, *keys.T), axis=1)
    assert np.array_equal(philox_of_the_device(counters, keys), wanted)


@pytest.mark.parametrize("lane_bits", [16, 32])
def test_a_lane_that_is_the_threshold_keeps(lane_bits):
    byte = dropout.BYTES[lane_bits]
    words = philox.philox4x32(*map(np.uint64, (5, 0, 1, 2, 77, 0)))  # of block 5
    lanes = np.array(words, np.uint32).view(f"<u{lane_bits // 8}")

    @kernel(32, Pointer(np.dtype(np.uint8)), dropout.LONG, dropout.KEY)
    def draw(target, number, key):
        if cuda.threadIdx.x == 0:
            target[0] = byte(number, key)

    found = np.zeros(1, np.uint8)
    for place, lane in enumerate(lanes.tolist()):
        for threshold, kept in ((lane, True), (lane + 1, False)):
            number, bit = (5, place) if lane_bits == 16 else (2, 4 + place)
            draw(1, found, number, (1, 2, 77, 0, threshold))
            assert bool(found[0] >> bit & 1) is kept


@pytest.mark.parametrize("lane_bits", [16, 32])
@pytest.mark.parametrize("first", [0, 2**31 - 5, 2**32 - 5, 2**40])
def test_block_numbers_go_beyond_one_word(first, lane_bits):
    """Masks of more than 2^32 blocks, without making one: the bytes of the middle alone."""
    byte, per_byte, threshold = dropout.BYTES[lane_bits], lane_bits // 16, 25_536 << (lane_bits - 16)

    @kernel(32, Pointer(np.dtype(np.uint8)), dropout.LONG, dropout.KEY)
    def draw(target, first, key):
        if cuda.threadIdx.x < 10:
            target[cuda.threadIdx.x] = byte(first + np.uint64(cuda.threadIdx.x), key)

    found = np.zeros(10, np.uint8)
    draw(1, found, first, (1, 2, 77, 0, threshold))
    block = np.uint64(per_byte * first) + np.arange(10 * per_byte, dtype=np.uint64)
    counter = (block & philox.WORD, block >> philox.THIRTY_TWO, np.uint64(1), np.uint64(2))
    words = philox.philox4x32(*counter, np.uint64(77), np.uint64(0))
    kept = np.uint64((1 << lane_bits) - threshold)
    if lane_bits == 16:
        wanted = philox.keep_byte(*words, kept)
    else:
        nibbles = philox.keep_nibble(*words, kept)
        wanted = nibbles[0::2] + 16 * nibbles[1::2]
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("last", [2**33 + 5, 2**33 + 8])
@pytest.mark.parametrize("own", [True, False])
def test_decisions_far_along_a_mask(own, last):
    """Sizes beyond 32 bits: what `decisions` says of the elements around a place behind 2^37."""
    eight = dropout.decisions(16, 2, own)
    lengths, steps = ((50, last), (0, 1)) if own else ((2**34, 30), (1, 0))

    @kernel(32, Pointer(np.dtype(np.uint8)), dropout.LONG, dropout.KEY, *[(dropout.LONG,) * 2] * 2)
    def draw(target, first, key, lengths, steps):
        if cuda.threadIdx.x < 4:
            target[cuda.threadIdx.x] = eight(first + np.uint64(8 * cuda.threadIdx.x), lengths, steps, key)

    first = 16 * last - 16  # crosses into the next stretch of `last`
    elements = first + np.arange(32)
    decision = elements % last if own else elements // 30
    byte, bit = decision // 8, decision % 8
    block = byte.astype(np.uint64)
    counter = (block & philox.WORD, block >> philox.THIRTY_TWO, np.uint64(1), np.uint64(2))
    words = philox.philox4x32(*counter, np.uint64(77), np.uint64(0))
    wanted = philox.keep_byte(*words, np.uint64(40_000)).astype(np.int64) >> bit & 1
    found = np.zeros(4, np.uint8)
    draw(1, found, first, (1, 2, 77, 0, (1 << 16) - 40_000), lengths, steps)
    assert np.array_equal(np.unpackbits(found, bitorder="little"), wanted)


# The same masks as on the CPU


@pytest.mark.parametrize("p", [NARROW, WIDE], ids=["16", "32"])
@pytest.mark.parametrize(
    ("shape", "mask_shape"), [((1003,), (1003,)), ((5, 3, 33), (5, 1, 33)), ((4, 6, 35), (4, 6, 1))]
)
def test_the_cpu_s_kernel_gives_the_same_bits(shape, mask_shape, p):
    plan = dataclasses.replace(plan_for(shape, mask_shape, p), scale=1 / 3)
    x = normal(shape)
    y, aux = cpu.sequential.forward(plan, np.asarray(x))
    assert same_bits(dropout.dropout.forward(plan, x)[0], y)
    (dx,) = cpu.sequential.vjp(plan, (True,), np.asarray(x), (None,), aux)
    assert same_bits(dropout.dropout.vjp(plan, (True,), x, (x,), ())[0], dx)


@pytest.mark.parametrize("axis", [None, 0, (0, 1), -1])
@pytest.mark.parametrize("mode", ["upscale_in_train", "downscale_in_infer"])
def test_a_seed_gives_the_same_result_on_both_devices(mode, axis):
    x, results = np.asarray(normal((3, 4, 9))), {}
    for device in ("cpu", "cuda-sim"):
        generator = tinygrad_bn.Generator(11)
        given = tinygrad_bn.Tensor(x, device=device, requires_grad=True)
        for p in (0.3, 1e-4):
            for training in (True, False):
                y = F.dropout(given, p, training, mode=mode, axis=axis, generator=generator)
                assert y.device == device
                y.backward(tinygrad_bn.Tensor(x, device=device))
                results.setdefault(device, []).append(y.to("cpu").numpy())
        results[device].append(given.grad.to("cpu").numpy())
    assert same_bits(results["cpu"], results["cuda-sim"])

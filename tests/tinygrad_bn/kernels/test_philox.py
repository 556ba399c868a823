from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tinygrad_bn.kernels.philox import (
    Quantised,
    as_word,
    keep_bits,
    keep_mask,
    low_and_high,
    philox4x32,
    quantise,
    unpack,
)

KNOWN_ANSWERS = {  # (counter, key): words; published with Random123
    "zeros": (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    "ones": (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    "pi": ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
}


def words(text):
    return [np.uint64(int(word, 16)) for word in text.split()]


def oracle_words(seed, stream, call, first_block, blocks):
    """The words of consecutive blocks, from an implementation not ours, which counts before each output."""
    randomgen = pytest.importorskip("randomgen", reason="randomgen is the independent Philox4x32")
    counter = (first_block + (call << 64) + (stream << 96) - 1) % 2**128
    raw = randomgen.Philox(counter=counter, key=seed, number=4, width=32).random_raw(4 * blocks)
    return raw.astype("<u4").reshape(blocks, 4)


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_known_answers(name):
    counter, key, answer = (words(text) for text in KNOWN_ANSWERS[name])
    assert list(philox4x32(*counter, *key)) == answer
    as_arrays = philox4x32(*(np.full(3, word) for word in counter), *key)
    assert np.array_equal(as_arrays, np.repeat(np.array(answer)[:, None], 3, axis=1))
    assert all(word.dtype == np.uint64 for word in as_arrays)


@pytest.mark.parametrize("first_block", [0, 2**32 - 100, 2**64 - 1000])
@pytest.mark.parametrize(
    ("seed", "stream", "call"), [(0, 0, 0), (2**64 - 1, 2**32 - 1, 2**32 - 1), (3 << 40, 5, 9)]
)
def test_words_equal_an_independent_implementation(seed, stream, call, first_block):
    blocks = 1000
    k0, k1 = low_and_high(seed)
    block = np.uint64(first_block) + np.arange(blocks, dtype=np.uint64)
    ours = philox4x32(
        block & np.uint64(2**32 - 1), block >> np.uint64(32), np.uint64(call), np.uint64(stream), k0, k1
    )
    assert np.array_equal(np.stack(ours, axis=1), oracle_words(seed, stream, call, first_block, blocks))


@pytest.mark.parametrize("size", [1, 7, 8, 9, 64, 1003])
@pytest.mark.parametrize("p", [0.0, 0.5, 0.1, 0.75, 1.0, 1e-4, 0.99995, 2.0**-32])
def test_bits_follow_the_documented_format(p, size):
    seed, stream, call = 0x0123456789ABCDEF, 17, 4_000_000_000
    quantised = quantise(p)
    drawn = oracle_words(seed, stream, call, 0, size + 1).ravel()  # more than enough
    lanes = drawn.view("<u2") if quantised.lane_bits == 16 else drawn
    whole = (size + 7) // 8 * 8
    decisions = lanes[:whole].astype(np.int64) >= quantised.threshold
    assert np.array_equal(keep_bits(seed, stream, call, p, size), np.packbits(decisions, bitorder="little"))
    assert np.array_equal(keep_mask(seed, stream, call, quantised, (size, 1)).ravel(), decisions[:size])


def test_the_format_never_changes():
    assert keep_bits(7, 1, 2, 0.5, 64).tobytes().hex() == "77597df050dfde49"
    sparse = keep_bits(7, 1, 2, 0.9999, 1 << 15)
    assert {at: sparse[at] for at in sparse.nonzero()[0]} == {2042: 32, 2435: 16, 3821: 64}


def test_keep_mask_and_unpack():
    bits = keep_bits(1, 2, 3, 0.3, 60)
    mask = keep_mask(1, 2, 3, 0.3, (3, 4, 5))
    assert mask.shape == (3, 4, 5) and mask.dtype == np.bool_
    assert np.array_equal(mask, unpack(bits, (3, 4, 5)))
    assert mask[1, 2, 3] == bool(bits[33 // 8] >> 33 % 8 & 1)
    assert keep_mask(1, 2, 3, 0.3, ()).shape == ()
    assert keep_mask(1, 2, 3, 0.3, (0, 4)).shape == (0, 4)
    assert keep_bits(1, 2, 3, 0.3, 0).size == 0


def test_a_longer_mask_begins_like_a_shorter_one():
    for p in (0.5, 1e-4):
        assert np.array_equal(keep_bits(1, 2, 3, p, 1000)[:50], keep_bits(1, 2, 3, p, 400))


@pytest.mark.parametrize(
    ("p", "lane_bits", "threshold"),
    [
        (0, 16, 0),
        (1, 16, 65536),
        (0.5, 16, 32768),
        (0.1, 16, 6554),
        (0.9, 16, 58982),
        (np.float32(0.25), 16, 16384),
        (Fraction(1, 4), 16, 16384),
        (1 / 65536, 16, 1),
        (1 - 1 / 65536, 16, 65535),
        (1.0009 / 65536, 16, 1),  # 16 bits change it by 0.09 %
        (1.0011 / 65536, 32, 65608),  # by 0.11 %
        (1 - 1.0009 / 65536, 16, 65535),  # the same of 1 - p
        (1 - 1.0011 / 65536, 32, 2**32 - 65608),
        (1e-4, 32, 429497),
        (2.0**-32, 32, 1),
        (1 - 2.0**-32, 32, 2**32 - 1),
    ],
)
def test_quantise(p, lane_bits, threshold):
    quantised = quantise(p)
    assert quantised == Quantised(lane_bits, threshold, threshold / 2**lane_bits)
    assert quantised.kept == 2**lane_bits - threshold
    if p not in (0, 1):
        assert abs(quantised.p - float(p)) <= 0.001 * min(p, 1 - p)


def test_survivors_are_scaled_by_the_probability_really_used():
    assert quantise(0.1).survivor_scale == 1 / (1 - 6554 / 65536)
    assert quantise(0).survivor_scale == 1.0
    assert quantise(1).survivor_scale == 1.0


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, math.inf, 1e-11, 2.0**-33, 1 - 1e-11, 5e-324])
def test_quantise_rejects_values(p):
    with pytest.raises(ValueError, match=r"dropout: p"):
        quantise(p)


@pytest.mark.parametrize("p", ["0.5", None, True, np.True_, 0.5j, np.array([0.5])])
def test_quantise_rejects_types(p):
    with pytest.raises(TypeError, match="dropout: p must be a real number"):
        quantise(p)


def test_what_equals_a_known_p_is_still_checked():
    """1 == True: what is remembered of a p must not let its lookalike pass."""
    quantise(1.0), quantise(0)
    for p in (True, False, np.True_, [0.5], np.array(0.5)):
        with pytest.raises(TypeError, match="p must be a real number"):
            quantise(p)


def test_words_are_checked():
    assert as_word("f", "seed", np.int32(5), 32) == 5
    assert type(as_word("f", "seed", np.uint64(2**64 - 1), 64)) is int
    for bad in (-1, 2**32):
        with pytest.raises(ValueError, match=rf"f: call must be an integer in \[0, 2\*\*32\), got {bad}"):
            as_word("f", "call", bad, 32)
    for wrong in (1.0, "1", None, True, np.False_):
        with pytest.raises(TypeError, match="f: seed must be an integer"):
            as_word("f", "seed", wrong, 64)
    with pytest.raises(ValueError, match="keep_bits: stream"):
        keep_bits(0, 2**32, 0, 0.5, 8)


@pytest.mark.parametrize(
    "other", [(6, 2, 3), (5 + 2**32, 2, 3), (5, 3, 3), (5, 2, 4), (5, 3, 2), (2, 5, 3)], ids=str
)
@pytest.mark.parametrize("p", [0.5, 1e-4 + 0.5 / 2**16])
def test_seed_stream_and_call_each_give_another_mask(other, p):
    size = 40_000
    first, second = keep_mask(5, 2, 3, p, (size,)), keep_mask(*other, p, (size,))
    agree = p**2 + (1 - p) ** 2  # the rate of two independent masks
    bound = 5 * math.sqrt(size * agree * (1 - agree)) + 1
    assert abs(np.count_nonzero(first == second) - size * agree) < bound
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("p", "lanes"), [(0.5, 8), (0.1, 8), (0.9, 8), (0.003, 8), (1e-4, 1), (0.9999, 1)])
@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_the_rate_of_every_lane_is_binomial(p, lanes, seed):
    quantised, per_lane = quantise(p), 800_000 // lanes
    kept = keep_mask(seed, 0, 0, quantised, (per_lane, lanes)).sum(axis=0)
    deviation = math.sqrt(per_lane * quantised.p * (1 - quantised.p))
    assert np.all(np.abs(kept - per_lane * (1 - quantised.p)) < 5 * deviation)


def test_neighbours_are_uncorrelated():
    sign = keep_mask(3, 0, 0, 0.5, (200_000,)) * 2.0 - 1
    for distance in (1, 2, 3, 4, 8, 16, 32):
        assert abs(np.mean(sign[distance:] * sign[:-distance])) < 5 / math.sqrt(200_000)

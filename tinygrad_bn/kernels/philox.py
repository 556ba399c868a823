"""The counter-based generator behind every dropout mask, and the format of a mask.

Philox4x32-10 turns a 128-bit counter and a 64-bit key into four random 32-bit words, with no state between
calls: any part of a mask can be made alone, in any order, by any thread or device.

**The format.** A mask is a row-major array of keep-or-drop decisions, numbered e = 0, 1, 2, … in its own
shape (of length 1 along the axes that share a decision), whatever the layout of the data and whoever
computes it.

- Key: the seed, low word first.
- Counter: (block low word, block high word, call number, stream).
- 16-bit lanes: decision e is lane e % 8 of block e // 8. Lane k is the low half (k even) or the high half
  (k odd) of word k // 2: the order in which a little-endian machine sees the four words as eight uint16.
- 32-bit lanes, for a p that 16 bits would change by more than 0.1 % of p or of 1 − p: decision e is lane
  e % 4 of block e // 4, and lane k is word k.
- Drop where lane < threshold, an integer: round(p · 2^16) or round(p · 2^32), halves to even.
- Packed, decision e is bit e % 8 of byte e // 8, and 1 keeps. The last byte is whole: its spare bits hold the
  decisions that would follow.

`philox4x32`, `keep_byte` and `keep_nibble` are plain arithmetic on uint64. On NumPy arrays they are the
reference for every kernel; and `philox4x32` makes the vector instructions of the CPU's, unchanged.

Source: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# np.uint64 rather than int: to numba, uint64 mixed with a plain (signed) integer is a float64.
MULTIPLIER_0, MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL_0, WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
WORD, HALF = np.uint64(0xFFFFFFFF), np.uint64(0xFFFF)
ONE, TWO, THREE, FOUR, FIVE, SIX, SEVEN = (np.uint64(n) for n in range(1, 8))
SIXTEEN, THIRTY_TWO = np.uint64(16), np.uint64(32)


def philox4x32(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """Ten rounds of Philox4x32: the four random words of the counter (c0, c1, c2, c3) under the key (k0, k1).

    Arguments and results are uint64 scalars or arrays holding 32-bit values.
    """
    for _ in range(10):
        left = MULTIPLIER_0 * c0
        right = MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (
            (right >> THIRTY_TWO) ^ c1 ^ k0,
            right & WORD,
            (left >> THIRTY_TWO) ^ c3 ^ k1,
            left & WORD,
        )
        k0 = (k0 + WEYL_0) & WORD
        k1 = (k1 + WEYL_1) & WORD
    return c0, c1, c2, c3


# Adding kept = 2^16 − threshold to a 16-bit lane carries into bit 16 exactly where lane >= threshold
# (likewise with 32 bits): a comparison without a boolean array.


def keep_byte(w0: Any, w1: Any, w2: Any, w3: Any, kept: Any) -> Any:
    """Eight decisions from the eight 16-bit lanes of four words; bit k is 1 where lane k >= 2^16 − kept."""
    return (
        (((w0 & HALF) + kept) >> SIXTEEN)
        | ((((w0 >> SIXTEEN) + kept) >> SIXTEEN) << ONE)
        | ((((w1 & HALF) + kept) >> SIXTEEN) << TWO)
        | ((((w1 >> SIXTEEN) + kept) >> SIXTEEN) << THREE)
        | ((((w2 & HALF) + kept) >> SIXTEEN) << FOUR)
        | ((((w2 >> SIXTEEN) + kept) >> SIXTEEN) << FIVE)
        | ((((w3 & HALF) + kept) >> SIXTEEN) << SIX)
        | ((((w3 >> SIXTEEN) + kept) >> SIXTEEN) << SEVEN)
    )


def keep_nibble(w0: Any, w1: Any, w2: Any, w3: Any, kept: Any) -> Any:
    """Four decisions from four 32-bit lanes; bit k is 1 where word k >= 2^32 − kept."""
    return (
        ((w0 + kept) >> THIRTY_TWO)
        | (((w1 + kept) >> THIRTY_TWO) << ONE)
        | (((w2 + kept) >> THIRTY_TWO) << TWO)
        | (((w3 + kept) >> THIRTY_TWO) << THREE)
    )


@dataclass(frozen=True, slots=True)
class Quantised:
    """A drop probability as it is decided: drop where a lane of `lane_bits` bits is below `threshold`.

    `p` is what this really gives, threshold / 2^lane_bits: scale survivors by it, not by the p asked for.
    """

    lane_bits: int
    threshold: int
    p: float

    @property
    def survivor_scale(self) -> float:
        """1 / (1 − p), which keeps the mean; 1 where p = 1 and nothing survives."""
        return 1.0 / (1.0 - self.p) if self.p < 1.0 else 1.0

    @property
    def kept(self) -> int:
        """How many of the 2^lane_bits values of a lane keep: the `kept` of `keep_byte` and `keep_nibble`."""
        return (1 << self.lane_bits) - self.threshold


def quantise(p: Real | float) -> Quantised:
    """The drop probability p in 16 bits, round(p · 2^16) / 2^16, or in 32 bits where 16 are too coarse.

    They are too coarse where they would change p, or 1 − p, by more than 0.1 % of itself. 0 and 1 are exact.

    Raises:
        TypeError: p is not a real number.
        ValueError: p is not in [0, 1], or is so near 0 or 1 that even 32 bits would make it 0 or 1.
    """
    if type(p) is not float and (isinstance(p, (bool, np.bool_)) or not isinstance(p, Real)):
        raise TypeError(f"dropout: p must be a real number in [0, 1], got {p!r} of type {type(p).__name__}")
    return _quantise(float(p))


@lru_cache(maxsize=1024)
def _quantise(wanted: float) -> Quantised:
    if not 0.0 <= wanted <= 1.0:
        raise ValueError(
            f"dropout: p must be in [0, 1], got {wanted!r}; p is the probability of dropping, not of keeping"
        )
    threshold = round(math.ldexp(wanted, 16))
    if abs(math.ldexp(threshold, -16) - wanted) <= 0.001 * min(wanted, 1.0 - wanted):
        return Quantised(16, threshold, math.ldexp(threshold, -16))
    threshold = round(math.ldexp(wanted, 32))
    if threshold in (0, 1 << 32):
        raise ValueError(
            f"dropout: p = {wanted!r} cannot be told from {threshold >> 32} by decisions of 32 bits; "
            f"use p = {threshold >> 32}, or a p between 2**-32 and 1 - 2**-32"
        )
    return Quantised(32, threshold, math.ldexp(threshold, -32))


def as_word(owner: str, name: str, value: SupportsIndex, bits: int) -> int:
    """The value as a plain int, if it is an integer in [0, 2^bits); else an error about owner's argument."""
    if type(value) is int and 0 <= value < 1 << bits:
        return value
    wanted = f"must be an integer in [0, 2**{bits})"
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{owner}: {name} {wanted}, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{owner}: {name} {wanted}, got {value!r} of type {type(value).__name__}") from None
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{owner}: {name} {wanted}, got {number}; reduce it with {name} % 2**{bits}")
    return number


def low_and_high(number: int) -> tuple[np.uint64, np.uint64]:
    """The low and the high 32-bit word of a 64-bit number."""
    return np.uint64(number & 0xFFFFFFFF), np.uint64(number >> 32)


def keep_bits(seed: int, stream: int, call: int, p: float | Quantised, size: int) -> NDArray[np.uint8]:
    """The packed decisions 0 … size − 1 of a mask, in NumPy: the reference for every kernel.

    Args:
        seed, stream, call: 64-, 32- and 32-bit integers (a `tinygrad_bn.random.Key` holds them).
        p: the probability of dropping, or what `quantise` made of it.
        size: the number of decisions.

    Returns:
        uint8 array of ceil(size / 8) bytes; bit e % 8 of byte e // 8 is 1 where decision e keeps.

    Raises:
        TypeError, ValueError: an integer is out of range, or p is one that `quantise` rejects.
    """
    k0, k1 = low_and_high(as_word("keep_bits", "seed", seed, 64))
    c2 = np.uint64(as_word("keep_bits", "call", call, 32))
    c3 = np.uint64(as_word("keep_bits", "stream", stream, 32))
    quantised = p if isinstance(p, Quantised) else quantise(p)
    count, per_byte = -(-size // 8), quantised.lane_bits // 16
    block = np.arange(count * per_byte, dtype=np.uint64)
    words = philox4x32(block & WORD, block >> THIRTY_TWO, c2, c3, k0, k1)
    kept = np.uint64(quantised.kept)
    if per_byte == 1:
        bits: NDArray[np.uint64] = keep_byte(*words, kept)
    else:
        nibbles = keep_nibble(*words, kept)
        bits = nibbles[0::2] | (nibbles[1::2] << FOUR)
    return bits.astype(np.uint8)


def unpack(bits: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Packed decisions as a boolean array of `shape`, True where kept."""
    return np.unpackbits(bits, count=math.prod(shape), bitorder="little").view(np.bool_).reshape(shape)


def keep_mask(
    seed: int, stream: int, call: int, p: float | Quantised, shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """The decisions of a mask of `shape` as a boolean array, True where kept; arguments as in `keep_bits`."""
    return unpack(keep_bits(seed, stream, call, p, math.prod(shape)), shape)

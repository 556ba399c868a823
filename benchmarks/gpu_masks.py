"""Whether a GPU draws the masks of dropout that the CPU draws, bit for bit.

    python benchmarks/gpu_masks.py [DEVICE]

A row for each published answer of Philox4x32-10, and for each mask in each dtype and memory layout. Exit
status 1: one differs. DEVICE is cuda unless another is named; cuda-sim is numba's simulator.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tinygrad_bn import devices  # noqa: E402 -- that of this checkout
from tinygrad_bn.kernels import philox  # noqa: E402
from tinygrad_bn.kernels.masks import Mask  # noqa: E402

try:
    from tinygrad_bn.kernels.cuda.compat import Pointer, cuda, kernel
    from tinygrad_bn.kernels.cuda.dropout import dropout, philox4x32
except ImportError as error:
    sys.exit(str(error))

KNOWN_ANSWERS = (  # counter, key, words; published with Random123
    ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)
BFLOAT16 = "bfloat16"
ONE = {BFLOAT16: np.uint16(0x3F80)}  # its bits, as the kernels see them
DTYPES = ("float32", "float64", "float16", BFLOAT16)
MASKS = (  # the shape of the input, and of the mask
    ((1003,), (1003,)),
    ((7, 5, 37), (7, 5, 37)),
    ((7, 5, 37), (7, 5, 1)),
    ((7, 5, 37), (7, 1, 37)),
    ((7, 5, 37), (1, 5, 1)),
)
PROBABILITIES = (0.5, 0.1, 1e-4)  # the last takes 32 bits for each decision
LARGE = (65536, 32769)  # more elements than an int32 counts
TAIL = 8192
SEED, STREAM, CALL = 0x0123456789ABCDEF, 17, 4_000_000_000


def numbers(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def known_answers(device: str) -> Iterator[tuple[str, bool]]:
    """The generator by itself, on the device."""
    word = np.dtype(np.uint32)

    @kernel(32, Pointer(word), Pointer(word))
    def draw(given, words):
        t = cuda.threadIdx.x
        if t < 3:
            drawn = philox4x32(
                *(given[6 * t], given[6 * t + 1], given[6 * t + 2], given[6 * t + 3]),
                *(given[6 * t + 4], given[6 * t + 5]),
            )
            for i in range(4):
                words[4 * t + i] = drawn[i]

    given = [number for counter, key, _ in KNOWN_ANSWERS for number in numbers(counter) + numbers(key)]
    drawn = devices.send(np.zeros(12, word), device)
    draw(1, devices.send(np.array(given, word), device), drawn)
    found = devices.fetch(drawn).reshape(3, 4)
    for (counter, key, words), row in zip(KNOWN_ANSWERS, found, strict=True):
        yield f"Philox4x32-10, counter {counter}, key {key}", [int(n) for n in row] == numbers(words)


def layouts(x: Any) -> Iterator[tuple[str, Any]]:
    """The same values in other memory: `x` on the device, and views that equal it."""
    yield "contiguous", x
    empty = devices.empty((x.size + 1,), x.dtype, x)
    shifted = empty[1:].reshape(x.shape)  # no vector may begin there
    shifted[...] = x
    yield "shifted", shifted
    if x.ndim > 1:
        yield "transposed", x.swapaxes(0, -1).copy().swapaxes(0, -1)


def masks(device: str) -> Iterator[tuple[str, bool]]:
    """Forward and backward passes over ones, compared with the mask that the CPU draws."""
    for dtype, (shape, mask_shape), p in itertools.product(DTYPES, MASKS, PROBABILITIES):
        plan = Mask(shape, mask_shape, SEED, STREAM, CALL, philox.quantise(p), 1.0)
        kept = np.broadcast_to(philox.keep_mask(SEED, STREAM, CALL, p, mask_shape), shape)
        storage = np.uint16 if dtype == BFLOAT16 else np.dtype(dtype)
        ones = devices.send(np.full(shape, ONE.get(dtype, 1), storage), device)
        for layout, x in layouts(ones):
            output, aux = dropout.forward(plan, x)
            (gradient,) = dropout.vjp(plan, (True,), x, (x,), aux)
            expected = np.where(kept, devices.fetch(ones), 0).tobytes()
            equal = all(devices.fetch(each).tobytes() == expected for each in (output, gradient))
            yield f"{dtype} {shape}, mask {mask_shape}, p {p:g}, {layout}", equal


def large(device: str) -> Iterator[tuple[str, bool]]:
    """The last elements of an input that an int32 cannot index."""
    p = 0.5
    x = devices.full(LARGE, 1.0, np.float16, devices.send(np.zeros(1, np.float16), device))
    plan = Mask(LARGE, LARGE, SEED, STREAM, CALL, philox.quantise(p), 1.0)
    output, _ = dropout.forward(plan, x)
    found = devices.fetch(output.reshape(-1)[-TAIL:]) != 0
    size = LARGE[0] * LARGE[1]
    block = np.arange((size - TAIL) // 8, size // 8, dtype=np.uint64)
    k0, k1 = philox.low_and_high(SEED)
    words = philox.philox4x32(
        block & np.uint64(2**32 - 1), block >> np.uint64(32), np.uint64(CALL), np.uint64(STREAM), k0, k1
    )
    bits = philox.keep_byte(*words, philox.kept_lanes(plan.quantised))
    expected = np.unpackbits(bits.astype(np.uint8), bitorder="little").astype(bool)
    yield f"float16 {LARGE}, the last {TAIL} of {size:,} elements", bool(np.array_equal(found, expected))


def main() -> None:
    device = devices.named(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    if (problem := devices.problem(device)) is not None:
        sys.exit(f"{device}: {problem}")
    parts = [known_answers, masks] if device == devices.SIMULATOR else [known_answers, masks, large]
    rows = [row for part in parts for row in part(device)]
    for what, equal in rows:
        print(f"{'equal' if equal else 'DIFFERS':<8} {what}")
    differing = sum(not equal for _, equal in rows)
    print(f"{len(rows)} compared on {device}, {differing} differ", file=sys.stderr)
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()

"""What operations give has the same bits in memory that was used before, and what they saved stays there."""

from __future__ import annotations

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import functional as F
from tinygrad_bn.kernels.cpu import memory


def address(array):
    return array.__array_interface__["data"][0]


LARGE = {
    "layer_norm": ((600, 512), lambda x: F.layer_norm(x, 512)),
    "layer_norm of long rows": ((8, 70_000), lambda x: F.layer_norm(x, 70_000)),
    "batch_norm": ((4, 8, 100, 100), lambda x: F.batch_norm(x, None, None, training=True)),
    "channels last": (
        (4, 100, 100, 8),
        lambda x: F.batch_norm(x, None, None, training=True, channel_axis=-1),
    ),
    "dropout": ((600, 513), lambda x: F.dropout(x, 0.3, generator=tg.Generator(5))),
    "dropout of channels": (
        (60, 40, 151),
        lambda x: F.dropout(x, 0.3, axis=(0, 1), generator=tg.Generator(5)),
    ),
}


def drawn(shape, seed=0, **options):
    return tg.tensor(np.random.default_rng(seed).normal(size=shape).astype(np.float32), **options)


def soil():
    """Fill what is free with NaN: it would show if a kernel did not write each element."""
    for block in memory._shared()._free:
        block.memory.fill(0xFF)


@pytest.fixture
def nothing_kept():
    tg.release_memory()
    yield
    tg.release_memory()


@pytest.mark.parametrize(("shape", "call"), LARGE.values(), ids=LARGE)
def test_results_have_the_same_bits_in_memory_that_was_used(nothing_kept, shape, call):
    x, cotangent = drawn(shape, requires_grad=True), drawn(shape, 1)
    found, places = [], []
    for _ in range(3):
        y = call(x)
        (dx,) = tg.grad(y, x, cotangent)
        assert not dx._array.flags.owndata, "the gradient was copied"
        places.append({address(y._array), address(dx._array)})
        found.append((y._array.tobytes(), dx._array.tobytes()))
        del y, dx
        soil()
    assert found[1] == found[2] == found[0]
    assert places[1] == places[2] == places[0] and len(places[0]) == 2


def test_what_the_tape_saved_is_not_lent(nothing_kept):
    x, cotangent = drawn((600, 512), requires_grad=True), drawn((600, 512), 1)

    def gradient(between):
        y = F.layer_norm(x, 512)
        z = F.layer_norm(y * y, 512)
        z = F.dropout(F.layer_norm(z, 512), generator=tg.Generator(1))
        del y
        between()
        (dx,) = tg.grad(z, x, cotangent)
        return dx.numpy()

    def more():
        soil()
        for seed in range(3):
            F.layer_norm(drawn((600, 512), seed + 2), 512)
            F.dropout(drawn((600, 512), seed + 2), generator=tg.Generator(seed))
        soil()

    assert gradient(lambda: None).tobytes() == gradient(more).tobytes()


def test_gradients_that_one_rule_passes_to_two_are_still_told_apart(nothing_kept):
    """A gradient that was borrowed as a whole is kept without a copy, but only once."""
    x = drawn((600, 512), requires_grad=True)
    a, b = drawn((600, 512), 1, requires_grad=True), drawn((600, 512), 2, requires_grad=True)
    y = F.layer_norm(a + b, 512) + F.layer_norm(x, 512)
    da, db, dx = tg.grad(y, (a, b, x), drawn((600, 512), 3))
    assert not any(
        np.shares_memory(one._array, other._array) for one, other in [(da, db), (da, dx), (db, dx)]
    )
    assert np.array_equal(da.data, db.data)
    assert not da._array.flags.owndata and db._array.flags.owndata and not dx._array.flags.owndata


def test_release_memory_says_how_much_it_was(nothing_kept):
    y = F.layer_norm(drawn((600, 512)), 512)
    assert tg.release_memory() == 0
    kept = y.numpy()
    del y
    assert tg.release_memory() == kept.nbytes
    assert tg.release_memory() == 0

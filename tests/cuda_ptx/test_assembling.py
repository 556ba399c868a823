"""The tier can fail: kernels with a mistake each, that compile and give right results."""

from __future__ import annotations

import numpy as np
import pytest
from assembling import CAPABILITIES, assemble, faults

from tinygrad_bn.kernels.cuda.compat import INT, Pointer, cuda, kernel
from tinygrad_bn.kernels.cuda.sums import row_sums
from tinygrad_bn.kernels.cuda.vectors import load, per_vector, store

FLOAT = np.dtype(np.float32)
HALF = np.float32(0.5)


def halved(storage, threads=128, count=4, double=False, factor=HALF, width=None, **claims):
    """Each thread halves `count` vectors."""
    wide = per_vector(np.dtype(storage)) if width is None else width
    registers, arithmetic = count * wide, np.float64 if storage == np.float64 else np.float32
    read, write = load(wide), store(wide)

    @kernel(threads, Pointer(np.dtype(storage)), Pointer(np.dtype(storage)), INT, double=double, **claims)
    def halve(x, y, size):
        kept = cuda.local.array(registers, arithmetic)
        first = (cuda.blockIdx.x * threads + cuda.threadIdx.x) * registers
        if first < size:
            for k in range(count):
                read(x, first + k * wide, kept, k * wide)
            for i in range(registers):
                kept[i] = kept[i] * factor
            for k in range(count):
                write(y, first + k * wide, kept, k * wide)

    return halve


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
@pytest.mark.parametrize("storage", [np.float16, np.uint16, np.float32, np.float64])
def test_a_kernel_as_it_should_be(storage, capability, tmp_path):
    right = halved(storage, vectorized=True)
    found = assemble(right, capability, tmp_path)
    assert faults(right, found) == []
    assert 4 * per_vector(np.dtype(storage)) * np.dtype(storage).itemsize // 8 <= found.registers <= 64
    assert found.ptx.count(f".target sm_{capability[0]}{capability[1]}") == 1


def the_fault(wrong, folder):
    (found,) = faults(wrong, assemble(wrong, (9, 0), folder))
    return found


def test_a_factor_in_double_precision_is_seen(tmp_path):
    assert the_fault(halved(np.float32, factor=0.1), tmp_path).startswith("calculates in float64: ")
    meant = halved(np.float32, factor=0.1, double=True)
    assert faults(meant, assemble(meant, (9, 0), tmp_path)) == []


def test_one_value_at_a_time_is_seen(tmp_path):
    wrong = halved(np.float32, width=1, vectorized=True)
    assert faults(wrong, assemble(wrong, (9, 0), tmp_path)) == [
        "reads 0 bits at once, wanted 128",
        "writes 0 bits at once, wanted 128",
    ]


def test_registers_that_do_not_suffice_are_seen(tmp_path):
    assert "bytes in local memory" in the_fault(halved(np.float32, threads=1024, count=32), tmp_path)


def test_an_index_that_is_known_only_when_it_runs_is_seen(tmp_path):
    """Registers have no addresses: the array goes to local memory."""

    @kernel(32, Pointer(FLOAT), INT)
    def scattered(target, place):
        kept = cuda.local.array(64, np.float32)
        for i in range(64):
            kept[i] = target[i] * target[2 * i]
        target[0] = kept[place]

    assert the_fault(scattered, tmp_path).startswith("keeps 256 bytes in local memory")


def test_too_many_registers_for_a_block_are_seen(tmp_path):
    found = assemble(halved(np.float32, threads=32, count=16), (9, 0), tmp_path)
    assert found.registers > 64
    (fault,) = faults(halved(np.float32, threads=1024, count=16), found)
    assert "registers in each of 1024 threads" in fault


def test_a_kernel_that_calls_functions_is_compiled_without_a_driver(tmp_path):
    sums = row_sums(128, np.float32)

    @kernel(128, Pointer(FLOAT), Pointer(FLOAT))
    def total(source, target):
        value = source[cuda.threadIdx.x]
        first, _ = sums(value, value)
        target[cuda.threadIdx.x] = first

    for capability in CAPABILITIES:
        found = assemble(total, capability, tmp_path)
        assert faults(total, found) == [] and "shfl.sync" in found.ptx and "bar.sync" in found.ptx


def test_more_shared_memory_than_there_is_is_told_in_one_line(tmp_path):
    @kernel(32, Pointer(FLOAT))
    def reversed_row(x):
        scratch = cuda.shared.array(12500, np.float32)
        scratch[cuda.threadIdx.x] = x[cuda.threadIdx.x]
        cuda.syncthreads()
        x[cuda.threadIdx.x] = scratch[31 - cuda.threadIdx.x]

    with pytest.raises(AssertionError, match=r"uses too much shared data \(0xc350 bytes, 0xc000 max\)"):
        assemble(reversed_row, (9, 0), tmp_path)

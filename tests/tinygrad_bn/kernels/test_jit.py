"""How the norm kernels are compiled: caches, twins, and the instructions of their hot loops."""

from __future__ import annotations

import platform
import re
import select
import subprocess
import sys

import numba
import numpy as np
import pytest

from tinygrad_bn.kernels.cpu import cols, cols_backward, jit, rows, rows_backward, split, sums, tiles

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])

CACHE_PROGRAM = """
import numba
import numpy as np
from tinygrad_bn.kernels.cpu import {family}

def threads_started():
    try:
        return bool(numba.threading_layer())
    except ValueError:
        return False

for driver in {family}.forward:
    dispatcher = driver[np.dtype(np.float32)]
    print(sum(dispatcher.stats.cache_hits.values()), threads_started())
"""


@pytest.mark.parametrize("family", ["rows"])
def test_twins_do_not_take_each_other_from_the_disk_cache(run_python, family, tmp_path):
    program = CACHE_PROGRAM.format(family=family)
    # The sequential twin starts no threads, the parallel one does.
    assert run_python(program, NUMBA_CACHE_DIR=str(tmp_path)) == ["0 False", "0 True"]
    assert run_python(program, NUMBA_CACHE_DIR=str(tmp_path)) == ["1 False", "1 True"]
    # The twins, and the two tasks that they have in common.
    assert len(list(tmp_path.rglob("*.nbi"))) == 4


NO_CACHE_PROGRAM = """
import numpy as np
from numba.core import caching
caching.CacheImpl._locator_classes = []
from tinygrad_bn.kernels.cpu import rows
from tinygrad_bn.kernels.views import Rows
print(rows.sequential.forward(Rows(1, 2, 0.0), np.array([[1.0, 3.0]]), None, None)[0].tolist())
"""


def test_without_a_compiler_the_error_names_the_way_out(run_python):
    program = """
import tinygrad_bn.functional as F
from tinygrad_bn import Tensor
x = Tensor([[3.0, 4.0]])
try:
    F.rms_norm(x, 2)
except RuntimeError as error:
    print(error)
print(F.rms_norm(x, 2, eps=12.5, kernel="definition").data.tolist())
"""
    said, result = run_python(program, NUMBA_DISABLE_JIT="1")
    assert said == (
        "forward: NUMBA_DISABLE_JIT is set, but the CPU kernels only run compiled: unset it, or call with "
        'kernel="definition"'
    )
    assert result == "[[0.6, 0.8]]"


def test_importing_compiles_nothing(run_python):
    program = """
from tinygrad_bn.kernels.cpu import cols, rows, split
drivers = [driver for module in (rows, split, cols) for driver in (*module.forward, *module.backward)]
print([len(driver._compiled) for driver in drivers])
"""
    assert run_python(program) == [str([0] * 12)]


def hot_bodies(T):
    """Each body with its types and the number of its loops over values."""
    x1, x2 = (jit.read(T, ndim) for ndim in (1, 2))
    y1, y2 = (jit.write(T, ndim) for ndim in (1, 2))
    fixed = jit.read(jit.DOUBLE, 1)
    s1, s3, s4 = (jit.write(jit.DOUBLE, ndim) for ndim in (1, 3, 4))
    marks = jit.write(jit.FLAG, 1)
    i, d, flag, none, layout = jit.INT, jit.DOUBLE, jit.FLAG, numba.types.none, tiles.LAYOUT
    return {
        sums.add_moments: ((T, x1, i, d, d), 1),
        sums.row_moments: ((T, x2, flag, s1, s1, s1), 1),
        sums.sum_squares: ((T, x1), 1),
        sums.add_up: ((y2, s1), 1),
        rows.normalize_rows: ((T, i, x2, x2, x2, fixed, fixed, fixed, y2), 1),
        rows_backward.sum_rows: ((T, i, i, i, i, none, x2, x2, y2, fixed, fixed, y2, y2, y1, s1, s1), 1),
        rows_backward.differentiate: ((T, flag, x2, x2, y2, fixed, fixed, s1, s1, marks, y2), 1),
        split.scale_runs: ((T, i, x2, s1, s1, s1, y2), 1),
        split.add_cotangent_sums: ((T, i, x2, x2, s1, s1, s1), 1),
        split.differentiate_runs: ((T, i, flag, x2, x2, s1, s1, s1, s1, y2), 2),
        cols.tile_moments: ((T, i, x2, layout, s1, s4), 2),
        cols.normalize_tile: ((T, i, x2, layout, flag, s3, flag, y2), 2),
        cols_backward.tile_sums: ((T, i, layout, x2, x2, fixed, s4), 1),
        cols_backward.differentiate_tile: ((T, i, layout, flag, x2, x2, s3, flag, y2), 2),
    }


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks for x86 instructions")
@DTYPES
@pytest.mark.parametrize("number", range(len(hot_bodies(numba.float32))))
def test_hot_loops_are_vectorized(number, dtype):
    T = numba.from_dtype(np.dtype(dtype))
    hot, (signature, loops) = list(hot_bodies(T).items())[number]
    counts = hot.targetoptions["_nrt"]
    fresh = jit.body(hot.py_func, _nrt=counts)  # numba cannot show code that came from its cache
    fresh.compile(signature)
    (compiled,) = fresh.signatures
    code = fresh.inspect_llvm(compiled)
    assert len(re.findall(r"^vector\.body[\w.]*:", code, re.MULTILINE)) >= loops
    assert counts or "NRT_" not in code  # two atomic operations for each slice
    if not hot.__module__.startswith(cols.__name__):  # those of cols write to arrays of their own
        assert "vector.memcheck" not in code  # compares every array that is written with those that are read
    suffix = "pd" if dtype == np.float64 or hot is sums.add_up else "ps"
    packed = re.findall(rf"\bv?(?:add|mul|fn?m(?:add|sub)\d+){suffix}\b", fresh.inspect_asm(compiled))
    assert len(packed) >= loops


def multiply(x, large, small, y):
    for j in range(x.size):
        y[j] = sums.multiply_add(x[j], large, small, np.float32(0))


def test_a_factor_in_two_parts_stays_in_two_parts_where_sums_may_be_regrouped():
    """value · large + value · small is not made value · (large + small), which would be rounded."""
    T = numba.float32
    fresh = jit.body(multiply)
    fresh.compile((jit.read(T, 1), T, T, jit.write(T, 1)))
    (compiled,) = fresh.signatures
    assert not re.search(r"fadd .*%arg.large", fresh.inspect_llvm(compiled))


def touch(number, x):
    part = x[number : number + 1]
    fill(part)


@jit.body
def fill(part):
    part[0] = 0


@pytest.mark.parametrize("kind", ["task", "sequential driver"])
def test_neither_a_task_nor_a_sequential_driver_counts_references(kind):
    """Two atomic operations for each slice that a body is given take a third of the time on short rows."""
    types = (jit.INT, jit.write(numba.float32, 1))
    made = jit.task(lambda T: types, numbers=0)(touch).task
    if kind != "task":
        made = jit.twins(lambda T: types)(touch).sequential
    compiled = made._dispatcher(np.dtype(np.float32))  # numba cannot show code that came from its cache
    compiled.compile(types)
    assert "NRT_" not in compiled.inspect_llvm(compiled.signatures[0])


TASK_PROGRAM = """
import numpy as np
from tinygrad_bn.kernels.cpu import rows
from tinygrad_bn.kernels.views import Rows
x = np.random.default_rng(0).normal(size=(33, 1027))
plan = Rows(33, 1027, 1e-5)
one, other = (kernel.forward(plan, x, None, None)[0] for kernel in (rows.sequential, rows.parallel))
print(one.tobytes() == other.tobytes())
"""


@pytest.mark.parametrize("lost", ["*forward_parallel*", "*normalize_task*", "*_task_*"])
def test_what_is_lost_from_the_disk_cache_is_compiled_again(run_python, tmp_path, lost):
    """A driver that is loaded calls its tasks by their addresses, which must be known before."""
    for _ in range(2):
        assert run_python(TASK_PROGRAM, NUMBA_CACHE_DIR=str(tmp_path)) == ["True"]
        files = list(tmp_path.rglob(lost))
        assert files
        for file in files:
            file.unlink()


ELSEWHERE_PROGRAM = """
from tinygrad_bn.kernels.cpu.compiling import compile_elsewhere, drivers
compile_elsewhere("dropout")
found = [driver[dtype].stats for twins, dtype in drivers("dropout") for driver in twins]
print(len(found), all(stats.cache_hits and not stats.cache_misses for stats in found))
"""


def test_what_is_compiled_elsewhere_is_loaded_here(run_python, tmp_path):
    for _ in range(2):  # with a cold cache, and with a warm one
        assert run_python(ELSEWHERE_PROGRAM, NUMBA_CACHE_DIR=str(tmp_path)) == ["4 True"]


def test_where_no_cache_can_be_written_kernels_work_and_nothing_is_compiled_elsewhere(run_python):
    program = NO_CACHE_PROGRAM.replace("from tinygrad_bn.kernels.cpu import rows\n", """
from tinygrad_bn.kernels.cpu import compiling, rows
compiling.subprocess.Popen = None
compiling.compile_elsewhere("rows")
""")  # fmt: skip
    assert run_python(program) == ["[[-1.0, 1.0]]"]


LOCKED_PROGRAM = """
from pathlib import Path
from tinygrad_bn.kernels.cpu import compiling
with compiling._locked(Path(compiling.__file__)):
    print("alone", flush=True)
    input()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fcntl")
def test_processes_that_want_the_same_kernels_wait_for_each_other():
    words = [sys.executable, "-c", LOCKED_PROGRAM]
    started = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    waiting = {process.stdout: process for process in started}
    for _ in started:
        (first,), _, _ = select.select(list(waiting), [], [], 60)
        assert first.readline() == b"alone\n"
        process = waiting.pop(first)
        assert select.select(list(waiting), [], [], 0.5)[0] == []
        process.communicate(b"\n")

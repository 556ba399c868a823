"""Memory of large outputs is used again, but never while anybody can look into it."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
from itertools import pairwise

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import tinygrad_bn as tg
from tinygrad_bn.kernels.cpu import memory
from tinygrad_bn.kernels.cpu.memory import Pool, owns

FLOAT = np.dtype(np.float32)
SHAPE = (2, 3, 4)
NBYTES = 96


def address(array):
    return array.__array_interface__["data"][0]


def filled(pool, value, shape=SHAPE):
    array = pool.empty(shape, FLOAT)
    array.fill(value)
    return array


class Subclass(np.ndarray):
    """Of those whose views NumPy gives another base."""


class Exported:
    """An array as other libraries see it through `__array_interface__`."""

    def __init__(self, array):
        self.__array_interface__ = array.__array_interface__
        self.array = array


# Ways to look into the memory of an array without holding the array itself.
HOLDERS = {
    "the array": lambda a: a,
    "view": lambda a: a.view(),
    "view of a view": lambda a: a.view()[...].view(),
    "slice": lambda a: a[1:, :2],
    "element": lambda a: a[1, 2, 3:],
    "reshape": lambda a: a.reshape(-1),
    "transpose": lambda a: a.T,
    "broadcast": lambda a: np.broadcast_to(a, (5, *a.shape)),
    "windows": lambda a: np.lib.stride_tricks.sliding_window_view(a, 2, axis=-1),
    "other dtype": lambda a: a.view(np.int32).view(np.float32),
    "subclass": lambda a: a.view(Subclass),
    "memoryview": lambda a: np.asarray(memoryview(a)),
    "frombuffer": lambda a: np.frombuffer(a, np.float32),
    "DLPack": lambda a: np.from_dlpack(a),
    "array interface": lambda a: np.asarray(Exported(a)),
    "nditer": lambda a: np.nditer(a).operands[0],
    "torch": lambda a: pytest.importorskip("torch", reason="oracle torch is not installed").from_numpy(a),
    "torch by DLPack": lambda a: pytest.importorskip(
        "torch", reason="oracle torch is not installed"
    ).from_dlpack(a),
    "Tensor": lambda a: tg.Tensor.wrap(a),
    "Tensor.detach": lambda a: tg.Tensor.wrap(a).detach(),
    "Tensor.data": lambda a: tg.Tensor.wrap(a).data,
    "Tensor slice": lambda a: tg.Tensor.wrap(a)[1:],
    "from_dlpack": lambda a: tg.from_dlpack(a),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_a_block_is_lent_again_only_when_nobody_can_see_it(hold):
    pool = Pool(10 * NBYTES)
    array = filled(pool, 7)
    place = address(array)
    held = hold(array)
    del array
    gc.collect()
    others = [filled(pool, 0) for _ in range(3)]
    assert pool.free_bytes == 0
    assert (np.asarray(held) == 7).all()
    del held
    gc.collect()
    assert pool.free_bytes == NBYTES
    assert address(filled(pool, 1)) == place
    assert all((other == 0).all() for other in others)


@pytest.mark.parametrize(
    "duplicate",
    [np.copy, copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a)), lambda a: a + 0],
    ids=["copy", "copy.copy", "deepcopy", "pickle", "add"],
)
def test_copies_have_memory_of_their_own(duplicate):
    pool = Pool(10 * NBYTES)
    other = duplicate(filled(pool, 7))
    assert pool.free_bytes == NBYTES
    filled(pool, 0)
    assert other.flags.owndata and (other == 7).all()


class Lending(RuleBasedStateMachine):
    """Arrays come and go, views of them remain; each is full of a number of its own, and must stay so."""

    LIMIT = 1000

    def __init__(self):
        super().__init__()
        self.pool = Pool(self.LIMIT)
        self.held = []
        self.value = 0

    @rule(length=st.integers(1, 300), dtype=st.sampled_from(["f4", "f8"]))
    def lend(self, length, dtype):
        array = self.pool.empty((length,), np.dtype(dtype))
        assert array.shape == (length,) and array.dtype == dtype
        assert array.flags.c_contiguous and array.flags.aligned and array.flags.writeable
        assert address(array) % 64 == 0 and owns(array)
        self.value += 1
        array.fill(self.value)
        self.held.append((self.value, array))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), hold=st.sampled_from(["view", "slice", "reshape", "memoryview", "DLPack"]))
    def look(self, data, hold):
        value, array = data.draw(st.sampled_from(self.held), label="array")
        view = {"slice": lambda a: a[a.size // 2 :]}.get(hold, HOLDERS[hold])(array)
        assert not owns(view) or view is array
        self.held.append((value, view))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop(self, data):
        self.held.pop(data.draw(st.integers(0, len(self.held) - 1), label="which"))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop_in_a_circle(self, data):
        circle = [self.held.pop(data.draw(st.integers(0, len(self.held) - 1), label="which"))]
        circle.append(circle)

    @rule()
    def release(self):
        assert self.pool.release() <= self.LIMIT
        assert self.pool.free_bytes == 0

    @invariant()
    def contents_stay(self):
        assert all((array == value).all() for value, array in self.held)

    @invariant()
    def the_limit_holds(self):
        assert self.pool.free_bytes <= self.LIMIT


TestLending = Lending.TestCase
TestLending.settings = hypothesis.settings(max_examples=40, stateful_step_count=40)


def test_the_block_used_last_is_lent_first():
    pool = Pool(10 * NBYTES)
    arrays = [filled(pool, i) for i in range(3)]
    places = [address(array) for array in arrays]
    for _ in range(3):
        arrays.pop(0)
    again = [filled(pool, i) for i in range(3)]
    assert [address(array) for array in again] == places[::-1]


def test_a_block_serves_what_is_little_smaller():
    pool = Pool(1 << 20)
    place = address(pool.empty((900,), FLOAT))
    assert address(pool.empty((800,), FLOAT)) == place
    assert address(pool.empty((901,), FLOAT)) != place
    pool.release()
    pool.empty((900,), FLOAT)
    pool.empty((799,), FLOAT)
    assert pool.free_bytes == 4 * (900 + 799)


def test_free_blocks_stay_within_the_limit_and_the_oldest_go_first():
    pool = Pool(3 * NBYTES)
    arrays = [filled(pool, i) for i in range(5)]
    places = [address(array) for array in arrays]
    while arrays:
        arrays.pop(0)
        assert pool.free_bytes <= 3 * NBYTES
    assert {block.address for block in pool._free} == set(places[2:])


def test_a_block_beyond_the_limit_is_not_kept_and_drives_no_other_out():
    pool = Pool(3 * NBYTES)
    filled(pool, 0)
    large = filled(pool, 0, shape=(1000,))
    del large
    assert pool.free_bytes == NBYTES
    keeping_none = Pool(0)
    filled(keeping_none, 0)
    assert keeping_none.free_bytes == 0


def test_release_gives_the_memory_back():
    tracemalloc.start()
    try:
        pool = Pool(1 << 30)
        before = tracemalloc.get_traced_memory()[0]
        arrays = [pool.empty((1 << 20,), FLOAT) for _ in range(3)]
        kept = arrays.pop()
        del arrays
        assert tracemalloc.get_traced_memory()[0] - before > 3 << 22
        assert pool.release() == 2 << 22
        assert 1 << 22 <= tracemalloc.get_traced_memory()[0] - before < (1 << 22) + 100_000
        assert pool.release() == 0
    finally:
        tracemalloc.stop()
    kept.fill(1)


def test_where_memory_is_short_free_blocks_are_dropped_and_it_is_tried_again(monkeypatch):
    pool = Pool(1 << 20)
    filled(pool, 0)
    made = memory._Block

    def short(size, place):
        if pool.free_bytes:
            raise MemoryError
        return made(size, place)

    monkeypatch.setattr(memory, "_Block", short)
    assert filled(pool, 3, shape=(1000,)).shape == (1000,)

    def none_left(size, place):
        raise MemoryError

    monkeypatch.setattr(memory, "_Block", none_left)
    pool.release()
    with pytest.raises(MemoryError):
        pool.empty((5000,), FLOAT)


def test_blocks_begin_at_different_places_of_a_page():
    """So that stores to one do not seem to be to the other, by the last bits of their addresses."""
    pool = Pool(0)
    arrays = [pool.empty(SHAPE, FLOAT) for _ in range(8)]
    places = [address(array) % 4096 for array in arrays]
    assert len(set(places)) == 8
    for one, other in pairwise(places):
        assert 512 <= (other - one) % 4096 <= 4096 - 512


# Re-entry: loans end at any moment


class Restless(list):
    """The list of free blocks, in whose every step another loan ends first, as the collector may have it."""

    def __init__(self, pending):
        super().__init__()
        self.pending = pending

    def _interrupt(self):
        if self.pending:
            self.pending.pop()

    def append(self, block):
        self._interrupt()
        super().append(block)

    def pop(self, *where):
        self._interrupt()
        return super().pop(*where)

    def remove(self, block):
        self._interrupt()
        super().remove(block)

    def copy(self):
        self._interrupt()
        found = super().copy()
        self._interrupt()
        return found


@pytest.mark.parametrize("limit", [0, NBYTES, 3 * NBYTES, 100 * NBYTES])
def test_loans_that_end_inside_the_pool_do_no_harm(limit):
    pool = Pool(limit)
    kept = [filled(pool, i) for i in range(30)]
    pending = [filled(pool, -1) for _ in range(200)]
    pool._free = Restless(pending)
    for i in range(100):
        kept[i % 30] = None
        kept[i % 30] = filled(pool, i)
        if i % 10 == 9:
            pool.release()
        assert all((array == array.flat[0]).all() for array in kept)
        assert len({address(array) for array in kept}) == 30
    assert not pending
    assert pool.free_bytes <= limit
    assert len({block.address for block in pool._free}) == len(pool._free)
    assert not {block.address for block in pool._free} & {address(array) for array in kept}


def test_the_collector_may_run_at_every_allocation():
    pool = Pool(20 * NBYTES)
    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        kept = []
        for i in range(500):
            circle = [filled(pool, i)]
            circle.append(circle)
            kept = [*kept[-20:], filled(pool, i)]
            assert all((array == array.flat[0]).all() for array in kept)
            assert pool.free_bytes <= 20 * NBYTES
    finally:
        gc.set_threshold(*thresholds)


class Contested(list):
    """The list of free blocks, of which another thread always takes what was seen a moment before."""

    def remove(self, block):
        super().remove(block)
        super().remove(block)

    def pop(self, *where):
        self.clear()
        return super().pop(*where)


def test_another_thread_may_be_first_to_take_a_block():
    pool = Pool(NBYTES)
    pool._free = Contested()
    first, second, third = (filled(pool, i) for i in range(3))
    place = address(first)
    del first
    assert address(filled(pool, 3)) != place
    pool._free.clear()
    del second
    assert pool.free_bytes == NBYTES
    del third  # one of the two is dropped, but both are gone
    assert pool.free_bytes == 0
    filled(pool, 4)
    assert pool.free_bytes == NBYTES
    assert pool.release() == 0


def test_threads_share_a_pool():
    pool = Pool(12 * NBYTES)
    problems = []
    passing = []  # arrays made in one thread and dropped in another

    def work(seed):
        rng = np.random.default_rng(seed)
        kept = {}
        for i in range(600):
            value = seed * 1000 + i
            kept[value] = filled(pool, value, shape=(int(rng.integers(20, 26)),))
            if len(kept) > 5:
                passing.append(kept.pop(next(iter(kept))))
            if len(passing) > 10:
                try:
                    passing.pop(0)
                except IndexError:
                    continue
            if i % 50 == 0:
                pool.release()
            problems.extend(v for v, array in kept.items() if not (array == v).all())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert problems == []
    passing.clear()
    assert pool.free_bytes <= 12 * NBYTES
    assert len({block.address for block in pool._free}) == len(pool._free)


SHUTDOWN = """
import builtins, sys
import numpy as np
from tinygrad_bn.kernels.cpu import memory
def large():
    return memory.empty((1 << 19,), np.dtype(np.float32))
kept, builtins.kept, sys.kept = large(), large(), large()
sys.module = memory  # so that its names are gone before `sys.kept` is
circle = [large()]
circle.append(circle)
class Holder:
    def __del__(self):
        self.array = None
holder = Holder()
holder.array, holder.self = large(), holder
del holder
sys.modules["tinygrad_bn.kernels.cpu.memory"].__dict__["kept"] = large()
print(memory.release_memory())
"""


def test_loans_that_end_while_python_shuts_down_say_nothing():
    ended = subprocess.run([sys.executable, "-c", SHUTDOWN], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "")


FORK = """
import os
import warnings
import numpy as np
from tinygrad_bn.kernels.cpu import memory
warnings.simplefilter("ignore")  # NumPy has threads
kept, gone = (memory.empty((1 << 19,), np.dtype(np.float32)) for _ in range(2))
kept.fill(1)
gone.fill(2)
place = gone.__array_interface__["data"][0]
del gone
child = os.fork()
if child == 0:
    again = memory.empty((1 << 19,), np.dtype(np.float32))
    assert again.__array_interface__["data"][0] == place
    again.fill(3)
    kept.fill(4)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
again = memory.empty((1 << 19,), np.dtype(np.float32))
assert again.__array_interface__["data"][0] == place
print(float(again[0]), float(kept[0]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_memory_of_its_own(run_python):
    assert run_python(FORK) == ["2.0 1.0"]


# The limit, and what is too small

LIMIT = "from tinygrad_bn.kernels.cpu import memory; print(memory._shared().limit)"


def test_no_more_than_so_many_blocks_are_kept():
    pool = Pool(1 << 30)
    arrays = [pool.empty(SHAPE, FLOAT) for _ in range(memory.MOST_BLOCKS + 3)]
    arrays.clear()
    assert pool.free_bytes == memory.MOST_BLOCKS * NBYTES


def test_the_limit_depends_on_the_machine_and_the_environment(monkeypatch, run_python, tmp_path):
    monkeypatch.delenv(memory.VARIABLE, raising=False)
    monkeypatch.setattr(memory, "CONTAINER", tmp_path / "memory.max")
    names = {"SC_PHYS_PAGES": 1 << 20, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", names.__getitem__, raising=False)
    assert memory._limit() == 256 << 20
    names["SC_PHYS_PAGES"] = 1 << 30
    assert memory._limit() == 1 << 30
    memory.CONTAINER.write_text("max\n")
    assert memory._limit() == 1 << 30
    memory.CONTAINER.write_text(f"{1 << 30}\n")
    assert memory._limit() == 64 << 20
    monkeypatch.delattr(os, "sysconf")
    assert memory._limit() == 256 << 20
    assert run_python(LIMIT, **{memory.VARIABLE: "0"}) == ["0"]
    assert run_python(LIMIT, **{memory.VARIABLE: "3"}) == [str(3 << 20)]


@pytest.mark.parametrize("given", ["", "-1", "1.5", "64M", "²"])
def test_a_limit_that_is_none_is_an_error(monkeypatch, given):
    monkeypatch.setenv(memory.VARIABLE, given)
    with pytest.raises(ValueError, match=rf"TGBN_KEEP_MIB: got {given!r}, wanted a whole number"):
        memory._limit()


def test_small_outputs_are_plain_arrays():
    for shape in [(), (0,), (3, 0, 1 << 20), ((1 << 18) - 1,)]:
        array = memory.empty(shape, FLOAT)
        assert array.shape == shape and array.flags.owndata
    assert not memory.empty((1 << 18,), FLOAT).flags.owndata


def test_views_are_not_owned():
    whole = Pool(0).empty((6, 4), FLOAT)
    assert owns(whole) and owns(np.empty(3))
    views = [whole[...], whole[1:], whole.reshape(-1), whole.view(), np.broadcast_to(whole, (2, 6, 4))]
    views.append(np.lib.stride_tricks.sliding_window_view(whole, 2, axis=0))
    views += [np.from_dlpack(whole), np.asarray(memoryview(whole)), np.frombuffer(bytes(8), np.float32)]
    assert not any(map(owns, views))

"""Every library makes the call that is to be timed: the same results as ours, whatever the layout."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time

import numpy as np
import pytest

from tinygrad_bn import REGISTRY
from tinygrad_bn.bench import libraries, worker
from tinygrad_bn.bench.cases import SMALL, Case, declared, small
from tinygrad_bn.bench.pool import Failed, Worker, Workers, cores

TINY = {
    "batch_norm": [Case("norm::batch_norm", (4, 6, 5, 3)), Case("norm::batch_norm", (9, 6))],
    "channels last": [
        Case("norm::batch_norm", (4, 5, 3, 6), {"channel_axis": -1}),
        Case("norm::instance_norm", (4, 5, 6), {"channel_axis": -1}),
        Case("norm::group_norm", (4, 5, 3, 6), {"channel_axis": -1, "num_groups": 3}),
        Case("norm::batch_norm_inference", (4, 5, 3, 6), {"channel_axis": -1}),
    ],
    "inference": [Case("norm::batch_norm_inference", (4, 6, 5, 3), {"eps": 0.1})],
    "instance_norm": [Case("norm::instance_norm", (4, 6, 5, 3))],
    "group_norm": [Case("norm::group_norm", (4, 6, 5), {"num_groups": 2, "eps": 0.5})],
    "layer_norm": [Case("norm::layer_norm", (4, 3, 7), {"normalized_shape": (3, 7)})],
    "rms_norm": [Case("norm::rms_norm", (4, 7)), Case("norm::rms_norm", (4, 7), {"eps": 0.5})],
    "dropout": [Case("dropout::dropout", (100, 30), {"p": 0.25})],
}


def results(name, case, folder, **options):
    made = worker.Worker(name)
    made.prepare(dataclasses.asdict(case), **{k: str(folder) for k in options})
    return made


@pytest.fixture(scope="module", autouse=True)
def _precision_of_jax():
    """The library of JAX is made for a process of its own, and lets arrays keep 64 bits there."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_enable_x64", False)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("library", ["torch", "jax", "numpy"])
@pytest.mark.parametrize("kind", TINY)
def test_a_peer_gives_our_results(library, kind, dtype, tmp_path):
    pytest.importorskip(library)
    for number, case in enumerate(TINY[kind]):
        case = dataclasses.replace(case, dtype=dtype)
        folder = tmp_path / str(number)
        folder.mkdir()
        results("tinygrad_bn", case, folder, save=True)
        results(library, case, folder, expected=True)
        assert len(list(folder.iterdir())) == 1 + len(case.spec.gradients)


@pytest.mark.parametrize("library", ["torch", "jax", "numpy"])
def test_a_peer_gives_our_results_of_primitives(library, tmp_path):
    pytest.importorskip(library)
    for case in small()[:8]:
        results("tinygrad_bn", case, tmp_path, save=True)
        results(library, case, tmp_path, expected=True)


@pytest.mark.parametrize("shape", [(1,), (3, 1), (2,)], ids=str)
@pytest.mark.parametrize("library", ["torch", "jax", "numpy"])
def test_what_rounding_leaves_of_a_gradient_is_not_compared(library, shape, tmp_path):
    pytest.importorskip(library)
    case = Case("norm::layer_norm", shape)
    results("tinygrad_bn", case, tmp_path, save=True)
    results(library, case, tmp_path, expected=True)


def test_a_wrong_peer_is_refused(tmp_path):
    case = Case("norm::layer_norm", (4, 7))
    results("tinygrad_bn", case, tmp_path, save=True)
    gradient = np.load(tmp_path / "1.npy")
    np.save(tmp_path / "1.npy", gradient * 1.01)
    with pytest.raises(AssertionError, match=r"gradient 1 of 3 differs from tinygrad_bn's by"):
        results("numpy", case, tmp_path, expected=True)
    np.save(tmp_path / "1.npy", gradient[:2])
    with pytest.raises(
        AssertionError, match=r"gradient 1 of 3 has shape \(4, 7\), tinygrad_bn's has \(2, 7\)"
    ):
        results("numpy", case, tmp_path, expected=True)
    np.save(tmp_path / "1.npy", np.full_like(gradient, np.nan))
    with pytest.raises(AssertionError, match="gradient 1"):
        results("numpy", case, tmp_path, expected=True)


def test_a_mask_of_ones_own_is_held_to_its_share_and_its_scale():
    case = Case("dropout::dropout", (100, 30), {"p": 0.25})
    x, cotangent = case.arrays()[0], case.cotangent(case.shape)
    kept = np.random.default_rng(1).random(case.shape) >= 0.25
    worker._check_mask(case, np.where(kept, x / 0.75, 0), np.where(kept, cotangent / 0.75, 0))
    with pytest.raises(AssertionError, match="the gradient differs"):
        worker._check_mask(case, np.where(kept, x / 0.75, 0), cotangent / 0.75)
    with pytest.raises(AssertionError, match="the output differs"):
        worker._check_mask(case, np.where(kept, x, 0), np.where(kept, cotangent / 0.75, 0))
    half = kept & (np.arange(30) % 2 == 0)
    with pytest.raises(AssertionError, match=r"keeps 0\.\d+ of the elements at p = 0\.25"):
        worker._check_mask(case, np.where(half, x / 0.75, 0), np.where(half, cotangent / 0.75, 0))


def test_an_operation_that_a_library_does_not_have_is_no_failure():
    for library in ("torch", "jax"):
        pytest.importorskip(library)
        with pytest.raises(libraries.Unserved):
            libraries.load(library)(Case("dropout::scale", (3, 4), {"factor": 0.5}))


def test_every_declared_case_can_be_called_and_goes_through_json():
    cases = [case for spec in REGISTRY for case in declared(spec)] + small()
    assert len(cases) == 21 + len(SMALL)
    for case in cases:
        case.check()
        assert Case.from_json(dataclasses.asdict(case)) == case
    assert {case.elements for case in small()} == {1000}


def test_other_inputs_follow_from_the_shape_and_all_lie_where_operations_are_defined():
    case = Case("norm::batch_norm_inference", (2, 5, 3, 4), {"channel_axis": -1})
    x, *others = case.arrays()
    assert x.shape == (2, 5, 3, 4) and [each.shape for each in others] == [(4,)] * 4
    assert all(each.min() >= 0.5 and each.max() <= 1.5 for each in others)
    assert case.of_size(600).shape == (10, 5, 3, 4) and case.of_size(1).shape == (1, 5, 3, 4)


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_a_worker_has_its_threads_and_stands_still_between_its_turns():
    with Workers(1) as workers:
        workers.prepare("numpy", Case("math::exp", (5,)))
        pid = workers["numpy"].pid
        assert os.sched_getaffinity(pid) == {cores()[0]}
        with open(f"/proc/{pid}/environ") as file:
            environment = file.read().split("\0")
        for name in ("NUMBA", "OMP", "OPENBLAS", "MKL"):
            assert f"{name}_NUM_THREADS=1" in environment
        deadline = time.monotonic() + 10  # the signal need not have arrived yet
        while _state(pid) != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert _state(pid) == "T"
    assert not os.path.exists(f"/proc/{pid}")


def _state(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


@linux
def test_a_worker_that_is_killed_is_reported_and_started_anew():
    with Workers(1) as workers:
        workers.prepare("numpy", Case("math::exp", (5,)))
        first = workers["numpy"].pid
        os.kill(first, signal.SIGKILL)
        with pytest.raises(Failed, match="its process ended by SIGKILL"):
            workers.prepare("numpy", Case("math::exp", (5,)))
        workers.prepare("numpy", Case("math::exp", (5,)))
        assert workers["numpy"].pid != first


def test_a_worker_that_cannot_start_says_its_last_words(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('not today')")
    made = Worker("numpy", 1, [str(broken)])
    with pytest.raises(Failed, match="its process ended by exit status 1: RuntimeError: not today"):
        made.ask("prepare", case=dataclasses.asdict(Case("math::exp", (5,))))

"""Running statistics: conventions, what is written where, and when nothing is."""

from __future__ import annotations

import numpy as np
import pytest
from norm_cases import KERNELS, Case, assert_close

import tinygrad_bn
from tinygrad_bn import Tensor
from tinygrad_bn.functional import batch_norm, instance_norm
from tinygrad_bn.fused import Fused
from tinygrad_bn.kernels.cpu.split import SplitKernel

BATCH = Case("batch_norm", (4, 3, 5))
INSTANCE = Case("instance_norm", (4, 3, 5))
BOTH = pytest.mark.parametrize("case", [BATCH, INSTANCE], ids=["batch_norm", "instance_norm"])
ALL_KERNELS = pytest.mark.parametrize("kernel", KERNELS)
EXACT = np.array([[0.0], [0.0], [4.0], [4.0]])  # mean 2, biased variance 4, unbiased 16 / 3


def statistics(dtype=np.float64):
    return np.array([8.0], dtype), np.array([16.0], dtype)


# Conventions


@ALL_KERNELS
@pytest.mark.parametrize(
    ("options", "mean", "variance"),
    [
        ({}, 0.9 * 8 + 0.1 * 2, 0.9 * 16 + 0.1 * 16 / 3),
        ({"convention": "torch"}, 0.9 * 8 + 0.1 * 2, 0.9 * 16 + 0.1 * 16 / 3),
        ({"convention": "paddle"}, 0.9 * 8 + 0.1 * 2, 0.9 * 16 + 0.1 * 4),
        ({"momentum": 0.25}, 6.5, 0.75 * 16 + 0.25 * 16 / 3),
        ({"momentum": 0.25, "convention": "paddle"}, 3.5, 7.0),
        ({"momentum": 0.0}, 8.0, 16.0),
        ({"momentum": 1.0}, 2.0, 16 / 3),
        ({"momentum": 0.0, "convention": "paddle"}, 2.0, 4.0),
        ({"momentum": 1.0, "convention": "paddle"}, 8.0, 16.0),
        ({"momentum": 1}, 2.0, 16 / 3),
        ({"momentum": np.float32(0.25), "convention": "paddle"}, 3.5, 7.0),
        ({"momentum": None, "num_batches_tracked": 0}, 2.0, 16 / 3),
        ({"momentum": None, "num_batches_tracked": 3}, 6.5, 0.75 * 16 + 0.25 * 16 / 3),
        ({"momentum": None, "num_batches_tracked": np.array(3), "convention": "paddle"}, 6.5, 13.0),
        ({"momentum": None, "num_batches_tracked": np.int64(3), "convention": "paddle"}, 6.5, 13.0),
    ],
    ids=str,
)
def test_what_each_convention_writes(options, mean, variance, kernel):
    running_mean, running_var = statistics()
    batch_norm(EXACT, running_mean, running_var, training=True, kernel=kernel, **options)
    np.testing.assert_allclose(running_mean, [mean], rtol=2e-15)
    np.testing.assert_allclose(running_var, [variance], rtol=2e-15)


@BOTH
@ALL_KERNELS
@pytest.mark.parametrize("convention", ["torch", "paddle"])
def test_the_cumulative_average_is_the_average_of_all_batches(case, kernel, convention):
    """Inference by the average over all training batches, the variance unbiased or not by the convention."""
    batches = [case.draw(seed=seed)[0] for seed in range(6)]
    running_mean, running_var = np.full(3, 77.0), np.full(3, 88.0)  # forgotten by the first batch
    for position, x in enumerate(batches):
        counted = {"momentum": None, "num_batches_tracked": position, "convention": convention}
        case(x, running_mean=running_mean, running_var=running_var, kernel=kernel, **counted)
    ddof = 1 if convention == "torch" else 0
    axes = (0, 2) if case is BATCH else (2,)
    means = [x.mean(axes).reshape(-1, 3).mean(axis=0) for x in batches]
    variances = [x.var(axes, ddof=ddof).reshape(-1, 3).mean(axis=0) for x in batches]
    np.testing.assert_allclose(running_mean, np.mean(means, axis=0), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(running_var, np.mean(variances, axis=0), rtol=1e-13)


@ALL_KERNELS
def test_instance_norm_averages_over_the_batch(kernel):
    x = np.stack([EXACT.T, 3 * EXACT.T])  # means 2 and 6, biased variances 4 and 36
    running_mean, running_var = statistics()
    instance_norm(x, running_mean, running_var, momentum=0.25, kernel=kernel)
    np.testing.assert_allclose(running_mean, [0.75 * 8 + 0.25 * 4], rtol=1e-15)
    np.testing.assert_allclose(running_var, [0.75 * 16 + 0.25 * 20 * 4 / 3], rtol=1e-15)


@BOTH
@ALL_KERNELS
def test_channels_last_writes_the_same(case, kernel):
    x = case.draw()[0]
    first, last = ([np.zeros(3), np.ones(3)] for _ in range(2))
    case(x, running_mean=first[0], running_var=first[1], kernel=kernel)
    case(np.moveaxis(x, 1, -1), running_mean=last[0], running_var=last[1], channel_axis=-1, kernel=kernel)
    for one, other in zip(first, last, strict=True):
        assert_close(one, other, 8)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_what_a_call_comes_to_is_found_once_whatever_its_momentum(training, monkeypatch):
    """A momentum that changes from step to step would drive out what is remembered of other calls."""
    found, resolved = [], Fused._resolved
    monkeypatch.setattr(Fused, "_resolved", lambda *given: found.append(given) or resolved(*given))
    for momentum in (0.1, 0.2, 0.3):
        batch_norm(EXACT, *statistics(), training=training, momentum=momentum, eps=0.015625)
    assert len(found) == 1


# What holds them


@BOTH
@ALL_KERNELS
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_arrays_and_tensors_of_either_dtype(case, kernel, dtype):
    """The statistics may have another dtype than the input, and keep it."""
    x = case.draw(np.float32)[0]
    wanted = [np.zeros(3), np.ones(3)]
    case(x.astype(np.float64), running_mean=wanted[0], running_var=wanted[1], kernel=kernel)
    arrays = [np.zeros(3, dtype), np.ones(3, dtype)]
    tensors = [Tensor(array) for array in arrays]
    for mean, variance in (arrays, tensors):
        case(x, running_mean=mean, running_var=variance, kernel=kernel)
    for array, tensor, want in zip(arrays, tensors, wanted, strict=True):
        assert array.dtype == tensor.dtype == dtype
        np.testing.assert_array_equal(array, tensor.data)
        assert_close(array, want, 8, scale=1.0, dtype=np.float32)


@BOTH
def test_a_view_of_a_bigger_buffer_is_written_in_place(case):
    x = case.draw()[0]
    plain = [np.zeros(3), np.ones(3)]
    case(x, running_mean=plain[0], running_var=plain[1])
    buffer = np.full((2, 6), -7.0)
    views = buffer[0, ::2], buffer[1, ::-2]
    views[0][...], views[1][...] = 0.0, 1.0
    case(x, running_mean=views[0], running_var=views[1])
    np.testing.assert_array_equal(buffer[0, ::2], plain[0])
    np.testing.assert_array_equal(buffer[1, ::-2], plain[1])
    np.testing.assert_array_equal(buffer[0, 1::2], -7.0)
    np.testing.assert_array_equal(buffer[1, ::2], -7.0)


@BOTH
def test_tensors_keep_their_memory_and_their_version_rises(case):
    x = case.draw()[0]
    memory = np.zeros((2, 3))
    mean, variance = Tensor.wrap(memory[0]), Tensor.wrap(memory[1])
    variance.copy_(1.0)
    before = mean.detach(), variance.detach()
    probe = Tensor(np.ones(3), requires_grad=True)
    used = (probe * mean).sum()  # saves the mean, which is about to change
    case(x, running_mean=mean, running_var=variance)
    assert np.abs(memory[0]).min() > 0
    np.testing.assert_array_equal(before[0].data, memory[0])
    with pytest.raises(RuntimeError, match=r"multiply.*changed in place"):
        used.backward()


@BOTH
def test_the_statistics_of_a_batch_are_no_part_of_the_graph(case):
    x = Tensor(case.draw()[0], requires_grad=True)
    mean, variance = Tensor(np.zeros(3)), Tensor(np.ones(3))
    for kernel in KERNELS:
        case(x, running_mean=mean, running_var=variance, kernel=kernel)
        assert not mean.requires_grad and not variance.requires_grad


def test_training_normalizes_by_the_batch_and_inference_by_the_statistics():
    x = BATCH.draw()[0]
    mean, variance = np.zeros(3), np.ones(3)
    trained = batch_norm(x, mean, variance, training=True, momentum=1.0, convention="torch").data
    np.testing.assert_array_equal(trained, batch_norm(x, None, None, training=True).data)
    inferred = batch_norm(x, mean, variance).data
    assert_close(inferred, (x - mean[:, None]) / np.sqrt(variance[:, None] + 1e-5), 4)
    before = mean.copy()
    batch_norm(x, mean, variance)
    np.testing.assert_array_equal(mean, before)


# When nothing is written


@BOTH
@pytest.mark.parametrize("kernel", ["sequential", "parallel"])
def test_a_kernel_that_fails_leaves_them_as_they_were(case, kernel, monkeypatch):
    def broken(self, plan, *arrays):
        raise MemoryError("no room for y")

    monkeypatch.setattr(SplitKernel, "forward", broken)
    mean, variance = np.zeros(3), np.ones(3)
    with pytest.raises(MemoryError, match="no room"):
        case(case.draw()[0], running_mean=mean, running_var=variance, kernel=kernel)
    np.testing.assert_array_equal(mean, 0.0)
    np.testing.assert_array_equal(variance, 1.0)


@BOTH
@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"eps": -1.0}, ValueError),
        ({"weight": np.ones(4)}, ValueError),
        ({"weight": np.ones(3, np.float32)}, TypeError),
        ({"kernel": "fast"}, ValueError),
        ({"momentum": 2.0}, ValueError),
        ({"momentum": "slow"}, ValueError),
        ({"momentum": None}, ValueError),
        ({"momentum": None, "num_batches_tracked": -1}, ValueError),
        ({"convention": "caffe"}, ValueError),
        ({"channel_axis": 0}, ValueError),
    ],
    ids=str,
)
def test_a_refused_call_leaves_them_as_they_were(case, wrong, error):
    mean, variance = np.zeros(3), np.ones(3)
    with pytest.raises(error, match=case.operation):
        case(**{"x": case.draw()[0], "running_mean": mean, "running_var": variance, **wrong})
    np.testing.assert_array_equal(mean, 0.0)
    np.testing.assert_array_equal(variance, 1.0)


@BOTH
@pytest.mark.parametrize("which", ["running_mean", "running_var"])
def test_what_cannot_be_written_is_refused_before_anything_is_computed(case, which, monkeypatch):
    calls = []
    monkeypatch.setattr(SplitKernel, "forward", lambda *arguments: calls.append(arguments))
    x = case.draw()[0]
    good = {"running_mean": np.zeros(3), "running_var": np.ones(3)}
    frozen = good[which].copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=f"{case.operation}: {which} is read-only"):
        case(x, **{**good, which: frozen})
    with pytest.raises(ValueError, match=f"{case.operation}: {which} is read-only"):
        case(x, **{**good, which: Tensor.wrap(frozen)})
    with pytest.raises(ValueError, match=f"{case.operation}: {which} requires a gradient"):
        case(x, **{**good, which: Tensor(good[which], requires_grad=True)})
    assert calls == []
    np.testing.assert_array_equal(good["running_mean"], 0.0)
    np.testing.assert_array_equal(good["running_var"], 1.0)


@BOTH
def test_wrong_statistics_are_refused(case):
    x = case.draw()[0]
    for wrong, error, message in (
        ([0.0, 0.0, 0.0], TypeError, "running_mean is list"),
        (np.zeros(3, int), TypeError, "running_mean is int64"),
        (np.zeros(4), ValueError, r"running_mean has shape \(4,\), wanted \(3,\)"),
        (None, ValueError, "running_var was given without running_mean"),
    ):
        with pytest.raises(error, match=f"{case.operation}: {message}"):
            case(x, running_mean=wrong, running_var=np.ones(3))


@BOTH
@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 3, 0), (4, 0, 5)], ids=str)
def test_an_empty_batch_says_nothing(case, shape):
    mean, variance = np.full(shape[1], 2.0), np.full(shape[1], 3.0)
    case(np.zeros(shape), running_mean=mean, running_var=variance)
    np.testing.assert_array_equal(mean, 2.0)
    np.testing.assert_array_equal(variance, 3.0)


def test_grad_mode_does_not_matter():
    recorded, silent = statistics(), statistics()
    batch_norm(Tensor(EXACT, requires_grad=True), *recorded, training=True)
    with tinygrad_bn.no_grad():
        batch_norm(EXACT, *silent, training=True)
    np.testing.assert_array_equal(recorded, silent)

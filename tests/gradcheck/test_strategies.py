"""What the strategies draw, how often it is a corner, and what a failing example shrinks to."""

from __future__ import annotations

import math
from collections import Counter

import hypothesis
import numpy as np
import planted
import pytest
from click.testing import CliRunner

from gradcheck.axes import OPERATIONS, RANKS, Configuration
from gradcheck.cli import cli
from gradcheck.strategies import LONG, axis_configurations, norm_inputs

QUICK = hypothesis.settings(database=None, deadline=None, derandomize=True, max_examples=200)


def drawn(strategy, count=200):
    found = []

    @hypothesis.settings(QUICK, max_examples=count)
    @hypothesis.given(strategy)
    def collect(value):
        found.append(value)

    collect()
    return found


def smallest(strategy, condition):
    return hypothesis.find(strategy, condition, settings=hypothesis.settings(QUICK, max_examples=1000))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_everything_drawn_is_a_configuration_of_the_operation_that_reads_back(operation):
    found = drawn(axis_configurations(operation), 100)
    assert len(found) == 100
    for c in found:
        assert c.problem is None and c.operation == operation and Configuration.parse(str(c)) == c
        assert math.prod(c.shape) < 1 << 15
    assert {c.rank for c in found} == set(RANKS[operation])
    assert {c.dtype for c in found} == {"float64", "float32"}


def test_corners_are_common():
    found = drawn(axis_configurations(("batch_norm", "group_norm", "layer_norm")), 300)
    share = Counter()
    for c in found:
        share["batch of one"] += c.operation != "layer_norm" and c.shape[0] == 1
        share["long axis"] += max(c.shape) >= min(LONG)
        share["few values"] += c.count <= 2
        share["ill values"] += c.values != "normal"
        share["layout"] += c.layout != "contiguous"
        share["extreme groups"] += c.groups is not None and c.groups in (1, c.channels)
    assert {name: n for name, n in share.items() if n < len(found) / 20} == {}


def test_arguments_narrow_what_is_drawn():
    found = drawn(axis_configurations(("rms_norm", "dropout"), dtypes=("float32",)), 50)
    assert {(c.operation, c.dtype) for c in found} == {("rms_norm", "float32"), ("dropout", "float32")}
    with pytest.raises(ValueError, match="operation is 'softmax', wanted one or more of batch_norm"):
        axis_configurations("softmax")
    with pytest.raises(ValueError, match="wanted one or more"):
        axis_configurations(())


@pytest.mark.parametrize(
    ("operation", "condition", "expected"),
    [
        ("layer_norm", lambda c: True, "layer_norm shape=1 tail=1"),
        ("layer_norm", lambda c: max(c.shape) > 100, "layer_norm shape=131 tail=1"),
        (
            "rms_norm",
            lambda c: c.values == "mean 1e4" and c.dtype == "float32",
            "rms_norm shape=1 tail=1 dtype=float32 values=mean_1e4",
        ),
        (
            "group_norm",
            lambda c: c.groups == c.channels > 1,
            "group_norm shape=2,2 channel_axis=1 groups=2",
        ),
        (
            "dropout",
            lambda c: c.p == 1,
            "dropout shape=1 mask_axes=0 p=1.0 scaling=upscale_in_train affine=none",
        ),
        (OPERATIONS, lambda c: c.rank == 5, "batch_norm shape=1,1,1,1,2 channel_axis=1"),
    ],
)
def test_what_fails_shrinks_to_the_smallest_shape_and_the_plainest_settings(operation, condition, expected):
    assert str(smallest(axis_configurations(operation), condition)) == expected


@pytest.mark.parametrize("operation", ["layer_norm", "rms_norm", "batch_norm", "instance_norm"])
def test_inputs_for_a_norm_of_the_users(operation):
    found = drawn(norm_inputs(operation, dtype="float32"), 50)
    assert {each.x.ndim for each in found} == set(RANKS[operation])
    layouts = Counter()
    for x, weight, bias, axes in found:
        assert x.dtype == np.float32 and np.isfinite(x).all()
        assert axes and set(axes) <= set(range(x.ndim))
        for parameter in (weight, bias):
            assert parameter is None or parameter.dtype == np.float32
            if parameter is not None and operation in ("layer_norm", "rms_norm"):
                assert parameter.shape == tuple(x.shape[a] for a in axes)
            elif parameter is not None:
                assert parameter.shape in ((x.shape[1],), (x.shape[-1],))
        layouts["stride 0"] += 0 in x.strides
        layouts["negative"] += min(x.strides) < 0
        layouts["plain"] += x.flags.c_contiguous
    assert min(layouts.values()) > 0


def test_inputs_of_one_rank_shrink_to_few_numbers():
    x, _, _, axes = smallest(norm_inputs(rank=2), lambda each: each.x.std() > 0)
    assert x.shape == (1, 2) and axes == (1,)
    assert {each.x.ndim for each in drawn(norm_inputs("batch_norm", rank=3), 20)} == {3}
    with pytest.raises(ValueError, match="rank is 5, wanted one of"):
        smallest(norm_inputs(rank=5), lambda each: True)
    with pytest.raises(ValueError, match="operation is 'group_norm', wanted one of layer_norm"):
        smallest(norm_inputs("group_norm"), lambda each: True)


def test_an_error_planted_in_kernels_is_found_and_shrunk(monkeypatch):
    class Sequential(planted.Norm):
        def vjp(self, plan, needs, cotangent, arrays, aux):
            self.wrong = "vjp without the mean" if plan.length >= 5 else ""
            return super().vjp(plan, needs, cotangent, arrays, aux)

    kernels = {}
    monkeypatch.setattr(
        "tinygrad_bn.registry._resolve",
        lambda target: kernels.setdefault(target, Sequential(training=True)),
    )
    planted.forget_calls(monkeypatch)
    result = CliRunner().invoke(cli, ["fuzz", "--op", "layer_norm", "--examples", "60"])
    assert result.exit_code == 1
    assert "\nFAIL  layer_norm shape=5 tail=1\n" in result.stdout
    again = "  again: python cli.py gradcheck --case 'layer_norm shape=5 tail=1' --seed 0"
    assert again in result.stdout.splitlines()

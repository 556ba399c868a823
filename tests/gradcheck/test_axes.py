"""A configuration reads back from its text, draws the same numbers again, and lies in memory as it says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gradcheck import configurations
from gradcheck.axes import OPERATIONS, VALUES, Configuration

ALL = [c for operation in OPERATIONS for c in configurations.exhaustive(operation)]
GROUPED = Configuration("group_norm", (2, 6, 3), channel_axis=1, groups=3)


def test_every_configuration_reads_back_from_its_text():
    texts = [str(c) for c in ALL]
    assert [Configuration.parse(text) for text in texts] == ALL
    assert len(set(texts)) == len(ALL)


@pytest.mark.parametrize(
    "configuration",
    [
        Configuration("dropout", (3,), mask_axes=(), p=1 / 3, scaling="upscale_in_train", affine="none"),
        Configuration("layer_norm", (2, 3, 2, 3, 2), tail=5, values="given"),
        Configuration("batch_norm", (4, 3), channel_axis=-1, eps=1.25e-7, values="constant row"),
        Configuration("rms_norm", (4, 1), tail=1, eps=0.0, values="constant row"),
        Configuration("batch_norm", (4, 3), channel_axis=1, eps=0.0, values="zeros", mode="inference"),
    ],
    ids=str,
)
def test_what_a_user_may_write_reads_back_too(configuration):
    assert configuration.problem is None
    assert Configuration.parse(str(configuration)) == configuration


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no operation; begin with one of batch_norm, "),
        ("layernorm shape=3 tail=1", "'layernorm' is no operation"),
        ("layer_norm", "layer_norm needs a shape, such as shape=4,3,5"),
        ("layer_norm shape=3,4 tail", "'tail' is not a setting; wanted name=value"),
        ("layer_norm shape=3,4 tale=1", "'tale=1' is not a setting"),
        ("layer_norm operation=rms_norm shape=3", "'operation=rms_norm' is not a setting"),
        ("layer_norm shape=3,x tail=1", "shape is '3,x', wanted whole numbers with commas between"),
        ("layer_norm shape=3,4 tail=one", "tail is 'one', wanted a whole number"),
        ("layer_norm shape=3,4 tail=1 eps=small", "eps is 'small', wanted a number"),
        ("layer_norm shape=3,4 shape=4,3 tail=1", "shape is given twice"),
        ("layer_norm shape= tail=1", "rank 0, wanted 1 to 4"),
        ("layer_norm shape=1,2,3,4,5 tail=1", "rank 5, wanted 1 to 4"),
        ("batch_norm shape=3,4,2,2,2,2 channel_axis=1 values=given", "rank 6, wanted 2 to 5"),
        ("layer_norm shape=3,0 tail=1", "wanted lengths of at least 1"),
        ("layer_norm shape=3,-2 tail=1", "wanted lengths of at least 1"),
        ("layer_norm shape=3,4", "tail is None, wanted the number of normalized axes, 1 to 2"),
        ("layer_norm shape=3,4 tail=3", "tail is 3, wanted the number of normalized axes, 1 to 2"),
        ("layer_norm shape=3,4 tail=1 channel_axis=1", "channel_axis is 1; it has none"),
        ("layer_norm shape=3,4 tail=1 groups=2", "groups is 2; only group_norm has them"),
        ("layer_norm shape=3,4 tail=1 p=0.5", "p and scaling are settings of dropout"),
        ("layer_norm shape=3,4 tail=1 mode=inference", "no mode of its own for inference"),
        ("layer_norm shape=3,4 tail=1 dtype=float16", "dtype is 'float16', wanted one of float64, float32"),
        ("layer_norm shape=3,4 tail=1 layout=diagonal", "layout is 'diagonal', wanted one of contiguous, "),
        ("layer_norm shape=3,4 tail=1 affine=yes", "affine is 'yes', wanted one of none, weight, bias, both"),
        (
            "layer_norm shape=3,4 tail=1 values=odd",
            "values is 'odd', wanted one of normal, zeros, constant_row",
        ),
        ("layer_norm shape=3,4 tail=1 eps=-1", "eps is -1.0, wanted a number of at least 0"),
        ("layer_norm shape=3,4 tail=1 eps=nan", "eps is nan, wanted a number of at least 0"),
        ("layer_norm shape=3 tail=1 layout=broadcast", "cannot be broadcast"),
        ("batch_norm shape=4,3 channel_axis=1 tail=1", "tail is 1; it has none, but a channel_axis"),
        ("batch_norm shape=4,3 channel_axis=0", "channel_axis is 0, wanted 1 or -1"),
        ("batch_norm shape=1,3 channel_axis=1", "one value per statistic, which training rejects"),
        ("instance_norm shape=4,3,1 channel_axis=1", "one value per statistic, which training rejects"),
        ("instance_norm shape=4,3 channel_axis=1", "rank 2, wanted 3 to 5"),
        ("group_norm shape=1,4 channel_axis=1 groups=4", "one value per statistic, which training rejects"),
        ("group_norm shape=2,6,3 channel_axis=1", "groups is None, wanted a divisor of the 6 channels"),
        ("group_norm shape=2,6,3 channel_axis=1 groups=4", "groups is 4, wanted a divisor of the 6 channels"),
        ("group_norm shape=2,6,3 channel_axis=1 groups=-2", "groups is -2, wanted a divisor"),
        ("dropout shape=3 affine=none", "needs mask_axes, p, and scaling, one of upscale_in_train, "),
        (
            "dropout shape=3 mask_axes=1 p=0.5 scaling=upscale_in_train affine=none",
            "mask_axes is (1,), wanted axes of the shape, 0 to 0",
        ),
        ("dropout shape=3 mask_axes=0 p=1.5 scaling=upscale_in_train affine=none", "p is 1.5, wanted 0 to 1"),
        ("dropout shape=3 mask_axes=0 p=0.5 scaling=upscale_in_train", "needs affine=none"),
        (
            "dropout shape=3 mask_axes=0,0 p=0.5 scaling=upscale_in_train affine=none",
            "mask_axes is (0, 0), wanted each axis once",
        ),
        (
            "dropout shape=3 mask_axes=0 p=1e-12 scaling=upscale_in_train affine=none",
            "p is 1e-12, which masks cannot tell from 0; wanted 0, 1, or 2⁻³² to 1 − 2⁻³²",
        ),
        ("layer_norm shape=4,,5 tail=1", "shape is '4,,5', wanted whole numbers with commas between"),
        ("layer_norm shape=99999999999999999999 tail=1", "has 99999999999999999999 elements, wanted at most"),
        ("layer_norm shape=4,5 tail=1 eps=0 values=zeros", "0/0 has no gradient; wanted eps above 0"),
        ("layer_norm shape=4,5 tail=1 eps=0 values=constant_row", "eps is 0 where all values"),
        ("layer_norm shape=4,1 tail=1 eps=0", "eps is 0 where all values"),
        ("rms_norm shape=4,5 tail=1 eps=0 values=zeros", "eps is 0 where all values"),
        (
            "dropout shape=3 mask_axes=0 p=0.5 scaling=upscale_in_train affine=none mode=inference",
            "does nothing at inference",
        ),
    ],
)
def test_an_illegal_configuration_is_refused_with_what_and_why(text, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the message is matched as text below
        Configuration.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_draws_are_deterministic_and_independent_of_each_other():
    first = GROUPED.draw(7)
    dataclasses.replace(GROUPED, dtype="float32").draw(7)
    np.random.default_rng(0).normal()
    again = GROUPED.draw(7)
    for one, other in zip(first.differentiable, again.differentiable, strict=True):
        assert one.tobytes() == other.tobytes()
    assert not np.array_equal(first.input, GROUPED.draw(8).input)
    assert not np.array_equal(first.input, dataclasses.replace(GROUPED, groups=2).draw(7).input)


def test_a_draw_leaves_the_array_of_the_user_alone():
    given = np.arange(36.0).reshape(2, 6, 3)
    configuration = dataclasses.replace(GROUPED, values="given")
    drawn = configuration.draw(0, given).input
    assert np.array_equal(drawn, given) and not np.shares_memory(drawn, given)


@pytest.mark.parametrize("mode", ["training", "inference"])
def test_running_statistics_are_drawn_for_inference_only(mode):
    arrays = Configuration("batch_norm", (4, 3), channel_axis=1, mode=mode, affine="weight").draw(0)
    assert arrays.bias is None and arrays.weight.shape == (3,)
    if mode == "training":
        assert arrays.running_mean is None and arrays.running_var is None
    else:
        assert arrays.running_mean.shape == arrays.running_var.shape == (3,)
        assert (arrays.running_var > 0).all()


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        ("zeros", lambda x: not x.any()),
        ("constant row", lambda x: (x[0, :2] == 0.5).all() and np.std(x[0, 2:]) > 0.1 and np.std(x[1]) > 0.1),
        ("spike", lambda x: (x == 1e3).sum() == 1 and np.sort(np.abs(x).ravel())[-2] < 10),
        ("scale 1e-3", lambda x: 2e-4 < np.std(x) < 5e-3),
        ("scale 100", lambda x: 20 < np.std(x) < 500),
        ("mean 1e4", lambda x: abs(np.mean(x) - 1e4) < 2 and np.std(x) > 0.2),
        ("normal", lambda x: 0.2 < np.std(x) < 3),
    ],
)
def test_values_hold_what_they_say(values, holds):
    assert holds(dataclasses.replace(GROUPED, values=values).draw(0).input)
    assert values in VALUES


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("operation", ["batch_norm", "instance_norm", "group_norm", "layer_norm"])
def test_a_constant_row_is_one_slice_of_a_statistic(operation, channel_axis):
    """Exactly one statistic sees only equal values, whatever the axes."""
    place = {"tail": 2} if operation == "layer_norm" else {"channel_axis": channel_axis}
    groups = {"groups": 2} if operation == "group_norm" else {}
    c = Configuration(operation, (3, 4, 6), values="constant row", **place, **groups)
    x = c.draw(0).input
    spread = x.reshape(c.split_shape).std(axis=c.reduced)
    assert (spread == 0).sum() == 1
    assert (x == 0.5).sum() == c.count


@pytest.mark.parametrize(
    ("layout", "strides"),
    [
        ("contiguous", (18, 3, 1)),
        ("transposed", (1, 2, 12)),
        ("strided", (36, 6, 2)),
        ("reversed", (-18, -3, -1)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_layout_has_the_strides_it_claims_and_the_same_values(layout, strides, dtype):
    configuration = dataclasses.replace(GROUPED, layout=layout, dtype=dtype)
    x = configuration.draw(0).astype(dtype).input
    laid = configuration.lay_out(x)
    assert tuple(stride // laid.itemsize for stride in laid.strides) == strides
    assert np.array_equal(laid, x) and laid.dtype == dtype and laid.shape == x.shape


def test_between_strided_elements_lies_nan():
    """So that a kernel that walks the memory instead of the strides is seen."""
    laid = dataclasses.replace(GROUPED, layout="strided").lay_out(GROUPED.draw(0).input)
    assert np.isnan(np.asarray(laid.base)[..., 1::2]).all()


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("batch_norm shape=4,3,2 channel_axis=1", (4, 1, 2)),
        ("batch_norm shape=4,2,3 channel_axis=-1", (4, 2, 1)),
        ("instance_norm shape=4,3,2 channel_axis=1", (1, 3, 2)),
        ("group_norm shape=4,6,2 channel_axis=1 groups=3", (1, 6, 2)),
        ("layer_norm shape=4,3 tail=1", (1, 3)),
        ("layer_norm shape=4,3 tail=2", (1, 3)),
        ("layer_norm shape=3,1 tail=2", (3, 1)),
        ("layer_norm shape=3,1 tail=1", (1, 1)),
        ("layer_norm shape=2,1,3 tail=3", (1, 1, 3)),
        ("dropout shape=4,3 mask_axes=1 p=0.5 scaling=upscale_in_train affine=none", (1, 3)),
    ],
)
def test_a_broadcast_input_leaves_every_slice_with_a_spread(text, shape):
    c = Configuration.parse(f"{text} layout=broadcast")
    x = c.lay_out(c.draw(0).input)
    assert x.shape == shape
    if c.operation != "dropout" and c.count > 1:
        assert np.broadcast_to(x, c.shape).reshape(c.split_shape).std(axis=c.reduced).min() > 0


@pytest.mark.parametrize(
    ("text", "zero"),
    [
        ("layer_norm shape=3,4 tail=1", ()),
        ("layer_norm shape=3,1 tail=1", ("input", "weight")),
        ("layer_norm shape=3,1 tail=1 affine=bias", ("input",)),
        ("layer_norm shape=3,4 tail=1 values=zeros", ("weight",)),
        ("layer_norm shape=3,4 tail=1 values=zeros affine=none", ()),
        ("layer_norm shape=3,2 tail=1", ()),
        ("layer_norm shape=3,2 tail=1 eps=0", ("input",)),
        ("rms_norm shape=3,1 tail=1", ()),
        ("rms_norm shape=3,1 tail=1 eps=0", ("input",)),
        ("rms_norm shape=3,4 tail=1 values=zeros", ("weight",)),
        ("group_norm shape=2,4,1 channel_axis=1 groups=4 affine=weight", ("input", "weight")),
        ("instance_norm shape=2,4,1 channel_axis=1 mode=inference", ()),
        ("batch_norm shape=4,3 channel_axis=1 values=zeros mode=inference", ()),
        ("dropout shape=3 mask_axes=0 p=1 scaling=upscale_in_train affine=none", ("input",)),
        ("dropout shape=3 mask_axes=0 p=0.5 scaling=upscale_in_train affine=none", ()),
        ("dropout shape=3 mask_axes=0 p=1 scaling=downscale_in_infer affine=none mode=inference", ("input",)),
    ],
)
def test_gradients_that_are_zero_by_nature_are_declared(text, zero):
    assert Configuration.parse(text).zero == zero


@pytest.mark.parametrize(
    ("text", "split_shape", "reduced", "count"),
    [
        ("batch_norm shape=4,3,2 channel_axis=1", (4, 3, 2), (0, 2), 8),
        ("batch_norm shape=4,2,3 channel_axis=-1", (4, 2, 3), (0, 1), 8),
        ("instance_norm shape=4,3,2,5 channel_axis=1", (4, 3, 2, 5), (2, 3), 10),
        ("group_norm shape=2,6,3 channel_axis=1 groups=2", (2, 2, 3, 3), (2, 3), 9),
        ("group_norm shape=2,3,6 channel_axis=-1 groups=2", (2, 3, 2, 3), (1, 3), 9),
        ("layer_norm shape=2,3,4 tail=2", (2, 3, 4), (1, 2), 12),
    ],
)
def test_the_axes_of_the_statistics(text, split_shape, reduced, count):
    c = Configuration.parse(text)
    assert (c.split_shape, c.reduced, c.count) == (split_shape, reduced, count)

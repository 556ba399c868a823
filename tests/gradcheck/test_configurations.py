"""The default sweep leaves out no pair of settings and no corner; the tables here are written by hand."""

from __future__ import annotations

import collections
import itertools
import math

import pytest

from gradcheck import configurations
from gradcheck.axes import Configuration

RANKS = {
    "batch_norm": {2, 3, 4, 5},
    "instance_norm": {3, 4, 5},
    "group_norm": {2, 3, 4, 5},
    "layer_norm": {1, 2, 3, 4},
    "rms_norm": {1, 2, 3, 4},
    "dropout": {1, 2, 3, 4},
}
CHANNELLED = {"batch_norm", "instance_norm", "group_norm"}
WITH_RUNNING_STATISTICS = {"batch_norm", "instance_norm"}
LAYOUTS = {"contiguous", "transposed", "strided", "reversed", "broadcast"}

DEFAULT = {operation: configurations.covering(operation) for operation in RANKS}
EXHAUSTIVE = {operation: configurations.exhaustive(operation) for operation in RANKS}


def settings(operation):
    """Every value that each setting can have, from the mathematics of the operations."""
    return {
        "rank": RANKS[operation],
        "channel_axis": {1, -1} if operation in CHANNELLED else {None},
        "mode": {"training", "inference"}
        if operation in WITH_RUNNING_STATISTICS | {"dropout"}
        else {"training"},
        "affine": {"none"} if operation == "dropout" else {"none", "weight", "bias", "both"},
        "dtype": {"float32", "float64"},
        "layout": LAYOUTS,
    }


def legal(operation, pair):
    """A slice that is all of a rank 1 input has no spread when broadcast; nothing else excludes a pair."""
    alone = operation in ("layer_norm", "rms_norm") and pair.get("rank") == 1
    return not (alone and pair.get("layout") == "broadcast")


@pytest.mark.parametrize("operation", RANKS)
def test_every_legal_pair_of_settings_is_in_the_default_sweep(operation):
    seen = collections.Counter()
    for c in DEFAULT[operation]:
        for one, other in itertools.combinations(settings(operation), 2):
            seen[one, getattr(c, one), other, getattr(c, other)] += 1
    missing = []
    for (one, its), (other, theirs) in itertools.combinations(settings(operation).items(), 2):
        for a, b in itertools.product(its, theirs):
            if legal(operation, {one: a, other: b}) and not seen[one, a, other, b]:
                missing.append((one, a, other, b))
    assert missing == []


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_every_divisor_of_the_channels_is_a_number_of_groups(rank, channel_axis):
    found = collections.defaultdict(set)
    for c in EXHAUSTIVE["group_norm"]:
        if (c.rank, c.channel_axis) == (rank, channel_axis):
            found[c.shape[channel_axis]].add(c.groups)
    assert found[6] == {1, 2, 3, 6}
    assert {c.groups for c in DEFAULT["group_norm"] if c.rank == rank and c.shape[c.channel_axis] == 6} == {
        1,
        2,
        3,
        6,
    }


@pytest.mark.parametrize("operation", ["layer_norm", "rms_norm"])
def test_every_number_of_normalized_axes_is_in_the_default_sweep(operation):
    found = {(c.rank, c.tail) for c in DEFAULT[operation]}
    assert found >= {(rank, tail) for rank in RANKS[operation] for tail in range(1, rank + 1)}


def test_every_choice_of_mask_axes_is_in_the_default_sweep():
    wanted = {
        (rank, axes)
        for rank in range(1, 5)
        for count in range(1, rank + 1)
        for axes in itertools.combinations(range(rank), count)
    }
    assert {(c.rank, c.mask_axes) for c in DEFAULT["dropout"]} >= wanted
    scalings = {(c.mode, c.scaling) for c in DEFAULT["dropout"]}
    assert scalings == {
        ("training", "upscale_in_train"),
        ("training", "downscale_in_infer"),
        ("inference", "downscale_in_infer"),
    }
    assert {c.p for c in DEFAULT["dropout"]} >= {0.0, 0.001, 0.25, 0.5, 0.999, 1.0}


CORNERS = {
    "batch 1": lambda c: c.shape[0] == 1 and c.rank > 1,
    "one value per statistic": lambda c: c.count == 1,
    "two values per statistic": lambda c: c.count == 2,
    "an odd number": lambda c: c.count % 2 == 1 and c.count > 1,
    "64 and more": lambda c: c.count >= 64,
    "130 and more": lambda c: c.count >= 130,
    "zeros": lambda c: c.values == "zeros",
    "a constant row": lambda c: c.values == "constant row",
    "a spike": lambda c: c.values == "spike",
    "scale 1e-3": lambda c: c.values == "scale 1e-3",
    "scale 100": lambda c: c.values == "scale 100",
    "mean 1e4": lambda c: c.values == "mean 1e4",
    "eps 0": lambda c: c.eps == 0,
    "eps 1e-3": lambda c: c.eps == 1e-3,
    "small input and large eps": lambda c: c.eps == 1e-3 and c.values == "scale 1e-3",
}
TRAINING_REJECTS_ONE_VALUE = ("batch_norm", "instance_norm")


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("operation", sorted(RANKS.keys() - {"dropout"}))
def test_every_corner_of_every_norm_is_in_the_default_sweep(operation, corner):
    matching = [c for c in DEFAULT[operation] if c.mode == "training" and CORNERS[corner](c)]
    if corner == "one value per statistic" and operation in TRAINING_REJECTS_ONE_VALUE:
        assert matching == []
    else:
        assert matching
        if operation in CHANNELLED and "value" in corner:
            assert {c.channel_axis for c in matching} == {1, -1}


ILL_VALUES = {"normal", "zeros", "constant row", "spike", "scale 1e-3", "scale 100", "mean 1e4"}


@pytest.mark.parametrize("operation", sorted(RANKS.keys() - {"dropout"}))
def test_ill_values_meet_every_eps_dtype_mode_and_place(operation):
    """Each pair of them, but for zeros over zero, and ordinary values with the ordinary ε."""
    ill = [c for c in configurations.corners(operation) if (c.values, c.eps) != ("normal", 1e-5)]
    place = "groups" if operation == "group_norm" else "channel_axis" if operation in CHANNELLED else "tail"
    wanted = {
        "values": ILL_VALUES,
        "eps": {1e-5, 1e-3, 0.0},
        "dtype": {"float32", "float64"},
        "mode": settings(operation)["mode"],
        "channel_axis": settings(operation)["channel_axis"],
        place: {"groups": {2, 4}, "tail": {1}}.get(place, {1, -1}),
    }
    undefined = {("zeros", 0.0), ("constant row", 0.0), ("normal", 1e-5)}
    if operation == "rms_norm":
        undefined.remove(("constant row", 0.0))  # its mean square is not zero
    if operation in WITH_RUNNING_STATISTICS:  # at inference all are defined
        undefined = {("normal", 1e-5)}
    for (one, its), (other, theirs) in itertools.combinations(wanted.items(), 2):
        found = {(getattr(c, one), getattr(c, other)) for c in ill}
        assert found >= set(itertools.product(its, theirs)) - undefined, (one, other)


def long(axis, than):
    """Longer than that, along an axis, by a last piece that is not whole."""
    return lambda c: c.rank > 1 and c.shape[axis] > than and c.shape[axis] % than != 0


def many(c):
    return math.prod(c.shape) > 1 << 16


# What the kernels do piece by piece: operations, mode, where, and what goes past the first pieces.
TRAILING = ("layer_norm", "rms_norm")
FIRST, LAST, ANY = ({"channel_axis": 1}, {"channel_axis": -1}, {})
PIECES = {
    "chunks of a row": (TRAILING, "training", ANY, long(-1, 2048)),
    "tasks of rows": (TRAILING, "training", ANY, lambda c: math.prod(c.shape) > 1 << 14 and c.shape[0] > 2),
    "tasks of rows backwards": (TRAILING, "training", ANY, long(0, 1024)),
    "chunks of a channel": (("batch_norm", "instance_norm"), "training", FIRST, long(-1, 2048)),
    "chunks at inference": (("batch_norm",), "inference", FIRST, long(-1, 2048)),
    "chunks of several channels": (("group_norm",), "training", {**FIRST, "groups": 2}, long(-1, 1024)),
    "tiles of rows": (("batch_norm",), "training", {**FIRST, "rank": 2}, long(0, 128)),
    "tiles of columns": (("batch_norm",), "training", {**FIRST, "rank": 2}, long(1, 1024)),
    "tiles of each sample": (("instance_norm", "group_norm"), "training", LAST, long(1, 128)),
    "tiles at inference": (("batch_norm",), "inference", {**FIRST, "rank": 2}, long(0, 128)),
    "masks": (("dropout",), "training", ANY, lambda c: many(c) and len(c.mask_axes) == c.rank),
    "shared masks": (("dropout",), "training", ANY, lambda c: many(c) and len(c.mask_axes) < c.rank),
    "a scale": (("dropout",), "inference", ANY, many),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("operations", "mode", "where", "beyond"), PIECES.values(), ids=PIECES)
def test_the_default_sweep_goes_past_the_first_piece_of_every_kernel(operations, mode, where, beyond, dtype):
    wanted = {"mode": mode, "dtype": dtype, **where}.items()
    for operation in operations:
        assert any(
            beyond(c) for c in DEFAULT[operation] if all(getattr(c, name) == value for name, value in wanted)
        ), operation


def test_one_group_and_as_many_groups_as_channels_are_checked_beyond_the_ordinary():
    grouped = [c for c in DEFAULT["group_norm"] if configurations.family(c).startswith("corners")]
    for channel_axis in (1, -1):
        mine = [c for c in grouped if c.channel_axis == channel_axis and c.shape[channel_axis] > 1]
        assert {1} < {c.groups for c in mine}
        assert any(c.groups == c.shape[channel_axis] for c in mine)


def test_the_default_is_hundreds_and_everything_is_thousands():
    assert 300 <= sum(map(len, DEFAULT.values())) <= 1000
    assert sum(map(len, EXHAUSTIVE.values())) >= 3000
    for operation in RANKS:
        assert set(DEFAULT[operation]) <= set(EXHAUSTIVE[operation])
        assert len(set(EXHAUSTIVE[operation])) == len(EXHAUSTIVE[operation])


def test_the_default_sweep_is_the_same_every_time():
    assert configurations.covering("layer_norm") == DEFAULT["layer_norm"]


@pytest.mark.parametrize(
    ("shape", "operations"),
    [
        ((5,), {"layer_norm", "rms_norm", "dropout"}),
        ((4, 3), {"batch_norm", "group_norm", "layer_norm", "rms_norm", "dropout"}),
        ((4, 3, 2), set(RANKS)),
        ((2, 2, 2, 2, 2, 2), {"layer_norm", "rms_norm", "dropout"}),
    ],
)
def test_an_array_of_the_users_is_checked_in_every_way_it_can_be(shape, operations):
    found = configurations.of_shape(shape, "float32")
    assert {c.operation for c in found} == operations
    assert all(c.problem is None and c.values == "given" and c.dtype == "float32" for c in found)
    assert all(Configuration.parse(str(c)) == c for c in found)
    if "layer_norm" in operations:
        assert {c.tail for c in found if c.operation == "layer_norm"} == set(range(1, len(shape) + 1))


def test_one_sample_with_one_value_per_group_is_not_tried():
    assert {c.groups for c in configurations.of_shape((1, 4), "float64") if c.groups} == {1, 2}

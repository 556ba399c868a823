"""The setting that tells failures from passes, in words: over made-up results, and over planted kernels."""

from __future__ import annotations

import planted
import pytest

from gradcheck import configurations
from gradcheck.adapters.tinygrad_bn import check_configuration
from gradcheck.axes import Configuration
from gradcheck.judge import Check, Verdict
from gradcheck.regime import regimes
from gradcheck.sweep import Result, SampleCase
from tinygrad_bn import registry


def result(case, verdict):
    return Result(case, 0, (Check("gradient", verdict),), (), (), 0.0)


def words(operation, wrong):
    """What is said of the default sweep of an operation that fails where `wrong` holds, less the counts."""
    cases = configurations.covering(operation)
    found = regimes([result(c, Verdict.FAIL if wrong(c) else Verdict.PASS) for c in cases])
    count = sum(map(wrong, cases))
    prefix, suffix = f"{operation} fails ", f" ({count} of {len(cases)})"
    assert found[operation].startswith(prefix) and found[operation].endswith(suffix)
    return found[operation].removeprefix(prefix).removesuffix(suffix)


@pytest.mark.parametrize(
    ("operation", "wrong", "expected"),
    [
        ("batch_norm", lambda c: c.shape[0] == 1, "only where the batch is 1"),
        ("layer_norm", lambda c: c.layout == "broadcast", "only where layout=broadcast"),
        ("layer_norm", lambda c: c.dtype == "float32", "only where dtype=float32"),
        ("instance_norm", lambda c: c.mode == "inference", "only where mode=inference"),
        ("group_norm", lambda c: c.groups == c.channels, "only where groups = channels"),
        ("group_norm", lambda c: c.groups == 1, "only where groups=1"),
        ("group_norm", lambda c: c.channel_axis == -1, "only where channel_axis=-1"),
        ("rms_norm", lambda c: c.tail == c.rank, "only where all axes are normalized"),
        ("rms_norm", lambda c: c.eps == 0, "only where eps=0.0"),
        ("layer_norm", lambda c: c.values == "mean 1e4", "only where values=mean_1e4"),
        ("batch_norm", lambda c: c.affine == "weight", "only where affine=weight"),
        ("dropout", lambda c: c.p == 1, "only where p=1.0"),
        ("dropout", lambda c: c.mask_axes == (0, 2), "only where mask_axes=0,2"),
        ("layer_norm", lambda c: c.rank == 3, "only where rank=3"),
        ("layer_norm", lambda c: c.values != "zeros", "everywhere but where values=zeros"),
        ("layer_norm", lambda c: True, "everywhere"),
        (
            "layer_norm",
            lambda c: c.dtype == "float32" and c.layout == "strided",
            "only where dtype=float32 and layout=strided",
        ),
        (
            "layer_norm",
            lambda c: c.count % 2 == 1,
            "only where a statistic has an odd number of values",
        ),
    ],
)  # fmt: skip
def test_a_setting_is_named(operation, wrong, expected):
    assert words(operation, wrong) == expected


def test_a_size_is_named_with_what_was_tried_beyond_it():
    long = words("layer_norm", lambda c: c.count >= 1024)
    assert long.startswith("only where there are 2053 or more values in a statistic (elsewhere at most 523)")
    short = words("rms_norm", lambda c: c.count <= 2)
    assert short.startswith("only where there are 2 or fewer values in a statistic (elsewhere at least 3)")


def test_what_fits_but_not_always_says_so_and_chance_is_called_chance():
    failing = configurations.covering("layer_norm")[::7]
    assert words("layer_norm", lambda c: c in failing) == "here and there: no one setting tells where"
    broadcast = [c for c in configurations.covering("layer_norm") if c.layout == "broadcast"]
    spared = (broadcast[0], broadcast[-1])
    mostly = words("layer_norm", lambda c: c in broadcast and c not in spared)
    assert mostly == "only where layout=broadcast, though not always: 2 such pass"


def test_other_verdicts_count_on_neither_side_and_one_failure_is_no_rule():
    first, second, third = configurations.covering("layer_norm")[:3]
    assert regimes([result(first, Verdict.FAIL), result(second, Verdict.PASS)]) == {}
    found = regimes(
        [result(first, Verdict.FAIL), result(second, Verdict.ERROR), result(third, Verdict.INCONCLUSIVE)]
    )
    assert found == {"layer_norm": "layer_norm fails everywhere (2 of 2)"}


def test_samples_of_an_operation_have_a_dtype_alone():
    cases = [
        SampleCase("my::norm", f"sample {n}", dtype) for n in range(3) for dtype in ("float64", "float32")
    ]
    results = [result(c, Verdict.FAIL if c.dtype == "float32" else Verdict.PASS) for c in cases]
    assert regimes(results) == {"my::norm": "my::norm fails only where dtype=float32 (3 of 6)"}
    mixed = [result(c, Verdict.FAIL if c.sample == "sample 1" else Verdict.PASS) for c in cases]
    assert regimes(mixed) == {
        "my::norm": "my::norm fails here and there: no one setting tells where (2 of 6)"
    }


class OnlyIf(planted.Norm):
    """A kernel that is wrong where `condition` holds of the plan and the input."""

    def __init__(self, condition, **settings):
        super().__init__(**settings)
        self.condition = condition

    def vjp(self, plan, needs, cotangent, arrays, aux):
        self.wrong = "vjp without the mean" if self.condition(plan, arrays[0]) else ""
        return super().vjp(plan, needs, cotangent, arrays, aux)


CASES = [
    Configuration.parse(f"layer_norm shape={shape} tail=1 dtype={dtype}{layout}")
    for shape in ("4,5", "3,67", "2,3,6")
    for dtype in ("float64", "float32")
    for layout in ("", " layout=transposed")
]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (lambda plan, x: x.dtype == "float32", "only where dtype=float32 (6 of 12)"),
        (lambda plan, x: plan.length >= 64, "only where there are 67 or more values in a statistic"),
        (lambda plan, x: True, "everywhere (12 of 12)"),
    ],
)
def test_a_kernel_that_is_wrong_in_one_regime_is_found_to_be(monkeypatch, condition, expected):
    kernels = {}

    def resolve(target):
        return kernels.setdefault(target, OnlyIf(condition, training=True))

    monkeypatch.setattr(registry, "_resolve", resolve)
    planted.forget_calls(monkeypatch)
    assert regimes([check_configuration(case) for case in CASES])["layer_norm"].startswith(
        f"layer_norm fails {expected}"
    )

"""Checks on another device: Tensors there, operations at their samples, configurations on the kernels there.

The device is numba's simulator, the kernels are NumPy's on its arrays: it is the adapter that is tested."""

from __future__ import annotations

import dataclasses

import numpy as np
import planted
import pytest

import gradcheck
import tinygrad_bn
from gradcheck import Verdict
from gradcheck.adapters import tinygrad_bn as adapter
from gradcheck.adapters.tinygrad_bn import check_configuration
from gradcheck.adapters.tinygrad_bn.functions import Adapted
from gradcheck.axes import Configuration
from gradcheck.contract.layouts import LAYOUTS
from tinygrad_bn import Kernel, Registry, Sample, Tensor, devices, functional, registry, tensor
from tinygrad_bn.devices import SimulatedArray
from tinygrad_bn.kernels import masks, philox, views
from tinygrad_bn.registry import REGISTRY

DEVICE = "cuda-sim"
X = np.random.default_rng(0).normal(size=(4, 5))


@pytest.fixture(autouse=True)
def available(monkeypatch):
    monkeypatch.setattr(devices, "problem", lambda device: None)


def there(array):
    return Tensor.wrap(array.view(SimulatedArray))


# Functions on Tensors


def test_a_function_is_checked_where_its_tensors_are():
    seen = []

    def function(x, weight):
        seen.extend((x.device, weight.device))
        return functional.layer_norm(x * x, 5, weight, kernel="definition")

    report = gradcheck.check(function, (there(X), X[0]))  # an array goes where the tensors are
    assert report.verdict is Verdict.PASS, report
    assert set(seen) == {DEVICE} and DEVICE in " ".join(report.notes)
    on_cpu = gradcheck.check(function, (tensor(X), X[0]))
    assert "on cpu" not in " ".join(on_cpu.notes) and set(seen) == {DEVICE, "cpu"}


def test_a_wrong_gradient_is_found_there():
    def function(x):
        return x * x.detach()

    assert gradcheck.check(function, (there(X),)).verdict is Verdict.FAIL


def test_the_second_order_is_checked_there():
    assert gradcheck.check(lambda x: x * x.tanh(), (there(X),), order=2).verdict is Verdict.PASS


def test_tensors_on_two_devices_are_refused():
    with pytest.raises(ValueError, match=r"input 0 \(4, 5\) on cuda-sim, input 1 \(4, 5\) on cpu"):
        gradcheck.check(lambda x, y: x * y, (there(X), tensor(X)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_array_arrives_as_it_lies_in_memory(layout):
    seen = []
    adapted = Adapted(lambda x: seen.append(x.data) or x * 2, [X], (0,), LAYOUTS[layout], DEVICE)
    output, _ = adapted.forward(X)
    here = LAYOUTS[layout](X)
    assert type(seen[0]) is SimulatedArray and type(output) is np.ndarray
    assert seen[0].strides == here.strides
    np.testing.assert_array_equal(devices.fetch(seen[0]), X)
    np.testing.assert_array_equal(output, 2 * X)


# Registered operations at their samples


class Square:
    def __init__(self, wrong=0.0):
        self.wrong = wrong

    def forward(self, plan, x):
        assert type(x) is SimulatedArray
        return x * x, ()

    def vjp(self, plan, needs, cotangent, arrays, aux):
        return ((2 + self.wrong) * arrays[0] * cotangent,)


right, wrong = Square(), Square(1e-9)


def square(*kernels):
    @tinygrad_bn.operation(
        "mine::square",
        registry=Registry(entry_points=list),
        kernels=kernels,
        samples=lambda rng: [Sample("three", (rng.normal(size=3),))],
        error_samples=lambda rng: [Sample("integers", (np.arange(3),), {}, TypeError, "has dtype int64")],
    )
    def square(xp, x):
        """x²"""
        return x * x, ()

    return square.spec


@pytest.mark.parametrize("name", ["right", "wrong"])
def test_the_kernels_of_the_device_are_checked_at_the_samples(name):
    spec = square(Kernel("numpy", "nowhere:at_all"), Kernel("cuda", f"{__name__}:{name}", device="cuda"))
    reports = {case.name: case.check() for case in adapter.cases(spec, 0, DEVICE)}
    assert reports.keys() == {"three, cuda float32", "three, cuda float64", "error sample integers"}
    verdict = reports["three, cuda float64"].verdict
    assert verdict is (Verdict.PASS if name == "right" else Verdict.FAIL)
    assert reports["error sample integers"].verdict is Verdict.PASS


def test_an_operation_with_no_kernel_for_the_device_is_an_error():
    (case, _) = adapter.cases(square(Kernel("numpy", f"{__name__}:right")), 0, DEVICE)
    report = case.check()
    assert report.verdict is Verdict.ERROR
    assert report.reasons == ("no kernel of mine::square runs on cuda-sim, so nothing was checked",)


def test_a_kernel_beyond_its_limit_at_every_sample_is_an_error():
    kernel = Kernel("cuda", f"{__name__}:right", device="cuda", limit=lambda plan, dtype: "never")
    (case, _) = adapter.cases(square(kernel), 0, DEVICE)
    assert "serves no sample, so nothing was checked" in case.check().reasons[0]


@pytest.mark.parametrize("name", ["math::where", "array::getitem", "array::concatenate", "reduce::amax"])
def test_primitives_are_checked_there(name):
    reports = [case.check() for case in adapter.cases(REGISTRY.get(name), 0, DEVICE)]
    assert {report.verdict for report in reports} == {Verdict.PASS}


# Configurations


class Dropout:
    """The mask of the reference, and its wrong twins."""

    def __init__(self, wrong=""):
        self.wrong = wrong

    def _factor(self, plan, like):
        if isinstance(plan, masks.Scale):
            return plan.factor
        kept = philox.keep_mask(plan.seed, plan.stream, plan.call, plan.quantised, plan.mask_shape)
        return devices.send(np.asarray(kept * plan.scale, like.dtype), DEVICE)

    def forward(self, plan, x):
        return x * self._factor(plan, x), ()

    def vjp(self, plan, needs, cotangent, arrays, aux):
        if self.wrong == "vjp another mask":
            plan = dataclasses.replace(plan, call=plan.call + 1)
        return (cotangent * self._factor(plan, cotangent),)


class Noisy(planted.Norm):
    """Sums in an order that changes from call to call, as atomics do."""

    calls = 0

    def forward(self, plan, x, *others):
        y, aux = super().forward(plan, x, *others)
        self.calls += 1
        return (np.nextafter(y, np.inf) if self.calls % 2 else y), aux


LONGEST = 100


@pytest.fixture
def plant(monkeypatch):
    """Give every norm two kernels on the device, and dropout one; of those named one is wrong."""

    def kernels(spec):
        if spec.namespace == "dropout":
            return (Kernel("cuda", "planted:cuda", device="cuda"),)
        kinds = (views.Rows,) if spec.short_name in ("layer_norm", "rms_norm") else (views.Split, views.Cols)
        suffix = "_inference" if spec.short_name.endswith("inference") else ""
        found = []
        for kind in kinds:
            target = f"planted:{{}}_{kind.__name__}{suffix}"
            streaming = Kernel("streaming", target.format("streaming"), device="cuda", plan=kind)
            found.append(streaming)
            if kind is not views.Cols:
                limited = dataclasses.replace(
                    streaming, name="resident", target=target.format("resident"), limit=longest
                )
                found.append(limited)
        return tuple(found)

    def longest(plan, dtype):
        # One group as a row is longer than rows may be: there the other kernel is what it is compared with.
        long = plan.length > 15 if isinstance(plan, views.Rows) else np.prod(plan.shape) > LONGEST
        return f"a statistic of {plan} does not fit" if long else None

    def install(wrong="", names=(), norm=planted.Norm):
        real = registry._resolve
        known = {}

        def resolve(target):
            module, _, name = target.partition(":")
            if module != "planted":
                return real(target)
            if target not in known:
                mine = wrong if name.partition("_")[0] in names else ""
                known[target] = Dropout(mine) if name == "cuda" else norm("inference" not in name, mine)
            return known[target]

        monkeypatch.setattr(registry, "_resolve", resolve)
        planted.forget_calls(monkeypatch)
        for spec in REGISTRY:
            if spec.fused and spec.namespace in ("norm", "dropout"):
                ours = [kernel for kernel in spec.kernels if kernel.device == "cpu"]
                monkeypatch.setitem(spec.__dict__, "kernels", (*ours, *kernels(spec)))
                monkeypatch.setitem(spec.__dict__, "_serving", {})

    return install


FAMILIES = {
    "rows": "layer_norm shape=4,5 tail=1",
    "rows uncentred": "rms_norm shape=4,5 tail=1 dtype=float32",
    "rows that are long": "layer_norm shape=3,67 tail=1",
    "split": "group_norm shape=2,6,3 channel_axis=1 groups=2",
    "one group": "group_norm shape=2,6,3 channel_axis=1 groups=1 affine=none",
    "split of one channel": "batch_norm shape=3,2,4 channel_axis=1 layout=strided",
    "cols": "group_norm shape=2,3,6 channel_axis=-1 groups=2 dtype=float32",
    "each sample a batch": "instance_norm shape=2,6,1,2 channel_axis=1",
    "at inference": "batch_norm shape=2,4,3 channel_axis=1 mode=inference",
    "dropout": "dropout shape=3,5 mask_axes=0,1 p=0.5 scaling=upscale_in_train affine=none",
    "dropout at inference": (
        "dropout shape=3,5 mask_axes=0,1 p=0.5 scaling=downscale_in_infer affine=none mode=inference"
    ),
}


def kernels_of(result):
    return {label.partition(":")[2].partition("_")[0].partition(".")[0] for label in result.kernels_vjp}


@pytest.mark.parametrize("family", FAMILIES)
def test_right_kernels_pass_and_are_named(plant, family):
    plant()
    result = check_configuration(Configuration.parse(FAMILIES[family]), device=DEVICE)
    assert result.verdict is Verdict.PASS, result.reasons
    assert result.device == DEVICE and result.command.startswith("python cli.py gradcheck --device cuda-sim ")
    wanted = {"cuda"} if family.startswith("dropout") else {"streaming", "resident"}
    if family in ("cols", "rows that are long"):
        wanted = {"streaming"}
    assert kernels_of(result) == wanted and len(result.kernels_forward) == len(wanted)
    bits = [check for check in result.checks if check.name == "same bits"]
    assert len(bits) == len(wanted) and not any(check.name == "twins" for check in result.checks)


@pytest.mark.parametrize("family", ["rows", "split", "at inference"])
@pytest.mark.parametrize("wrong", ["vjp eps outside the root", "vjp one element"])
@pytest.mark.parametrize("name", ["streaming", "resident"])
def test_an_error_in_either_kernel_is_seen(plant, family, wrong, name):
    plant(wrong, (name,))
    result = check_configuration(Configuration.parse(FAMILIES[family]), device=DEVICE)
    failing = {check.name for check in result.checks if check.verdict is Verdict.FAIL}
    assert result.verdict is Verdict.FAIL and f"{name} kernel against definition" in failing
    assert ("gradient" in failing) == (name == "resident")  # which a call runs: by its own forward pass too
    assert check_configuration(Configuration.parse(FAMILIES[family])).verdict is Verdict.PASS  # on the CPU


def test_a_mask_that_differs_from_the_cpus_is_seen(plant):
    plant("vjp another mask", ("cuda",))
    result = check_configuration(Configuration.parse(FAMILIES["dropout"]), device=DEVICE)
    assert result.verdict is Verdict.FAIL


def test_a_kernel_that_repeats_itself_only_roughly_is_seen(plant):
    plant(norm=Noisy)
    result = check_configuration(Configuration.parse(FAMILIES["rows"]), device=DEVICE)
    bits = [check for check in result.checks if check.name == "same bits"]
    assert {check.verdict for check in bits} == {Verdict.FAIL}
    assert bits[0].reason.startswith("two calls of the resident kernel differ in the bits of output")


def test_a_kernel_that_is_missing_is_an_error_and_no_quiet_pass(plant, monkeypatch):
    plant()
    spec = REGISTRY.get("norm::layer_norm")
    monkeypatch.setitem(spec.__dict__, "kernels", spec.kernels[:2])
    result = check_configuration(Configuration.parse(FAMILIES["rows"]), device=DEVICE)
    assert result.verdict is Verdict.ERROR
    assert result.reasons == ("kernel: no kernel of norm::layer_norm on cuda-sim serves this configuration",)


def test_one_kernel_under_two_names_is_an_error(plant, monkeypatch):
    plant()
    spec = REGISTRY.get("norm::layer_norm")
    streaming, resident = spec.kernels[2:]
    monkeypatch.setitem(
        spec.__dict__, "kernels", (streaming, dataclasses.replace(resident, target=streaming.target))
    )
    result = check_configuration(Configuration.parse(FAMILIES["rows"]), device=DEVICE)
    assert result.verdict is Verdict.ERROR
    assert "resident and streaming are the same kernel in forward" in result.reasons[0]

"""Which kernel runs on which device, up to which limit, and what is said of those that do not."""

from __future__ import annotations

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import Kernel, Registry, Sample, devices, tensor
from tinygrad_bn.devices import SimulatedArray
from tinygrad_bn.fused import operation


class Cube:
    """y = x³, in NumPy. Writes down on which arrays it is called."""

    def __init__(self):
        self.seen = []

    def forward(self, plan, x):
        self.seen += [type(x)]
        square = x * x
        return square * x, (square,)

    def vjp(self, plan, needs, cotangent, arrays, aux):
        self.seen += [type(cotangent), *map(type, aux)]
        return (3 * aux[0] * cotangent,)


cpu, short, long = Cube(), Cube(), Cube()


def at_most_four(plan, dtype):
    """A limit, as one of rows that must fit into registers."""
    assert isinstance(dtype, np.dtype)
    most = 4 if dtype == np.float64 else 8
    return None if plan <= most else f"holds {most} elements of {dtype.name}, these are {plan}"


@pytest.fixture
def cube():
    for kernel in (cpu, short, long):
        kernel.seen.clear()
    return declare()


def declare(**changes):
    kernels = (
        Kernel("numpy", f"{__name__}:cpu"),
        Kernel("long", f"{__name__}:long", device="cuda"),
        Kernel("short", f"{__name__}:short", device="cuda", limit=changes.pop("limit", at_most_four)),
    )

    @operation(
        "mine::cube",
        registry=Registry(list),
        kernels=changes.get("kernels", kernels),
        plan=lambda shapes, attributes: int(np.prod(shapes[0])),
        keeps=((0,),),
        samples=lambda rng: [Sample("three", (rng.normal(size=3),))],
    )
    def cube(xp, x):
        """x³"""
        return x * x * x, ()

    return cube


def there(size, dtype="float64"):
    return tg.Tensor.wrap(np.arange(1, size + 1, dtype=dtype).view(SimulatedArray))


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_kernel_of_the_device_runs_on_its_arrays_and_results_stay_there(cube, create_graph):
    x = there(3)
    x.requires_grad = True
    y = cube(x)
    (gradient,) = tg.grad(y.sum(), x, create_graph=create_graph)
    assert y.device == gradient.device == "cuda-sim"
    assert cpu.seen == long.seen == [] and set(short.seen) == {SimulatedArray}
    assert y.numpy().tolist() == [1, 8, 27] and gradient.numpy().tolist() == [3, 12, 27]
    if create_graph:
        (second,) = tg.grad(gradient.sum(), x)
        assert second.device == "cuda-sim" and second.numpy().tolist() == [6, 12, 18]


def test_on_the_cpu_another_runs(cube):
    cube(tensor([1.0, 2.0]))
    assert cpu.seen == [np.ndarray] and short.seen == long.seen == []


def test_beyond_its_limit_a_kernel_gives_way(cube):
    cube(there(4))
    assert short.seen and not long.seen
    cube(there(5))
    assert len(short.seen) == len(long.seen) == 1
    cube(there(8, "float32"))
    assert len(short.seen) == 2  # the limit knows the dtype


def test_a_limit_may_be_a_dotted_string():
    cube = declare(limit=f"{__name__}:at_most_four")
    long.seen.clear()
    cube(there(5))
    assert long.seen == [SimulatedArray]


def test_explain_says_why_each_kernel_runs_or_does_not(cube):
    def reasons(x, **options):
        return {name.rpartition(":")[2]: why for name, why in cube.explain(x, **options).reasons}

    assert reasons(there(3)) == {
        "cpu": "runs on cpu, the inputs are on cuda-sim",
        "long": "gives way to a later kernel",
        "short": "runs",
        "definition": "serves higher orders, and is the reference",
    }
    beyond = reasons(there(5))
    assert (beyond["long"], beyond["short"]) == ("runs", "holds 4 elements of float64, these are 5")
    assert reasons(tensor([1.0]))["short"] == "runs on cuda, the inputs are on cpu"


def test_explain_can_be_asked_of_a_device_where_the_inputs_are_not(cube, monkeypatch):
    monkeypatch.setattr(devices, "problem", lambda device: None)
    x = tensor([1.0])
    assert cube.explain(x, device="cuda").kernel.name == "short"
    assert cube.explain(x).kernel.name == "numpy"
    monkeypatch.setattr(devices, "problem", lambda device: "no driver")
    found = cube.explain(x, device="cuda:0")
    assert found.kernel is None
    assert dict(found.reasons) == {
        f"{__name__}:cpu": "runs on cpu, the inputs are on cuda",
        f"{__name__}:long": "device cuda: no driver",
        f"{__name__}:short": "device cuda: no driver",
        "definition": "device cuda: no driver",
    }
    with pytest.raises(ValueError, match="device is 'gpu', wanted"):
        cube.explain(x, device="gpu")


def test_explain_of_a_primitive_says_who_calculates(monkeypatch):
    def line(*inputs, **options):
        return tg.explain("math::exp", *inputs, **options).reasons[0][1]

    assert line() == line(tensor([1.0])) == "runs: a primitive, NumPy on the CPU"
    assert line(there(3)) == "runs: a primitive, NumPy on cuda-sim"
    monkeypatch.setattr(devices, "problem", lambda device: None)
    assert line(device="cuda:1") == "runs: a primitive, CuPy on cuda:1"
    monkeypatch.setattr(devices, "problem", lambda device: "no driver")
    assert line(device="cuda") == "device cuda: no driver"


def test_a_kernel_asked_for_by_name_does_not_give_way_to_another(cube):
    with pytest.raises(
        ValueError, match=r"kernel='short' cannot run this call .*holds 4 elements of float64, these"
    ):
        cube(there(5), kernel="short")
    with pytest.raises(
        ValueError, match=r"kernel='numpy' cannot run this call .*cpu: runs on cpu, the inputs are on"
    ):
        cube(there(5), kernel="numpy")
    cube(there(3), kernel="long")
    assert long.seen and not short.seen


def test_without_a_kernel_on_the_device_the_definition_runs_there():
    cube = declare(kernels=(Kernel("numpy", f"{__name__}:cpu"),))
    cpu.seen.clear()
    with tg.record() as trace:
        y = cube(there(3))
    assert y.device == "cuda-sim" and y.numpy().tolist() == [1, 8, 27]
    assert cpu.seen == [] and {entry.kernel for entry in trace} == {"primitive"}
    assert cube.explain(there(3)).reasons[-1] == ("definition", "runs: no kernel serves this call")


def test_a_kernel_that_leaves_the_device_is_refused():
    class Leaves(Cube):
        def forward(self, plan, x):
            return devices.fetch(x) ** 3, ()

        def vjp(self, plan, needs, cotangent, arrays, aux):
            return (devices.fetch(cotangent),)

    globals()["leaves"] = Leaves()
    cube = declare(kernels=(Kernel("leaves", f"{__name__}:leaves", device="cuda"),))
    with pytest.raises(
        RuntimeError, match=r"leaves.forward float64 gave an array on cpu, wanted it on cuda-sim"
    ):
        cube(there(3))


def test_where_no_memory_is_left_the_error_says_for_what(cube, monkeypatch):
    def full(plan, *arguments):
        raise MemoryError("wanted 8,589,934,592 bytes")

    x = there(3)
    x.requires_grad = True
    y = cube(x)
    wanted = r"mine::cube: no memory is left on cuda-sim for .*:short.{} float64 of shape \(3,\) \(wanted 8"
    monkeypatch.setattr(Cube, "vjp", lambda self, plan, needs, *rest: full(plan))
    with pytest.raises(MemoryError, match=wanted.format("vjp")):
        y.sum().backward()
    monkeypatch.setattr(Cube, "forward", lambda self, plan, x: full(plan))
    with pytest.raises(MemoryError, match=wanted.format("forward")):
        cube(x)

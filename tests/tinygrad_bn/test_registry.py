"""The registry: names, duplicates, unknown names, plugins that load late or not at all."""

from __future__ import annotations

import dataclasses
from importlib import metadata

import numpy as np
import pytest

import tinygrad_bn as tg
from tinygrad_bn import OpSpec, Registry, Sample
from tinygrad_bn.registry import API_VERSION, Kernel, RegistryError


def samples(rng):
    return [Sample("one", (rng.normal(size=2),))]


def define(xp, x):
    return x, ()


def redefine(xp, x):
    return x * 1.0, ()


def spec(name, definition=define, **declaration):
    fields = {"inputs": ("x",), "samples": samples, "origin": f"{definition.__name__}.py:1", **declaration}
    return OpSpec(name, definition, **fields)


class Plugins:
    """A stand-in for the installed entry points of the group; counts how often each was loaded."""

    def __init__(self, **plugins):
        self.plugins = plugins
        self.loads = []

    def __call__(self):
        return [self.Entry(self, name, load) for name, load in self.plugins.items()]

    class Entry:
        def __init__(self, plugins, name, function):
            self.plugins, self.name, self.function = plugins, name.rstrip("_"), function
            self.dist = type("Distribution", (), {"name": f"dist-{name}", "version": "1.2"})

        def load(self):
            self.plugins.loads.append(self.name)
            return self.function


def empty():
    return Registry(list)


@pytest.fixture(autouse=True)
def no_leak():
    before = [(one.name, one.definition) for one in tg.REGISTRY]
    yield
    assert [(one.name, one.definition) for one in tg.REGISTRY] == before


def test_get_by_full_and_by_short_name():
    registry = empty()
    one = registry.register(spec("mine::one"))
    assert registry.get("mine::one") is registry.get("one") is one
    assert (one.namespace, one.short_name, one.fused, one.gradients) == ("mine", "one", True, (0,))
    assert "one" in registry and "mine::one" in registry and "two" not in registry


def test_iteration_is_sorted_by_name():
    registry = empty()
    for name in ("b::x", "a::y", "a::x"):
        registry.register(spec(name))
    assert [one.name for one in registry] == ["a::x", "a::y", "b::x"]
    assert len(registry) == 3


@pytest.mark.parametrize("name", ["one", "::one", "mine::", "mine::one::two", "my mine::one", "mine::1", ""])
def test_names_have_a_namespace(name):
    with pytest.raises(RegistryError, match=f"operation name '{name}': wanted 'namespace::operation'"):
        empty().register(spec(name))


def test_the_same_owner_replaces():
    registry = empty()
    registry.register(spec("mine::one"))
    second = registry.register(spec("mine::one", terms="moment_norm"))
    assert registry.get("one") is second
    assert len(registry) == 1


def test_another_owner_is_an_error_that_names_both_places():
    registry = empty()
    first = registry.register(spec("mine::one"))
    with pytest.raises(
        RegistryError, match=r"mine::one is declared twice: at define.py:1 and at redefine.py:1; rename one"
    ):
        registry.register(spec("mine::one", redefine))
    assert registry.get("one") is first


def test_a_built_in_operation_cannot_be_replaced():
    with pytest.raises(RegistryError, match=r"norms\.py:\d+ and at define\.py:1"):
        tg.REGISTRY.register(spec("norm::layer_norm"))


def test_the_same_short_name_in_two_namespaces_is_ambiguous():
    registry = empty()
    registry.register(spec("mine::one"))
    registry.register(spec("yours::one"))
    with pytest.raises(RegistryError, match="operation 'one' is ambiguous: mine::one, yours::one"):
        registry.get("one")
    assert registry.get("yours::one").namespace == "yours"


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("layernorm", "layer_norm"),
        ("norm::layernorm", "norm::layer_norm"),
        ("norms::layer_norm", "norm::layer_norm"),
    ],
)
def test_unknown_names_get_a_suggestion(asked, meant):
    registry = empty()
    registry.register(spec("norm::layer_norm"))
    with pytest.raises(RegistryError, match=rf"no operation '{asked}'; did you mean .*{meant}"):
        registry.get(asked)
    with pytest.raises(LookupError, match=r"`python cli\.py ops list` shows all"):
        registry.get("xyzzy")


def test_samples_are_required_of_what_is_differentiable():
    with pytest.raises(
        RegistryError, match=r"mine::one \(define.py:1\): a differentiable operation needs samples="
    ):
        empty().register(spec("mine::one", samples=None))
    assert empty().register(spec("mine::one", samples=None, differentiable=())).gradients == ()


def test_another_registry_version_is_refused():
    with pytest.raises(
        RegistryError,
        match=rf"declared for registry version 7, this is version {API_VERSION}; install matching",
    ):
        empty().register(spec("mine::one", api_version=7))


def test_names_of_inputs():
    fixed = spec("mine::one", inputs=("x", "weight"))
    assert fixed.input_name(1) == "weight"
    varying = spec("mine::one", inputs=("parts",), vjps=lambda position: None)
    assert varying.variadic and not varying.fused
    assert varying.input_name(2) == "parts[2]"


def test_what_serves_a_call_is_known_for_each_kind_of_call_and_declaration():
    matrices = Kernel("matrices", "nowhere:matrices", plan=dict)
    single = Kernel("single", "nowhere:single", dtypes=("float32",))
    declared = spec("mine::one", kernels=(matrices, single))
    for _ in range(2):
        assert declared.serving({}, np.dtype("float32"), "cpu") == (matrices, single)
        assert declared.serving({}, np.dtype("float64"), "cpu") == (matrices,)
        assert declared.serving([], np.dtype("float32"), "cpu") == (single,)
        assert declared.serving([], np.dtype("float64"), "cpu") == ()
        assert declared.serving({}, np.dtype("float32"), "cuda") == ()
    changed = dataclasses.replace(declared, kernels=(single,))
    assert changed.serving({}, np.dtype("float32"), "cpu") == (single,)


def test_kernels_say_why_they_refuse():
    kernel = Kernel("fast", "nowhere:fast", plan=dict, dtypes=("float32",))
    single, double = np.dtype(np.float32), np.dtype(np.float64)
    assert kernel.refusal({}, single, "cpu") is None
    assert kernel.refusal({}, double, "cpu") == "serves float32, not float64"
    assert kernel.refusal([], single, "cpu") == "serves the dict view, this call is list"
    assert kernel.refusal({}, single, "cuda") == "runs on cpu, the inputs are on cuda"
    with pytest.raises(
        RegistryError, match="kernel 'fast': nowhere:fast cannot be imported: No module named"
    ):
        kernel.resolve()


def test_keeps_is_one_tuple_for_each_rule():
    with pytest.raises(RegistryError, match=r"keeps is \(0, 1\), wanted a tuple of positions for each rule"):
        Registry(list).register(spec("mine::one", keeps=(0, 1)))


# Plugins


def good(name):
    return lambda registry: registry.register(spec(name))


def half(registry):
    registry.register(spec("half::one"))
    raise ImportError("no module named 'fancy'")


def test_a_plugin_is_loaded_when_its_namespace_is_asked_for():
    plugins = Plugins(mine=good("mine::one"), yours=good("yours::two"))
    registry = Registry(plugins)
    registry.register(spec("here::zero"))
    assert registry.get("here::zero")
    assert plugins.loads == []
    assert registry.get("mine::one")
    assert registry.get("mine::one")
    assert plugins.loads == ["mine"]
    assert registry.get("two").name == "yours::two"
    assert plugins.loads == ["mine", "yours"]
    assert [one.name for one in registry] == ["here::zero", "mine::one", "yours::two"]
    assert plugins.loads == ["mine", "yours"]


def test_two_distributions_may_share_a_namespace():
    registry = Registry(Plugins(mine=good("mine::one"), mine_=good("mine::two")))
    assert registry.get("mine::one")
    assert registry.get("mine::two")


def test_a_broken_plugin_takes_only_itself_with_it():
    registry = Registry(Plugins(half=half, mine=good("mine::one")))
    assert [one.name for one in registry] == ["mine::one"]
    (broken,) = registry.broken
    assert (broken.namespace, broken.distribution, broken.version) == ("half", "dist-half", "1.2")
    assert broken.error == "ImportError: no module named 'fancy'"


def test_who_asks_for_a_broken_plugin_is_told():
    registry = Registry(Plugins(half=half))
    for _ in range(2):
        with pytest.raises(
            RegistryError,
            match=r"operation 'half::one': the plugin that provides it, dist-half 1.2, did not load "
            r"\(ImportError: no module named 'fancy'\); reinstall or remove it",
        ):
            registry.get("half::one")
    assert "half::one" not in registry
    with pytest.raises(
        RegistryError, match=r"no operation 'one'; .*dist-half 1.2 \(namespace 'half'\) did not load"
    ):
        registry.get("one")


def test_a_plugin_that_redeclares_what_exists_is_broken():
    registry = Registry(Plugins(mine=lambda r: r.register(spec("here::zero", redefine))))
    zero = registry.register(spec("here::zero"))
    assert "RegistryError: here::zero is declared twice" in registry.broken[0].error
    assert registry.get("here::zero") is zero


def test_a_plugin_stays_in_its_namespace():
    registry = Registry(Plugins(mine=good("yours::one")))
    assert list(registry) == []
    assert registry.broken[0].error == "RegistryError: registers yours::one, outside its namespace 'mine'"


def test_a_plugin_for_another_version_is_broken():
    registry = Registry(Plugins(mine=lambda r: r.register(spec("mine::one", api_version=API_VERSION + 1))))
    assert "declared for registry version" in registry.broken[0].error


def test_a_plugin_that_asks_for_another_is_served():
    def dependent(registry):
        assert registry.get("mine::one")
        registry.register(spec("other::two"))

    assert [one.name for one in Registry(Plugins(other=dependent, mine=good("mine::one")))] == [
        "mine::one",
        "other::two",
    ]


def test_a_broken_plugin_does_not_take_with_it_what_it_loaded():
    def dependent(registry):
        assert registry.get("mine::one")
        registry.register(spec("other::two"))
        raise ImportError("late")

    registry = Registry(Plugins(other=dependent, mine=good("mine::one")))
    assert [one.name for one in registry] == ["mine::one"]
    assert [broken.namespace for broken in registry.broken] == ["other"]


def test_strict_raises_and_remembers():
    registry = Registry(Plugins(half=half), strict=True)
    with pytest.raises(ImportError, match="fancy"):
        registry.get("half::one")
    with pytest.raises(RegistryError, match=r"dist-half 1\.2, did not load"):
        registry.get("half::one")


def test_a_distribution_without_metadata():
    plugins = Plugins(half=half)
    registry = Registry(lambda: [setattr(entry, "dist", None) or entry for entry in plugins()])
    assert (registry.broken[0].distribution, registry.broken[0].version) == ("unknown", "unknown")


def test_real_entry_points():
    """An `EntryPoint` of the standard library, whose value does not exist, next to this module's own."""
    points = [
        metadata.EntryPoint("absent", "no_such_module_at_all:register", "tinygrad_bn.ops"),
        metadata.EntryPoint("mine", f"{__name__}:register_mine", "tinygrad_bn.ops"),
    ]
    registry = Registry(lambda: points)
    assert registry.get("mine::one")
    with pytest.raises(RegistryError, match="ModuleNotFoundError: No module named 'no_such_module_at_all'"):
        registry.get("absent::one")


def register_mine(registry):
    registry.register(spec("mine::one"))


# The built-in operations


def test_every_built_in_declaration_is_complete():
    for one in tg.REGISTRY:
        assert one.documentation, one.name
        assert one.origin.rpartition(":")[0].endswith(".py"), one.name
        drawn = list(one.samples(np.random.default_rng(0)))
        assert len({sample.name for sample in drawn}) == len(drawn), one.name
        for sample in drawn:
            assert one.variadic or len(sample.inputs) == len(one.inputs), (one.name, sample.name)
        if one.fused:
            assert one.kernels and one.terms, one.name
        elif not one.variadic:
            assert len(one.vjps) == len(one.inputs), one.name

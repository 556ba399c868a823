"""The tape on plain floats: it adds and calls, and knows nothing of arrays."""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
import weakref

import pytest

from tinygrad_bn.tape import LEAF, Node, enable_grad, is_grad_enabled, no_grad, sweep


class Linear:
    """An operation with one output and constant partial derivatives, which writes down how it was pulled."""

    def __init__(self, *partials: float, name: str = "linear", log: list | None = None):
        self.partials = partials
        self.name = name
        self.log = [] if log is None else log

    def pull(self, node, cotangents, needs, create_graph):
        self.log.append((self.name, tuple(cotangents), tuple(needs), create_graph))
        return [p * cotangents[0] if needed else None for p, needed in zip(self.partials, needs, strict=True)]

    def __call__(self, *parents):
        return Node(self, tuple(None if p is None else (p, 0) for p in parents), saved="values"), 0


class Halves:
    """x -> (2x, 3x): an operation with two outputs."""

    name = "halves"

    def pull(self, node, cotangents, needs, create_graph):
        first, second = cotangents
        return [(0.0 if first is None else 2 * first) + (0.0 if second is None else 3 * second)]


def leaf():
    return Node(LEAF)


def test_a_sum_of_products_by_hand():
    x, y = leaf(), leaf()
    product = Linear(5.0, 7.0)(x, y)  # x = 7, y = 5: the partial derivatives of x·y
    total = Linear(1.0, 2.0)(product[0], x)  # x·y + 2x
    assert sweep([(total, 1.0)]) == {(x, 0): 7.0, (y, 0): 7.0}


def test_a_cotangent_is_complete_before_it_is_pulled():
    """A diamond: the node where it joins is pulled once, after everything above it."""
    log = []
    x = leaf()
    low = Linear(1.0, name="low", log=log)(x)[0]
    left = Linear(2.0, name="left", log=log)(low)[0]
    right = Linear(3.0, name="right", log=log)(left)[0]
    top = Linear(1.0, 1.0, 1.0, name="top", log=log)(right, low, left)
    assert sweep([(top, 1.0)]) == {(x, 0): 9.0}
    assert [(name, cotangents) for name, cotangents, *_ in log] == [
        ("top", (1.0,)),
        ("right", (1.0,)),
        ("left", (4.0,)),
        ("low", (9.0,)),
    ]


def test_the_same_input_twice_counts_twice():
    x = leaf()
    assert sweep([(Linear(5.0, 5.0)(x, x), 1.0)]) == {(x, 0): 10.0}


def test_several_seeds_and_one_seed_twice():
    x = leaf()
    first, second = Linear(2.0)(x), Linear(3.0)(x)
    assert sweep([(first, 1.0), (second, 10.0), (first, 100.0)]) == {(x, 0): 232.0}


@pytest.mark.parametrize(("seeds", "wanted"), [({0: 1.0}, 2.0), ({1: 1.0}, 3.0), ({0: 1.0, 1: 10.0}, 32.0)])
def test_several_outputs(seeds, wanted):
    x = leaf()
    node = Node(Halves(), ((x, 0),), outputs=2)
    assert sweep([((node, index), value) for index, value in seeds.items()]) == {(x, 0): wanted}


def test_one_output_of_several_is_wanted():
    x = leaf()
    node = Node(Halves(), ((x, 0),), outputs=2)
    top = Node(Linear(4.0, 5.0), ((node, 0), (node, 1)))
    assert sweep([((top, 0), 1.0)], [(node, 1)]) == {(node, 1): 5.0}


def test_a_chain_of_100_000_operations_is_differentiated_and_dropped():
    depth = 100_000
    assert depth > 10 * sys.getrecursionlimit()
    x = leaf()
    op = Linear(1.0)
    edge = (x, 0)
    for _ in range(depth):
        edge = Node(op, (edge,)), 0
        if edge[0].position % 1000 == 0:
            middle = weakref.ref(edge[0])
    assert sweep([(edge, 3.0)]) == {(x, 0): 3.0}
    assert len(op.log) == depth
    gc.disable()
    try:
        del edge
        assert middle() is None
    finally:
        gc.enable()


def test_nothing_below_the_lowest_wanted_node_is_visited():
    """A walk would count these parents; none is looked at."""

    class Untouchable:
        position = leaf().position

        @property
        def parents(self):
            raise AssertionError("visited")

    below = Untouchable()
    low_log, high_log = [], []
    low = Linear(1.0, log=low_log)(below)[0]
    high = Linear(2.0, log=high_log)(low)[0]
    assert sweep([((high, 0), 1.0)], [(low, 0)]) == {(low, 0): 2.0}
    assert (len(high_log), len(low_log)) == (1, 0)


def test_a_branch_that_leads_to_nothing_wanted_is_not_pulled():
    wanted, other = leaf(), leaf()
    useless, useful = Linear(2.0), Linear(3.0)
    top = Linear(1.0, 1.0)
    total = top(useless(other)[0], useful(wanted)[0])
    assert sweep([(total, 1.0)], [(wanted, 0)]) == {(wanted, 0): 3.0}
    assert useless.log == []
    assert top.log == [("linear", (1.0,), (False, True), False)]


def test_inputs_off_the_tape_are_not_needed():
    x = leaf()
    op = Linear(2.0, 3.0)
    assert sweep([(op(None, x), 1.0)]) == {(x, 0): 3.0}
    assert op.log[0][2] == (False, True)


def test_a_wanted_node_in_between_and_one_below_it():
    x = leaf()
    middle = Linear(2.0)(x)
    top = Linear(3.0)(middle[0])
    assert sweep([(top, 1.0)], [middle, (x, 0)]) == {middle: 3.0, (x, 0): 6.0}


def test_the_seed_itself_is_wanted():
    x = leaf()
    assert sweep([((x, 0), 1.0)], [(x, 0)]) == {(x, 0): 1.0}


def test_what_the_seeds_do_not_depend_on_is_not_found():
    x, unrelated = leaf(), leaf()
    below = Linear(1.0)(x)
    assert sweep([(below, 1.0)], [(unrelated, 0)]) == {}
    above = Linear(1.0)(below[0])
    assert sweep([(below, 1.0)], [above]) == {}
    assert sweep([(below, 1.0)], []) == {}


def test_a_zero_derivative_ends_the_way():
    class Constant(Linear):
        def pull(self, node, cotangents, needs, create_graph):
            return [None]

    x = leaf()
    low = Linear(1.0)
    assert sweep([(Constant(0.0)(low(x)[0]), 1.0)]) == {}
    assert low.log == []


def test_saved_values_are_freed_and_the_second_sweep_says_so():
    x = leaf()
    low = Linear(2.0, name="low")(x)
    top = Linear(3.0, name="top")(low[0])
    sweep([(top, 1.0)])
    assert low[0].saved is None
    assert top[0].saved is None
    with pytest.raises(RuntimeError, match=r"^top: its saved values were freed .* pass retain_graph=True"):
        sweep([(top, 1.0)])


def test_only_what_was_pulled_is_freed():
    x, other = leaf(), leaf()
    kept, used = Linear(1.0)(other), Linear(1.0)(x)
    top = Linear(1.0, 1.0)(kept[0], used[0])
    sweep([(top, 1.0)], [(x, 0)])
    assert kept[0].saved == "values"
    assert used[0].saved is None


def test_retain_graph():
    x = leaf()
    top = Linear(3.0)(Linear(2.0)(x)[0])
    for _ in range(2):
        assert sweep([(top, 1.0)], retain_graph=True) == {(x, 0): 6.0}
    assert sweep([(top, 1.0)]) == {(x, 0): 6.0}


def test_a_leaf_can_be_reached_again_and_again():
    x = Node(LEAF, saved="tensor")
    for _ in range(2):
        assert sweep([((x, 0), 2.0)]) == {(x, 0): 2.0}
    assert x.saved == "tensor"


def test_hooks_see_the_complete_cotangent_and_may_replace_it():
    seen = []
    x = leaf()
    middle = Linear(1.0)(x)
    top = Linear(2.0, 3.0)(middle[0], middle[0])
    middle[0].hooks = [(0, seen.append), (0, lambda cotangent: 10 * cotangent), (0, seen.append)]
    assert sweep([(top, 1.0)], [middle, (x, 0)]) == {middle: 50.0, (x, 0): 50.0}
    assert seen == [5.0, 50.0]


@pytest.mark.parametrize("wanted", [False, True])
def test_a_hook_that_comes_during_the_sweep_costs_no_gradient(wanted):
    """A leaf without a hook is not visited: whether it has one is asked once, at the start."""
    x = leaf()
    low = Linear(2.0)(x)
    top = Linear(3.0, 5.0)(low[0], x)

    def hook(cotangent):
        x.hooks = [(0, lambda cotangent: 100 * cotangent)]

    low[0].hooks = [(0, hook)]
    assert sweep([(top, 1.0)], [(x, 0)] if wanted else None) == {(x, 0): 11.0}


def test_a_hook_belongs_to_one_output():
    seen = []
    x = leaf()
    node = Node(Halves(), ((x, 0),), outputs=2)
    node.hooks = [
        (0, lambda cotangent: seen.append(("first", cotangent))),
        (1, lambda c: seen.append(("second", c))),
    ]
    sweep([((node, 1), 1.0)])
    assert seen == [("second", 1.0)]


@pytest.mark.parametrize("create_graph", [False, True])
def test_create_graph_is_passed_on_and_sets_the_mode(create_graph):
    modes = []

    class Asking(Linear):
        def pull(self, node, cotangents, needs, create_graph):
            modes.append(is_grad_enabled())
            return super().pull(node, cotangents, needs, create_graph)

    op = Asking(1.0)
    for ambient in (no_grad(), enable_grad()):
        with ambient:
            sweep([(op(leaf()), 1.0)], create_graph=create_graph)
            assert is_grad_enabled() is isinstance(ambient, enable_grad)
    assert [entry[-1] for entry in op.log] == [create_graph] * 2
    assert modes == [create_graph] * 2


def test_an_operation_with_too_few_cotangents_is_an_error():
    class Short(Linear):
        def pull(self, node, cotangents, needs, create_graph):
            return [1.0]

    with pytest.raises(ValueError, match="zip"):
        sweep([(Short()(leaf(), leaf()), 1.0)])


# Recording on and off


def test_modes_nest_and_are_put_back_after_an_error():
    assert is_grad_enabled()
    with no_grad():
        assert not is_grad_enabled()
        with enable_grad():
            assert is_grad_enabled()
            with pytest.raises(KeyError), no_grad():
                raise KeyError
            assert is_grad_enabled()
        assert not is_grad_enabled()
    assert is_grad_enabled()


def test_one_instance_may_be_entered_twice():
    mode = no_grad()
    with mode:
        with enable_grad(), mode:
            assert not is_grad_enabled()
        assert not is_grad_enabled()
    assert is_grad_enabled()


def test_as_decorators_also_of_a_function_that_calls_itself():
    @no_grad()
    def outer(depth):
        assert not is_grad_enabled()
        inner()
        if depth:
            outer(depth - 1)
        assert not is_grad_enabled()

    @enable_grad()
    def inner():
        assert is_grad_enabled()

    outer(2)
    assert is_grad_enabled()


def test_modes_are_local_to_a_thread_and_to_a_context():
    seen = {}

    @no_grad()
    def work(barrier, name):
        barrier.wait()
        seen[name] = is_grad_enabled()
        barrier.wait()

    barrier = threading.Barrier(3)
    threads = [threading.Thread(target=work, args=(barrier, name)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    barrier.wait()
    assert is_grad_enabled()
    barrier.wait()
    for thread in threads:
        thread.join()
    assert seen == {"a": False, "b": False}
    with no_grad():
        assert contextvars.Context().run(is_grad_enabled)

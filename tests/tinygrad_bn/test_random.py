from __future__ import annotations

import copy
import json
import pickle
import random
import sys
import threading

import numpy as np
import pytest

from tinygrad_bn.random import Generator, Key, default_generator, manual_seed


@pytest.fixture
def default():
    """The default generator, put back afterwards as it was."""
    state = default_generator().state
    yield default_generator()
    default_generator().state = state


def test_calls_are_numbered():
    generator = Generator(2**64 - 1, stream=7)
    assert generator.next_call() == Key(seed=2**64 - 1, stream=7, call=0)
    assert generator.next_call() == Key(seed=2**64 - 1, stream=7, call=1)
    assert generator.state == {"seed": 2**64 - 1, "stream": 7, "call": 2}


def test_keys_are_frozen_and_hashable():
    key = Generator(3).next_call()
    with pytest.raises(AttributeError):
        key.call = 5
    assert {key: 1}[Key(3, 0, 0)] == 1


def test_numpy_integers_become_plain_ones():
    generator = Generator(np.uint64(2**63), stream=np.int8(3))
    assert all(type(value) is int for value in generator.state.values())


@pytest.mark.parametrize(
    ("seed", "stream", "error"),
    [
        (-1, 0, ValueError),
        (2**64, 0, ValueError),
        (0, -1, ValueError),
        (0, 2**32, ValueError),
        (1.0, 0, TypeError),
        ("1", 0, TypeError),
        (None, 0, TypeError),
        (True, 0, TypeError),
        (0, 0.5, TypeError),
    ],
)
def test_wrong_seeds_and_streams(seed, stream, error):
    with pytest.raises(error, match=r"Generator: (seed|stream) must be an integer in \[0, 2\*\*"):
        Generator(seed, stream)


def test_state_goes_through_json_and_replays():
    generator = Generator(2**60 + 1, 4)
    generator.next_call()
    saved = json.dumps(generator.state)
    later = [generator.next_call() for _ in range(3)]
    other = Generator(0)
    other.state = json.loads(saved)
    assert [other.next_call() for _ in range(3)] == later


def test_state_is_a_copy():
    generator = Generator(1)
    generator.state["call"] = 99
    assert generator.next_call().call == 0


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ([0, 0, 0], TypeError),
        (None, TypeError),
        ({}, ValueError),
        ({"seed": 1, "stream": 0}, ValueError),
        ({"seed": 1, "stream": 0, "call": 0, "more": 1}, ValueError),
        ({"seed": 1, "stream": 0, "call": -1}, ValueError),
        ({"seed": 1, "stream": 0, "call": 2**32 + 1}, ValueError),
        ({"seed": 1.0, "stream": 0, "call": 0}, TypeError),
    ],
)
def test_a_wrong_state_is_refused_and_changes_nothing(state, error):
    generator = Generator(5, 6)
    with pytest.raises(error, match="Generator: "):
        generator.state = state
    assert generator.state == {"seed": 5, "stream": 6, "call": 0}


def test_running_out_of_calls():
    generator = Generator(5, stream=2**32 - 1)
    generator.state = generator.state | {"call": 2**32 - 1}
    assert generator.next_call().call == 2**32 - 1
    for _ in range(2):
        with pytest.raises(OverflowError, match=r"Generator\(5, stream=0\)"):
            generator.next_call()
    assert copy.deepcopy(generator) == generator  # an exhausted state is a state


def test_equality_is_of_state():
    first, second = Generator(1, 2), Generator(1, 2)
    assert first == second
    first.next_call()
    assert first != second
    second.next_call()
    assert first == second
    assert Generator(1) != Generator(2)
    assert Generator(1) != "Generator(1)"
    with pytest.raises(TypeError, match="unhashable"):
        hash(first)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))])
def test_copies_go_their_own_way(duplicate):
    generator = Generator(9, 1)
    generator.next_call()
    twin = duplicate(generator)
    assert twin == generator
    assert twin.next_call() == Key(9, 1, 1)
    assert generator.state["call"] == 1


def test_repr():
    generator = Generator(4, 2)
    generator.next_call()
    assert repr(generator) == "Generator(seed=4, stream=2, call=1)"


@pytest.fixture
def busy_switching():
    """Threads take turns as often as the interpreter allows, so that a missing lock shows."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_threads_never_share_a_call(busy_switching):
    generator, found = Generator(0), []

    def draw():
        found.extend(generator.next_call().call for _ in range(2000))

    threads = [threading.Thread(target=draw) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(16_000))


def test_manual_seed_starts_the_default_generator_again(default):
    assert manual_seed(11) is default
    first = [default.next_call() for _ in range(2)]
    assert first == [Key(11, 0, 0), Key(11, 0, 1)]
    default.state = {"seed": 1, "stream": 3, "call": 8}
    assert manual_seed(11).next_call() == first[0]
    assert default_generator() is default
    with pytest.raises(ValueError, match="Generator: seed"):
        manual_seed(-1)
    assert default.state == {"seed": 11, "stream": 0, "call": 1}


def test_other_random_numbers_are_left_alone(default):
    ours, python = np.random.get_state()[1].copy(), random.getstate()
    manual_seed(0).next_call()
    assert np.array_equal(np.random.get_state()[1], ours)
    assert random.getstate() == python

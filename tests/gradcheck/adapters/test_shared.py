"""What holds for every framework: whose a function is, one framework at a time, and a missing one."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

import gradcheck
import tinygrad_bn
from gradcheck.adapters import shared

X = np.arange(3.0)


def made_by(framework):
    module = pytest.importorskip(framework, reason=f"{framework} is not installed, an oracle here")
    return module.numpy.asarray(X) if framework == "jax" else module.tensor(X)


@pytest.mark.parametrize("framework", ["tinygrad_bn", "torch", "jax"])
def test_a_tensor_is_of_its_framework(framework):
    tensor = made_by(framework)
    adapter = importlib.import_module(f"gradcheck.adapters.{framework}")
    assert shared.framework_of(tensor) == framework
    assert adapter.recognises(abs, (None, X, tensor))
    assert not adapter.recognises(abs, (None, X, "text"))


@pytest.mark.parametrize(
    ("one", "other"), [("torch", "jax"), ("jax", "tinygrad_bn"), ("tinygrad_bn", "torch")]
)
def test_inputs_of_two_frameworks_are_refused(one, other):
    with pytest.raises(
        TypeError, match=f"input 0 of {one}, input 2 of {other}.; convert them to those of one"
    ):
        gradcheck.check(lambda x, scale, y: x + y, (made_by(one), 2.0, made_by(other)))


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_framework_that_cannot_be_imported_is_named_with_the_way_to_get_it(framework, monkeypatch):
    monkeypatch.setitem(sys.modules, framework, None)
    monkeypatch.delitem(sys.modules, f"gradcheck.adapters.{framework}", raising=False)
    with pytest.raises(ImportError, match=f"needs {framework}, .*pip install {framework}$"):
        importlib.import_module(f"gradcheck.adapters.{framework}")


def test_what_is_of_no_framework():
    assert shared.framework_of(X) is None and shared.framework_of(abs) is None
    assert shared.framework_of(tinygrad_bn.functional.tanh) == "tinygrad_bn"

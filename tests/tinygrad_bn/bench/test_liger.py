"""How Liger's functions are called. They need a GPU: torch's take their place under the same signatures."""

from __future__ import annotations

import dataclasses
import sys
import types

import pytest

from tinygrad_bn.bench import libraries, worker
from tinygrad_bn.bench.cases import Case

torch = pytest.importorskip("torch", reason="torch is the oracle")


@pytest.fixture
def liger(monkeypatch):
    """The class, over a stand-in of version 0.8's `liger_kernel.transformers.functional`."""
    functions = torch.nn.functional

    def layer_norm(X, W, B, eps):  # noqa: N803
        return functions.layer_norm(X, X.shape[-1:], W, B, eps)

    def rms_norm(X, W, eps, offset=0.0, casting_mode="llama", in_place=True):  # noqa: N803
        assert not in_place, "the backward pass would overwrite the cotangent"
        return functions.rms_norm(X, X.shape[-1:], W, eps)

    def group_norm(X, affine_scaling_weight, affine_shifting_bias, num_channels, num_groups, eps):  # noqa: N803
        assert X.ndim == 3 and X.shape[1] == num_channels
        return functions.group_norm(X, num_groups, affine_scaling_weight, affine_shifting_bias, eps)

    functional = types.SimpleNamespace(
        liger_layer_norm=layer_norm, liger_rms_norm=rms_norm, liger_group_norm=group_norm
    )
    transformers = types.ModuleType("liger_kernel.transformers")
    transformers.functional = functional
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", transformers)
    monkeypatch.delitem(sys.modules, "tinygrad_bn.bench.libraries.liger", raising=False)
    yield libraries.load("liger", "cuda")
    sys.modules.pop("tinygrad_bn.bench.libraries.liger")


@pytest.mark.parametrize(
    "case",
    [
        Case("norm::layer_norm", (4, 7), {"eps": 0.5}),
        Case("norm::rms_norm", (4, 7)),
        Case("norm::rms_norm", (4, 7), {"eps": 0.5}),
        Case("norm::group_norm", (4, 6, 5, 3), {"num_groups": 2, "eps": 0.5}),
        Case("norm::group_norm", (4, 6), {"num_groups": 2}),
    ],
    ids=str,
)
def test_liger_is_asked_for_the_same(liger, case, tmp_path, monkeypatch):
    ours = worker.Worker("tinygrad_bn")
    ours.prepare(dataclasses.asdict(case), save=str(tmp_path))
    monkeypatch.setattr(libraries, "load", lambda name, device: liger)
    worker.Worker("liger").prepare(dataclasses.asdict(case), expected=str(tmp_path))


@pytest.mark.parametrize(
    "case",
    [
        Case("norm::batch_norm", (4, 7)),
        Case("norm::layer_norm", (4, 3, 7), {"normalized_shape": (3, 7)}),
        Case("norm::layer_norm", (4, 7), dtype="float64"),
        Case("norm::group_norm", (4, 5, 6), {"num_groups": 2, "channel_axis": -1}),
    ],
    ids=str,
)
def test_what_liger_lacks_is_left_out(liger, case):
    with pytest.raises(libraries.Unserved):
        liger(case)

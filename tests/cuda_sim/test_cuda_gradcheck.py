"""The sweep on the kernels in the simulator: each family, as `gradcheck --device cuda-sim` checks it."""

import numpy as np
import pytest

import gradcheck
import tinygrad_bn as tg
from gradcheck import Verdict
from gradcheck.adapters.tinygrad_bn import cases, check_configuration
from gradcheck.axes import Configuration
from tinygrad_bn import functional
from tinygrad_bn.registry import REGISTRY

CONFIGURATIONS = {
    "layer_norm shape=4,5 tail=1": {"rows:resident", "rows_streaming:streaming"},
    "rms_norm shape=3,7 tail=1 dtype=float32 layout=strided": {"rows:resident", "rows_streaming:streaming"},
    "group_norm shape=2,6,4 channel_axis=1 groups=2": {"split_resident:resident", "split:streaming"},
    "batch_norm shape=3,2,4 channel_axis=1": {"split:streaming"},
    "group_norm shape=3,6 channel_axis=1 groups=2": {"cols:resident", "cols:streaming"},
    "group_norm shape=2,3,6 channel_axis=-1 groups=2": {"cols:streaming"},
    "batch_norm shape=2,4,3 channel_axis=1 mode=inference": {"split:streaming_inference"},
    "dropout shape=3,5 mask_axes=0 p=0.25 scaling=upscale_in_train affine=none": {"dropout:dropout"},
    "dropout shape=3,5 mask_axes=0 p=0.25 scaling=downscale_in_infer affine=none mode=inference": {
        "dropout:scale"
    },
}


@pytest.mark.parametrize("text", CONFIGURATIONS)
def test_a_configuration_passes_on_every_kernel_that_serves_it(text):
    configuration = Configuration.parse(text)
    result = check_configuration(configuration, device="cuda-sim")
    assert result.verdict is Verdict.PASS, result.reasons
    for phase in ("forward", "vjp"):
        ran = {
            f"tinygrad_bn.kernels.cuda.{kernel}.{phase} {configuration.dtype}"
            for kernel in CONFIGURATIONS[text]
        }
        assert set(getattr(result, f"kernels_{phase}")) == ran


@pytest.mark.parametrize("name", ["norm::layer_norm", "dropout::scale"])
def test_an_operation_passes_at_a_sample_of_each_kernel(name):
    spec = REGISTRY.get(name)
    found = {case.name.rpartition(", ")[2]: case for case in cases(spec, 0, "cuda-sim")}
    names = {kernel.name for kernel in spec.kernels if kernel.device == "cuda"}
    assert {key.partition(" ")[0] for key in found if key.endswith("float64")} >= names
    for key, case in found.items():
        if key.partition(" ")[0] in names:
            report = case.check()
            assert report.verdict is Verdict.PASS, report


def test_a_function_of_tensors_in_the_simulator_is_checked_there():
    x = tg.tensor(np.random.default_rng(0).normal(size=(3, 4)), device="cuda-sim")
    report = gradcheck.check(lambda x: functional.layer_norm(x * x, 4), (x,))
    assert report.verdict is Verdict.PASS and "on cuda-sim" in report.notes

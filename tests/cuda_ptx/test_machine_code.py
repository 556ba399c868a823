"""Every CUDA kernel as machine code: no double precision in single, 16 bytes at once, nothing spilled."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest
from assembling import CAPABILITIES, assemble, faults, storage

from tinygrad_bn.kernels import cuda as package

MODULES = {
    name: importlib.import_module(f"{package.__name__}.{name}")
    for _, name, _ in pkgutil.iter_modules(package.__path__)
    if name != "simulator"
}
# What each module compiles, in all its variants.
KERNELS = [
    pytest.param(launcher, id=f"{launcher.name}-{storage(launcher)}-{launcher.threads}-{number}")
    for module in MODULES.values()
    for number, launcher in enumerate(getattr(module, "variants", tuple)())
]


def test_every_module_with_a_kernel_tells_its_variants():
    for name, module in MODULES.items():
        if "@kernel(" in Path(module.__file__).read_text():
            assert hasattr(module, "variants"), f"{name} has kernels that nobody would look at here"


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda pair: "sm_{}{}".format(*pair))
@pytest.mark.parametrize("launcher", KERNELS)
def test_machine_code(launcher, capability, tmp_path):
    assert faults(launcher, assemble(launcher, capability, tmp_path)) == []

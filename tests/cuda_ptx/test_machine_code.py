"""Every CUDA kernel as machine code: no double precision in single, 16 bytes at once, nothing spilled."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from assembling import CAPABILITIES, MODULES, dtypes, faults_of_variant, variants

# A variant is found by its module and its number there: kernels do not cross processes.
VARIANTS = [
    pytest.param((module, number), id=f"{each.name}-{dtypes(each)[0]}-{each.threads}-{number}")
    for module in MODULES
    for number, each in enumerate(variants(module))
]


def test_every_module_with_a_kernel_tells_its_variants():
    for name, module in MODULES.items():
        if "@kernel(" in Path(module.__file__).read_text():
            launched = {each.function.__module__ for other in MODULES for each in variants(other)}
            assert module.__name__ in launched, f"{name} has kernels that nobody would look at here"


@pytest.fixture(scope="session")
def found(request):
    """What is wrong with each variant that is asked for: they are compiled by all cores."""
    asked = [
        item.callspec.params for item in request.session.items if item.name.startswith("test_machine_code[")
    ]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        yield {
            (each["variant"], each["capability"]): pool.submit(
                faults_of_variant, *each["variant"], each["capability"]
            )
            for each in asked
        }
        pool.shutdown(cancel_futures=True)  # of a run that was stopped


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda pair: "sm_{}{}".format(*pair))
@pytest.mark.parametrize("variant", VARIANTS)
def test_machine_code(variant, capability, found):
    assert found[variant, capability].result() == []

"""`doctor` where CUDA is installed, and no GPU is."""

from __future__ import annotations

import pytest

from gradcheck.cli.doctor import probe


@pytest.mark.parametrize("name", ["numba-cuda", "bindings", "ptxas"])
def test_what_is_installed_is_found(name):
    assert probe.examine(name).status == "ok"


def test_the_toolkit_compiles_even_where_the_simulator_is_on(monkeypatch):
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    found = probe.examine("toolkit")
    assert found.status == "ok" and ", compiles, in " in found.text, found


def test_the_toolkit_compiles_with_a_numpy_that_needs_the_repair(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sitecustomize.py").write_text(
        "import warnings; warnings.simplefilter('ignore')\n"
        "import numpy\n"
        "if hasattr(numpy, 'row_stack'): del numpy.row_stack\n"
    )
    assert "it is put back" in probe.examine("numba-cuda").text
    assert probe.examine("toolkit").status == "ok"


def test_a_toolkit_that_lacks_a_library_is_wrong(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sitecustomize.py").write_text(
        "import cuda.pathfinder as p\n"
        "real = p.load_nvidia_dynamic_lib\n"
        "def load(name):\n"
        "    if name == 'nvJitLink': raise p.DynamicLibNotFoundError(name)\n"
        "    return real(name)\n"
        "p.load_nvidia_dynamic_lib = load\n"
    )
    found = probe.examine("toolkit")
    assert (found.status, found.text) == ("wrong", "nvJitLink is not to be found")
    assert found.mend.startswith('pip install "numba-cuda[cu')

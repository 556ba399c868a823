"""What is run on a GPU, run in the simulator: the comparison of masks, and a worker of `bench`."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest

from tinygrad_bn.bench import worker
from tinygrad_bn.bench.cases import Case
from tinygrad_bn.bench.libraries.ours import Ours

PATH = Path(__file__).parents[2] / "benchmarks" / "gpu_masks.py"


@pytest.fixture
def gpu_masks(monkeypatch):
    """The script, with fewer masks; called with the name of a device."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("gpu_masks", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "MASKS", module.MASKS[1:3])
    monkeypatch.setattr(module, "PROBABILITIES", (0.1,))

    def run(device):
        monkeypatch.setattr(sys, "argv", ["gpu_masks.py", device])
        with pytest.raises(SystemExit) as exit:
            module.main()
        return exit.value.code

    return module, run


def test_masks_are_those_of_the_cpu(gpu_masks, capsys):
    _, run = gpu_masks
    assert run("cuda-sim") == 0
    out, err = capsys.readouterr()
    assert err == "27 compared on cuda-sim, 0 differ\n"  # 3 answers; 4 dtypes, 2 masks, 3 layouts
    assert all(line.startswith("equal ") for line in out.splitlines())


def test_a_mask_that_differs_is_told(gpu_masks, capsys, monkeypatch):
    module, run = gpu_masks
    original = module.philox.keep_mask
    monkeypatch.setattr(module.philox, "keep_mask", lambda *key: ~original(*key))
    counter, key, words = module.KNOWN_ANSWERS[0]
    monkeypatch.setattr(module, "KNOWN_ANSWERS", ((counter, key, words[::-1]), *module.KNOWN_ANSWERS[1:]))
    assert run("cuda-sim") == 1
    out, err = capsys.readouterr()
    assert err == "27 compared on cuda-sim, 25 differ\n" and out.count("DIFFERS") == 25


def test_a_device_that_is_not_here_is_one_line(gpu_masks):
    _, run = gpu_masks
    assert run("cuda").startswith("cuda: ")


class Clock:
    """A stream on which nothing is late: its events count the marks."""

    cache_bytes = 100

    def __init__(self, index):
        self.marks = 0

    def mark(self):
        self.marks += 1
        return self.marks

    def seconds(self, first, last):
        return float(last - first)

    def occupy(self):
        pass

    wait = occupy


@pytest.mark.parametrize("operation", ["norm::layer_norm", "norm::batch_norm"])
def test_a_worker_times_the_kernels_on_a_device(operation, monkeypatch, tmp_path):
    monkeypatch.setattr(Ours, "stream", Clock)
    case = Case(operation, (3, 8), device="cuda-sim")
    made = worker.Worker("tinygrad_bn")
    made.prepare(dataclasses.asdict(case), save=str(tmp_path))
    assert made.current.record().device == "cuda-sim"
    assert len(made.timer._copies) == 3  # 96 bytes each, of twice 100
    found = made.sample("backward", 7)
    assert found["seconds"] == pytest.approx(1 / 3) and found["host"] > 0
    definition = worker.Worker("numpy")
    definition.prepare(dataclasses.asdict(dataclasses.replace(case, device="cpu")), expected=str(tmp_path))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("operation", ["norm::rms_norm", "dropout::dropout"])
def test_16_bit_floats_are_compared_as_others_are(operation, dtype, monkeypatch, tmp_path):
    monkeypatch.setattr(Ours, "stream", Clock)
    case = Case(operation, (40, 8), dtype=dtype, device="cuda-sim")
    made = worker.Worker("tinygrad_bn")
    made.prepare(dataclasses.asdict(case), save=str(tmp_path))
    assert made.current.record().dtype.name == dtype
    torch = pytest.importorskip("torch", reason="torch is the oracle")
    peer = worker.Worker("torch")
    peer.prepare(dataclasses.asdict(dataclasses.replace(case, device="cpu")), expected=str(tmp_path))
    assert peer.current.record().dtype == getattr(torch, dtype)

"""`doctor` in this environment, and in others that are made up: packages hidden, drivers invented."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest

from gradcheck.cli.doctor import cpu, gpu, probe

ROOT = Path(__file__).parents[3]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Run some code at the start of each process of a probe; `packages` are installed there, by name only."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code="", **packages):
        (tmp_path / "sitecustomize.py").write_text(code)
        for name, version in packages.items():
            folder = tmp_path / f"{name}-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
            )
        return tmp_path

    return write


class Driver:
    """The driver's interface in C, as far as it is called."""

    def __init__(self, version=13000, gpus=(("H200", (9, 0), 139),), status=0):
        self.version, self.gpus, self.status = version, gpus, status

    def cuInit(self, flags):  # noqa: N802
        return self.status

    def cuDriverGetVersion(self, found):  # noqa: N802
        found._obj.value = self.version

    def cuDeviceGetCount(self, found):  # noqa: N802
        found._obj.value = len(self.gpus)

    def cuDeviceGet(self, found, position):  # noqa: N802
        found._obj.value = position + 100

    def cuDeviceGetName(self, buffer, length, handle):  # noqa: N802
        buffer.value = self.gpus[handle.value - 100][0].encode()

    def cuDeviceTotalMem_v2(self, found, handle):  # noqa: N802
        found._obj.value = self.gpus[handle.value - 100][2] << 30

    def cuDeviceGetAttribute(self, found, attribute, handle):  # noqa: N802
        found._obj.value = self.gpus[handle.value - 100][1][{75: 0, 76: 1}[attribute]]

    def cuGetErrorString(self, status, found):  # noqa: N802
        found._obj.value = b"system driver mismatch"


@pytest.fixture
def drive(monkeypatch):
    def install(driver):
        monkeypatch.setattr(gpu, "_library", lambda: driver)

    return install


def test_a_line_for_each_probe_and_one_for_each_device(run):
    result = run("doctor")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == len(probe.PROBES)
    for line, name in zip(lines, probe.PROBES, strict=True):
        assert line.startswith(("ok      ", "absent  ")) and line[8:].startswith(name)
    assert lines[0].endswith(sys.executable)
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["cpu", "cuda", "cuda-sim"]
    assert result.stderr.startswith("cpu: can be used\n")


def test_the_same_as_json(run):
    result = run("doctor", "--format", "json")
    record = json.loads(result.stdout)
    assert record["schema_version"] == 1 and record["missing"]["cpu"] == []
    found = {each["name"]: each for each in record["checks"]}
    assert list(found) == list(probe.PROBES)
    assert found["NumPy"].keys() == {"name", "status", "found", "mend"} and found["NumPy"]["mend"] is None


def test_without_numba_nothing_runs_and_one_command_mends_it(run, elsewhere):
    elsewhere("import sys; sys.modules['numba'] = None")
    result = run("doctor", "--format", "json")
    assert result.exit_code == 1
    found = {each["name"]: each for each in json.loads(result.stdout)["checks"]}
    assert found["numba"] == {
        "name": "numba", "status": "wrong", "found": "not installed", "mend": "pip install numba",
    }  # fmt: skip
    for name in ("threading layer", "kernel cache"):
        assert (found[name]["status"], found[name]["mend"]) == ("wrong", "pip install numba")
    assert found["Python"]["status"] == found["NumPy"]["status"] == "ok"
    assert "cpu: needs numba, threading layer, kernel cache\n" in result.stderr


def test_a_numpy_that_numba_was_not_made_for(elsewhere):
    elsewhere("import numpy; numpy.__version__ = '2.99.0'")
    found = probe.examine("numba")
    assert found.status == "wrong" and "Got NumPy 2.99" in found.text
    assert found.mend.startswith('pip install "numpy<')


def test_a_numpy_that_is_broken_or_too_old(elsewhere):
    folder = elsewhere()
    (folder / "numpy.py").write_text("raise ImportError('libopenblas.so is missing')")
    assert probe.examine("NumPy") == probe.wrong(
        "cannot be imported: libopenblas.so is missing", "pip install --force-reinstall numpy"
    )
    (folder / "numpy.py").write_text("__version__ = '1.26.4'")
    assert probe.examine("NumPy") == probe.wrong(
        "1.26.4, wanted 2.0 or newer", 'pip install --upgrade "numpy>=2.0"'
    )


def test_the_oldest_releases_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = {name: ".".join(map(str, version)) for name, version in cpu.OLDEST.items()}
    assert {f"{name}>={version}" for name, version in oldest.items()} <= set(project["dependencies"])
    assert project["requires-python"] == ">=" + ".".join(map(str, cpu.PYTHON))


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(cpu, "PYTHON", (4, 0))
    found = cpu.interpreter()
    assert found.status == "wrong" and found.text.endswith("wanted 4.0 or newer")


def test_a_cache_folder_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    found = probe.examine("kernel cache")
    assert found.status == "ok" and found.text.startswith(str(tmp_path))
    (tmp_path / "file").write_text("")
    wanted = str(tmp_path / "file" / "cache")  # no permissions: nothing is forbidden to root
    monkeypatch.setenv("NUMBA_CACHE_DIR", wanted)
    found = probe.examine("kernel cache")
    assert found.status == "wrong" and found.text.startswith(f"NUMBA_CACHE_DIR={wanted} cannot be written; ")
    assert found.mend.startswith('export NUMBA_CACHE_DIR="')


def test_no_folder_at_all_for_the_cache(elsewhere, monkeypatch):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    elsewhere(
        "import tempfile\n"
        "def refuse(**_): raise PermissionError('read-only')\n"
        "tempfile.TemporaryFile = refuse\n"
    )
    found = probe.examine("kernel cache")
    assert found.status == "wrong" and found.text.startswith("no folder can be written")


def test_a_threading_layer_that_is_not_there(monkeypatch):
    monkeypatch.setenv("NUMBA_THREADING_LAYER", "none_such")
    found = probe.examine("threading layer")
    assert (found.status, found.mend) == ("wrong", "unset NUMBA_THREADING_LAYER")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_driver_that_ends_the_process_is_a_line(run, elsewhere):
    elsewhere(
        "import ctypes, os\n"
        "class Deadly(ctypes.CDLL):\n"
        "    def __init__(self, name, *rest, **more):\n"
        "        if name == 'libcuda.so.1': os.abort()\n"
        "        super().__init__(name, *rest, **more)\n"
        "ctypes.CDLL = Deadly\n"
    )
    result = run("doctor")
    assert result.exit_code == 1
    broken = [line for line in result.stdout.splitlines() if line.startswith("wrong")]
    assert len(result.stdout.splitlines()) == len(probe.PROBES)
    assert any(
        line.startswith("wrong   driver") and "ended by SIGABRT" in line
        and line.endswith("→ python -m gradcheck.cli.doctor.probe driver") for line in broken
    )  # fmt: skip


def test_a_driver_that_does_not_answer(elsewhere, monkeypatch):
    monkeypatch.setattr(probe, "PATIENCE", 1.0)
    elsewhere("import ctypes, time\nctypes.CDLL = lambda *_: time.sleep(60)")
    assert probe.examine("driver").text.startswith("no answer within 1 s")


def test_gpus_are_described(drive):
    drive(Driver(gpus=(("H200", (9, 0), 139), ("A100", (8, 0), 80))))
    assert gpu.driver() == probe.ok("serves CUDA 13.0")
    assert gpu.device() == probe.ok(
        "cuda is H200, compute capability 9.0, 139 GiB; cuda:1 is A100, compute capability 8.0, 80 GiB"
    )


def test_a_driver_without_a_gpu_and_one_that_cannot_start(drive):
    drive(Driver(status=100, gpus=()))
    assert gpu.device().status == "absent"
    drive(Driver(status=803))
    assert gpu.device() == probe.wrong(
        "the driver cannot start: error 803, system driver mismatch; its own tool says more:", "nvidia-smi"
    )


def test_no_driver_in_a_container_whose_host_has_one(drive, monkeypatch, tmp_path):
    drive(None)
    monkeypatch.setattr(gpu, "KERNEL_MODULE", tmp_path / "version")
    assert gpu.driver().status == "absent"
    (tmp_path / "version").write_text("NVRM version")
    found = gpu.driver()
    assert found.status == "wrong" and "--gpus all" in found.mend


def test_an_old_driver(drive):
    drive(Driver(version=11040))
    assert gpu.driver().text.startswith("serves CUDA 11.4, wanted 12 or newer")


@pytest.mark.parametrize(
    ("driver", "major"),
    [
        (None, 13),
        (Driver(), 13),
        (Driver(version=12080), 12),
        (Driver(gpus=(("H200", (9, 0), 139), ("V100", (7, 0), 32))), 12),
    ],
    ids=["no driver", "new", "a driver of CUDA 12", "a GPU that CUDA 13 dropped"],
)
def test_what_to_install_follows_from_the_driver_and_the_gpus(drive, driver, major):
    drive(driver)
    assert gpu._install() == f'pip install "numba-cuda[cu{major}]" "cupy-cuda{major}x[ctk]"'
    assert gpu._fitting("it", 12).status == "ok"
    assert gpu._fitting("it", 13).status == ("ok" if major == 13 else "wrong")


def cupy_for(folder, version):
    (folder / "cupy.py").write_text(
        "from types import SimpleNamespace as N\n__version__ = '14.2.0'\n"
        f"cuda = N(runtime=N(runtimeGetVersion=lambda: {version}))\n"
    )


def test_a_cupy_for_another_cuda_than_that_of_numba_cuda(elsewhere):
    cupy_for(elsewhere(cupy_cuda12x="14.2.0", cuda_bindings="13.5.0"), 12090)
    found = probe.examine("CuPy")
    assert found.status == "wrong"
    assert found.text == "cupy-cuda12x 14.2.0 is for CUDA 12, numba-cuda has bindings 13.5.0"


def test_two_releases_of_cupy_that_overwrite_each_other(elsewhere):
    elsewhere(cupy_cuda12x="14.2.0", cupy_cuda13x="14.2.0")
    found = probe.examine("CuPy")
    assert found.mend == "pip uninstall --yes cupy-cuda12x"


def test_a_cupy_that_cannot_be_imported(elsewhere):
    (elsewhere(cupy_cuda13x="14.2.0") / "cupy.py").write_text("raise ImportError('libcudart.so.13')")
    found = probe.examine("CuPy")
    assert found.status == "wrong" and "ImportError: libcudart.so.13" in found.text


def test_the_repair_that_new_numpys_need_is_named(elsewhere):
    elsewhere(
        "import warnings; warnings.simplefilter('ignore')\n"
        "import numpy\nif hasattr(numpy, 'row_stack'): del numpy.row_stack",
        numba_cuda="0.30.4",
    )
    found = probe.examine("numba-cuda")
    assert found.status == "ok" and "asks for numpy.row_stack, which NumPy" in found.text


def test_the_simulator_is_greenlet_and_the_variable_is_told(elsewhere, monkeypatch):
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    elsewhere(greenlet="3.5.6")
    assert probe.examine("simulator") == probe.ok("greenlet 3.5.6")
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    assert probe.examine("simulator").text.endswith("NUMBA_ENABLE_CUDASIM is set, which hides the GPU")

"""Checking at the user's own arrays: what can be read is checked, the rest refused in one clear line."""

from __future__ import annotations

import contextlib
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradcheck.axes import Configuration
from gradcheck.cli import arrays


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(4, 3))


def names(result):
    return [Configuration.parse(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f8", "<f4"])
def test_an_array_is_checked_as_it_is(run, tmp_path, x, dtype):
    np.save(tmp_path / "x.npy", x.astype(dtype))
    found = names(run("gradcheck", "--list", "--input", tmp_path / "x.npy"))
    assert {c.shape for c in found} == {(4, 3)} and {c.values for c in found} == {"given"}
    assert {c.dtype for c in found} == {np.dtype(dtype).newbyteorder("=").name}
    result = run("gradcheck", "--input", tmp_path / "x.npy", "--op", "rms_norm")
    assert result.exit_code == 0 and "training, given array" in result.stdout


def test_every_array_of_an_npz_or_the_one_that_is_named(run, tmp_path, x):
    np.savez_compressed(tmp_path / "x.npz", a=x, b=x[None].astype(np.float32))
    words = ("gradcheck", "--list", "--op", "layer_norm", "--input", tmp_path / "x.npz")
    assert {(c.shape, c.dtype) for c in names(run(*words))} == {((4, 3), "float64"), ((1, 4, 3), "float32")}
    assert {c.shape for c in names(run(*words, "--array", "b"))} == {((1, 4, 3))}


def test_the_values_of_the_array_are_what_is_checked(run, tmp_path):
    """Where all values are equal nothing is checked: the verdict says so, where random values would pass."""
    np.save(tmp_path / "x.npy", np.ones((4, 3)))
    result = run("gradcheck", "--input", tmp_path / "x.npy", "--op", "layer_norm")
    assert result.exit_code == 1 and "VACUOUS" in result.stdout


def test_a_rank_beyond_the_ordinary(run, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 2, 1, 2, 1, 3)))
    found = names(run("gradcheck", "--list", "--input", tmp_path / "x.npy", "--rank", 6))
    assert {c.operation for c in found} == {"layer_norm", "rms_norm", "dropout"}


class Pickled:
    """Would run code if it were unpickled."""

    def __reduce__(self):
        return pytest.fail, ("unpickled!",)


def nan(x):
    x[2, 1] = np.nan
    x[3, 2] = np.inf
    return x


ARRAYS = {
    "integers": (
        lambda x: np.arange(4),
        "dtype int64, wanted float64 or float32; convert it with .astype('float64')",
    ),
    "half": (lambda x: x.astype(np.float16), "has dtype float16, wanted"),
    "complex": (lambda x: x + 1j, "has dtype complex128, wanted"),
    "text": (lambda x: np.array(["a"]), "has dtype <U1, wanted"),
    "record": (lambda x: np.zeros(2, [("a", float)]), "has dtype [('a', '<f8')], wanted"),
    "no axes": (
        lambda x: np.array(1.0),
        "has shape (), wanted at least one axis and one element; reshape it",
    ),
    "empty": (lambda x: x[:0], "has shape (0, 3), wanted at least one axis and one element"),
    "not a number": (nan, "is nan at (2, 1) (2 of 12 elements are not finite)"),
    "infinity": (lambda x: x * np.array([1, 1, np.inf]), "elements are not finite"),
    "objects": (
        lambda x: np.array([Pickled()], object),
        "is damaged, or no file of plain arrays; write it with",
    ),
}


@pytest.mark.parametrize(("make", "message"), ARRAYS.values(), ids=ARRAYS)
def test_an_array_that_cannot_be_checked_is_refused(refused, tmp_path, x, make, message):
    np.save(tmp_path / "x.npy", make(x))
    said = refused("gradcheck", "--input", tmp_path / "x.npy")
    assert said.startswith("--input: ") and message in said


@pytest.mark.parametrize(("make", "message"), ARRAYS.values(), ids=ARRAYS)
def test_so_is_one_in_an_npz_and_the_line_names_it(refused, tmp_path, x, make, message):
    np.savez(tmp_path / "x.npz", good=np.ones((2, 3)), bad=make(x))
    said = refused("gradcheck", "--input", tmp_path / "x.npz")
    assert "bad" in said and (message in said or "is damaged, or no plain array" in said)


def whole(path, x):
    np.save(path, x)
    return path.read_bytes()


def zipped(path, x):
    np.savez(path, a=x)
    return path.read_bytes()


FILES = {
    "text": ("x.npy", lambda path, x: b"1, 2, 3\n", "is damaged, or no file of plain arrays"),
    "nothing": ("x.npy", lambda path, x: b"", "is damaged, or no file of plain arrays"),
    "cut off": ("x.npy", lambda path, x: whole(path, x)[:-8], "is damaged, or no file of plain arrays"),
    "only a beginning": ("x.npy", lambda path, x: whole(path, x)[:20], "is damaged, or no file of plain"),
    "cut off zip": ("x.npz", lambda path, x: zipped(path, x)[:-30], "is damaged, or no file of plain arrays"),
    "flipped in a zip": (
        "x.npz",
        lambda path, x: zipped(path, x).replace(x.tobytes()[:8], bytes(8)),
        "'a' in {} is damaged, or no plain array; write it with numpy.savez",
    ),
}


@pytest.mark.parametrize(("name", "make", "message"), FILES.values(), ids=FILES)
def test_a_damaged_file_is_refused(refused, tmp_path, x, name, make, message):
    path = tmp_path / name
    path.write_bytes(make(path, x))
    assert message.format(path) in refused("gradcheck", "--input", path)


def test_a_zip_of_other_things_is_refused(refused, tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "'readme.txt' in " in refused("gradcheck", "--input", path)
    with zipfile.ZipFile(path, "w"):
        pass
    assert f"--input: {path} holds no arrays; write some with numpy.savez" in refused(
        "gradcheck", "--input", path
    )


def test_a_path_that_is_no_file_is_refused(refused, tmp_path):
    assert f"there is no file {tmp_path}/x.npy" in refused("gradcheck", "--input", tmp_path / "x.npy")
    assert "cannot be read: Is a directory" in refused("gradcheck", "--input", tmp_path)
    assert "cannot be read: File name too long" in refused("gradcheck", "--input", "x" * 300)


def test_a_name_that_the_file_does_not_have_is_refused(refused, tmp_path, x):
    np.savez(tmp_path / "x.npz", a=x, b=x)
    said = refused("gradcheck", "--input", tmp_path / "x.npz", "--array", "c")
    assert said.endswith("x.npz has no array 'c'; it has a, b")
    np.save(tmp_path / "x.npy", x)
    said = refused("gradcheck", "--input", tmp_path / "x.npy", "--array", "a")
    assert said.endswith("x.npy holds a single array; leave --array out")


@settings(max_examples=150)
@given(data=st.data(), packed=st.booleans())
def test_whatever_a_file_holds_it_is_an_array_or_unusable(tmp_path_factory, data, packed):
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    with path.open("wb") as file:
        (np.savez_compressed if packed else np.save)(file, np.linspace(1, 2, 12).reshape(3, 4))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(arrays.Unusable):
        for batch in arrays.from_file(str(path), None):
            assert np.isfinite(batch.values).all() and batch.values.size


def test_digits_are_vectors_and_images_of_real_data(run):
    pytest.importorskip("sklearn")
    found = names(run("gradcheck", "--list", "--data", "digits"))
    assert {c.shape for c in found} == {(24, 64), (24, 1, 8, 8)}
    assert {"batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm", "dropout"} == {
        c.operation for c in found
    }
    batches = list(arrays.from_dataset("digits"))
    assert all(batch.values.min() == 0 and batch.values.max() == 1 for batch in batches)
    result = run("gradcheck", "--data", "digits", "--op", "instance_norm")
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--op", "batch_norm"), 2, "Error: --op batch_norm does not fit: one.npy has shape (7,), float64; "),
        (("--op", "batch_norm"), 2, "possible: layer_norm, rms_norm, dropout\n"),
        (("--rank", 2, "--rank", 3), 2, "Error: --rank 2 or 3 does not fit: one.npy has shape (7,)"),
        (
            ("--dtype", "float32"),
            4,
            "Nothing to check: --dtype float32 does not fit: one.npy has shape (7,), ",
        ),
        (
            ("--layout", "strided"),
            4,
            "--layout strided does not fit: one.npy has shape (7,), float64; possible: ",
        ),
        (("--op", "rms_norm", "--mode", "inference"), 4, "no configuration has all of these settings"),
    ],
)
def test_where_no_check_fits_the_array_that_is_said(run, tmp_path, words, status, message):
    np.save(tmp_path / "one.npy", np.arange(7.0))
    result = run("gradcheck", "--input", tmp_path / "one.npy", *words)
    assert result.exit_code == status and result.stdout == ""
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_of_several_arrays_another_can_be_chosen(refused, tmp_path, x):
    np.savez(tmp_path / "x.npz", labels=np.arange(4), x=x)
    said = refused("gradcheck", "--input", tmp_path / "x.npz")
    assert said.startswith(
        "--input: x.npz:labels has dtype int64, wanted float64 or float32; convert it with "
    )
    assert said.endswith(", or choose another with --array NAME")
    np.save(tmp_path / "x.npy", np.arange(4))
    assert "--array" not in refused("gradcheck", "--input", tmp_path / "x.npy")


def test_without_scikit_learn_digits_say_what_to_install(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    said = refused("gradcheck", "--data", "digits")
    assert said == "--data: digits needs scikit-learn, which is not installed; pip install scikit-learn"

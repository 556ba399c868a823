"""`python cli.py gradcheck --target FILE.py:function`: what it checks, how it repeats, what it refuses."""

from __future__ import annotations

import json
import shlex
import sys

import numpy as np
import pytest

NUMPY = """
import numpy as np

value = 3

class Layer:
    def apply(self, change):
        return self

    def __call__(self, x):
        return x

def scale(x, weight):
    return x * weight, (x, weight)

def scale_backward(saved, cotangent):
    x, weight = saved
    return cotangent * weight, (cotangent * x).sum(0)

def forgetful(saved, cotangent):
    x, weight = saved
    return 1 * cotangent, (cotangent * x).sum(0)
"""
PAIR = ("--shape", "4,3", "--shape", "3")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with my_numpy.py in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_numpy.py").write_text(NUMPY)
    return tmp_path


def check(run, *words):
    return run("gradcheck", "--target", *words)


def test_a_numpy_pair_passes_with_status_0(run, folder):
    result = check(run, "my_numpy.py:scale,scale_backward", *PAIR)
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.startswith("PASS  scale   x (4, 3) float64, weight (3,)\n")
    assert "again:" not in result.stdout
    assert check(run, "my_numpy.py:scale", "--backward", "scale_backward", *PAIR).exit_code == 0


def test_a_failure_has_status_1_and_the_command_that_repeats_it(run, folder):
    words = ("my_numpy.py:scale,forgetful", *PAIR, "--dtype", "float32", "--seed", 7)
    result = check(run, *words)
    assert result.exit_code == 1
    again = result.stdout.rstrip().splitlines()[-1].strip()
    assert again == (
        "again: python cli.py gradcheck --target my_numpy.py:scale,forgetful "
        "--shape 4,3 --shape 3 --dtype float32 --seed 7"
    )
    once_more = run(*shlex.split(again)[3:])
    assert once_more.exit_code == 1
    assert numbers(once_more) == numbers(result) != numbers(check(run, *words[:-1], 8))


def numbers(result):
    """The report without its last lines, which tell the time and the command."""
    return result.stdout.splitlines()[:-3]


def test_the_inputs_are_gaussian_and_follow_from_the_seed(run, folder):
    (folder / "shown.py").write_text(
        "def f(x):\n    print(*x)\n    return x, None\ndef b(_, c):\n    return (c,)"
    )
    first = check(run, "shown.py:f,b", "--shape", "2", "--seed", 5).stderr.splitlines()[0]
    assert [float(word) for word in first.split()] == pytest.approx(
        np.random.default_rng(5).standard_normal(2)
    )


def test_what_the_file_prints_is_not_in_the_report(run, folder):
    says = "print('loading')\ndef f(x):\n    return 1 * x, None\n"
    (folder / "chatty.py").write_text(says + "def b(_, c):\n    print('back')\n    return (1 * c,)\n")
    result = check(run, "chatty.py:f,b", "--shape", "2", "--format", "json")
    assert json.loads(result.stdout)["checks"][0]["verdict"] == "PASS"
    assert result.stderr.startswith("loading\nback\n")


def test_the_inputs_may_come_from_a_file(run, folder):
    np.savez("mine.npz", b=np.arange(6.0).reshape(2, 3), a=np.full(3, 2.0))
    result = check(run, "my_numpy.py:scale,forgetful", "--input", "mine.npz")
    assert result.stdout.startswith("FAIL  scale   x (2, 3) float64, weight (3,)")
    assert "--input mine.npz --seed 0" in result.stdout


INDEXED = """
import numpy as np

def take(x, index):
    return x[index], (x, index)

def take_backward(saved, cotangent):
    x, index = saved
    dx = np.zeros_like(x)
    np.add.at(dx, index, cotangent)
    return dx, None
"""


def test_integers_and_half_precision_from_a_file_are_inputs_as_any(run, folder):
    (folder / "indexed.py").write_text(INDEXED)
    np.savez("mine.npz", x=np.arange(1.0, 5.0), index=np.array([0, 2, 2]))
    result = check(run, "indexed.py:take,take_backward", "--input", "mine.npz")
    assert result.exit_code == 0 and result.stdout.startswith("PASS  take   x (4,) float64, index (3,)")
    np.savez("half.npz", np.ones((2, 3), np.float16), np.full(3, 2, np.float16))
    assert "x (2, 3) float16" in check(run, "my_numpy.py:scale,forgetful", "--input", "half.npz").stdout


@pytest.mark.parametrize("name", ["my-norm.py", "my norm.py", "2nd.norm.py"])
def test_a_file_needs_no_name_that_python_could_import(run, folder, name):
    (folder / name).write_text(NUMPY)
    result = check(run, f"{name}:scale,forgetful", *PAIR)
    assert result.exit_code == 1 and result.stdout.startswith("FAIL  scale   x (4, 3) float64")
    again = result.stdout.rstrip().splitlines()[-1].strip()
    assert run(*shlex.split(again)[3:]).stdout.splitlines()[0] == result.stdout.splitlines()[0]


def test_the_report_can_be_written_to_a_file(run, folder):
    assert check(run, "my_numpy.py:scale,scale_backward", *PAIR, "--report", "report.txt").exit_code == 0
    assert (folder / "report.txt").read_text().startswith("PASS  scale")


def test_a_target_has_the_reports_that_a_sweep_has(run, folder):
    words = (
        "my_numpy.py:scale,forgetful",
        *PAIR,
        "--seed",
        3,
        "--report",
        "report.json",
        "--report",
        "r.xml",
    )
    result = check(run, *words)
    assert result.exit_code == 1 and result.stdout.startswith("FAIL  scale")
    (entry,) = json.loads((folder / "report.json").read_text())["checks"]
    assert entry["verdict"] == "FAIL" and entry["place"].startswith("my_numpy.py:")
    assert f"again: {entry['command']}" in result.stdout
    assert "failure" in (folder / "r.xml").read_text()


TINYGRAD = """
import tinygrad_bn as tg
from beside import cube

def plain(x):
    return cube(x)
"""


def test_what_lies_beside_the_file_can_be_imported_and_nothing_of_it_stays(run, folder):
    (folder / "mine").mkdir()
    (folder / "mine" / "beside.py").write_text("def cube(x):\n    return x * x * x\n")
    (folder / "mine" / "my_tensors.py").write_text(TINYGRAD)
    path = list(sys.path)
    result = check(run, "mine/my_tensors.py:plain", "--shape", "3")
    sys.modules.pop("beside")
    assert result.exit_code == 0 and result.stdout.startswith("PASS  plain   x (3,) float64")
    assert sys.path == path and "my_tensors" not in sys.modules


TORCH = """
import torch

class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return {factor} * x * cotangent
"""


def test_a_torch_function_is_recognised_by_what_its_file_imports(run, folder):
    pytest.importorskip("torch")
    for factor, status in ((2, 0), (3, 1)):
        (folder / f"square_{factor}.py").write_text(TORCH.format(factor=factor))
        result = check(run, f"square_{factor}.py:Square", "--shape", "2,3")
        assert result.exit_code == status
        assert result.stdout.splitlines()[0].endswith(" Square   x (2, 3) float64")


def test_a_jax_function_is_checked_in_float64(run, folder):
    pytest.importorskip("jax")
    (folder / "my_jax.py").write_text("import jax.numpy as jnp\n\ndef f(x):\n    return jnp.tanh(x)\n")
    result = check(run, "my_jax.py:f", "--shape", "2,3")
    assert result.exit_code == 0 and result.stdout.startswith("PASS  f   x (2, 3) float64")


def test_order_2_and_stress_are_passed_on(run, folder, monkeypatch):
    from gradcheck import harness

    asked = {}

    def spy(name):
        def called(*arguments, **options):
            asked.update(options)
            raise ValueError("enough")

        monkeypatch.setattr(harness, name, called)

    (folder / "cubes.py").write_text("import tinygrad_bn\n\ndef cube(x):\n    return x * x * x\n")
    spy("check")
    spy("check_pair")
    result = check(run, "cubes.py:cube", "--shape", "3", "--order", 2, "--stress", 50, "--seed", 4)
    assert result.exit_code == 2 and result.stderr == "Error: --target: enough\n"
    assert asked == {"order": 2, "stress": 50, "seed": 4, "name": "cube"}
    asked.clear()
    check(run, "my_numpy.py:scale,forgetful", *PAIR, "--stress", 50)
    assert asked == {"differentiable": [0, 1], "stress": 50, "seed": 0, "name": "scale"}


# What is refused

SCALE = "my_numpy.py:scale,scale_backward"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("my_numpy.py", "--shape", 3),
            "--target is 'my_numpy.py', wanted a file and a function in it: my",
        ),
        (("my_numpy.py:", "--shape", 3), "wanted a file and a function in it"),
        (
            ("my_numpy.py:a,b,c", "--shape", 3),
            "--target names 3 functions; it checks one, or a forward and",
        ),
        ((SCALE,), "--target needs the shape of each input: --shape 4,3,5 --shape 3"),
        ((SCALE, "--shape", "4x3"), "--shape is '4x3', wanted lengths such as 4,3,5"),
        ((SCALE, "--shape", "4,0"), "--shape is '4,0', wanted lengths of 1 or more"),
        ((SCALE, "--shape", 3), "--shape: 1 input for scale(x, weight); give one --shape for each input"),
        (
            (SCALE, "--shape", 3, "--input", "x.npz"),
            "--input brings the inputs; leave --shape and --dtype",
        ),
        ((SCALE, "--input", "none.npz"), "--input: there is no file none.npz"),
        ((SCALE, *PAIR, "--order", 2), "--framework and --order are for a function that a framework"),
        ((SCALE, *PAIR, "--framework", "torch"), "leave them out where a backward pass is named"),
        ((SCALE, *PAIR, "--dtype", "float64", "--dtype", "float32"), "has one, not float64 and float32"),
        (("none.py:f", "--shape", 3), "--target: there is no file none.py"),
        (("mine.npz:f", "--shape", 3), "--target: there is no file mine.npz"),
        ((f"{300 * 'x'}.py:f", "--shape", 3), f"--target: there is no file {300 * 'x'}.py"),
        ((SCALE, "--shape", "4,,3", "--shape", 3), "--shape is '4,,3', wanted lengths such as 4,3,5"),
        (("readme.txt:f", "--shape", 3), "--target: readme.txt is no Python module; wanted a file such as"),
        (("numpy.py:f", "--shape", 3), "numpy.py has the name of a module that is in use, numpy; rename"),
        (("my_numpy.py:sclae,forgetful", *PAIR), "has no function 'sclae'; did you mean scale?"),
        (("my_numpy.py:q", *PAIR), "has no function 'q'; it has Layer, scale, scale_backward, forgetful"),
        (
            ("my_numpy.py:Layer", "--shape", 3, "--framework", "jax"),
            "Layer in my_numpy.py is a class, wanted a function; name an object of it: layer = Layer(…)",
        ),
        (("my_numpy.py:value", *PAIR), "--target: value in my_numpy.py is not callable but of type int"),
        (
            ("my_numpy.py:scale", *PAIR),
            "my_numpy.py imports no framework; say --framework, or, for NumPy arrays, name the backward",
        ),
        (
            ("both.py:f", "--shape", 3, "--framework", "numpy"),
            "--framework numpy: NumPy differentiates nothing; name the backward pass too: --target both",
        ),
        (
            ("both.py:f", "--shape", 3),
            "both.py imports jax and tinygrad_bn; say which with --framework",
        ),
        ((SCALE, *PAIR, "--op", "layer_norm"), "--op does not go with --target; leave one of them out"),
        ((SCALE, *PAIR, "--report", "r.jsonl"), "r.jsonl is for sweeps; of a target write .json"),
        ((SCALE, *PAIR, "--report", "r.pdf"), "--report: the suffix of r.pdf names no format"),
        (
            (SCALE, "--input", "text.npz"),
            "--input: text.npz:x has dtype <U1, wanted floats or integers",
        ),
        ((SCALE, "--input", "ints.npz"), "--input: ints.npz holds integers alone, wanted one floating dtype"),
        (
            (SCALE, "--input", "mixed.npz"),
            "--input: mixed.npz holds float32 and float64, wanted one floating",
        ),
        ((SCALE, "--input", "one.npy"), "--input: 1 input for scale(x, weight); save one array for each"),
        ((SCALE, *PAIR, "--exhaustive"), "--exhaustive does not go with --target"),
        ((SCALE, *PAIR, "--plugin", "my_numpy.py"), "--plugin does not go with --target"),
    ],
)
def test_wrong_usage_is_one_clear_line(refused, folder, words, message):
    (folder / "readme.txt").write_text("")
    (folder / "numpy.py").write_text("")
    np.savez("text.npz", x=np.array(["a"]), weight=np.ones(1))
    np.savez("ints.npz", x=np.arange(3), weight=np.arange(3))
    np.savez("mixed.npz", x=np.ones(3), weight=np.ones(3, np.float32))
    np.save("one.npy", np.ones(3))
    stand_in = "import types\njax, tg = types.ModuleType('jax'), types.ModuleType('tinygrad_bn')\n"
    (folder / "both.py").write_text(f"{stand_in}def f(x):\n    return x\n")
    assert message in refused("gradcheck", "--target", *words)


@pytest.mark.parametrize("words", [("--shape", 3), ("--backward", "f"), ("--stress", 9), ("--order", 1)])
def test_an_option_of_a_target_needs_one(refused, words):
    assert refused("gradcheck", *words) == (
        f"{words[0]} is an option of --target FILE.py:FUNCTION; pass that too"
    )


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
        ("def f(:\n    pass", "SyntaxError: "),
        ("raise SystemExit('enough')", "SystemExit: enough"),
        ("raise KeyError", "KeyError"),
        ("def g():\n    return 1 / 0\n\ng()", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_does_not_import_says_where_in_short(run, folder, source, error):
    (folder / "broken.py").write_text(source)
    result = check(run, "broken.py:f", "--shape", 3)
    assert result.exit_code == 2 and result.stdout == ""
    *trace, last = result.stderr.splitlines()
    assert last.startswith(f"Error: --target: broken.py does not import: {error}")
    assert all("broken.py" in line or not line.startswith("  File") for line in trace)
    if "def g" in source:
        assert [line.strip() for line in trace if not set(line) <= set(" ~^")] == [
            f'File "{folder / "broken.py"}", line 4, in <module>', "g()",
            f'File "{folder / "broken.py"}", line 2, in g', "return 1 / 0",
        ]  # fmt: skip
    assert "broken" not in sys.modules

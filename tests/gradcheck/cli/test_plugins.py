"""Operations of plugin files and of installed packages: loaded, listed, and checked at their samples."""

from __future__ import annotations

import json
import shlex
import sys

import pytest

from tinygrad_bn import registry
from tinygrad_bn.registry import REGISTRY, Broken

SOURCE = """
import numpy as np
from tinygrad_bn import Kernel, Sample, operation


class NumpyKernel:
    def forward(self, plan, x):
        return x * x * plan["factor"], ()

    def vjp(self, plan, needs, cotangent, arrays, aux):
        (x,) = arrays
        return ({wrong} * x * cotangent * plan["factor"],)


kernel = NumpyKernel()


def samples(rng):
    for shape in ((5,), (4, 3)):
        yield Sample(f"shape {{shape}}", (rng.normal(size=shape),), {{"factor": 0.5}})


def definition(xp, x, *, factor):
    \"\"\"y = factor · x².\"\"\"
    return factor * x * x, ()


def declare(registry):
    kernels = (Kernel("numpy", "{module}:kernel"),)
    return operation("{module}::square", registry=registry, kernels=kernels, samples=samples)(definition)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Write a plugin file of that name in the working folder; the registry forgets it after the test."""
    monkeypatch.chdir(tmp_path)
    list(REGISTRY)
    monkeypatch.setattr(REGISTRY, "_specs", dict(REGISTRY._specs))

    def write(module, source=SOURCE, wrong="2"):
        (tmp_path / f"{module}.py").write_text(source.format(module=module, wrong=wrong))
        return f"{module}.py"

    yield write
    registry._resolve.cache_clear()


def checks(result):
    return json.loads(result.stdout)["checks"]


def test_the_samples_of_a_plugin_are_checked(run, plugin):
    result = run("gradcheck", "--plugin", plugin("squares"), "--op", "squares::square", "--format", "json")
    assert result.exit_code == 0, result.output
    entries = checks(result)
    assert {entry["operation"] for entry in entries} == {"squares::square"}
    assert len(entries) >= 2 and all(entry["verdict"] == "PASS" for entry in entries)
    assert any("shape (4, 3)" in entry["configuration"] for entry in entries)
    assert "squares" not in sys.modules


def test_what_a_plugin_prints_is_not_in_the_report(run, plugin):
    chatty = SOURCE
    for place in ("    for shape in", "    kernels =", '        return x * x * plan["factor"], ()'):
        indent = place[: len(place) - len(place.lstrip())]
        chatty = chatty.replace(place, f"{indent}print('said {place.split()[0]}')\n{place}")
    result = run(
        "gradcheck", "--plugin", plugin("chatty", "print('said import')\n" + chatty), "--format", "json"
    )
    assert {entry["verdict"] for entry in checks(result)} == {"PASS"}
    said = {line.removeprefix("said ") for line in result.stderr.splitlines() if line.startswith("said ")}
    assert said == {"import", "for", "kernels", "return"}


def test_a_wrong_kernel_of_a_plugin_fails_and_the_command_repeats_it(run, plugin):
    words = ("gradcheck", "--plugin", plugin("thrice", wrong="3"), "--op", "square", "--seed", 4)
    result = run(*words)
    assert result.exit_code == 1
    assert "thrice::square  samples float64" in result.stdout
    assert "FAIL  thrice::square at " in result.stdout
    assert "thrice::square fails everywhere (" in result.stdout
    again = next(line for line in result.stdout.splitlines() if line.startswith("  again: "))
    assert again == "  again: python cli.py gradcheck --plugin thrice.py --op thrice::square --seed 4"
    assert run(*shlex.split(again)[3:]).exit_code == 1


def test_a_plugin_is_checked_alone_and_filters_that_do_not_fit_it_are_refused(run, refused, plugin):
    assert run("gradcheck", "--plugin", plugin("joins"), "--list").stdout == "joins::square\n"
    words = ("gradcheck", "--plugin", "joins.py")
    assert refused(*words, "--rank", 2).startswith("--rank chooses among the configurations of the built-in")
    for narrowing in (
        ("--case", "layer_norm shape=3 tail=1"),
        ("--dtype", "float32"),
        ("--data", "digits"),
        ("--exhaustive",),
    ):
        assert "joins::square is checked at its samples: leave" in refused(*words, *narrowing)
    both = run(*words, "--op", "layer_norm", "--op", "joins::square", "--list").stdout.splitlines()
    assert both[-1] == "joins::square" and len(both) > 30
    only = run(*words, "--op", "layer_norm", "--rank", 2, "--list")
    assert only.exit_code == 0 and "joins" not in only.stdout


def test_any_registered_operation_is_checked_at_its_samples_by_its_full_name(run):
    result = run("gradcheck", "--op", "math::exp", "--format", "json")
    assert result.exit_code == 0 and {entry["operation"] for entry in checks(result)} == {"math::exp"}


def test_a_plugin_may_declare_at_import_instead(run, plugin):
    at_import = SOURCE + "\nsquare = declare(__import__('tinygrad_bn').REGISTRY)\ndel declare\n"
    assert (
        run("ops", "list", "--plugin", plugin("importing", at_import)).stdout.count("importing::square") == 1
    )
    shown = run("ops", "show", "importing::square", "--plugin", plugin("importing", at_import)).stdout
    assert "cpu numpy: importing:kernel" in shown
    explained = run("ops", "explain", "importing::square", "--plugin", plugin("importing", at_import)).stdout
    assert explained.startswith("importing::square\n") and "runs" in explained


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import not_there", "does not import: ModuleNotFoundError: No module named 'not_there'"),
        ("x = 1", "declares no operation; use @operation in it, or define declare(registry)"),
        (
            "def declare(registry):\n    raise OSError('sorry')",
            "declare(registry) raised OSError: sorry",
        ),
        (
            "import tinygrad_bn as tg\n\n@tg.operation('broken::f')\ndef f(xp, x):\n    return x, ()\n",
            "a differentiable operation needs samples=",
        ),
    ],
)
def test_a_broken_plugin_is_one_line_and_status_3(run, plugin, source, message):
    for command in (("gradcheck",), ("ops", "list")):
        result = run(*command, "--plugin", plugin("broken", source.replace("{", "{{").replace("}", "}}")))
        assert result.exit_code == 3 and result.stdout == ""
        assert result.stderr.splitlines()[-1].startswith("Error: --plugin: broken.py")
        assert message in result.stderr.splitlines()[-1]
    assert "broken::f" not in REGISTRY


def test_a_plugin_that_is_not_there_is_an_error_too(run):
    result = run("gradcheck", "--plugin", "none.py")
    assert result.exit_code == 3
    assert result.stderr == "Error: --plugin: there is no file none.py\n"


def test_an_operation_of_an_installed_plugin_that_is_broken_is_a_plugin_error(run, monkeypatch):
    monkeypatch.setattr(REGISTRY, "_broken", {"theirs": Broken("theirs", "their-ops", "1.2", "OSError: no")})
    result = run("gradcheck", "--op", "theirs::norm")
    assert result.exit_code == 3 and result.stdout == ""
    assert "the plugin that provides it, their-ops 1.2, did not load (OSError: no)" in result.stderr
    assert result.stderr.count("\n") == 1

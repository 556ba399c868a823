"""`python cli.py ops`: the registered operations in a list, one in detail, and which kernel a call runs."""

from __future__ import annotations

import pytest

from tinygrad_bn.registry import REGISTRY, Broken


def test_list_has_a_line_for_each_operation_in_columns(run):
    result = run("ops", "list")
    assert result.exit_code == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [spec.name for spec in REGISTRY]
    assert all(len(line) <= 110 for line in lines)
    starts = {line.index("  y = ") + 2 for line in lines if "  y = " in line}
    assert len(starts) == 1
    column = {line.index("primitive") for line in lines if "primitive" in line}
    assert column == {lines[0].index("primitive")}
    (batch_norm,) = (line for line in lines if line.startswith("norm::batch_norm "))
    assert "  cpu: sequential, parallel; cuda: streaming, resident  y = (x − E[x])" in batch_norm


def test_a_broken_plugin_is_shown_apart_from_the_list(run, monkeypatch):
    broken = {"theirs": Broken("theirs", "their-ops", "1.2", "ImportError: no module named theirs")}
    monkeypatch.setattr(REGISTRY, "_broken", broken)
    result = run("ops", "list")
    assert result.exit_code == 0
    assert result.stderr == "theirs::*  BROKEN: their-ops 1.2: ImportError: no module named theirs\n"
    assert "theirs" not in result.stdout


def test_show_says_everything_that_was_declared(run):
    result = run("ops", "show", "batch_norm")
    assert result.exit_code == 0 and result.stderr == ""
    for line in (
        "operation        norm::batch_norm",
        "inputs           input, weight, bias",
        "dtypes           float32, float64",
        "state            running_mean, running_var",
        "properties       shift_invariant, scale_invariant",
        "public function  tinygrad_bn.functional:batch_norm",
    ):
        assert line in result.stdout.splitlines()
    kernels = [line for line in result.stdout.splitlines() if "tinygrad_bn.kernels.cpu." in line]
    assert [line.index("cpu ") for line in kernels] == [17] * 4
    assert "norms.py:" in result.stdout and "ordinary" in result.stdout


def test_show_marks_inputs_without_a_gradient(run):
    assert "running_var (no gradient)" in run("ops", "show", "batch_norm_inference").stdout


def test_show_of_a_primitive(run):
    result = run("ops", "show", "math::exp")
    assert "kernels          none: NumPy and rules" in result.stdout


@pytest.mark.parametrize("name", [spec.name for spec in REGISTRY])
def test_every_operation_can_be_shown_and_explained(run, name):
    assert run("ops", "show", name).stdout.startswith(f"operation        {name}\n")
    result = run("ops", "explain", name)
    assert result.exit_code == 0 and result.stdout.startswith(f"{name}\n") and "runs" in result.stdout


def reasons(result):
    """Kernel and reason of each line of `explain`."""
    return dict(line.split(None, 1) for line in result.stdout.splitlines()[1:])


def test_explain_says_which_kernel_runs_and_why_the_others_do_not(run):
    small = reasons(run("ops", "explain", "batch_norm", "--shape", "4,3,5"))
    assert small["tinygrad_bn.kernels.cpu.split:sequential"] == "runs"
    assert small["tinygrad_bn.kernels.cpu.split:parallel"].startswith(
        "preferred from 65,536 elements, these are 60"
    )
    assert small["tinygrad_bn.kernels.cpu.cols:sequential"] == "serves the cols view, this call is split"
    large = reasons(run("ops", "explain", "batch_norm", "--shape", "64,256,28,28", "--dtype", "float64"))
    assert large["tinygrad_bn.kernels.cpu.split:parallel"] == "runs"
    last = reasons(run("ops", "explain", "batch_norm", "--shape", "4,5,3", "--attribute", "channel_axis=-1"))
    assert last["tinygrad_bn.kernels.cpu.cols:sequential"] == "runs"
    asked = reasons(run("ops", "explain", "layer_norm", "--kernel", "definition"))
    assert asked["definition"] == "runs: asked for"


def test_attributes_that_follow_from_the_shape_follow_it(run):
    assert "runs" in reasons(run("ops", "explain", "layer_norm", "--shape", "100,200")).values()
    assert "runs" in reasons(run("ops", "explain", "dropout", "--shape", "100,200")).values()


def test_a_shape_takes_no_memory(run):
    assert "runs" in reasons(run("ops", "explain", "rms_norm", "--shape", "1000000,1000000")).values()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "batchnorm"), "no operation 'batchnorm'; did you mean batch_norm"),
        (("show", "nothing::here"), "no operation 'nothing::here'"),
        (("explain", "zzz"), "no operation 'zzz'; `python cli.py ops list` shows all"),
        (("explain",), "Missing argument 'NAME'."),
        (("explain", "batch_norm", "--shape", "4,x"), "--shape is '4,x', wanted lengths such as 4,3,5"),
        (("explain", "batch_norm", "--shape", "4,-1"), "--shape is '4,-1', wanted lengths of 0 or more"),
        (
            ("explain", "batch_norm", "--shape", "4"),
            "batch_norm cannot be called on shape (4,) with channel_",
        ),
        (("explain", "batch_norm", "--shape", ""), "cannot be called on shape ()"),
        (("explain", "batch_norm", "--shape", "9" * 20), "cannot be called on shape (9999"),
        (("explain", "batch_norm", "--dtype", "int8"), "'int8' is not one of 'float32', 'float64'."),
        (("explain", "batch_norm", "--kernel", "turbo"), "kernel='turbo' cannot run this call"),
        (("explain", "batch_norm", "--attribute", "groups=3"), "no 'groups'; its attributes are channel_"),
        (("explain", "batch_norm", "--attribute", "eps"), "--attribute is 'eps', wanted name=value"),
        (("explain", "batch_norm", "--attribute", "eps=one"), "--attribute is 'eps=one', wanted name=value"),
        (("explain", "batch_norm", "--attribute", "channel_axis=7"), "with channel_axis=7, eps="),
        (("explain", "group_norm", "--attribute", "num_groups=4"), "with num_groups=4, channel_axis=1"),
        (("explain", "layer_norm", "--attribute", "normalized_shape=5"), "with normalized_shape=5, eps="),
        (
            ("explain", "layer_norm", "--shape", "4,5", "--attribute", "normalized_shape=(7,)"),
            "normalized_shape is (7,), wanted the last axes of the input, whose shape is (4, 5)",
        ),
        (("explain", "rms_norm", "--attribute", "eps=-1"), "eps is -1, wanted a finite number ≥ 0"),
        (("explain", "batch_norm", "--shape", "1,3"), "one value per channel in training"),
        (("explain", "batch_norm", "--shape", "2,3,2,2,2,2"), "wanted rank 2 to 5"),
        (("explain", "batch_norm_inference", "--attribute", "eps=-1"), "eps is -1, wanted"),
        (("explain", "instance_norm", "--shape", "2,3"), "wanted rank 3 to 5"),
        (("explain", "dropout", "--attribute", "p=1.5"), "p must be in [0, 1], got 1.5"),
        (("dance",), "no command 'dance'; wanted explain, list or show"),
        (("lst",), "no command 'lst'; did you mean list?"),
        ((), "no command; wanted explain, list or show; --help says more"),
    ],
)
def test_wrong_usage_is_one_clear_line(refused, words, message):
    assert message in refused("ops", *words)


@pytest.mark.parametrize("group", ["ops", "calibrate", "bench"])
def test_the_help_of_a_group_tells_its_commands_in_whole_sentences(run, group):
    commands = run(group, "--help").stdout.partition("\nCommands:\n")[2]
    assert commands.count(".\n") >= 3 and "..." not in commands

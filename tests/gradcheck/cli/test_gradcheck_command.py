"""`python cli.py gradcheck`: what it selects, what it reports, and its exit status."""

from __future__ import annotations

import json
import math
import shlex

import numpy as np
import pytest

from gradcheck.adapters import tinygrad_bn as adapter
from gradcheck.axes import Configuration
from gradcheck.cli import main
from gradcheck.judge import Check, Verdict
from gradcheck.sweep import Result

QUICK = "layer_norm shape=4,5 tail=1"
DROPOUT = "dropout shape=3,5 mask_axes=0 p=0.25 scaling=upscale_in_train affine=none dtype=float32"
KEYS = {
    "operation", "configuration", "seed", "kernels_forward", "kernels_vjp", "verdict", "reasons", "checks",
    "findings", "error", "bar", "tolerance", "resolution", "seconds", "command", "source", "program", "place",
    "notes", "device",
}  # fmt: skip


def strictly(text):
    """Parse JSON that has no NaN and no infinity."""

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def pretend(monkeypatch, *verdicts, **numbers):
    """Let the next checks have these verdicts, in turn, without running anything."""
    left = list(verdicts)

    def check_configuration(configuration, seed=0, given=None, source=(), device="cpu"):
        verdict = left.pop(0)
        if isinstance(verdict, BaseException):
            raise verdict
        reason = "" if verdict is Verdict.PASS else f"because of {verdict}"
        checks = (Check("gradient", verdict, reason, "input", **numbers),)
        return Result(configuration, seed, checks, ("k.forward",), ("k.vjp",), 0.25, source, device=device)

    monkeypatch.setattr(adapter, "check_configuration", check_configuration)


# What is reported


def test_json_has_an_object_with_the_promised_entries(run):
    result = run(
        "gradcheck", "--op", "rms_norm", "--op", "dropout", "--rank", 1, "--seed", 3, "--format", "json"
    )
    assert result.exit_code == 0
    report = strictly(result.stdout)
    assert report.keys() == {"schema_version", "seed", "versions", "planned", "interrupted", "checks"}
    assert report["schema_version"] == 2 and report["seed"] == 3
    assert report["versions"].keys() >= {"python", "numpy", "numba"}
    assert {entry["operation"] for entry in report["checks"]} == {"rms_norm", "dropout"}
    assert len(report["checks"]) > 15
    for entry in report["checks"]:
        assert entry.keys() == KEYS
        assert Configuration.parse(entry["configuration"]).operation == entry["operation"]
        assert entry["verdict"] == "PASS" and entry["reasons"] == []
        assert 0 <= entry["error"] <= 2 * entry["bar"] + entry["tolerance"]
        float32 = entry["kernels_forward"][0].endswith("float32")
        assert entry["resolution"] is None or 0 < entry["resolution"] < (1e-3 if float32 else 1e-6)
        assert entry["seconds"] > 0
        for phase in ("forward", "vjp"):
            assert [f".{phase} " in name for name in entry[f"kernels_{phase}"]] == [True, True]
    assert f"{len(report['checks'])} configurations: " in result.stderr


@pytest.mark.parametrize(
    "case", [QUICK, DROPOUT, "group_norm shape=2,6,3 channel_axis=1 groups=3 layout=strided"]
)
def test_the_command_of_an_entry_repeats_it(run, case):
    (entry,) = strictly(run("gradcheck", "--case", case, "--seed", 5, "--format", "json").stdout)["checks"]
    python, script, *words = shlex.split(entry["command"])
    assert (python, script) == ("python", "cli.py")
    (again,) = strictly(run(*words, "--format", "json").stdout)["checks"]
    assert {**entry, "seconds": 0} == {**again, "seconds": 0}


def test_the_command_repeats_a_check_on_an_array_of_the_users(run, tmp_path):
    path = tmp_path / "my arrays.npz"
    rng = np.random.default_rng(0)
    np.savez(path, **{"it's one": rng.normal(size=(4, 3)), "other": rng.normal(size=(2, 3, 2))})
    entries = strictly(run("gradcheck", "--input", path, "--op", "rms_norm", "--format", "json").stdout)[
        "checks"
    ]
    assert len(entries) == 5
    for entry in (entries[0], entries[-1]):
        _, _, *words = shlex.split(entry["command"])
        (again,) = strictly(run(*words, "--format", "json").stdout)["checks"]
        assert {**entry, "seconds": 0} == {**again, "seconds": 0}


def test_numbers_that_are_not_finite_are_named(run, monkeypatch):
    pretend(monkeypatch, Verdict.FAIL, error=math.nan, bar=math.inf, tolerance=-math.inf, resolution=math.inf)
    result = run("gradcheck", "--case", QUICK, "--format", "json")
    (entry,) = strictly(result.stdout)["checks"]
    figures = [entry[name] for name in ("error", "bar", "tolerance", "resolution")]
    assert figures == ["NaN", "Infinity", "-Infinity", "Infinity"]
    assert entry["verdict"] == "FAIL" and entry["reasons"] == ["gradient of input: because of FAIL"]


def test_the_table_counts_and_the_failures_say_how_to_repeat_them(run, monkeypatch):
    verdicts = [Verdict.PASS, Verdict.VACUOUS, Verdict.ERROR, Verdict.FAIL]
    pretend(monkeypatch, *verdicts, error=1e-3, bar=1e-9, tolerance=1e-10, resolution=1e-8)
    cases = [f"layer_norm shape={n},5 tail=1" for n in (3, 6, 7, 8)]
    result = run("gradcheck", *(word for case in cases for word in ("--case", case)), "--seed", 9)
    assert result.exit_code == 1
    assert "1 PASS 1 VACUOUS 1 FAIL 1 ERROR" in result.stdout
    assert result.stdout.index("ERROR  layer_norm") < result.stdout.index("FAIL  layer_norm")
    assert "  gradient of input: because of FAIL\n" in result.stdout
    assert "  again: python cli.py gradcheck --case 'layer_norm shape=8,5 tail=1' --seed 9\n" in result.stdout
    assert (
        result.stdout.rstrip()
        .splitlines()[-1]
        .startswith("4 configurations: 1 PASS, 1 VACUOUS, 1 FAIL, 1 ERROR in ")
    )
    assert result.stderr == ""


def test_many_failures_are_shortened_in_the_table(run, monkeypatch):
    cases = [f"layer_norm shape={n},5 tail=1" for n in range(1, 26)]
    pretend(monkeypatch, *[Verdict.FAIL] * 25)
    result = run("gradcheck", *(word for case in cases for word in ("--case", case)))
    assert result.stdout.count("again: ") == 20
    assert "… and 5 more; --format json has their reasons\n" in result.stdout
    for n in range(21, 26):  # the command at least
        line = f"FAIL          python cli.py gradcheck --case 'layer_norm shape={n},5 tail=1' --seed 0"
        assert line in result.stdout.splitlines()


def test_output_in_a_pipe_is_plain_and_narrow(run):
    result = run("gradcheck", "--case", QUICK, "--case", DROPOUT)
    assert "\x1b" not in result.output
    lines = result.stdout.splitlines()
    columns = "operation configurations verdicts worst error allowed resolution time"
    assert " ".join(lines[0].split()) == columns
    assert all(len(line) <= 110 for line in lines)
    assert lines[1].startswith("layer_norm  training float64") and "1 PASS" in lines[1]


def test_rows_of_an_operation_are_together(run, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(3, 2)))
    words = ("gradcheck", "--input", path, "--op", "batch_norm", "--op", "group_norm", "--op", "rms_norm")
    rows = run(*words).stdout.splitlines()[1:5]
    assert [row.split()[0] for row in rows] == ["batch_norm", "inference,", "group_norm", "rms_norm"]


# What is selected


def test_list_prints_names_that_read_back_and_runs_nothing(run, monkeypatch):
    pretend(monkeypatch)
    result = run(
        "gradcheck", "--list", "--op", "group_norm", "--rank", 3, "--dtype", "float32", "--layout", "strided"
    )
    assert result.exit_code == 0
    found = [Configuration.parse(line) for line in result.stdout.splitlines()]
    assert found and {(c.operation, c.rank, c.dtype, c.layout) for c in found} == {
        ("group_norm", 3, "float32", "strided")
    }
    assert result.stderr == f"{len(found)} configurations\n"


def test_the_default_is_hundreds_and_exhaustive_thousands(run):
    count = len(run("gradcheck", "--list").stdout.splitlines())
    everything = len(run("gradcheck", "--list", "--exhaustive").stdout.splitlines())
    assert 300 <= count <= 1000 and everything >= 3000


def test_filters_of_one_kind_add_up_and_of_two_kinds_cut(run):
    words = ("--op", "batch_norm", "--op", "rms_norm", "--mode", "inference", "--rank", 2, "--rank", 3)
    found = [Configuration.parse(line) for line in run("gradcheck", "--list", *words).stdout.splitlines()]
    assert {(c.operation, c.mode, c.rank) for c in found} == {
        ("batch_norm", "inference", 2),
        ("batch_norm", "inference", 3),
    }


@pytest.mark.parametrize(
    "words",
    [
        ("--op", "layer_norm", "--mode", "inference"),
        ("--case", QUICK, "--op", "rms_norm"),
        ("--op", "rms_norm", "--rank", 1, "--layout", "broadcast"),
    ],
)
def test_nothing_selected_is_status_4(run, words):
    result = run("gradcheck", *words)
    assert result.exit_code == 4
    assert result.stdout == ""
    assert result.stderr == "Nothing to check: no configuration has all of these settings.\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--op", "layernorm"), "--op: no operation 'layernorm'; did you mean layer_norm?"),
        (
            ("--op", "softmax"),
            "--op: no operation 'softmax'; `python cli.py ops list` shows all",
        ),
        (("--op", "layer_norm", "--rank", 5), "no rank 5 to check; the ranks are layer_norm: 1 to 4"),
        (("--op", "instance_norm", "--rank", 2), "the ranks are instance_norm: 3 to 5"),
        (("--rank", 0), "no rank 0 to check; the ranks are batch_norm: 2 to 5; instance_norm: 3 to 5;"),
        (("--rank", "two"), "Invalid value for '--rank': 'two' is not a valid integer."),
        (("--dtype", "float16"), "--dtype: float16 goes with --target; the configurations are float64 or"),
        (("--dtype", "int8"), "'int8' is not one of 'float64', 'float32', 'float16'."),
        (("--mode", "eval"), "'eval' is not one of 'training', 'inference'."),
        (("--layout", "diagonal"), "'diagonal' is not one of 'contiguous', 'transposed'"),
        (("--seed", -1), "-1 is not in the range 0<=x<=18446744073709551615"),
        (("--seed", 2**64), "is not in the range"),
        (("--format", "xml"), "'xml' is not one of 'terminal', 'json', 'junit', 'github',"),
        (("--data", "mnist"), "'mnist' is not"),
        (("--frobnicate",), "No such option"),
        (("everything",), "Got unexpected extra argument (everything)"),
        (("--array", "x"), "--array names an array of an .npz file; pass --input FILE.npz with it"),
        (("--input", "x.npy", "--data", "digits"), "--input and --data each say where the input comes from"),
        (("--exhaustive", "--case", QUICK), "--exhaustive widens what is chosen, but --case"),
        (("--exhaustive", "--data", "digits"), "leave one out"),
        (("--list", "--format", "json"), "--list prints names to stdout; leave --format and --report out"),
        (("--list", "--report", "names.txt"), "--list prints names to stdout"),
        (("--case", ""), "--case: '' is no operation; begin with one of batch_norm"),
        (("--case", "layer_norm shape=4 tail=2"), "--case: layer_norm: tail is 2, wanted the number"),
        (
            ("--case", f"{QUICK} values=given"),
            "values=given needs --input with an array of shape (4, 5); none was",
        ),
        (("--case", QUICK, "--data", "digits"), "draws its own input; leave --input and --data out"),
        (
            ("--case", f"{QUICK} values=given", "--data", "digits"),
            "shape (4, 5); digits as vectors has shape (24, 64), digits as images has shape (24, 1, 8, 8)",
        ),
        (("--case", "group_norm shape=2,6,3 channel_axis=1 groups=4"), "wanted a divisor of the 6 channels"),
        (("--case", f"{QUICK} values=zeros eps=0"), "--case: layer_norm: eps is 0 where all values of a"),
        (("--case", "rms_norm shape=" + "9" * 20 + " tail=1"), "--case: rms_norm: shape (9999"),
        (
            ("--case", DROPOUT.replace("0.25", "1e-12")),
            "--case: dropout: p is 1e-12, which masks cannot tell",
        ),
    ],
)
def test_wrong_usage_is_one_clear_line(refused, words, message):
    """The fixture sees to it that nothing else is printed: no usage, no hint."""
    if "digits" in words:
        pytest.importorskip("sklearn")
    assert message in refused("gradcheck", *words)


@pytest.mark.parametrize(
    "words", [(), ("--nonsense",), ("nonsense",), ("ops",), ("ops", "show"), ("ops", "x")]
)
def test_wrong_usage_of_the_program_itself_is_one_line_too(refused, words):
    refused(*words)


def test_rank_5_of_one_operation_among_others_is_fine(run):
    result = run("gradcheck", "--list", "--op", "layer_norm", "--op", "batch_norm", "--rank", 5)
    assert result.exit_code == 0
    assert {line.split()[0] for line in result.stdout.splitlines()} == {"batch_norm"}


# How it ends


@pytest.mark.parametrize("verdict", Verdict)
def test_only_a_pass_is_status_0(run, monkeypatch, verdict):
    pretend(monkeypatch, verdict)
    assert run("gradcheck", "--case", QUICK).exit_code == (0 if verdict is Verdict.PASS else 1)


def test_one_failure_among_many_is_status_1(run, monkeypatch):
    pretend(monkeypatch, Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.PASS)
    cases = [f"layer_norm shape={n},5 tail=1" for n in (3, 4, 5)]
    assert run("gradcheck", *(word for case in cases for word in ("--case", case))).exit_code == 1


def ends(monkeypatch, *words):
    """The exit status of the whole program."""
    monkeypatch.setattr("sys.argv", ["cli.py", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_an_internal_error_is_status_3_with_its_traceback(monkeypatch, capsys):
    pretend(monkeypatch, AssertionError("impossible"))
    assert ends(monkeypatch, "gradcheck", "--case", QUICK) == 3
    streams = capsys.readouterr()
    assert "Traceback" in streams.err and "AssertionError: impossible" in streams.err
    assert streams.err.endswith("This is a bug in the program, not in what you asked for.\n")
    assert streams.out == ""


def test_the_program_gives_the_status_of_the_command(monkeypatch, capsys):
    pretend(monkeypatch, Verdict.PASS, Verdict.FAIL)
    assert ends(monkeypatch, "gradcheck", "--case", QUICK) == 0
    assert ends(monkeypatch, "gradcheck", "--case", QUICK) == 1
    assert ends(monkeypatch, "gradcheck", "--op", "softmax") == 2
    assert ends(monkeypatch, "gradcheck", "--op", "rms_norm", "--mode", "inference") == 4
    assert "Usage" not in capsys.readouterr().err


@pytest.mark.parametrize("called", ["/usr/bin/tgbn", "tgbn.exe", "tgbn"])
def test_the_command_that_repeats_a_failure_is_as_the_program_was_called(monkeypatch, capsys, called):
    pretend(monkeypatch, Verdict.FAIL)
    monkeypatch.setattr("sys.argv", [called, "gradcheck", "--case", QUICK])
    with pytest.raises(SystemExit):
        main()
    assert f"  again: tgbn gradcheck --case '{QUICK}' --seed 0\n" in capsys.readouterr().out


def test_an_interrupt_is_status_130_and_prints_no_traceback(monkeypatch, capsys):
    pretend(monkeypatch, KeyboardInterrupt())
    assert ends(monkeypatch, "gradcheck", "--case", QUICK, "--case", DROPOUT) == 130
    streams = capsys.readouterr()
    assert streams.out == "" and streams.err == "Interrupted.\n"


def test_an_interrupt_keeps_what_was_found_until_then(monkeypatch, capsys):
    pretend(monkeypatch, Verdict.FAIL, KeyboardInterrupt())
    assert ends(monkeypatch, "gradcheck", "--case", QUICK, "--case", DROPOUT) == 130
    streams = capsys.readouterr()
    assert "FAIL  layer_norm shape=4,5" in streams.out
    assert streams.err == "Interrupted: 1 of 2 configurations done.\n"


@pytest.mark.parametrize("words", [(), ("gradcheck",), ("ops",), ("ops", "explain")])
def test_help_is_there(run, words):
    for flag in ("-h", "--help"):
        result = run(*words, flag)
        assert result.exit_code == 0 and result.stdout.startswith("Usage: ")


def test_the_version(run):
    result = run("--version")
    assert result.exit_code == 0 and result.stdout.split()[-1] == "0.1.0"

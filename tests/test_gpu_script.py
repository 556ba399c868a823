"""benchmarks/gpu.sh with a `python` that only says what it was asked for, and fails where it is told to."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
PARTS = {
    "versions.txt": "cli.py doctor",
    "masks.txt": "benchmarks/gpu_masks.py cuda:1",
    "sweep.txt": "cli.py gradcheck --device cuda:1 --report {folder}/sweep.json",
    "bandwidth.md": "cli.py bench --device cuda:1 --format markdown --save {folder}/bandwidth.json",
    "halves.md": "cli.py bench --device cuda:1 --dtype bfloat16 --format markdown",
    "rounding.txt": "benchmarks/gpu_halves.py cuda:1",
    "graphs.md": "cli.py bench --device cuda:1 --graph --format markdown",
    "host.md": "cli.py bench tape --device cuda:1 --format markdown",
}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


@pytest.fixture
def gpu_sh(tmp_path):
    """Run the script; the commands that hold `fails` fail."""
    folder = tmp_path / "results"

    def run(*words, fails="nothing"):
        stub = tmp_path / "python"
        stub.write_text(f'#!/bin/sh\necho "$@"\necho talk >&2\ncase "$*" in *{fails}*) exit 3;; esac\n')
        stub.chmod(0o755)
        return folder, subprocess.run(
            [SCRIPT, folder, *words],
            env={**os.environ, "PYTHON": str(stub), "DEVICE": "cuda:1"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_every_part_leaves_its_table(gpu_sh):
    folder, done = gpu_sh()
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    tables = {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".log"}
    assert tables == {name: command.format(folder=folder) + "\n" for name, command in PARTS.items()}
    logs = {path.name: path.read_text() for path in folder.glob("*.log")}
    assert logs == {f"{name.partition('.')[0]}.log": "talk\n" for name in PARTS}
    assert done.stderr.endswith(f"The tables are in {folder}.\n")


def test_a_part_that_fails_stops_no_other_and_is_named_at_the_end(gpu_sh):
    folder, done = gpu_sh(fails="gradcheck")
    assert done.returncode == 1
    assert done.stderr.endswith("FAILED: sweep\n")
    assert (folder / "host.md").exists()


def test_only_some_parts(gpu_sh):
    folder, done = gpu_sh("masks", "versions", fails="gradcheck")
    assert done.returncode == 0
    assert {path.name for path in folder.iterdir()} == {
        "masks.txt",
        "masks.log",
        "versions.txt",
        "versions.log",
    }


def test_a_part_that_is_unknown(gpu_sh):
    folder, done = gpu_sh("versions", "speed")
    assert done.returncode == 2 and "There is no part speed" in done.stderr
    assert not folder.exists(), "it is seen before the parts that are known run for an hour"


def test_the_commands_have_these_options():
    """What the stub believes, the program knows."""
    from gradcheck.cli import cli

    for command in PARTS.values():
        program, *words = command.format(folder="results").split()
        if program != "cli.py":
            assert (ROOT / program).exists()
            continue
        context = cli.make_context("cli.py", [word for word in words if not word.startswith("results")][:1])
        found = cli.get_command(context, words[0])
        options = {option for parameter in found.params for option in parameter.opts}
        subcommands = getattr(found, "commands", {})
        if words[1:] and words[1] in subcommands:
            options = {option for parameter in subcommands[words[1]].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout

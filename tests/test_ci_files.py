"""What other repositories run of this one: the GitHub action, the pre-commit hook, and their page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import blocks

yaml = pytest.importorskip("yaml", reason="pre-commit, which needs PyYAML, is not installed")

ROOT = Path(__file__).parents[1]
NORMS = """
import numpy as np


def layer_norm(x, weight, bias):
    centred = x - x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
    xhat = centred * rstd
    return xhat * weight + bias, (xhat, rstd, weight)


def backward(saved, cotangent):
    xhat, rstd, weight = saved
    g = weight * cotangent
    dx = rstd * (g - {mean} - xhat * (g * xhat).mean(axis=-1, keepdims=True))
    return dx, (cotangent * xhat).sum(axis=0), cotangent.sum(axis=0)
"""
RIGHT, WRONG = "g.mean(axis=-1, keepdims=True)", "0"


def of_page():
    """The YAML of the page."""
    return [yaml.safe_load(text) for text in blocks("check-in-ci.md", "yaml")]


@pytest.fixture
def path(tmp_path):
    """A PATH where `python` is this one, and `tgbn` the program of this checkout."""
    scripts = tmp_path / "bin"
    scripts.mkdir()
    (scripts / "python").symlink_to(sys.executable)
    tgbn = scripts / "tgbn"
    tgbn.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
                    "from gradcheck.cli import main\nmain()\n")  # fmt: skip
    tgbn.chmod(0o755)
    return os.pathsep.join([str(scripts), os.environ["PATH"]])


@pytest.fixture
def repository(tmp_path):
    """A repository of somebody's, with a gradient to check."""
    folder = tmp_path / "theirs"
    folder.mkdir()

    def write(mean):
        (folder / "norms.py").write_text(NORMS.format(mean=mean))
        return folder

    return write


def options_of(workflow):
    (options,) = (
        step["with"]["options"]
        for job in workflow["jobs"].values()
        for step in job["steps"]
        if step.get("uses", "").startswith("OWNER/NAME@")
    )
    return options


@pytest.mark.parametrize(("mean", "status"), [(RIGHT, 0), (WRONG, 1)], ids=["right", "wrong"])
def test_the_action_checks_with_the_options_of_the_page(repository, path, mean, status):
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    install, check = action["runs"]["steps"]
    assert action["runs"]["using"] == "composite" and install["shell"] == check["shell"] == "bash"
    assert install["run"] == 'python -m pip install --quiet "$GITHUB_ACTION_PATH"'
    assert check["env"] == {"OPTIONS": "${{ inputs.options }}"} and action["inputs"].keys() == {"options"}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", check["run"]],
        env={**os.environ, "PATH": path, "OPTIONS": options_of(of_page()[0])},
        cwd=repository(mean),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert done.stdout.startswith("FAIL  layer_norm" if status else "PASS  layer_norm")


def test_the_steps_of_the_page_are_steps():
    workflow, steps, config = of_page()
    (job,) = workflow["jobs"].values()
    assert workflow[True] == ["push", "pull_request"]  # `on` is a truth value to YAML 1.1
    for step in [*job["steps"], *steps]:
        assert re.fullmatch(r"[\w./-]+@[\w.]+", step["uses"])
    assert steps[0]["with"]["options"].split()[-2:] == ["--report", steps[1]["with"]["path"]]
    assert config["repos"][0]["hooks"][0]["id"] == "gradcheck"


@pytest.mark.parametrize(("mean", "status"), [(RIGHT, 0), (WRONG, 1)], ids=["right", "wrong"])
def test_the_hook_lets_a_commit_through_or_not(repository, path, tmp_path, mean, status):
    pytest.importorskip("pre_commit", reason="pre-commit is not installed")
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    environment = {**os.environ, "PATH": path, "PRE_COMMIT_HOME": str(tmp_path / "home")}
    for name in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{name}_NAME": "Somebody", f"GIT_{name}_EMAIL": "somebody@example.org"}

    def run(*words, folder):
        return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    ours = tmp_path / "ours"  # of this repository, what pre-commit reads
    ours.mkdir()
    shutil.copy(ROOT / ".pre-commit-hooks.yaml", ours)
    for words in (["init"], ["add", "."], ["commit", "-m", "hooks"]):
        assert run("git", *words, folder=ours).returncode == 0
    config = of_page()[2]
    config["repos"][0] |= {
        "repo": str(ours),
        "rev": run("git", "rev-parse", "HEAD", folder=ours).stdout.strip(),
    }
    config["repos"][0]["hooks"][0]["language"] = "system"  # without installing: `tgbn` is there
    theirs = repository(mean)
    (theirs / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    for words in (["init"], ["add", "."]):
        assert run("git", *words, folder=theirs).returncode == 0
    assert run(sys.executable, "-m", "pre_commit", "install", folder=theirs).returncode == 0
    done = run("git", "commit", "-m", "norms", folder=theirs)
    assert done.returncode == status, done.stderr
    text = done.stdout + done.stderr
    assert ("the mean path is missing" in text) is bool(status)

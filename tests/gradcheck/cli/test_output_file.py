"""A report goes to a file whole or not at all; a path that cannot be written is refused before any work."""

from __future__ import annotations

import json
import os
import stat
import xml.etree.ElementTree as ElementTree

import pytest
from test_gradcheck_command import QUICK, pretend

from gradcheck.cli import output
from gradcheck.judge import Verdict


@pytest.fixture(autouse=True)
def pretended(monkeypatch):
    pretend(monkeypatch, Verdict.PASS, KeyboardInterrupt())


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "words"), [("r.json", ()), ("r.JSON", ()), ("r.txt", ("--format", "json"))], ids=str
)
def test_json_by_suffix_or_by_name(run, tmp_path, name, words):
    result = run("gradcheck", "--case", QUICK, "--report", tmp_path / name, *words)
    assert result.exit_code == 0 and result.stdout == ""
    assert result.stderr.startswith("1 configuration: 1 PASS in ")
    assert len(json.loads((tmp_path / name).read_text())["checks"]) == 1
    assert listing(tmp_path) == [name]


def test_svg_is_a_picture_and_any_other_suffix_is_text(run, tmp_path, monkeypatch):
    run("gradcheck", "--case", QUICK, "--report", tmp_path / "r.svg")
    assert ElementTree.fromstring((tmp_path / "r.svg").read_text()).tag.endswith("svg")
    pretend(monkeypatch, Verdict.PASS)
    run("gradcheck", "--case", QUICK, "--report", tmp_path / "r.txt")
    text = (tmp_path / "r.txt").read_text()
    assert text.startswith("operation") and "\x1b" not in text and text.endswith(" s\n")


def test_an_interrupt_later_writes_what_is_there(run, tmp_path):
    cases = ("--case", QUICK, "--case", "rms_norm shape=3,4 tail=1")
    result = run("gradcheck", *cases, "--report", tmp_path / "r.json")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "Interrupted: 1 of 2 configurations done."
    (entry,) = json.loads((tmp_path / "r.json").read_text())["checks"]
    assert entry["configuration"] == QUICK
    assert listing(tmp_path) == ["r.json"]


def test_a_failure_is_written_too(run, tmp_path, monkeypatch):
    pretend(monkeypatch, Verdict.FAIL)
    assert run("gradcheck", "--case", QUICK, "--report", tmp_path / "r.json").exit_code == 1
    assert json.loads((tmp_path / "r.json").read_text())["checks"][0]["verdict"] == "FAIL"


def test_an_interrupt_before_the_first_result_keeps_the_old_file_and_leaves_nothing_else(
    run, tmp_path, monkeypatch
):
    pretend(monkeypatch, KeyboardInterrupt())
    (tmp_path / "r.json").write_text("old")
    assert run("gradcheck", "--case", QUICK, "--report", tmp_path / "r.json").exit_code == 130
    assert (tmp_path / "r.json").read_text() == "old"
    assert run("gradcheck", "--op", "softmax", "--report", tmp_path / "r.json").exit_code == 2
    assert (tmp_path / "r.json").read_text() == "old"
    assert listing(tmp_path) == ["r.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=repr)
def test_trouble_while_writing_keeps_the_old_file_and_leaves_nothing_else(run, tmp_path, monkeypatch, error):
    (tmp_path / "r.json").write_text("old")

    def replace(*_):
        raise error

    monkeypatch.setattr(output.os, "replace", replace)
    result = run("gradcheck", "--case", QUICK, "--report", tmp_path / "r.json")
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert "Traceback" not in result.stderr
    assert (tmp_path / "r.json").read_text() == "old" and listing(tmp_path) == ["r.json"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "--report: the empty path is a folder; name a file in it"),
        ("{}", "is a folder; name a file in it"),
        ("{}/missing/r.json", "there is no folder {}/missing; make it, or choose another path"),
        ("{}/file/r.json", "there is no folder {}/file"),
        ("/proc/r.json", "--report: /proc/r.json cannot be written ("),
        ("{}/" + "x" * 300, "File name too long); choose another path"),
    ],
    ids=["empty", "folder", "missing parent", "parent is a file", "no writing here", "long"],
)
def test_a_path_that_cannot_be_written_is_refused_before_any_work(
    refused, tmp_path, monkeypatch, path, message
):
    pretend(monkeypatch)  # a check would fail for want of a verdict
    (tmp_path / "file").write_text("")
    said = refused("gradcheck", "--case", QUICK, "--report", path.format(tmp_path))
    assert message.format(tmp_path) in said
    assert listing(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("target", ["folder", "file"])
def test_no_permission_is_refused(refused, tmp_path, target):
    (tmp_path / "r.json").write_text("old")
    locked = tmp_path if target == "folder" else tmp_path / "r.json"
    locked.chmod(0o555 if target == "folder" else 0o444)
    try:
        assert "cannot be written (" in refused("gradcheck", "--case", QUICK, "--report", tmp_path / "r.json")
        assert (tmp_path / "r.json").read_text() == "old"
    finally:
        locked.chmod(0o755)


def test_a_device_is_written_to_not_replaced(run):
    before = os.stat(os.devnull)
    assert run("gradcheck", "--case", QUICK, "--report", os.devnull).exit_code == 0
    after = os.stat(os.devnull)
    assert stat.S_ISCHR(after.st_mode) and after.st_ino == before.st_ino


def test_a_link_stays_a_link(run, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "r.json").symlink_to(tmp_path / "there" / "real.json")
    run("gradcheck", "--case", QUICK, "--report", tmp_path / "r.json", "--format", "json")
    assert (tmp_path / "r.json").is_symlink()
    assert json.loads((tmp_path / "there" / "real.json").read_text())["schema_version"] == 2
    assert listing(tmp_path / "there") == ["real.json"]


def test_permissions_are_those_of_the_old_file_or_of_any_new_one(run, tmp_path, monkeypatch):
    old = tmp_path / "old.json"
    old.write_text("old")
    old.chmod(0o640)
    run("gradcheck", "--case", QUICK, "--report", old)
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    pretend(monkeypatch, Verdict.PASS)
    run("gradcheck", "--case", QUICK, "--report", tmp_path / "new.json")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "new.json").stat().st_mode == (tmp_path / "plain").stat().st_mode

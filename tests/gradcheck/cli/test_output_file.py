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
from gradcheck.report import html


@pytest.fixture(autouse=True)
def pretended(monkeypatch):
    pretend(monkeypatch, Verdict.PASS, KeyboardInterrupt())


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "words"), [("r.json", ()), ("r.JSON", ()), ("r", ("--format", "json"))], ids=str
)
def test_json_by_suffix_or_by_name(run, tmp_path, name, words):
    result = run("gradcheck", "--case", QUICK, "--report", tmp_path / name, *words)
    printed = result.stderr if words else result.stdout.splitlines()[-1]
    assert result.exit_code == 0 and printed.startswith("1 configuration: 1 PASS in ")
    assert len(json.loads((tmp_path / name).read_text())["checks"]) == 1
    assert listing(tmp_path) == [name]


def test_svg_is_a_picture_and_txt_is_text(run, tmp_path, monkeypatch):
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
    assert run("gradcheck", "--case", QUICK, "--report", os.devnull, "--format", "svg").exit_code == 0
    after = os.stat(os.devnull)
    assert stat.S_ISCHR(after.st_mode) and after.st_ino == before.st_ino


def test_a_link_stays_a_link(run, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "r.json").symlink_to(tmp_path / "there" / "real.json")
    run("gradcheck", "--case", QUICK, "--report", tmp_path / "r.json")
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--report", "r.pdf"), "--report: the suffix of r.pdf names no format (.txt, .json, .jsonl, .xml, "),
        (("--report", "r"), ".html, .svg); pass --format too"),
        (
            ("--report", "a/../r.json", "--report", "r.json"),
            "a/../r.json and r.json are the same file; leave",
        ),
        (("--format", "jsonl"), "--format jsonl writes results as they come, to a file; pass --report FILE"),
    ],
)
def test_what_is_no_report_is_refused_before_any_work(refused, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    pretend(monkeypatch)
    assert message in refused("gradcheck", "--case", QUICK, *words)
    assert listing(tmp_path) == ["a"]


def test_html_without_jinja2_is_refused_before_any_work(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(html, "available", lambda: False)
    pretend(monkeypatch)
    said = refused("gradcheck", "--case", QUICK, "--report", tmp_path / "r.html")
    assert said == "--report: HTML needs jinja2, which is not installed; pip install jinja2"
    assert listing(tmp_path) == []


def test_reports_of_several_formats_at_once(run, tmp_path):
    pytest.importorskip("jinja2")
    names = ["r.html", "r.json", "r.jsonl", "r.svg", "r.txt", "r.xml"]
    words = [word for name in names for word in ("--report", tmp_path / name)]
    result = run("gradcheck", "--case", QUICK, *words, "--format", "github")
    assert result.exit_code == 0 and result.stdout.startswith("::notice title=gradcheck::1 configuration: ")
    assert listing(tmp_path) == names
    assert all((tmp_path / name).read_text() for name in names)


def test_an_interrupt_leaves_reports_that_say_so(run, tmp_path):
    pytest.importorskip("jinja2")
    cases = ("--case", QUICK, "--case", "rms_norm shape=3,4 tail=1")
    words = [word for name in ("r.html", "r.json", "r.xml") for word in ("--report", tmp_path / name)]
    result = run("gradcheck", *cases, *words)
    assert result.exit_code == 130
    assert "interrupted after 1 of 2 configurations: 1 PASS in " in result.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["interrupted"] is True and report["planned"] == 2 and len(report["checks"]) == 1
    assert "<b>Interrupted.</b> 1 of 2 configurations" in (tmp_path / "r.html").read_text()
    assert ElementTree.parse(tmp_path / "r.xml").getroot().get("errors") == "1"

"""The formats for machines, each read by a reader that is not ours."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from gradcheck.diagnosis.findings import Elements, Finding
from gradcheck.judge import Check, Curve, Verdict
from gradcheck.report import examples, formats, github
from gradcheck.report.groups import Outcome
from gradcheck.report.json import schema
from gradcheck.sweep import Result, SampleCase

ROOT = Path(__file__).parents[3]
SWEEPS = ("passing", "failing", "interrupted")


@pytest.fixture(scope="module")
def outcomes():
    return examples.outcomes()


@pytest.mark.parametrize("name", SWEEPS)
def test_json_is_what_its_schema_says(outcomes, name):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())
    validator = jsonschema.Draft202012Validator(schema())
    document = json.loads(formats.render(outcomes[name], "json"))
    assert [error.message for error in validator.iter_errors(document)] == []
    assert document["interrupted"] is (name == "interrupted")
    for wrong in ({**document, "schema_version": 1}, {**document, "more": 1}, {"checks": []}):
        assert not validator.is_valid(wrong)
    document["checks"][0]["verdict"] = "MAYBE"
    assert not validator.is_valid(document)


def test_the_schema_knows_every_field_of_the_records():
    """Those that the examples happen not to have, too."""
    for name, record in {"check": Check, "curve": Curve, "finding": Finding, "sample": SampleCase}.items():
        known = schema()["$defs"][name]["properties"].keys()
        assert known == {field.name for field in dataclasses.fields(record)}
    known = schema()["$defs"]["finding"]["properties"]["elements"]["properties"].keys()
    assert known == {field.name for field in dataclasses.fields(Elements)}


@pytest.mark.parametrize("name", SWEEPS)
def test_junit_is_read_by_a_reader(outcomes, name, tmp_path):
    junitparser = pytest.importorskip("junitparser")
    path = tmp_path / "r.xml"
    path.write_text(formats.render(outcomes[name], "junit"), encoding="utf-8")
    read = junitparser.JUnitXml.fromfile(str(path))
    cases = [case for suite in read for case in suite]
    outcome = outcomes[name]
    verdicts = [result.verdict for result in outcome.results]
    extra = int(outcome.interrupted)
    assert len(cases) == read.tests == len(verdicts) + extra
    assert read.errors == verdicts.count(Verdict.ERROR) + extra
    failures = sum(verdict in (Verdict.VACUOUS, Verdict.INCONCLUSIVE, Verdict.FAIL) for verdict in verdicts)
    assert read.failures == failures
    by_name = {case.name: case for case in cases}
    for result in outcome.results:
        found = by_name[str(result.configuration)].result
        if result.verdict is Verdict.PASS:
            assert found == []
        else:
            assert type(found[0]) is (
                junitparser.Error if result.verdict is Verdict.ERROR else junitparser.Failure
            )
            assert result.command in found[0].text and result.place in found[0].text
            assert all(finding.sentence in found[0].text for finding in result.findings)


def of(reason, place="a folder/my,norm.py:12"):
    check = Check("call", Verdict.ERROR, reason)
    case = SampleCase("mine::norm", "x (2, 3): first", "float64")
    return Outcome([Result(case, 0, (check,), (), (), 0.1, place=place)], 0, 0.1)


def test_xml_holds_what_xml_cannot():
    pytest.importorskip("junitparser").JUnitXml.fromstring(
        formats.render(of("\x00 \x1b[31m <&>"), "junit").encode()
    )


def test_an_annotation_names_the_line_and_is_escaped():
    first, last = github.render(of("call: 100 % wrong\r\nnot one line")).splitlines()
    assert first == (
        "::error file=a folder/my%2Cnorm.py,line=12,title=ERROR mine%3A%3Anorm at x (2%2C 3)%3A first"
        "::call: 100 %25 wrong not one line%0Aagain: python cli.py gradcheck --op mine::norm --seed 0"
    )
    assert last.startswith("::notice title=gradcheck::1 configuration: 1 ERROR")
    assert github.render(of("call", place="")).startswith("::error title=")


def test_every_failure_is_annotated_at_the_line_of_its_backward_pass(outcomes):
    lines = formats.render(outcomes["failing"], "github").splitlines()
    found = [re.match(r"::error file=([^,]+),line=(\d+),title=(\w+) ", line) for line in lines[:-1]]
    assert len(found) == examples.SHOWN and all(found)
    for match in found:
        source = (ROOT / match[1]).read_text(encoding="utf-8").splitlines()
        first = source[int(match[2]) - 1]
        assert "def " in first or first.lstrip().startswith("@"), (match[0], first)

"""The file of a sweep: every line counts at once, a torn one does not, and no other sweep goes on with it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from gradcheck.axes import Configuration
from gradcheck.judge import Check, Verdict
from gradcheck.sweep import SCHEMA_VERSION, Header, Lines, Mismatch, Result, Task, read

TASKS = [Task(Configuration("layer_norm", (n, 5), tail=1), seed=3) for n in (2, 3, 4)]
RESULTS = [Result(task.configuration, 3, (Check("gradient", Verdict.PASS),), (), (), 0.5) for task in TASKS]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sweep.jsonl"


@pytest.fixture
def begun(path):
    """A file with two results of three."""
    with Lines(path, Header.of(TASKS)) as lines:
        for result in RESULTS[:2]:
            lines.write(result)
    return path


def test_each_line_is_there_when_write_returns(path):
    lines = Lines(path, Header.of(TASKS))
    for count, result in enumerate(RESULTS, 1):
        lines.write(result)
        recorded = read(path)
        assert recorded.results == tuple(RESULTS[:count])
        assert recorded.complete is (count == 3)
    lines.close()
    first, *rest = path.read_text().splitlines()
    assert json.loads(first).keys() == {
        "schema_version", "seed", "planned", "sweep", "versions", "source",
    }  # fmt: skip
    assert [json.loads(line)["configuration"] for line in rest] == [str(t.configuration) for t in TASKS]


def test_names_that_are_no_text_are_kept(path):
    """A path may hold bytes that are no UTF-8; Python has surrogates for them."""
    result = dataclasses.replace(RESULTS[0], source=("--input", "\udcff ½ 🙂\n.npy"))
    with Lines(path, Header.of(TASKS)) as lines:
        lines.write(result)
    assert read(path).results == (result,)


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_torn_line_is_cut_off_and_the_file_goes_on(begun, cut):
    begun.write_bytes(begun.read_bytes()[:-cut])
    recorded = read(begun)
    assert recorded.results == tuple(RESULTS[:1]) and recorded.torn > 0
    with Lines.after(begun, recorded) as lines:
        lines.write(RESULTS[1])
        lines.write(RESULTS[2])
    assert read(begun).results == tuple(RESULTS) and read(begun).torn == 0


def test_the_order_of_tasks_is_no_part_of_a_sweep():
    assert Header.of(TASKS) == Header.of(TASKS[::-1])
    assert Header.of(TASKS).sweep != Header.of(TASKS[:2]).sweep


def test_what_a_sweep_reads_is_part_of_it(tmp_path):
    file = tmp_path / "x.npy"
    task = dataclasses.replace(TASKS[0], source=("--input", str(file)))
    np.save(file, np.zeros(3))
    before = Header.of([task])
    np.save(file, np.ones(3))
    assert Header.of([task]).sweep != before.sweep


def test_a_sweep_has_one_seed():
    with pytest.raises(ValueError, match="one seed; got 2 among 3 tasks"):
        Header.of([*TASKS[:2], dataclasses.replace(TASKS[2], seed=4)])


HEADER = Header.of(TASKS)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 4}, "has seed 4, this is --seed 3; give the options that it was started with"),
        ({"sweep": "0", "planned": 7}, r"is of another sweep \(7 configurations, here 3\), or a file that"),
        ({"versions": {**HEADER.versions, "numpy": "1.0"}}, "was written with numpy 1.0, this is "),
        ({"versions": {**HEADER.versions, "tinygrad_bn": "9"}}, "was written with tinygrad_bn 9, this is 0"),
        ({"source": "0"}, "was written with the source 0, this is "),
    ],
)
def test_another_sweep_does_not_go_on(begun, other, message):
    HEADER.require(read(begun).header, "it")
    with pytest.raises(Mismatch, match=f"^it {message}"):
        dataclasses.replace(HEADER, **other).require(HEADER, "it")


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (b"", "is no file of a sweep: its first line has no schema_version"),
        (b"[1]", "is no file of a sweep"),
        (b'{"seed": 3}', "is no file of a sweep"),
        (b'{"schema_version": 1}', f"has schema version 1, this program reads {SCHEMA_VERSION}"),
        (b'{"schema_version": %d}' % SCHEMA_VERSION, "line 1: no Header: "),
        (b"\xff\xfe", "is no file of a sweep"),
    ],
)
def test_what_is_no_file_of_a_sweep_is_refused(path, first, message):
    path.write_bytes(first + b"\n")
    with pytest.raises(Mismatch, match=message):
        read(path)


def test_a_line_that_is_no_result_or_there_twice_is_refused(begun):
    text = begun.read_text()
    begun.write_text(text + text.splitlines()[1] + "\n")
    with pytest.raises(Mismatch, match="line 4: the result of layer_norm shape=2,5 tail=1 is there twice"):
        read(begun)
    begun.write_text(text + "{}\n")
    with pytest.raises(Mismatch, match="line 4: no result: wanted str, got None"):
        read(begun)

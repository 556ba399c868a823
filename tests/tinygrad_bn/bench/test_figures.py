"""What is made of the times, on times that are known."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from tinygrad_bn.bench import baseline
from tinygrad_bn.bench.cases import Case
from tinygrad_bn.bench.figures import Measurement, Timing, geometric_mean, number, summaries
from tinygrad_bn.bench.picture import draw
from tinygrad_bn.bench.report import SCHEMA_VERSION, speed_report


def measurement(ours, floor, *, operation="norm::layer_norm", shape=(4, 8), direction="forward", **peers):
    seconds = {"tinygrad_bn": ours, "floor": floor, **peers}
    timings = {name: Timing(tuple(each)) for name, each in seconds.items()}
    return Measurement(Case(operation, shape), 2, direction, timings)


def test_best_and_median_and_the_ratios_of_bests():
    one = measurement([4.0, 2.0, 9.0], [1.0, 1.0, 2.0], torch=[3.0, 8.0, 5.0], jax=[6.0, 4.0, 4.5])
    assert (one.ours.best, one.ours.median) == (2.0, 4.0)
    assert (one.best_peer, one.ratio, one.over_floor) == ("torch", 1.5, 2.0)
    assert one.median_ratio == 4.5 / 4.0  # of the fastest by medians, which is jax


def test_without_peers_there_is_no_ratio():
    one = measurement([2.0], [1.0])
    assert (one.best_peer, one.ratio, one.median_ratio) == (None, None, None)
    assert summaries([one])[0].mean is None


def test_noise_is_that_of_the_ratio_and_what_slows_both_cancels():
    floor = [1.0, 5.0, 2.0, 1.0, 9.0]
    assert measurement([2 * f for f in floor], floor).noise == 0
    rng = np.random.default_rng(0)
    estimates = [measurement(np.exp(0.1 * rng.standard_normal(100)), np.ones(100)).noise for _ in range(200)]
    # The standard error of the median of 100 normal values with standard deviation 0.1.
    assert np.mean(estimates) == pytest.approx(0.1 * math.sqrt(math.pi / 2) / 10, rel=0.05)


def test_summary_of_a_family_is_a_geometric_mean_and_the_worst_case():
    norms = [
        measurement([1.0], [0.5], torch=[8.0]),
        measurement([1.0], [0.25], operation="norm::rms_norm", torch=[0.5], jax=[9.0]),
    ]
    dropout = measurement([1.0], [1.0], operation="dropout::dropout", torch=[20.0])
    of_norms, of_dropout = summaries([*norms, dropout])
    assert (of_norms.family, of_norms.count, of_norms.worst) == ("norm", 2, 0.5)
    assert of_norms.mean == pytest.approx(2)
    assert of_norms.worst_case == "rms_norm 4,8"
    assert (of_norms.mean_over_floor, of_norms.worst_over_floor) == (pytest.approx(8**0.5), 4.0)
    assert (of_dropout.family, of_dropout.mean) == ("dropout", pytest.approx(20))
    assert geometric_mean([1.0, 100.0]) == pytest.approx(10)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123456, "0.0123"), (1.5, "1.50"), (12.34, "12.3"), (1234.5, "1,230"), (None, ""), (0.0, "0")],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_the_report_is_versioned_json_and_says_everything():
    one = measurement([2.0], [1.0], torch=[3.0])
    record = json.loads(speed_report([one], [], 7, {"rounds": 1}).as_json())
    assert (record["schema_version"], record["kind"], record["seed"]) == (SCHEMA_VERSION, "speed", 7)
    assert record["settings"] == {"rounds": 1}
    assert record["machine"]["cpus"] >= 1 and record["versions"]["numpy"] == np.__version__
    (case,) = record["cases"]
    assert case["peers"] == {"torch": {"best": 3.0, "median": 3.0, "rounds": 1}}
    assert (case["ratio"], case["over_floor"], case["threads"]) == (1.5, 2.0, 2)
    assert record["summary"][0]["mean"] == pytest.approx(1.5) and record["failures"] == []


def test_the_tables_are_markdown_too():
    text = speed_report([measurement([2e-3], [1e-3], torch=[3e-3])], [], 0, {}).as_markdown()
    assert "| layer_norm 4,8 | 1.00/1.00 | 2.00/2.00 | 3.00/3.00 | 1.50 | 2.00 |" in text.splitlines()


def test_the_picture_has_a_bar_for_each_library_on_a_logarithmic_axis():
    root = ET.fromstring(draw([measurement([10.0], [1.0], torch=[100.0], jax=[0.5])]))
    svg = "{http://www.w3.org/2000/svg}"
    rectangles = [r for r in root.iter(f"{svg}rect") if r.get("width") not in ("10", "100%")]
    bars = {each.get("class"): float(each.get("width")) for each in rectangles}
    assert bars["torch"] == pytest.approx(2 * bars["tinygrad_bn"], abs=0.2)
    assert 0 < bars["jax"] < 2  # faster than the floor: still to be seen
    assert "prefers-color-scheme: dark" in root.find(f"{svg}style").text


@pytest.mark.parametrize(
    ("factor", "noise", "slower", "faster"),
    [
        (1.14, 0.0, False, False),
        (1.16, 0.0, True, False),
        (1 / 1.16, 0.0, False, True),
        (1.3, 0.1, False, False),  # exp(4 · 0.1) = 1.49
        (1.5, 0.1, True, False),
    ],
)
def test_a_change_counts_beyond_what_noise_explains(factor, noise, slower, faster):
    change = baseline.Change("it", 2.0, 2.0 * factor, baseline.allowed(noise, 0.0))
    assert (change.slower, change.faster) == (slower, faster)


def test_noise_of_both_measurements_adds_up():
    assert baseline.allowed(0.03, 0.04) == pytest.approx(math.exp(4 * 0.05))

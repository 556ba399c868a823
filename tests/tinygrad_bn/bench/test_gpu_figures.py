"""What is made of the times on a GPU, on times that are known; no GPU is needed."""

from __future__ import annotations

import json

import pytest

from tinygrad_bn.bench.cases import Case
from tinygrad_bn.bench.figures import Measurement, Timing
from tinygrad_bn.bench.picture import draw
from tinygrad_bn.bench.report import speed_report

ELEMENTS = 2**25  # 128 MiB: a copy moves 268 MB


def measurement(operation, direction, ours, device="cuda", floor=1e-4, **peers):
    timings = {
        "tinygrad_bn": Timing((ours, 2 * ours), (20e-6, 30e-6)),
        "floor": Timing((floor, floor), (5e-6, 5e-6)),
        **{name: Timing((seconds,), (40e-6,)) for name, seconds in peers.items()},
    }
    return Measurement(Case(operation, (ELEMENTS // 64, 64), device=device), 2, direction, timings)


@pytest.mark.parametrize(
    ("operation", "direction", "ours", "share"),
    [
        ("norm::layer_norm", "forward", 1.25e-4, 0.8),  # one read, one write, as a copy does
        ("norm::layer_norm", "backward", 2e-4, 0.75),  # x and the cotangent read, the gradient written
        ("norm::batch_norm", "forward", 1.5e-4, 1.0),  # all is read twice
        ("norm::batch_norm", "backward", 2.5e-4, 1.0),
        ("norm::batch_norm_inference", "forward", 1e-4, 1.0),
        ("dropout::dropout", "backward", 1e-4, 1.0),  # the mask is made anew, not read
    ],
)
def test_the_share_of_the_copy_counts_what_must_be_moved(operation, direction, ours, share):
    assert measurement(operation, direction, ours).of_copy == pytest.approx(share)
    assert measurement(operation, direction, ours, device="cpu").of_copy is None


def test_of_what_is_not_fused_no_share_is_claimed():
    assert measurement("math::exp", "forward", 1e-4).of_copy is None


def test_a_call_costs_the_host_what_it_takes_to_start_it():
    assert Timing((3.0, 2.0), (0.5, 0.4)).call == 0.4
    assert Timing((3.0, 2.0)).call == 2.0


def test_the_report_has_the_share_the_hosts_time_and_the_bandwidth():
    one = measurement("norm::layer_norm", "forward", 1.25e-4, torch=2e-4)
    other = measurement("norm::layer_norm", "backward", 2e-4)
    made = speed_report([one, other], [], 0, {"rounds": 2, "device": "cuda", "gpu": "NVIDIA H200"})
    lines = made.as_markdown().splitlines()
    assert "**forward, float32, cuda; best/median in ms**" in lines
    assert "| forward | floor | tinygrad_bn | torch | peer ÷ ours | of the copy |" in lines
    name = "layer_norm 524288,64"
    assert f"| {name} | 0.100/0.100 | 0.125/0.188 | 0.200/0.200 | 1.60 | 0.800 |" in lines
    assert "**forward, float32, cuda; the host's microseconds per call**" in lines
    assert f"| {name} | 20.0 | 40.0 |" in lines
    assert "The copy moves 2,680 to 2,680 GB/s, read and written." in lines
    assert lines[-1].startswith("NVIDIA H200; ")
    record = json.loads(made.as_json())
    assert record["settings"]["gpu"] == "NVIDIA H200"
    case = record["cases"][0]
    assert (case["device"], case["of_copy"]) == ("cuda", pytest.approx(0.8))
    assert case["ours"]["host"] == 20e-6 and case["peers"]["torch"]["host"] == 40e-6
    assert "float32, cuda</text>" in draw([one, other])


def test_a_report_of_the_cpu_says_nothing_of_a_copy():
    made = speed_report([measurement("norm::layer_norm", "forward", 1e-4, device="cpu")], [], 0, {})
    text = made.as_text()
    assert "÷ floor" in text and "copy" not in text and "microseconds" not in text

"""The clocks, on a GPU that is made up: its time and the host's are counted, not measured."""

from __future__ import annotations

import time
import types
from unittest import mock

import pytest

from tinygrad_bn.bench.libraries.streams import CupyStream, TorchStream
from tinygrad_bn.bench.timing import OnDevice, OnHost, copies_needed

MICRO = 1e-6
HOST, DEVICE = 25 * MICRO, 10 * MICRO  # of a call


class Machine:
    """A host, and a device that does one thing after the other as soon as the host has asked for it."""

    cache_bytes = 50 << 20

    def __init__(self):
        self.now = self.end = 0.0
        self.log = []

    def start(self, host, device):
        self.now += host
        self.end = max(self.end, self.now) + device

    def occupy(self):
        self.start(5 * MICRO, 300 * MICRO)

    def mark(self):
        self.start(1 * MICRO, 0)
        return self.end

    def seconds(self, first, last):
        self.now = max(self.now, last)
        return last - first

    def wait(self):
        self.now = max(self.now, self.end)

    def captured(self, call):
        self.log.append("captured")
        results, before = call(), len(self.log)
        device = sum(DEVICE for word in self.log[before - len(results) : before])

        def replay():
            self.log.append("replayed")
            self.start(HOST, device)
            return results

        return replay


class Library:
    """A case on that machine; `record` takes the host and the device as long as ten calls."""

    def __init__(self, machine, number):
        self.machine, self.number = machine, number

    def forward(self):
        self.machine.log.append(("forward", self.number))
        self.machine.start(HOST, DEVICE)
        return object()

    def record(self):
        self.machine.start(10 * HOST, 10 * DEVICE)
        return "recorded", self.number

    def backward(self, recorded):
        assert recorded == ("recorded", self.number)
        self.machine.log.append(("backward", self.number))
        self.machine.start(HOST, 3 * DEVICE)
        return object()


@pytest.fixture
def machine(monkeypatch):
    made = Machine()
    monkeypatch.setattr(time, "perf_counter", lambda: made.now)
    return made


@pytest.mark.parametrize("copies", [1, 4, 32])
def test_the_device_is_timed_without_the_host_and_the_host_without_the_device(machine, copies):
    timer = OnDevice([Library(machine, n) for n in range(copies)], machine)
    for direction, device in (("forward", DEVICE), ("backward", 3 * DEVICE)):
        found = timer.sample(direction, 40)
        assert found["host"] == pytest.approx(HOST)
        assert found["seconds"] == pytest.approx(device, abs=2 * MICRO / copies)


def test_a_host_that_is_not_ahead_would_be_timed(machine, monkeypatch):
    """Without the occupation the device would wait for each call: the reason for it."""
    timer = OnDevice([Library(machine, n) for n in range(4)], machine)
    monkeypatch.setattr(machine, "occupy", lambda: None)
    assert timer.sample("forward", 40)["seconds"] == pytest.approx(HOST, rel=0.2)


def test_all_copies_take_turns(machine):
    timer = OnDevice([Library(machine, n) for n in range(3)], machine)
    machine.log.clear()
    timer.sample("backward", 7)
    assert machine.log == [("backward", n) for n in (0, 1, 2)] * 3  # whole rounds: nine calls for seven


def test_a_graph_is_captured_once_and_replayed(machine):
    timer = OnDevice([Library(machine, n) for n in range(5)], machine, graph=True)
    assert machine.log.count("captured") == 2  # one for each direction
    machine.log.clear()
    found = timer.sample("forward", 20)
    assert machine.log == ["replayed"] * 4
    assert found["host"] == pytest.approx(HOST / 5)
    assert found["seconds"] == pytest.approx(DEVICE, abs=MICRO)


def test_inputs_that_take_turns_exceed_twice_the_cache():
    for nbytes in (1 << 20, 12_582_912, 1 << 25, 1 << 27):
        count = copies_needed(nbytes, 50 << 20)
        assert count * nbytes > 2 * (50 << 20) or count == 32
        assert count == 1 or count == 32 or (count - 1) * nbytes <= 2 * (50 << 20)
    assert copies_needed(0, 50 << 20) == 32


def test_on_the_host_each_call_is_on_the_clock_and_the_pass_before_it_is_not(machine):
    timer = OnHost(Library(machine, 0))
    assert timer.sample("backward", 5) == {"seconds": pytest.approx(HOST)}
    assert timer.sample("forward", 5) == {"seconds": pytest.approx(HOST)}


def test_cupys_stream_is_used_and_gives_its_events_and_graphs():
    cupy = mock.MagicMock()
    cupy.cuda.Device.return_value.attributes = {"L2CacheSize": 7}
    cupy.cuda.get_elapsed_time.return_value = 2.0  # milliseconds
    with mock.patch.dict("sys.modules", cupy=cupy):
        stream = CupyStream(1)
    cupy.cuda.Device.assert_called_once_with(1)
    ours = cupy.cuda.Stream.return_value
    ours.use.assert_called_once_with()
    assert stream.cache_bytes == 7
    assert stream.seconds(stream.mark(), stream.mark()) == 2e-3
    assert cupy.cuda.Event.return_value.record.call_args == mock.call(ours)
    replay = stream.captured(lambda: "results")
    assert [call[0] for call in ours.method_calls] == ["use", "begin_capture", "end_capture"]
    assert replay() == "results"
    ours.end_capture.return_value.launch.assert_called_once_with(ours)
    with pytest.raises(ZeroDivisionError):
        stream.captured(lambda: 1 / 0)
    assert ours.end_capture.call_count == 2  # else the next capture could not begin


def test_torchs_stream_is_used_and_gives_its_events_and_graphs():
    torch = mock.MagicMock()
    torch.cuda.get_device_properties.return_value = types.SimpleNamespace(L2_cache_size=7)
    torch.cuda.Event.return_value.elapsed_time.return_value = 2.0
    with mock.patch.dict("sys.modules", torch=torch):
        stream = TorchStream(1)
    ours = torch.cuda.Stream.return_value
    torch.cuda.set_stream.assert_called_once_with(ours)
    assert stream.cache_bytes == 7
    assert stream.seconds(stream.mark(), stream.mark()) == 2e-3
    torch.cuda.Event.assert_called_with(enable_timing=True)
    assert stream.captured(lambda: "results")() == "results"
    assert torch.cuda.graph.call_args == mock.call(torch.cuda.CUDAGraph.return_value, stream=ours)
    torch.cuda.CUDAGraph.return_value.replay.assert_called_once_with()

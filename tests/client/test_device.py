"""This machine can be measured, with any clock, into a profile that its owner may declare."""

from pathlib import Path

import pytest

from client.device import probe_networks, suggest, time_networks
from fednas.errors import ConfigurationError
from fednas.operations import free_memory_bytes


class SteppingClock:
    """A clock that advances by one millisecond whenever it is read."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return self.reads * 1e-3


def test_a_suggestion_holds_the_limits_given_and_the_line_measured() -> None:
    profile = suggest(
        tier="board", max_latency_ms=7.0, upload_bytes=9, memory_bytes=10, repeats=3, clock=SteppingClock()
    )
    assert (profile.tier, profile.max_latency_ms, profile.upload_bytes) == ("board", 7.0, 9)
    assert (profile.memory_bytes, profile.training_memory_bytes) == (10, 10)
    assert profile.overhead_ms == pytest.approx(1.0)  # every probe takes one step of this clock


def test_the_real_clock_gives_a_positive_speed_and_half_of_the_free_memory() -> None:
    profile = suggest(tier="here", repeats=3)
    assert profile.macs_per_ms > 0.0
    assert profile.memory_bytes > 2**20


def test_probes_are_counted_exactly_and_grow() -> None:
    timings = time_networks(probe_networks(), repeats=1, clock=SteppingClock())
    smallest = 16 * 16 * 9 * (8 * 8 + 8 * 8) + 8 * 10
    assert timings[0].macs == smallest
    assert [t.macs for t in timings] == sorted(t.macs for t in timings)
    assert timings[-1].macs > 50 * smallest


def test_the_memory_of_a_container_is_its_limit(tmp_path: Path) -> None:
    meminfo, limit = tmp_path / "meminfo", tmp_path / "limit"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:  8 kB\n")
    assert free_memory_bytes(meminfo=meminfo, cgroup_limit=limit) == 8192
    limit.write_text("max\n")
    assert free_memory_bytes(meminfo=meminfo, cgroup_limit=limit) == 8192
    limit.write_text("4096\n")
    assert free_memory_bytes(meminfo=meminfo, cgroup_limit=limit) == 4096


def test_a_system_that_hides_its_memory_is_asked_to_state_it(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("nothing here\n")
    with pytest.raises(ConfigurationError, match="state memory_bytes"):
        free_memory_bytes(meminfo=tmp_path / "meminfo", cgroup_limit=tmp_path / "limit")


def test_no_repeat_is_no_measurement() -> None:
    with pytest.raises(ConfigurationError, match="repeats"):
        time_networks(probe_networks(), repeats=0, clock=SteppingClock())

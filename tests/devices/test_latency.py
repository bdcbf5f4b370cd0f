"""The latency line is recovered from measurements and never turns negative."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas.devices import LatencyLine, Timing, fit
from fednas.errors import ConfigurationError

MACS = (1_000, 30_000, 400_000, 5_000_000)


def _loss(line: LatencyLine, timings: list[Timing]) -> float:
    predictions = [timing.macs / line.macs_per_ms + line.overhead_ms for timing in timings]
    return sum((p / t.latency_ms - 1.0) ** 2 for p, t in zip(predictions, timings, strict=True))


@given(speed=st.floats(1e2, 1e9), overhead=st.floats(1e-3, 1e2))
def test_an_exact_line_is_recovered(speed: float, overhead: float) -> None:
    timings = [Timing(macs=macs, latency_ms=macs / speed + overhead) for macs in MACS]
    line = fit(timings)
    for timing in timings:
        assert timing.macs / line.macs_per_ms + line.overhead_ms == pytest.approx(timing.latency_ms, rel=1e-6)


@given(seed=st.integers(0, 999))
def test_no_neighbouring_line_fits_noisy_timings_better(seed: int) -> None:
    generator = np.random.default_rng(seed)
    timings = [Timing(macs=macs, latency_ms=float(generator.lognormal(0.0, 1.0))) for macs in MACS]
    line = fit(timings)
    assert line.macs_per_ms > 0.0
    assert line.overhead_ms >= 0.0
    best = _loss(line, timings)
    for slope_change in (0.0, 1e-4, -1e-4):
        for overhead_change in (0.0, 1e-4, -1e-4):
            slope = 1.0 / line.macs_per_ms * (1.0 + slope_change) + max(slope_change, 0.0) * 1e-9
            overhead = max(line.overhead_ms + overhead_change, 0.0)
            other = LatencyLine(macs_per_ms=1.0 / slope, overhead_ms=overhead)
            assert _loss(other, timings) >= best - 1e-9


def test_networks_that_are_all_equally_slow_give_overhead_alone() -> None:
    line = fit([Timing(macs=macs, latency_ms=2.0) for macs in MACS])
    assert line.overhead_ms == pytest.approx(2.0)
    assert max(MACS) / line.macs_per_ms < 1e-6


def test_one_size_is_not_enough() -> None:
    with pytest.raises(ConfigurationError, match="different size"):
        fit([Timing(macs=10, latency_ms=1.0), Timing(macs=10, latency_ms=2.0)])


@pytest.mark.parametrize(("macs", "latency_ms"), [(0, 1.0), (1, 0.0), (1, float("nan")), (1, float("inf"))])
def test_a_timing_without_work_or_time_is_refused(macs: int, latency_ms: float) -> None:
    with pytest.raises(ConfigurationError, match="latency_ms > 0"):
        Timing(macs=macs, latency_ms=latency_ms)

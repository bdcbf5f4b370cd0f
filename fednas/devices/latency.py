"""A device's latency line, macs / macs_per_ms + overhead_ms, fitted to measured networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fednas.errors import ConfigurationError

_FASTEST: Final = 1e15  # MACs a millisecond: no device computes more


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One network timed on a device: its multiply-accumulates and the milliseconds of one inference."""

    macs: int
    latency_ms: float

    def __post_init__(self) -> None:
        if not (self.macs >= 1 and 0.0 < self.latency_ms < float("inf")):
            raise ConfigurationError(
                f"expected macs >= 1 and a finite latency_ms > 0, got {self.macs} and {self.latency_ms}"
            )


@dataclass(frozen=True, kw_only=True)
class LatencyLine:
    """The fitted line: multiply-accumulates in a millisecond, and fixed milliseconds of an inference."""

    macs_per_ms: float
    overhead_ms: float


def fit(timings: Sequence[Timing]) -> LatencyLine:
    """Fit a line to timings by least squares of the relative error, with no negative part.

    Relative error, so that a network of 0.1 ms counts as much as one of 10 ms.

    Args:
        timings: at least two networks of different size.

    Returns:
        The line; when larger networks were not slower, overhead only.

    Raises:
        ConfigurationError: fewer than two different sizes.
    """
    if len({timing.macs for timing in timings}) < 2:
        raise ConfigurationError(
            "expected timings of at least 2 networks of different size; time more networks"
        )
    macs = np.array([timing.macs for timing in timings], dtype=np.float64)
    latency = np.array([timing.latency_ms for timing in timings], dtype=np.float64)
    columns = np.stack([macs / latency, 1.0 / latency], axis=1)
    target = np.ones(len(latency))
    slope, overhead = np.linalg.lstsq(columns / columns.max(axis=0), target)[0] / columns.max(axis=0)
    if slope <= 0.0:  # on the boundary the other coefficient is fitted alone
        slope, overhead = 0.0, float(columns[:, 1].sum() / (columns[:, 1] ** 2).sum())
    elif overhead < 0.0:
        slope, overhead = float(columns[:, 0].sum() / (columns[:, 0] ** 2).sum()), 0.0
    return LatencyLine(macs_per_ms=1.0 / max(float(slope), 1.0 / _FASTEST), overhead_ms=float(overhead))

"""Measure this machine and suggest the device profile that its owner may declare."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Final

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fednas.devices import DeviceProfile, Timing, fit
from fednas.errors import ConfigurationError
from fednas.operations import free_memory_bytes

Clock = Callable[[], float]  # seconds, monotonic

_INPUT_SHAPE: Final = (1, 8, 16, 16)
_WIDTHS: Final = (8, 16, 32, 64, 96)
_WARM_UP: Final = 5


def suggest(
    *,
    tier: str,
    max_latency_ms: float = 10.0,
    upload_bytes: int = 4_000_000,
    memory_bytes: int | None = None,
    repeats: int = 30,
    clock: Clock = time.perf_counter,
) -> DeviceProfile:
    """Time a few small networks on this machine and suggest a profile; no record is read.

    Args:
        tier: the name that devices of this kind share.
        max_latency_ms: the target for one inference, in milliseconds.
        upload_bytes: what the device may send in one round.
        memory_bytes: memory that networks may use; by default half of what is free now.
        repeats: inferences timed for each network.
        clock: a monotonic clock in seconds.

    Returns:
        The suggestion: its owner may lower any limit before declaring it.

    Raises:
        ConfigurationError: a value is out of its bounds, or the free memory is unknown.
    """
    line = fit(time_networks(probe_networks(), repeats=repeats, clock=clock))
    usable = free_memory_bytes() // 2 if memory_bytes is None else memory_bytes
    return DeviceProfile(
        tier=tier,
        memory_bytes=usable,
        training_memory_bytes=usable,
        upload_bytes=upload_bytes,
        max_latency_ms=max_latency_ms,
        macs_per_ms=float(f"{line.macs_per_ms:.3g}"),
        overhead_ms=float(f"{line.overhead_ms:.3g}"),
    )


def probe_networks() -> tuple[nn.Module, ...]:
    """Return small convolutional networks of the same depth, a hundredfold apart in size."""
    return tuple(
        nn.Sequential(
            nn.Conv2d(_INPUT_SHAPE[1], width, 3, padding=1),
            nn.GroupNorm(width // 8, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, 10),
        ).eval()
        for width in _WIDTHS
    )


def time_networks(networks: Sequence[nn.Module], *, repeats: int, clock: Clock) -> list[Timing]:
    """Time one inference of each network, in turns, so that a disturbance meets all of them.

    Args:
        networks: modules that take (1, 8, 16, 16) images.
        repeats: inferences timed for each network.
        clock: a monotonic clock in seconds.

    Returns:
        One timing a network: its multiply-accumulates and the median time.

    Raises:
        ConfigurationError: fewer than one repeat.
    """
    if repeats < 1:
        raise ConfigurationError(f"expected repeats >= 1, got {repeats}")
    image = torch.zeros(_INPUT_SHAPE)
    seconds: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode():
        for turn in range(_WARM_UP + repeats):
            for network, taken in zip(networks, seconds, strict=True):
                start = clock()
                network(image)
                if turn >= _WARM_UP:
                    taken.append(clock() - start)
    return [
        Timing(macs=_count_macs(network), latency_ms=1e3 * median(taken))
        for network, taken in zip(networks, seconds, strict=True)
    ]


def _count_macs(network: nn.Module) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(_INPUT_SHAPE))
    return int(counter.get_total_flops()) // 2

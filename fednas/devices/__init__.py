"""Devices: what hardware declares, how fast it is, and what fits it."""

from fednas.devices.latency import LatencyLine, Timing, fit
from fednas.devices.profile import DeviceProfile

__all__ = ["DeviceProfile", "LatencyLine", "Timing", "fit"]

"""What a device declares about itself, and whether a network of known cost fits it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from fednas.errors import ConfigurationError

if TYPE_CHECKING:
    from fednas.space.cost import Cost

_WHOLE: Final = ("memory_bytes", "training_memory_bytes", "upload_bytes")


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """A device's hardware as its owner declares it: public, independent of any record.

    Args:
        tier: a short name shared by devices of one kind, such as "phone".
        memory_bytes: memory for inference at batch 1, weights included.
        training_memory_bytes: memory for training with per-example gradients.
        upload_bytes: what the device may send in one round.
        max_latency_ms: the target for one inference, in milliseconds.
        macs_per_ms: multiply-accumulates the device computes in a millisecond.
        overhead_ms: fixed time of one inference, in milliseconds.

    Raises:
        ConfigurationError: a value is out of its bounds.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    tier: str
    memory_bytes: int
    training_memory_bytes: int
    upload_bytes: int
    max_latency_ms: float
    macs_per_ms: float
    overhead_ms: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.tier, str) or not self.tier.strip():
            raise ConfigurationError(f"device: expected a name in tier, got {self.tier!r}")
        for name in _WHOLE:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"device: expected a whole {name} >= 1, got {value!r}")
        for name in ("max_latency_ms", "macs_per_ms", "overhead_ms"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigurationError(f"device: expected a finite number in {name}, got {value!r}")
            if value < 0 or (value == 0 and name != "overhead_ms"):
                bound = ">= 0" if name == "overhead_ms" else "> 0"
                raise ConfigurationError(f"device: expected {name} {bound}, got {value!r}")
            object.__setattr__(self, name, float(value))

    def latency_ms(self, cost: "Cost") -> float:
        """Return the predicted time of one inference, in milliseconds."""
        return cost.macs / self.macs_per_ms + self.overhead_ms

    def violation(self, cost: "Cost") -> float:
        """Return the largest relative excess over the limits.

        Args:
            cost: what a network needs.

        Returns:
            max over the limits of need / limit - 1: 0.5 is half as much again as allowed, <= 0 fits.
        """
        return max(need / limit - 1.0 for _, _, need, limit in self._needs(cost))

    def fits(self, cost: "Cost") -> bool:
        """Return whether the cost is within every limit."""
        return self.violation(cost) <= 0.0

    def explain(self, cost: "Cost") -> str:
        """Return one line: the limits exceeded, by how much, or that the network fits."""
        excess: list[str] = []
        for what, unit, need, limit in self._needs(cost):
            if need > limit:
                needs, has = _readable(need, unit), _readable(limit, unit)
                if needs == has:  # closer than the rounding
                    needs, has = f"{need} {unit}", f"{limit} {unit}"
                excess.append(f"needs {needs} of {what}, has {has}")
        return "; ".join(excess) if excess else f"fits {self.tier}"

    def as_dict(self) -> dict[str, str | int | float]:
        """Return the fields by name: plain values that JSON and TOML hold exactly."""
        return asdict(self)

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no spaces."""
        return json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a profile from its fields; the inverse of `as_dict`.

        Args:
            values: the fields by name.

        Returns:
            The profile.

        Raises:
            ConfigurationError: a field is missing, unknown, or out of its bounds.
        """
        known = {field.name for field in fields(cls)}
        unknown, missing = sorted(set(values) - known), sorted(known - set(values) - {"overhead_ms"})
        if unknown or missing:
            raise ConfigurationError(f"device: unknown fields {unknown}, missing fields {missing}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Build a profile from JSON; the inverse of `to_json`.

        Args:
            text: a JSON object of the fields.

        Returns:
            The profile.

        Raises:
            ConfigurationError: the text is not a JSON object of a profile's fields.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigurationError(
                f"device: not JSON ({error}); expected an object of its fields"
            ) from error
        if not isinstance(values, dict):
            raise ConfigurationError("device: expected a JSON object of its fields")
        return cls.from_dict(values)

    def _needs(self, cost: "Cost") -> tuple[tuple[str, str, float, float], ...]:
        return (
            ("memory", "B", cost.peak_bytes, self.memory_bytes),
            ("training memory", "B", cost.training_bytes, self.training_memory_bytes),
            ("upload", "B", cost.upload_bytes, self.upload_bytes),
            ("latency", "ms", self.latency_ms(cost), self.max_latency_ms),
        )


def _readable(amount: float, unit: str) -> str:
    if unit == "ms":
        return f"{amount:.3g} ms"
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if amount >= size:
            return f"{amount / size:.1f} {prefix}B"
    return f"{amount:.0f} B"

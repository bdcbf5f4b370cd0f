"""What a study may release and how often: the schedule it asks for, the allowances it is given."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fednas.errors import ConfigurationError
from fednas.privacy.events import MAX_AMOUNT, Event, encode
from fednas.privacy.numbers import count, real

STREAMS = ("weights", "architecture", "fitness")
READS: Final[Mapping[str, tuple[str, ...]]] = {
    "search": ("weights",),
    "alphas": ("architecture",),
    "fitness": ("fitness",),
    "final": STREAMS,
}
MIN_CLIP_NORM = 1e-100  # below, squares would vanish on their way to a norm
_MAX_CLIP_NORM = 1e6


@dataclass(frozen=True, kw_only=True)
class ReleaseSchedule:
    """How often a site may release what, spare rounds included; zero where a study has no use for it.

    Args:
        sampling_probability: the chance of a record to be in a training step's sample, 0 < q <= 1.
        search_steps: training steps on the `weights` stream.
        final_steps: training steps on all streams.
        architecture_steps: architecture gradients on the `architecture` stream.
        fitness_releases: noised counts on the `fitness` stream.
        clip_norm: L2 bound of a record's weight gradient, 1e-100 to 1e6.
        architecture_clip_norm: L2 bound of a record's architecture gradient, likewise.

    Raises:
        ConfigurationError: a number is out of its bounds.
    """

    sampling_probability: float
    search_steps: int
    final_steps: int
    architecture_steps: int = 0
    fitness_releases: int = 0
    clip_norm: float = 1.0
    architecture_clip_norm: float = 1.0

    def __post_init__(self) -> None:
        q = real(self.sampling_probability)
        if q is None or not 0.0 < q <= 1.0:
            raise ConfigurationError(
                f"expected 0 < sampling_probability <= 1, got {self.sampling_probability!r}"
            )
        object.__setattr__(self, "sampling_probability", q)
        for name in ("search_steps", "final_steps", "architecture_steps", "fitness_releases"):
            number = count(getattr(self, name))
            if number is None or not 0 <= number <= MAX_AMOUNT:
                raise ConfigurationError(f"expected 0 <= {name} <= {MAX_AMOUNT}, got {getattr(self, name)!r}")
            object.__setattr__(self, name, number)
        for name in ("clip_norm", "architecture_clip_norm"):
            object.__setattr__(self, name, _clip_norm(name, getattr(self, name)))

    def amount(self, name: str) -> int:
        """Return how many releases of an allowance's name are scheduled.

        Args:
            name: one of `READS`.
        """
        return {
            "search": self.search_steps,
            "alphas": self.architecture_steps,
            "fitness": self.fitness_releases,
            "final": self.final_steps,
        }[name]


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """All releases of one kind that a plan will ever pay for, and the streams that each of them reads.

    Args:
        name: "search", "alphas", "fitness" or "final".
        streams: the streams of the name, each of which is charged.
        event: the mechanism, with every release it may make (T_max).
        clip_norm: L2 bound of what one record adds to a release, 1e-100 to 1e6; 1 for a count.

    Raises:
        ConfigurationError: the name is unknown, the streams are not its own, or the bound is not positive.
    """

    name: str
    streams: tuple[str, ...]
    event: Event
    clip_norm: float

    def __post_init__(self) -> None:
        if self.name not in READS:
            raise ConfigurationError(f"unknown allowance {self.name!r}; expected one of {', '.join(READS)}")
        if self.streams != READS[self.name]:
            raise ConfigurationError(f"{self.name} reads {', '.join(READS[self.name])}, got {self.streams!r}")
        encode(self.event)
        object.__setattr__(self, "clip_norm", _clip_norm("clip_norm", self.clip_norm))

    @property
    def amount(self) -> int:
        """The most releases that this allowance pays for."""
        return self.event.amount

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise over the sensitivity; 0 without privacy."""
        return self.event.noise_multiplier

    @property
    def sampling_probability(self) -> float:
        """The chance of a record to be in a release's sample; 1 where every record takes part."""
        return self.event.sampling_probability


def stream_shares(
    proportions: Mapping[str, float] | Iterable[tuple[str, float]],
) -> tuple[tuple[str, float], ...]:
    """Return the share of the records of each stream, in the order of `STREAMS`.

    Args:
        proportions: one share for each of `STREAMS`, adding up to 1.

    Raises:
        ConfigurationError: a stream is unknown or missing, a share is out of 0 to 1, or the sum is not 1.
    """
    try:
        shares = dict(proportions)
    except (TypeError, ValueError):
        raise ConfigurationError("expected a share of the records for each stream") from None
    if set(shares) != set(STREAMS):
        raise ConfigurationError(f"expected a share of the records for each of {', '.join(STREAMS)}")
    result = []
    for stream in STREAMS:
        share = real(shares[stream])
        if share is None or not 0.0 <= share <= 1.0:
            raise ConfigurationError(
                f"expected 0 <= share <= 1 of the {stream} stream, got {shares[stream]!r}"
            )
        result.append((stream, share))
    if abs(sum(share for _, share in result) - 1.0) > 1e-9:
        raise ConfigurationError("the shares of the streams must add up to 1")
    return tuple(result)


def _clip_norm(name: str, value: object) -> float:
    number = real(value)
    if number is None or not MIN_CLIP_NORM <= number <= _MAX_CLIP_NORM:
        raise ConfigurationError(f"expected {MIN_CLIP_NORM:g} <= {name} <= {_MAX_CLIP_NORM:g}, got {value!r}")
    return number

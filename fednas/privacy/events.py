"""Immutable descriptions of what a mechanism did to a record: the only thing an accountant ever sees."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias, final

from fednas.errors import UnsupportedEventError
from fednas.privacy.numbers import count, decode_real, encode_real, real

MAX_NOISE_MULTIPLIER = 1e6
MAX_AMOUNT = 10**7
_MAX_REASON = 200


@final
@dataclass(frozen=True, kw_only=True)
class PoissonGaussian:
    """Steps that each add Gaussian noise to a clipped sum over a Poisson sample of a stream.

    Args:
        sampling_probability: the chance of a record to be in a step's sample, 0 < q <= 1.
        noise_multiplier: standard deviation of the noise over the sensitivity, 0 < sigma <= 1e6.
        steps: how many, 1 to 10^7.

    Raises:
        UnsupportedEventError: a number is not finite or out of its bounds.
    """

    sampling_probability: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampling_probability", _probability(self.sampling_probability))
        object.__setattr__(self, "noise_multiplier", _noise_multiplier(self.noise_multiplier))
        object.__setattr__(self, "steps", _amount("steps", self.steps))

    @property
    def amount(self) -> int:
        """How many steps the event holds."""
        return self.steps

    def scaled(self, amount: int) -> "PoissonGaussian":
        """Return the same event with another number of steps."""
        return replace(self, steps=amount)


@final
@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Releases that each add Gaussian noise to a sum over a whole stream, without sampling.

    Args:
        noise_multiplier: standard deviation of the noise over the sensitivity, 0 < sigma <= 1e6.
        releases: how many, 1 to 10^7.

    Raises:
        UnsupportedEventError: a number is not finite or out of its bounds.
    """

    noise_multiplier: float
    releases: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", _noise_multiplier(self.noise_multiplier))
        object.__setattr__(self, "releases", _amount("releases", self.releases))

    @property
    def sampling_probability(self) -> float:
        """Every record takes part: 1."""
        return 1.0

    @property
    def amount(self) -> int:
        """How many releases the event holds."""
        return self.releases

    def scaled(self, amount: int) -> "Gaussian":
        """Return the same event with another number of releases."""
        return replace(self, releases=amount)


@final
@dataclass(frozen=True, kw_only=True)
class NonPrivate:
    """Releases without protection: any accountant answers infinity.

    Args:
        reason: why, a public sentence of at most 200 printable characters.
        sampling_probability: the chance of a record to be in a step's sample; amplifies nothing here.
        releases: how many, 1 to 10^7.

    Raises:
        UnsupportedEventError: the reason is empty or too long, or a number is out of its bounds.
    """

    reason: str
    sampling_probability: float = 1.0
    releases: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str) or not 0 < len(self.reason) <= _MAX_REASON:
            raise UnsupportedEventError(f"expected a reason of 1 to {_MAX_REASON} characters")
        if not self.reason.isprintable():
            raise UnsupportedEventError("expected a reason of printable characters")
        object.__setattr__(self, "sampling_probability", _probability(self.sampling_probability))
        object.__setattr__(self, "releases", _amount("releases", self.releases))

    @property
    def noise_multiplier(self) -> float:
        """No noise: 0."""
        return 0.0

    @property
    def amount(self) -> int:
        """How many releases the event holds."""
        return self.releases

    def scaled(self, amount: int) -> "NonPrivate":
        """Return the same event with another number of releases."""
        return replace(self, releases=amount)


Event: TypeAlias = PoissonGaussian | Gaussian | NonPrivate


def encode(event: Event) -> dict[str, str | int]:
    """Return an event as canonical JSON values: real numbers are exact strings, counts are integers.

    Args:
        event: one of the three events of this module.

    Raises:
        UnsupportedEventError: it is anything else.
    """
    if isinstance(event, PoissonGaussian):
        return {
            "kind": "poisson_gaussian",
            "noise_multiplier": encode_real(event.noise_multiplier),
            "sampling_probability": encode_real(event.sampling_probability),
            "steps": event.steps,
        }
    if isinstance(event, Gaussian):
        return {
            "kind": "gaussian",
            "noise_multiplier": encode_real(event.noise_multiplier),
            "releases": event.releases,
        }
    if isinstance(event, NonPrivate):
        return {
            "kind": "non_private",
            "reason": event.reason,
            "releases": event.releases,
            "sampling_probability": encode_real(event.sampling_probability),
        }
    raise UnsupportedEventError(f"no accountant here bounds a {type(event).__name__}")


def decode(value: object) -> Event:
    """Return the event that `encode` wrote; nothing that the data name is ever looked up or called.

    Args:
        value: a parsed JSON object.

    Raises:
        UnsupportedEventError: the kind or a key is unknown, a key is missing, a number is not written
            canonically (`repr` of a float), or it is out of its bounds.
    """
    if not isinstance(value, Mapping):
        raise UnsupportedEventError("expected an event as a JSON object")
    kind = value.get("kind")
    if kind == "poisson_gaussian":
        _keys(value, "noise_multiplier", "sampling_probability", "steps")
        return PoissonGaussian(
            sampling_probability=_decoded(value["sampling_probability"]),
            noise_multiplier=_decoded(value["noise_multiplier"]),
            steps=value["steps"],
        )
    if kind == "gaussian":
        _keys(value, "noise_multiplier", "releases")
        return Gaussian(noise_multiplier=_decoded(value["noise_multiplier"]), releases=value["releases"])
    if kind == "non_private":
        _keys(value, "reason", "releases", "sampling_probability")
        return NonPrivate(
            reason=value["reason"],
            sampling_probability=_decoded(value["sampling_probability"]),
            releases=value["releases"],
        )
    raise UnsupportedEventError(
        "an event of an unknown kind; expected poisson_gaussian, gaussian or non_private"
    )


def _keys(value: Mapping[str, object], *names: str) -> None:
    if set(value) != {"kind", *names}:
        raise UnsupportedEventError(f"expected an event with exactly the keys kind, {', '.join(names)}")


def _decoded(text: object) -> float:
    number = decode_real(text)
    if number is None:
        raise UnsupportedEventError("expected a number as the exact decimal string that repr writes")
    return number


def _probability(value: object) -> float:
    number = real(value)
    if number is None or not 0.0 < number <= 1.0:
        raise UnsupportedEventError(f"expected 0 < sampling_probability <= 1, got {value!r}")
    return number


def _noise_multiplier(value: object) -> float:
    number = real(value)
    if number is None or not 0.0 < number <= MAX_NOISE_MULTIPLIER:
        raise UnsupportedEventError(
            f"expected 0 < noise_multiplier <= {MAX_NOISE_MULTIPLIER:g}, got {value!r}; "
            "a release without noise is a NonPrivate event"
        )
    return number


def _amount(name: str, value: object) -> int:
    number = count(value)
    if number is None or not 1 <= number <= MAX_AMOUNT:
        raise UnsupportedEventError(f"expected 1 <= {name} <= {MAX_AMOUNT}, got {value!r}")
    return number

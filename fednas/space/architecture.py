"""An architecture is a flat, canonical dictionary of choices, with the same bytes everywhere."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from fednas.errors import ConfigurationError

Value = str | int | float | bool

_NAME = re.compile(r"[a-z0-9][a-z0-9_]*(\.[a-z0-9_]+)*")


@final
@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One point of a search space: the active choices only, sorted by name.

    Args:
        space: The name of the search space.
        choices: Pairs of a choice's full name and its chosen value, sorted by name, names unique.

    Raises:
        ConfigurationError: A name is malformed, repeated or out of order, or a value is not plain and finite.
    """

    space: str
    choices: tuple[tuple[str, Value], ...]

    def __post_init__(self) -> None:
        _check_name(self.space)
        names = [name for name, _ in self.choices]
        if names != sorted(set(names)):
            raise ConfigurationError(f"the choices of an architecture must be sorted and unique, got {names}")
        for name, value in self.choices:
            _check_name(name)
            _check_value(name, value)

    @classmethod
    def of(cls, space: str, choices: Mapping[str, Value]) -> "Architecture":
        """Make the canonical architecture with these choices.

        Args:
            space: The name of the search space.
            choices: The chosen value by full choice name, in any order.

        Returns:
            The architecture, its choices sorted.

        Raises:
            ConfigurationError: A name or value is malformed.
        """
        for name in choices:
            _check_name(name)
        return cls(space=space, choices=tuple(sorted(choices.items(), key=lambda item: item[0])))

    def __getitem__(self, name: str) -> Value:
        """Look up the chosen value of an active choice; KeyError when it is not active."""
        return self.as_dict()[name]

    def as_dict(self) -> dict[str, Value]:
        """Return the choices as a fresh dictionary, sorted by name."""
        return dict(self.choices)

    def to_json(self) -> str:
        """Write the canonical JSON text: sorted keys, no spaces, ASCII."""
        document = {"choices": self.as_dict(), "space": self.space}
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Architecture":
        """Read an architecture back from JSON text.

        Args:
            text: What `to_json` wrote; other spacing and key order are accepted, other content is not.

        Returns:
            The architecture.

        Raises:
            ConfigurationError: The text is not a JSON object with a space name and plain choices.
        """
        try:
            document = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:  # ValueError: malformed, or a number of many digits
            raise ConfigurationError(f"an architecture must be a JSON object: {error}") from error
        if not isinstance(document, dict) or set(document) != {"choices", "space"}:
            raise ConfigurationError(
                'an architecture must be a JSON object with the keys "choices" and "space"'
            )
        if not isinstance(document["choices"], dict):
            raise ConfigurationError('the "choices" of an architecture must be a JSON object')
        return cls.of(document["space"], document["choices"])

    @property
    def id(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the canonical JSON text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]


def _check_name(name: object) -> None:
    if not isinstance(name, str) or len(name) > 200 or _NAME.fullmatch(name) is None:
        raise ConfigurationError(f"expected a name of a-z, 0-9, _ and dots, got {name!r}")


def _check_value(name: str, value: object) -> None:
    small = isinstance(value, str) or (isinstance(value, (int, float)) and abs(value) < 2**63)
    if not small:
        raise ConfigurationError(
            f"{name}: expected a string, a truth value or a finite number below 2**63, got {value!r}"
        )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ConfigurationError("an architecture's JSON must not repeat a key")
    return result


def _refuse_constant(text: str) -> float:
    raise ConfigurationError(f"an architecture's JSON must not contain {text}")

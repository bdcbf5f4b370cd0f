"""A search space is a tree of choices: contains, sample, mutate, encode and size follow from the tree."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np

from fednas.errors import ConfigurationError
from fednas.space.architecture import Architecture, Value
from fednas.space.tree import (
    Choice,
    Node,
    Pick,
    Repeat,
    choice,
    collect,
    count,
    node,
    occurrences,
    repeat,
    walk,
)

if TYPE_CHECKING:
    from fednas.space.layers import Network

__all__ = ["Choice", "Node", "Repeat", "SearchSpace", "choice", "node", "repeat"]


@final
@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A named tree of choices and the function that builds a network from an architecture of it.

    Args:
        name: The name that architectures carry.
        tree: The choices.
        input_shape: The shape of one record, without the batch.
        num_classes: The number of logits.
        builder: Makes the network from (architecture, gated); called with contained architectures only.

    Raises:
        ConfigurationError: Two choices that can be active together share a name.
    """

    name: str
    tree: Node
    input_shape: tuple[int, ...]
    num_classes: int
    builder: Callable[[Architecture, bool], "Network"] = field(compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in self._options:
            Architecture.of(self.name, {name: 0})

    @cached_property
    def _options(self) -> dict[str, tuple[Value, ...]]:
        return collect(self.tree, "")

    @cached_property
    def size(self) -> int:
        """The exact number of architectures."""
        return count(self.tree)

    def options(self) -> dict[str, tuple[Value, ...]]:
        """Return the options of every choice by full name, in the order of the tree."""
        return dict(self._options)

    def complete(self, pick: Pick) -> Architecture:
        """Walk the active choices in the order of the tree and ask for each.

        Args:
            pick: Called with a choice's full name and its options; returns one of them.

        Returns:
            The architecture.

        Raises:
            ConfigurationError: `pick` returned something else.
        """
        chosen: dict[str, Value] = {}
        walk(self.tree, "", pick, chosen)
        return Architecture.of(self.name, chosen)

    def contains(self, architecture: Architecture) -> bool:
        """Tell whether the architecture has exactly the active choices, each with one of its options."""
        chosen = architecture.as_dict()
        try:
            same = self.complete(lambda name, _: chosen[name])
        except (KeyError, ConfigurationError):
            return False
        return same == architecture

    def build(self, architecture: Architecture, *, gated: bool = False) -> "Network":
        """Build the plain network of an architecture.

        Args:
            architecture: An architecture of this space.
            gated: True multiplies block outputs by the gates of the choices that shape them.

        Returns:
            A fresh network for inputs of shape (batch, *input_shape), with logits (batch, num_classes).

        Raises:
            ConfigurationError: The architecture is not contained in this space.
        """
        self._require(architecture)
        return self.builder(architecture, gated)

    def sample(self, generator: np.random.Generator) -> Architecture:
        """Draw an architecture, uniform at each active choice."""
        return self.complete(lambda _, options: _uniform(options, generator))

    def mutate(self, architecture: Architecture, generator: np.random.Generator) -> Architecture:
        """Change one active choice, drawn uniformly; choices that become active are sampled.

        Args:
            architecture: The parent.
            generator: Public randomness.

        Returns:
            An architecture that differs from the parent in that choice.

        Raises:
            ConfigurationError: The architecture is not contained, or has no choice with a second option.
        """
        self._require(architecture)
        kept = architecture.as_dict()
        names = [name for name in kept if len(self._options[name]) > 1]
        if not names:
            raise ConfigurationError(
                f"no choice of {architecture.to_json()} has a second option to mutate to"
            )
        changed = names[int(generator.integers(len(names)))]
        others = tuple(value for value in self._options[changed] if value != kept[changed])
        kept[changed] = _uniform(others, generator)
        return self.complete(lambda name, options: kept.get(name, _uniform(options, generator)))

    def cross(self, left: Architecture, right: Architecture, generator: np.random.Generator) -> Architecture:
        """Mix two architectures: each choice comes from either parent; what neither has is sampled.

        Args:
            left: One parent.
            right: The other parent.
            generator: Public randomness.

        Returns:
            The child.

        Raises:
            ConfigurationError: A parent is not contained in this space.
        """
        self._require(left)
        self._require(right)
        parents = (left.as_dict(), right.as_dict())

        def pick(name: str, options: tuple[Value, ...]) -> Value:
            values = tuple(parent[name] for parent in parents if name in parent)
            return _uniform(values or options, generator)

        return self.complete(pick)

    def encode(self, architecture: Architecture) -> np.ndarray:
        """Write an architecture as numbers of fixed length, different for different architectures.

        Args:
            architecture: An architecture of this space.

        Returns:
            float64 zeros and ones: for each choice in the order of `options`, an active bit and a one-hot.

        Raises:
            ConfigurationError: The architecture is not contained in this space.
        """
        self._require(architecture)
        chosen = architecture.as_dict()
        bits = [
            bit
            for name, options in self._options.items()
            for bit in (name in chosen, *(name in chosen and chosen[name] == value for value in options))
        ]
        return np.asarray(bits, dtype=np.float64)

    def neighbours(self, architecture: Architecture) -> list[Architecture]:
        """List the architectures one choice away; choices that become active take their first option.

        Args:
            architecture: An architecture of this space.

        Returns:
            Distinct architectures, without the given one, in a fixed order.

        Raises:
            ConfigurationError: The architecture is not contained in this space.
        """
        self._require(architecture)
        chosen = architecture.as_dict()
        found = [
            self._forced({**chosen, name: value}, first=True)
            for name in chosen
            for value in self._options[name]
            if value != chosen[name]
        ]
        return list(dict.fromkeys(found))

    def smallest(self) -> Architecture:
        """Return the architecture with the first option everywhere: the least to train on the first stem.

        Another stem may need less of one resource, such as work, so a device that cannot hold the smallest
        architecture may still hold another.
        """
        return self._forced({}, first=True)

    def largest(self) -> Architecture:
        """Return the architecture with the last option everywhere: the most to train on the last stem."""
        return self._forced({}, first=False)

    def cover(self) -> list[Architecture]:
        """List architectures whose elementwise largest parameter shapes hold those of every architecture.

        Each option occurs once with the branches that lead to it and the last option everywhere else; this is
        enough when a parameter's existence depends on one chain of choices, as in the shipped spaces.

        Returns:
            Distinct architectures, in a fixed order.
        """
        found = [self.largest()]
        found += [self._forced(forced, first=False) for forced in occurrences(self.tree, "", {})]
        return list(dict.fromkeys(found))

    def _forced(self, forced: Mapping[str, Value], *, first: bool) -> Architecture:
        return self.complete(lambda name, options: forced.get(name, options[0 if first else -1]))

    def _require(self, architecture: Architecture) -> None:
        if not self.contains(architecture):
            raise ConfigurationError(
                f"{architecture.to_json()} is not in the space {self.name}; make it with complete()"
            )


def _uniform(options: tuple[Value, ...], generator: np.random.Generator) -> Value:
    return options[int(generator.integers(len(options)))]

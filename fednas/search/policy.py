"""Architecture parameters: one logit vector per choice, learned from released gradients only."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fednas.errors import ConfigurationError
from fednas.search.path_sampling import lowered
from fednas.space.architecture import Architecture, Value
from fednas.space.search_space import SearchSpace

Floats = NDArray[np.float64]

ATTEMPTS = 64
"""Paths drawn before an infeasible one is lowered until it fits."""


@final
class Policy:
    """A distribution over architectures: a softmax over the options of every choice.

    Flat vectors hold the choices sorted by name, each with its options in the order of the space.

    Args:
        space: the space whose choices get logits; they start at 0, the uniform distribution.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._options = dict(sorted(space.options().items()))
        self._logits = {name: np.zeros(len(options)) for name, options in self._options.items()}

    @property
    def logits(self) -> dict[str, Floats]:
        """The logits of every choice: copies, shape (num_options,)."""
        return {name: values.copy() for name, values in self._logits.items()}

    @property
    def size(self) -> int:
        """The number of logits over all choices."""
        return sum(map(len, self._options.values()))

    def flat(self) -> Floats:
        """Return all logits as one vector, shape (size,)."""
        return np.concatenate([np.zeros(0), *self._logits.values()])

    def set_flat(self, flat: Floats) -> None:
        """Replace all logits.

        Args:
            flat: (size,), finite, in the order of `flat`.

        Raises:
            ConfigurationError: when shape or values are wrong.
        """
        flat = self._checked(flat)
        start = 0
        for name, options in self._options.items():
            self._logits[name] = flat[start : start + len(options)].copy()
            start += len(options)

    def probabilities(self, temperature: float = 1.0) -> dict[str, Floats]:
        """Return the probability of every option of every choice, each choice summing to 1."""
        return {name: _softmax(values / temperature) for name, values in self._logits.items()}

    def sample(
        self, generator: np.random.Generator, feasible: Callable[[Architecture], bool]
    ) -> Architecture:
        """Draw one path by the Gumbel-max trick at each active choice, again until it is feasible.

        When 64 paths do not fit, the last is lowered choice by choice towards the cheapest until it does.

        Args:
            generator: public randomness, never derived from data.
            feasible: whether an architecture fits.

        Returns:
            A feasible architecture.

        Raises:
            InfeasibleDeviceError: when nothing fits.

        Source: Dong & Yang (2019), GDAS, 1910.04465.
        """

        def pick(name: str, options: tuple[Value, ...]) -> Value:
            return options[int(np.argmax(self._logits[name] + generator.gumbel(size=len(options))))]

        for _ in range(ATTEMPTS):
            architecture = self._space.complete(pick)
            if feasible(architecture):
                return architecture
        return lowered(self._space, architecture, feasible, generator)

    def jacobian(self, architecture: Architecture, temperature: float = 1.0) -> dict[str, Floats]:
        """Return the derivative of each chosen option's probability by the logits of its choice.

        A loss's derivative by a path's gate, times this row, is its first-order derivative by the logits.

        Args:
            architecture: the path.
            temperature: of the softmax, larger is flatter.

        Returns:
            For each active choice, shape (num_options,): p_chosen (1[j = chosen] - p_j) / temperature.

        Raises:
            ConfigurationError: when the architecture is not in the space.
        """
        if not self._space.contains(architecture):
            raise ConfigurationError(
                f"architecture {architecture.id} is not in the space {self._space.name!r}"
            )
        rows: dict[str, Floats] = {}
        for name, value in architecture.choices:
            chosen = self._options[name].index(value)
            probabilities = _softmax(self._logits[name] / temperature)
            rows[name] = (
                probabilities[chosen] * (np.eye(len(probabilities))[chosen] - probabilities) / temperature
            )
        return rows

    def spread(self, names: Collection[str], values: Floats) -> Floats:
        """Place the gradients of some choices in a flat vector.

        Args:
            names: choices, in any order.
            values: their gradients, concatenated in the sorted order of the names.

        Returns:
            (size,), with NaN for all other choices: unknown, which is not zero.

        Raises:
            ConfigurationError: for an unknown choice or a wrong length.
        """
        known = [name in names for name, options in self._options.items() for _ in options]
        mask = np.asarray(known, dtype=np.bool_)
        if not set(names) <= set(self._options) or values.shape != (int(mask.sum()),):
            raise ConfigurationError(
                f"{len(names)} choices of the space {self._space.name!r} have {int(mask.sum())} options, "
                f"got gradients of shape {values.shape}"
            )
        flat = np.full(self.size, np.nan)
        flat[mask] = values
        return flat

    def learn(self, gradient: Floats, learning_rate: float) -> None:
        """Take one step down a released gradient of the loss.

        Args:
            gradient: (size,), finite: averaged over the sites, 0 where no site had the choice on its path.
            learning_rate: step size.

        Raises:
            ConfigurationError: when shape or values are wrong.
        """
        self.set_flat(self.flat() - learning_rate * self._checked(gradient))

    def entropy(self) -> float:
        """Return the sum over all choices of their entropies, in nats: how undecided the policy is."""
        rows = self.probabilities().values()
        return float(-sum(float(np.sum(p * np.log(np.maximum(p, np.finfo(np.float64).tiny)))) for p in rows))

    def state(self) -> dict[str, Any]:
        """Return the logits as JSON values, exactly."""
        return {"logits": {name: values.tolist() for name, values in self._logits.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Replace the logits by stored ones.

        Raises:
            ConfigurationError: when the state is malformed or of another space.
        """
        try:
            rows = {name: np.asarray(row, np.float64) for name, row in state["logits"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigurationError(f"the policy state is malformed: {error!r}") from None
        shapes = {name: (len(options),) for name, options in self._options.items()}
        if {name: row.shape for name, row in rows.items()} != shapes:
            raise ConfigurationError(
                f"the policy state does not match the choices of the space {self._space.name!r}"
            )
        self.set_flat(np.concatenate([np.zeros(0), *(rows[name] for name in shapes)]))

    def _checked(self, flat: Floats) -> Floats:
        flat = np.asarray(flat, dtype=np.float64)
        if flat.shape != (self.size,) or not np.isfinite(flat).all():
            raise ConfigurationError(
                f"expected {self.size} finite architecture values, got shape {flat.shape}"
            )
        return flat


def _softmax(values: Floats) -> Floats:
    shifted = np.exp(values - values.max())
    normalised: Floats = shifted / shifted.sum()
    return normalised

"""The weights that all architectures of a space share: extract a network, merge what sites learned."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fednas.errors import ConfigurationError, RunDirectoryError
from fednas.space.architecture import Architecture
from fednas.space.layers import Network
from fednas.space.search_space import SearchSpace
from fednas.supernet.layout import Layout, layout_of
from fednas.supernet.slices import Shape, check_vector, load

_METADATA: Final = "fednas.supernet"

Rule = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Combines votes, shape (sites, coordinates) with NaN where a site trained nothing, into a change of each
coordinate; 0 keeps its bits. See `fednas.aggregation.RobustRule`."""


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one site learned in a round, already released.

    Args:
        architecture: the architecture the site trained.
        update: float32 change of its flat parameters.
        weight: a public constant > 0, never a count of records.

    Raises:
        ConfigurationError: the weight is not a positive finite number, or the update is not a finite vector.
    """

    architecture: Architecture
    update: np.ndarray
    weight: float

    def __post_init__(self) -> None:
        if not 0.0 < self.weight < float("inf"):
            raise ConfigurationError(f"expected a finite contribution weight > 0, got {self.weight}")
        check_vector(self.update, self.update.size)
        if not np.isfinite(self.update).all():
            raise ConfigurationError("expected a finite update, got NaN or infinity; drop this contribution")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Supernet:
    """The shared weights of a space, an immutable value: training makes a new one.

    Args:
        layout: the shapes of the shared weights and the places of every architecture.
        weights: float32 tensors by shared name, of the layout's shapes; not to be changed in place.
    """

    layout: Layout
    weights: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in self.weights.items()}
        assert shapes == self.layout.shapes, "the weights must have the layout's names and shapes"
        assert all(tensor.dtype == torch.float32 for tensor in self.weights.values())
        ordered = {name: self.weights[name] for name in self.layout.shapes}
        object.__setattr__(self, "weights", MappingProxyType(ordered))

    @classmethod
    def initialise(cls, space: SearchSpace, *, seed: int) -> "Supernet":
        """Draw the initial weights of a space from a public seed.

        Args:
            space: the search space.
            seed: public, >= 0; the same seed gives the same weights.

        Returns:
            Kaiming-uniform matrices and kernels (He et al. (2015), 1502.01852), norm weights 1, biases 0.

        Raises:
            ConfigurationError: the seed is negative.
        """
        if seed < 0:
            raise ConfigurationError(f"expected a seed >= 0, got {seed}")
        layout, generator = layout_of(space), np.random.default_rng(seed)
        return cls(
            layout=layout,
            weights={name: _initial(name, shape, generator) for name, shape in layout.shapes.items()},
        )

    @property
    def space(self) -> SearchSpace:
        """The search space these weights belong to."""
        return self.layout.space

    @property
    def num_parameters(self) -> int:
        """The number of shared coordinates."""
        return sum(tensor.numel() for tensor in self.weights.values())

    def extract(self, architecture: Architecture, *, gated: bool = False) -> Network:
        """Build a sub-network that holds copies of its shared weights.

        Args:
            architecture: an architecture of the space.
            gated: whether the network is built with gates.

        Returns:
            A plain network; training it leaves this supernet unchanged.

        Raises:
            ConfigurationError: the architecture is not in the space.
        """
        network = self.space.build(architecture, gated=gated)
        load(network, self.gather(architecture))
        return network

    def gather(self, architecture: Architecture) -> np.ndarray:
        """Copy an architecture's shared weights into one vector.

        Args:
            architecture: an architecture of the space.

        Returns:
            float32, in the order of `slices.flatten` of its network.

        Raises:
            ConfigurationError: the architecture is not in the space.
        """
        slices = self.layout.slices(architecture)
        flat = np.empty(slices[-1].stop if slices else 0, dtype=np.float32)
        for part in slices:
            flat[part.start : part.stop].reshape(part.shape)[...] = self._array(part.name)[part.window]
        return flat

    def merge(self, contributions: Sequence[Contribution], rule: Rule | None = None) -> "Supernet":
        """Add the weighted mean of updates, coordinate by coordinate, over the sites that trained each.

        Args:
            contributions: what sites learned; their order fixes the rounding.
            rule: combines the updates instead of the weighted mean; it sees no weights.

        Returns:
            weights + sum(mask x weight x update) / sum(mask x weight), accumulated in float64, or what the
            rule says; coordinates that nobody trained, or that the rule does not change, keep their bits.

        Raises:
            ConfigurationError: an update's length is not its architecture's, or one is not in the space.
        """
        if rule is not None:
            return self._shifted(rule(self._votes(contributions)))
        totals: dict[str, np.ndarray] = {}
        for contribution in contributions:
            slices = self.layout.slices(contribution.architecture)
            check_vector(contribution.update, slices[-1].stop if slices else 0)
            for part in slices:
                total = totals.setdefault(part.name, np.zeros(self.layout.shapes[part.name]))
                total[part.window] += contribution.weight
        means = {name: np.zeros(total.shape) for name, total in totals.items()}
        for contribution in contributions:
            for part in self.layout.slices(contribution.architecture):
                # shares, not sums: a coordinate that one site trained gets exactly that site's update
                share = contribution.weight / totals[part.name][part.window]
                update = contribution.update[part.start : part.stop].reshape(part.shape)
                means[part.name][part.window] += share * update
        changed = {
            name: torch.from_numpy(
                np.where(totals[name] > 0.0, (self._array(name) + mean).astype(np.float32), self._array(name))
            )
            for name, mean in means.items()
        }
        return Supernet(layout=self.layout, weights={**self.weights, **changed})

    def _votes(self, contributions: Sequence[Contribution]) -> NDArray[np.float64]:
        """One row a contribution over all shared coordinates, NaN where it trained nothing."""
        votes = np.full((len(contributions), self.num_parameters), np.nan)
        for row, contribution in zip(votes, contributions, strict=True):
            slices, shared = self.layout.slices(contribution.architecture), self._views(row)
            check_vector(contribution.update, slices[-1].stop if slices else 0)
            for part in slices:
                update = contribution.update[part.start : part.stop].reshape(part.shape)
                shared[part.name][part.window] = update
        return votes

    def _shifted(self, change: NDArray[np.float64]) -> "Supernet":
        """The weights with a change added where there is one."""
        weights = {
            name: torch.from_numpy(
                np.where(part != 0.0, (self._array(name) + part).astype(np.float32), self._array(name))
            )
            for name, part in self._views(change).items()
        }
        return Supernet(layout=self.layout, weights=weights)

    def _views(self, flat: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """The parts of a vector over all shared coordinates, by name, in the shapes of the weights."""
        stops = np.cumsum([tensor.numel() for tensor in self.weights.values()])[:-1]
        parts = np.split(flat, stops)
        return {name: part.reshape(self.layout.shapes[name]) for name, part in zip(self.weights, parts)}

    def save(self, path: Path) -> None:
        """Write the weights to a safetensors file, whole or not at all.

        Args:
            path: the file; an older one is replaced.

        Raises:
            RunDirectoryError: the file cannot be written.
        """
        partial = path.with_name(path.name + ".partial")
        try:
            save_file(dict(self.weights), partial, metadata={_METADATA: _identity(self.space)})
            os.replace(partial, path)
        except (SafetensorError, OSError) as error:
            raise RunDirectoryError(f"cannot write the supernet {path}: {error}") from error

    @classmethod
    def load(cls, space: SearchSpace, path: Path) -> "Supernet":
        """Read the weights that `save` wrote.

        Args:
            space: the search space they must belong to.
            path: the file.

        Returns:
            The supernet, bit for bit.

        Raises:
            RunDirectoryError: the file is missing, corrupt, or of another space.
        """
        layout = layout_of(space)
        try:
            with safe_open(path, framework="pt") as file:
                identity = (file.metadata() or {}).get(_METADATA, "nothing")
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise RunDirectoryError(f"cannot read the supernet {path}: {error}") from error
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        plain = all(tensor.dtype == torch.float32 for tensor in weights.values())
        if identity != _identity(space) or shapes != layout.shapes or not plain:
            raise RunDirectoryError(
                f"{path} holds the supernet of {identity}, not of {_identity(space)}; use another directory"
            )
        return cls(layout=layout, weights=weights)

    def _array(self, name: str) -> np.ndarray:
        return self.weights[name].numpy()


def _identity(space: SearchSpace) -> str:
    values = {"input_shape": space.input_shape, "num_classes": space.num_classes, "space": space.name}
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def _initial(name: str, shape: Shape, generator: np.random.Generator) -> Tensor:
    if len(shape) < 2:
        fill = 0.0 if name.rpartition(".")[2] == "bias" else 1.0
        return torch.full(shape, fill, dtype=torch.float32)
    bound = float(np.sqrt(6.0 / np.prod(shape[1:])))
    return torch.from_numpy(generator.uniform(-bound, bound, size=shape).astype(np.float32))

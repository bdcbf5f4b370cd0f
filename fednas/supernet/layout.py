"""The shapes of a space's shared weights, and where each architecture's parameters lie in them."""

from functools import lru_cache
from typing import Final, final

import torch

from fednas.space.architecture import Architecture
from fednas.space.search_space import SearchSpace
from fednas.supernet.slices import Shape, Slice, place, trunk_parameters

_REMEMBERED: Final = 4096  # architectures; some kilobytes each


@final
class Layout:
    """The shared weights of a space: each has the elementwise largest shape over the space's cover.

    Args:
        space: the search space.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        shapes: dict[str, Shape] = {}
        for architecture in space.cover():
            for name, shape in _parameter_shapes(space, architecture):
                known = shapes.get(name, shape)
                assert len(known) == len(shape), f"{name} has {len(known)} and {len(shape)} dimensions"
                shapes[name] = tuple(max(pair) for pair in zip(known, shape))
        self.shapes = dict(sorted(shapes.items()))
        self._slices: dict[Architecture, tuple[Slice, ...]] = {}

    def slices(self, architecture: Architecture) -> tuple[Slice, ...]:
        """Return where an architecture's parameters lie, in the order of its flat vector.

        Args:
            architecture: an architecture of the space.

        Returns:
            One slice a trunk parameter; remembered, so that only the first call builds the network.

        Raises:
            ConfigurationError: the architecture is not in the space.
        """
        found = self._slices.get(architecture)
        if found is None:
            found = place(_parameter_shapes(self.space, architecture), self.shapes)
            if len(self._slices) >= _REMEMBERED:
                self._slices.pop(next(iter(self._slices)))
            self._slices[architecture] = found
        return found


@lru_cache(maxsize=16)
def layout_of(space: SearchSpace) -> Layout:
    """Return the layout of a space, computed once per process."""
    return Layout(space)


def _parameter_shapes(space: SearchSpace, architecture: Architecture) -> list[tuple[str, Shape]]:
    with torch.device("meta"):  # shapes only: nothing is allocated or drawn
        network = space.build(architecture)
    return [(name, tuple(parameter.shape)) for name, parameter in trunk_parameters(network)]

"""Where a sub-network's parameters live: flat vectors and windows of shared weights, without any state."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fednas.errors import ConfigurationError
from fednas.space.layers import Network

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The part of one shared weight that a sub-network uses.

    Args:
        name: the name of the shared weight, equal to the trunk parameter's.
        shape: the shape of the sub-network's parameter.
        window: the part: prefixes of the first two dimensions, centre crops of the others.
        start: where the parameter begins in the sub-network's flat vector.
        stop: where it ends.
    """

    name: str
    shape: Shape
    window: tuple[slice, ...]
    start: int
    stop: int


def trunk_parameters(network: Network) -> list[tuple[str, nn.Parameter]]:
    """Return the trained parameters by name, sorted: the order of every flat vector."""
    return sorted(network.trunk.named_parameters(), key=lambda item: item[0])


def window(shape: Shape, within: Shape) -> tuple[slice, ...]:
    """Place a parameter in its shared weight.

    Args:
        shape: the parameter's shape.
        within: the shared weight's shape, nowhere smaller.

    Returns:
        One slice a dimension: prefixes of the first two, centre crops of the others.
    """
    starts = [0 if axis < 2 else (full - size) // 2 for axis, (size, full) in enumerate(zip(shape, within))]
    return tuple(slice(start, start + size) for start, size in zip(starts, shape))


def flatten(network: Network) -> np.ndarray:
    """Copy a network's trained parameters into one vector.

    Args:
        network: any network; gates and the stem are not part of the vector.

    Returns:
        float32, the trunk's parameters sorted by name, each in C order.
    """
    arrays = [parameter.detach().cpu().numpy().ravel() for _, parameter in trunk_parameters(network)]
    return np.concatenate([np.empty(0, np.float32), *arrays], dtype=np.float32, casting="same_kind")


def load(network: Network, flat: np.ndarray) -> None:
    """Set a network's trained parameters from one vector: the inverse of `flatten`.

    Args:
        network: the network to change.
        flat: float32, the trunk's parameters sorted by name.

    Raises:
        ConfigurationError: the vector has another dtype or length; the network is unchanged.
    """
    parameters = trunk_parameters(network)
    check_vector(flat, sum(parameter.numel() for _, parameter in parameters))
    start = 0
    with torch.no_grad():
        for _, parameter in parameters:
            stop = start + parameter.numel()
            parameter.copy_(torch.tensor(flat[start:stop]).reshape(parameter.shape))
            start = stop


def check_vector(flat: np.ndarray, length: int) -> None:
    """Refuse what is not a float32 vector of the given length.

    Args:
        flat: the candidate.
        length: coordinates expected.

    Raises:
        ConfigurationError: the dtype, the number of dimensions or the length differs.
    """
    if flat.dtype != np.float32 or flat.shape != (length,):
        raise ConfigurationError(
            f"expected a float32 vector of {length} parameters, got {flat.dtype} of shape {flat.shape}"
        )


def place(parameters: Sequence[tuple[str, Shape]], shared: dict[str, Shape]) -> tuple[Slice, ...]:
    """Place all parameters of a sub-network in the shared weights.

    Args:
        parameters: names and shapes, in the order of the flat vector.
        shared: the shapes of the shared weights by name.

    Returns:
        One slice a parameter, in the same order.
    """
    slices, start = [], 0
    for name, shape in parameters:
        full = shared.get(name)
        assert full is not None, f"no shared weight {name}: the space's cover() lacks an architecture with it"
        assert len(full) == len(shape), (
            f"{name} has {len(shape)} dimensions here, {len(full)} in the supernet"
        )
        assert all(size <= limit for size, limit in zip(shape, full)), (
            f"{name} of shape {shape} does not fit the shared {full}: the space's cover() lacks a larger one"
        )
        stop = start + int(np.prod(shape, dtype=np.int64))
        slices.append(Slice(name=name, shape=shape, window=window(shape, full), start=start, stop=stop))
        start = stop
    return tuple(slices)

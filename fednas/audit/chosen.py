"""What an attacker chooses, weights and a site's declared size, and the parts of what comes back."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fednas.config import StudyConfig, space_of
from fednas.errors import ConfigurationError
from fednas.space import Architecture
from fednas.supernet.slices import trunk_parameters


def size_for(wanted: int, delta: float) -> int:
    """A declared size, at least 1 and at most `wanted`, that a delta allows: a site refuses 1 / delta."""
    return max(1, min(wanted, int(0.5 / delta)))


def flat_weights(study: StudyConfig, path: Architecture, values: Mapping[str, Any]) -> NDArray[np.float32]:
    """The weights that a server sends for a path: zeros but for some parameters.

    Args:
        study: with the path's space.
        path: an architecture.
        values: what those parameters are, by their names in the trunk; arrays of their shapes.
    """
    parameters = trunk_parameters(space_of(study).build(path))
    assert values.keys() <= {name for name, _ in parameters}
    parts = [np.broadcast_to(values.get(name, 0.0), tuple(p.shape)) for name, p in parameters]
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def part_of(study: StudyConfig, path: Architecture, flat: NDArray[Any], name: str) -> NDArray[np.float64]:
    """One parameter of a flat vector, in its own shape.

    Args:
        study: with the path's space.
        path: an architecture.
        flat: in the order of `fednas.supernet.flatten`.
        name: of the parameter in the trunk.
    """
    start = 0
    for other, parameter in trunk_parameters(space_of(study).build(path)):
        stop = start + parameter.numel()
        if other == name:
            part: NDArray[np.float64] = flat[start:stop].astype(np.float64).reshape(tuple(parameter.shape))
            return part
        start = stop
    raise ConfigurationError(f"the path {path.id} has no parameter {name!r}")

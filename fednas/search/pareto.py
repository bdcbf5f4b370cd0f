"""Trade-offs between objectives: which points are undominated, and how much area they cover."""

import numpy as np
from numpy.typing import NDArray

from fednas.errors import ConfigurationError

Floats = NDArray[np.float64]


def nondominated(points: Floats) -> NDArray[np.bool_]:
    """Mark the points that no other point dominates; smaller is better in every column.

    A point dominates another when it is nowhere larger and somewhere smaller; equal points do not dominate
    each other, so duplicates are kept together.

    Args:
        points: (num_points, num_objectives), finite. Negate what should be large, such as fitness.

    Returns:
        (num_points,) booleans.

    Raises:
        ConfigurationError: when `points` is not a finite matrix.
    """
    points = _checked(points)
    no_larger = (points[:, None, :] <= points[None, :, :]).all(axis=2)
    smaller = (points[:, None, :] < points[None, :, :]).any(axis=2)
    return np.asarray(~(no_larger & smaller).any(axis=0))


def hypervolume(points: Floats, reference: tuple[float, float]) -> float:
    """Return the area that two-objective points dominate below a reference point; smaller is better.

    Args:
        points: (num_points, 2), finite; points beyond the reference add nothing.
        reference: the worst acceptable value of each objective.

    Returns:
        The area in the product of the two units; 0.0 for no points.

    Raises:
        ConfigurationError: when `points` is not a finite (num_points, 2) matrix.

    Source: Zitzler & Thiele (1998), by a sweep along the first objective.
    """
    points = _checked(points)
    if points.shape[1] != 2:
        raise ConfigurationError(f"expected points of 2 objectives, got {points.shape[1]}")
    right, ceiling = reference
    inside = points[(points < np.asarray(reference)).all(axis=1)]
    area = 0.0
    for x, y in inside[np.lexsort((inside[:, 1], inside[:, 0]))]:
        if y < ceiling:
            area += (right - x) * (ceiling - y)
            ceiling = y
    return float(area)


def _checked(points: Floats) -> Floats:
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ConfigurationError(f"expected a finite (num_points, num_objectives) matrix, got {points.shape}")
    return points

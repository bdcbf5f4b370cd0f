"""Fronts and hypervolumes against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fednas.errors import ConfigurationError
from fednas.search.pareto import hypervolume, nondominated

grids = st.integers(0, 12).flatmap(
    lambda n: arrays(np.float64, (n, 2), elements=st.integers(0, 6).map(float))
)


@given(st.integers(0, 8).flatmap(lambda n: arrays(np.float64, (n, 3), elements=st.integers(0, 4).map(float))))
def test_a_point_is_kept_unless_another_is_nowhere_worse_and_somewhere_better(points: np.ndarray) -> None:
    rows = [tuple(row) for row in points.tolist()]
    slow = [not any(all(a <= b for a, b in zip(q, p)) and q != p for q in rows) for p in rows]
    assert nondominated(points).tolist() == slow


@given(grids)
def test_hypervolume_counts_the_dominated_unit_cells(points: np.ndarray) -> None:
    cells = sum(any(px <= x and py <= y for px, py in points.tolist()) for x in range(5) for y in range(5))
    assert hypervolume(points, (5.0, 5.0)) == cells


@given(grids)
def test_hypervolume_depends_on_the_front_alone(points: np.ndarray) -> None:
    assert hypervolume(points[nondominated(points)], (7.0, 7.0)) == hypervolume(points, (7.0, 7.0))


@pytest.mark.parametrize("points", [np.zeros(3), np.array([[np.nan, 1.0]]), np.zeros((2, 3))])
def test_malformed_points_are_refused(points: np.ndarray) -> None:
    with pytest.raises(ConfigurationError):
        hypervolume(points, (1.0, 1.0))

"""Merging by a rule: votes lie where their sub-networks do, and what the rule leaves alone keeps its bits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fednas.errors import ConfigurationError
from fednas.supernet import Contribution, Supernet
from tests.supernet.test_supernet import NAMES, SEEDS, SPACES, _contributions, _coordinates


def largest_vote(votes: NDArray[np.float64]) -> NDArray[np.float64]:
    """A rule that any misplaced vote would show in: the vote of the largest size, 0 without one."""
    known = np.nan_to_num(np.vstack([votes, np.zeros(votes.shape[1])]))
    found: NDArray[np.float64] = known[np.argmax(np.abs(known), axis=0), np.arange(known.shape[1])]
    return found


@settings(max_examples=10, deadline=None)
@given(name=st.sampled_from(NAMES), seed=SEEDS, count=st.integers(0, 4))
def test_a_rule_sees_each_coordinate_as_a_loop_over_coordinates_does(
    name: str, seed: int, count: int
) -> None:
    supernet = Supernet.initialise(SPACES[name], seed=seed)
    contributions = _contributions(SPACES[name], supernet, seed, count)
    cast: dict[tuple[str, tuple[int, ...]], list[float]] = {}
    for contribution in contributions:
        places = _coordinates(supernet, contribution.architecture)
        for place, vote in zip(places, contribution.update.tolist(), strict=True):
            cast.setdefault(place, []).append(vote)
    slow = {shared: tensor.numpy().astype(np.float64) for shared, tensor in supernet.weights.items()}
    for (shared, index), votes in cast.items():
        slow[shared][index] += max(votes, key=abs)
    merged = supernet.merge(contributions, largest_vote)
    for shared, tensor in merged.weights.items():
        np.testing.assert_array_equal(tensor.numpy(), slow[shared].astype(np.float32))


def test_coordinates_that_a_rule_leaves_alone_keep_their_bits() -> None:
    initial = Supernet.initialise(SPACES["toy"], seed=0)
    negative = {name: torch.full_like(tensor, -0.0) for name, tensor in initial.weights.items()}
    supernet = Supernet(layout=initial.layout, weights=negative)
    merged = supernet.merge(
        _contributions(SPACES["toy"], supernet, 1, 3), lambda votes: np.zeros(votes.shape[1])
    )
    assert all(bool(torch.signbit(tensor).all()) for tensor in merged.weights.values())


def test_a_rule_is_not_asked_about_an_update_of_another_length() -> None:
    space = SPACES["toy"]
    short = Contribution(architecture=space.smallest(), update=np.zeros(3, dtype=np.float32), weight=1.0)
    with pytest.raises(ConfigurationError, match="float32 vector of"):
        Supernet.initialise(space, seed=0).merge([short], largest_vote)

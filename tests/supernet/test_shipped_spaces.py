"""Every shipped space is covered by its supernet, and sharing works there as in the toy space."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas.space import create
from fednas.supernet import Contribution, Supernet, flatten

SHAPES = [
    ("mlp", (21,)),
    ("conv", (1, 8, 8)),
    ("conv", (1, 28, 28)),
    ("conv", (3, 32, 32)),
    ("conv1d", (6, 50)),
]


@cache
def _supernet(name: str, input_shape: tuple[int, ...]) -> Supernet:
    return Supernet.initialise(create(name, input_shape, 4), seed=0)


@settings(max_examples=20, deadline=None)
@given(case=st.sampled_from(SHAPES), seed=st.integers(0, 2**16))
def test_any_architecture_extracts_its_weights_and_takes_its_update(
    case: tuple[str, tuple[int, ...]], seed: int
) -> None:
    supernet, generator = _supernet(*case), np.random.default_rng(seed)
    architecture = supernet.space.sample(generator)
    flat = supernet.gather(architecture)
    network = supernet.extract(architecture)
    np.testing.assert_array_equal(flatten(network), flat)
    with torch.inference_mode():
        assert torch.isfinite(network(torch.zeros(2, *supernet.space.input_shape))).all()
    update = generator.normal(size=flat.shape).astype(np.float32)
    merged = supernet.merge([Contribution(architecture=architecture, update=update, weight=3.0)])
    np.testing.assert_array_equal(merged.gather(architecture), flat + update)
    changed = sum(int((merged.weights[n] != w).sum()) for n, w in supernet.weights.items())
    assert changed <= flat.size


@pytest.mark.parametrize(("name", "input_shape"), SHAPES)
def test_the_smallest_and_the_largest_architecture_share_weights(
    name: str, input_shape: tuple[int, ...]
) -> None:
    supernet = _supernet(name, input_shape)
    for architecture in [supernet.space.smallest(), supernet.space.largest(), *supernet.space.cover()]:
        assert 0 < supernet.gather(architecture).size <= supernet.num_parameters
        assert {part.name for part in supernet.layout.slices(architecture)} <= set(supernet.weights)

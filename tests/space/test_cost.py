"""Costs, against hand counts, PyTorch's own counter and slower definitions."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fednas.space import Architecture, create
from fednas.space.cost import measure
from fednas.space.layers import Network

torch.set_num_threads(1)

CASES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("mlp", (20,)),
    ("conv", (1, 8, 8)),
    ("conv", (3, 32, 32)),
    ("conv1d", (6, 64)),
)


def plain(trunk: nn.Module) -> Network:
    return Network(stem=nn.Identity(), stem_key="identity", trunk=trunk)


@pytest.mark.parametrize(("name", "shape"), CASES)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_work_equals_the_count_of_pytorch(name: str, shape: tuple[int, ...], seed: int) -> None:
    space = create(name, shape, 4)
    network = space.build(space.sample(np.random.default_rng(seed)))
    twin = copy.deepcopy(network).to("meta")
    with FlopCounterMode(display=False) as counter:
        twin(torch.empty((1, *shape), device="meta"))
    assert measure(network, shape, micro_batch=1).macs == counter.get_total_flops() // 2


def test_a_small_network_costs_what_a_hand_counts() -> None:
    space = create("mlp", (20,), 4)
    network = space.build(Architecture.of("mlp", {"activation": "relu", "depth": 1, "layers.0.width": 16}))
    cost = measure(network, (20,), micro_batch=10)
    parameters = 20 * 16 + 16 + 16 * 4 + 4
    assert cost.parameters == parameters
    assert cost.macs == 20 * 16 + 16 * 4
    assert cost.peak_bytes == 4 * (parameters + 20 + 16 + 16)
    assert cost.training_bytes == 4 * (4 * parameters + 10 * (parameters + 16 + 16 + 4))
    assert cost.upload_bytes == 4 * parameters


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_a_prediction_frees_what_it_no_longer_needs_and_training_does_not(depth: int) -> None:
    cost = measure(plain(nn.Sequential(*[nn.Tanh() for _ in range(depth)])), (100,), micro_batch=1)
    assert cost.peak_bytes == 400 * (2 if depth == 1 else 3)  # the record, and at most two activations
    assert cost.training_bytes == 400 * depth


class _Fork(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        left, right = x + 1, x + 2
        return torch.cat([left, right], dim=1)


def test_branches_alive_together_are_counted_together() -> None:
    assert measure(plain(_Fork()), (10,), micro_batch=1).peak_bytes == 4 * (10 + 10 + 10 + 20)


def test_views_cost_nothing() -> None:
    cost = measure(plain(nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 3)))), (3, 2), micro_batch=1)
    assert cost.peak_bytes == 4 * 6
    assert cost.training_bytes == 0


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_measuring_leaves_the_network_untouched_and_ignores_its_values(
    name: str, shape: tuple[int, ...]
) -> None:
    space = create(name, shape, 4)
    network = space.build(space.largest())
    before = copy.deepcopy(network.state_dict())
    cost = measure(network, shape, micro_batch=8)
    assert all(bool((value == before[key]).all()) for key, value in network.state_dict().items())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(float("nan"))
    assert measure(network, shape, micro_batch=8) == cost


@pytest.mark.parametrize(("name", "shape"), CASES[1:])
def test_a_frozen_stem_counts_for_predicting_and_not_for_training(name: str, shape: tuple[int, ...]) -> None:
    space = create(name, shape, 4)
    network = space.build(space.smallest())
    whole = measure(network, shape, micro_batch=8)
    features = tuple(network.stem(torch.zeros(1, *shape)).shape[1:])
    trunk = measure(plain(network.trunk), features, micro_batch=8)
    assert whole.training_bytes == trunk.training_bytes
    assert whole.upload_bytes == trunk.upload_bytes
    assert whole.macs > trunk.macs
    assert whole.peak_bytes > trunk.peak_bytes


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_a_larger_micro_batch_needs_memory_in_proportion(name: str, shape: tuple[int, ...]) -> None:
    space = create(name, shape, 4)
    network = space.build(space.smallest())
    one, two, three = (measure(network, shape, micro_batch=size).training_bytes for size in (1, 2, 3))
    assert three - two == two - one > 0

"""Data-free scores against their published definitions."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fednas.errors import ConfigurationError
from fednas.search import shortlist
from fednas.search.proxies import naswot, rank_sum, synflow
from fednas.space import Architecture, create
from fednas.space.cost import Cost, measure
from fednas.space.layers import Network

torch.set_num_threads(1)


def _network(trunk: nn.Module) -> Network:
    return Network(stem=nn.Identity(), stem_key="identity", trunk=trunk)


def _chain(seed: int, *widths: int, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    pairs = list(pairwise(widths))
    layers = [[nn.Linear(*pair, bias=bias), nn.ReLU()] for pair in pairs]
    return nn.Sequential(*[layer for pair in layers for layer in pair][:-1])


def _slow_naswot(codes: np.ndarray) -> float:
    kernel = [[float(np.sum(a == b)) for b in codes] for a in codes]
    return float(np.linalg.slogdet(np.array(kernel) + np.eye(len(codes)))[1])


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.SELU])
@pytest.mark.parametrize("seed", range(3))
def test_naswot_is_the_log_determinant_of_agreeing_signs(activation: type[nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    first, second = nn.Linear(5, 24), nn.Linear(24, 16)
    inputs = torch.randn(8, 5)
    hidden = activation()(first(inputs))
    codes = torch.cat([hidden > 0, activation()(second(hidden)) > 0], dim=1).numpy()
    score = naswot(nn.Sequential(first, activation(), second, activation(), nn.Linear(16, 3)), inputs)
    assert score == pytest.approx(_slow_naswot(codes), rel=1e-9)


def test_naswot_counts_every_use_of_a_shared_activation_and_of_maps() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.activation = nn.Conv2d(1, 3, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.activation(self.activation(self.convolution(x)) - 0.3)
            return out

    torch.manual_seed(0)
    network, inputs = Shared(), torch.randn(6, 1, 5, 5)
    with torch.no_grad():
        once = network.activation(network.convolution(inputs))
        codes = torch.cat([(once > 0).flatten(1), (once - 0.3 > 0).flatten(1)], dim=1).numpy()
    assert naswot(network, inputs) == pytest.approx(_slow_naswot(codes), rel=1e-9)


def test_naswot_is_lower_for_inputs_that_it_cannot_tell_apart() -> None:
    inputs = torch.randn(4, 5)
    assert naswot(nn.Linear(5, 3), inputs) == 0.0
    assert 0.0 < naswot(_chain(0, 5, 9, 3), inputs[[0, 0, 0, 0]]) < naswot(_chain(0, 5, 9, 3), inputs)


def test_naswot_leaves_no_hook_and_no_gradient() -> None:
    network = _chain(0, 5, 9, 3)
    naswot(network, torch.randn(4, 5))
    assert all(not module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_synflow_is_the_sum_over_all_paths_times_their_length(seed: int) -> None:
    trunk = _chain(seed, 4, 6, 5, 3, bias=False)
    weights = [parameter.detach().abs().double() for parameter in trunk.parameters()]
    paths = torch.ones(1, 4, dtype=torch.float64)
    for weight in weights:
        paths = paths @ weight.T
    # each layer's parameters carry the whole flow once (the conservation law of Tanaka et al.)
    assert synflow(_network(trunk), (4,)) == pytest.approx(math.log(len(weights) * float(paths.sum())))


def test_synflow_looks_through_norms_and_activations_and_ignores_signs() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3)
    plain = synflow(_network(nn.Sequential(first, second)), (2, 8, 8))
    full = nn.Sequential(first, nn.GroupNorm(2, 4), nn.Tanh(), second, nn.SELU())
    assert synflow(_network(full), (2, 8, 8)) == pytest.approx(plain)
    with torch.no_grad():
        first.weight.neg_()
    assert synflow(_network(full), (2, 8, 8)) == pytest.approx(plain)


def test_synflow_changes_nothing_and_knows_a_blocked_network() -> None:
    trunk = _chain(0, 4, 6, 3)
    before = [parameter.detach().clone() for parameter in trunk.parameters()]
    synflow(_network(trunk), (4,))
    assert all(torch.equal(a, b) for a, b in zip(before, trunk.parameters()))
    assert isinstance(trunk[1], nn.ReLU)
    for parameter in trunk[2].parameters():
        nn.init.zeros_(parameter)
    assert synflow(_network(trunk), (4,)) == -math.inf


def _cost(macs: int) -> Cost:
    return Cost(parameters=1, macs=macs, peak_bytes=1, training_bytes=1, upload_bytes=1)


def test_the_largest_of_three_leads_all_three_ranks() -> None:
    candidates = [(_network(_chain(0, 6, width, 3)), _cost(width)) for width in (64, 4, 16)]
    assert rank_sum(candidates, (6,), np.random.default_rng(0)).tolist() == [9.0, 3.0, 6.0]


def test_scores_depend_on_neither_trained_weights_nor_global_randomness() -> None:
    def ranks(seed: int) -> np.ndarray:
        candidates = [(_network(_chain(seed, 6, width, 3)), _cost(1)) for width in (12, 12, 13, 14)]
        return rank_sum(candidates, (6,), np.random.default_rng(7))

    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    rank_sum([(_network(nn.ReLU()), _cost(1))], (6,), np.random.default_rng(7))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(ranks(0), ranks(1))
    assert ranks(0)[0] == ranks(0)[1]  # equal networks share their mean rank


def test_no_candidates_have_no_ranks() -> None:
    assert rank_sum([], (6,), np.random.default_rng(0)).shape == (0,)


@pytest.mark.parametrize(("name", "shape"), [("mlp", (9,)), ("conv", (1, 8, 8)), ("conv1d", (3, 64))])
def test_every_shipped_space_can_be_scored(name: str, shape: tuple[int, ...]) -> None:
    space = create(name, shape, 4)
    generator = np.random.default_rng(0)
    pool = [space.smallest(), space.largest(), *(space.sample(generator) for _ in range(6))]

    def cost(architecture: Architecture) -> Cost:
        return measure(space.build(architecture), shape, micro_batch=1)

    def kept(count: int) -> list[Architecture]:
        return shortlist(
            pool,
            build=space.build,
            measure=cost,
            count=count,
            input_shape=shape,
            generator=np.random.default_rng(1),
        )

    assert kept(8)[:3] == kept(3)
    assert sorted(a.id for a in kept(9)) == sorted(a.id for a in pool)
    assert kept(0) == []
    fewest = min(cost(a).parameters for a in pool if a != kept(1)[0])
    assert cost(kept(2)[1]).parameters == fewest
    with pytest.raises(ConfigurationError):
        kept(-1)

"""What every shipped space must build: small networks, per-example gradients, no dead weights."""

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fednas.space import Architecture, SearchSpace, create
from fednas.space.cost import measure
from fednas.space.layers import Network, gates

torch.set_num_threads(1)

NUM_CLASSES = 3
CASES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("mlp", (5,)),
    ("mlp", (2, 3)),
    ("conv", (1, 8, 8)),
    ("conv", (1, 28, 28)),
    ("conv", (3, 32, 32)),
    ("conv", (2, 9, 17)),
    ("conv1d", (6, 64)),
    ("conv1d", (1, 8)),
    ("conv1d", (3, 101)),
)
SPACES = {f"{name}-{'x'.join(map(str, shape))}": create(name, shape, NUM_CLASSES) for name, shape in CASES}
SMALL = [key for key in SPACES if key not in ("conv-3x32x32", "conv-1x28x28")]
seeds = st.integers(0, 2**32 - 1)
examples = settings(deadline=None, max_examples=10)
each_space = pytest.mark.parametrize("key", list(SPACES))
each_small_space = pytest.mark.parametrize("key", SMALL)


def shapes(network: Network) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in network.trunk.named_parameters()}


def layout(space: SearchSpace) -> dict[str, tuple[int, ...]]:
    result: dict[str, tuple[int, ...]] = {}
    for architecture in space.cover():
        for name, shape in shapes(space.build(architecture)).items():
            known = result.setdefault(name, shape)
            assert len(known) == len(shape)
            result[name] = tuple(map(max, known, shape))
    return result


LAYOUTS = {key: layout(space) for key, space in SPACES.items()}


def drawn(key: str, seed: int, *, gated: bool = False) -> tuple[Architecture, Network, Tensor]:
    """A random architecture, its network with random weights, and three random records."""
    space = SPACES[key]
    torch.manual_seed(seed)
    architecture = space.sample(np.random.default_rng(seed))
    network = space.build(architecture, gated=gated)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return architecture, network, torch.randn(3, *space.input_shape)


@each_space
@settings(deadline=None, max_examples=60)
@given(seed=seeds)
def test_the_cover_holds_the_parameters_of_every_architecture(key: str, seed: int) -> None:
    space = SPACES[key]
    for name, shape in shapes(space.build(space.sample(np.random.default_rng(seed)))).items():
        assert len(shape) == len(LAYOUTS[key][name])
        assert all(own <= shared for own, shared in zip(shape, LAYOUTS[key][name])), name


@each_space
@examples
@given(seed=seeds)
def test_kernels_share_a_centre(key: str, seed: int) -> None:
    _, network, _ = drawn(key, seed)
    for name, shape in shapes(network).items():
        pairs = zip(shape[2:], LAYOUTS[key][name][2:])
        assert all(own % 2 == 1 and shared % 2 == 1 for own, shared in pairs)


@each_space
@examples
@given(seed=seeds)
def test_logits_have_one_row_per_record_and_records_do_not_mix(key: str, seed: int) -> None:
    _, network, x = drawn(key, seed)
    together = network(x)
    assert together.shape == (3, NUM_CLASSES)
    alone = torch.cat([network(x[index : index + 1]) for index in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@each_small_space
@examples
@given(seed=seeds, gated=st.booleans())
def test_every_parameter_has_a_finite_gradient_per_record_in_opacus(key: str, seed: int, gated: bool) -> None:
    _, network, x = drawn(key, seed, gated=gated)
    features = network.stem(x)
    wrapped = GradSampleModule(network.trunk, loss_reduction="sum")
    torch.autograd.backward(loss_of(wrapped(features)))
    for name, parameter in network.trunk.named_parameters():
        sample = sample_gradient(parameter)
        assert isinstance(sample, Tensor), name
        assert sample.shape == (3, *parameter.shape)
        assert bool(torch.isfinite(sample).all())


@each_small_space
@examples
@given(seed=seeds)
def test_gradients_per_record_agree_between_vmap_opacus_and_a_slow_loop(key: str, seed: int) -> None:
    _, network, x = drawn(key, seed)
    network = network.double()
    features = network.stem(x.double())
    parameters = {name: value.detach() for name, value in network.trunk.named_parameters()}

    def loss(values: dict[str, Tensor], record: Tensor) -> Tensor:
        return loss_of(functional_call(network.trunk, values, (record.unsqueeze(0),)))

    mapped = vmap(grad(loss), in_dims=(None, 0))(parameters, features)
    slow = [grad(loss)(parameters, record) for record in features]
    torch.autograd.backward(loss_of(GradSampleModule(network.trunk, loss_reduction="sum")(features)))
    for name, parameter in network.trunk.named_parameters():
        expected = torch.stack([gradient[name] for gradient in slow])
        torch.testing.assert_close(mapped[name], expected)
        torch.testing.assert_close(sample_gradient(parameter), expected)


def sample_gradient(parameter: Any) -> Any:
    return parameter.grad_sample


def loss_of(logits: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, torch.ones(len(logits), dtype=torch.long), reduction="sum")


@each_space
@examples
@given(seed=seeds)
def test_every_parameter_moves_the_logits(key: str, seed: int) -> None:
    # Smooth activations: a dead ReLU is bad luck, a parameter that forward never reads is a mistake.
    space = SPACES[key]
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    architecture = space.complete(
        lambda name, options: (
            "tanh" if name == "activation" else options[int(generator.integers(len(options)))]
        )
    )
    network = space.build(architecture).double()
    network(torch.randn(8, *space.input_shape, dtype=torch.float64)).square().sum().backward()
    for name, parameter in network.trunk.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


@each_space
@examples
@given(seed=seeds)
def test_each_active_choice_has_one_gate_that_changes_nothing_at_one(key: str, seed: int) -> None:
    architecture, gated, x = drawn(key, seed, gated=True)
    plain = SPACES[key].build(architecture)
    assert gates(plain) == {}
    plain.load_state_dict(gated.state_dict())
    assert bool((plain(x) == gated(x)).all())
    assert gates(gated).keys() == architecture.as_dict().keys()
    buffers = dict(gated.trunk.named_buffers())
    assert all(float(buffers[name]) == 1.0 for name in gates(gated).values())
    assert shapes(gated) == shapes(plain)


@each_small_space
@examples
@given(seed=seeds)
def test_no_normalisation_hides_a_gate(key: str, seed: int) -> None:
    _, network, x = drawn(key, seed, gated=True)
    network = network.double()
    features = network.stem(x.double())
    scales = {name: torch.ones((), dtype=torch.float64) for name in gates(network).values()}

    def loss(values: dict[str, Tensor]) -> Tensor:
        return loss_of(functional_call(network.trunk, values, (features,)))

    for name, gradient in grad(loss)(scales).items():
        assert abs(gradient.item()) > 1e-9, name


@each_space
@examples
@given(seed=seeds)
def test_stems_have_no_parameters_and_trunks_no_buffers(key: str, seed: int) -> None:
    _, network, _ = drawn(key, seed)
    assert not list(network.stem.parameters())
    assert not list(network.trunk.buffers())
    assert network.state_dict().keys() == {f"trunk.{name}" for name in shapes(network)}
    assert (network.stem_key == "identity") == isinstance(network.stem, nn.Identity)


@pytest.mark.parametrize("key", list(SPACES))
def test_the_smallest_network_needs_the_least_memory_and_work_on_its_stem(key: str) -> None:
    space, generator = SPACES[key], np.random.default_rng(0)
    smallest = space.build(space.smallest())
    least = measure(smallest, space.input_shape, micro_batch=16)
    for _ in range(100):
        network = space.build(space.sample(generator))
        cost = measure(network, space.input_shape, micro_batch=16)
        if network.stem_key == smallest.stem_key:
            assert least.macs <= cost.macs
            assert least.training_bytes <= cost.training_bytes


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        ("mlp-5", {"activation": "tanh", "depth": 1, "layers.0.width": 16}),
        ("conv-1x28x28", {"stem": "scattering", "body": "linear", "grid": 7}),
        ("conv-1x8x8", {"stem": "scattering", "body": "mlp", "grid": 2, "hidden": 16, "activation": "tanh"}),
        ("conv1d-6x64", {"stem": "spectrum", "body": "linear"}),
        (
            "conv1d-6x64",
            {
                "stem": "conv",
                "activation": "tanh",
                "norm": "none",
                "width": 8,
                "entry.kernel": 5,
                "blocks": 0,
                "pool": "average",
                "bins": 1,
            },
        ),
    ],
)
def test_genuinely_small_networks_are_in_the_space(key: str, choices: dict[str, str | int]) -> None:
    space = SPACES[key]
    network = space.build(Architecture.of(space.name, choices))
    assert sum(parameter.numel() for parameter in network.parameters()) < 13_000


@pytest.mark.parametrize("key", ["conv-1x8x8", "conv1d-6x64", "mlp-5"])
def test_a_space_travels_to_another_process(key: str) -> None:
    space = SPACES[key]
    again = pickle.loads(pickle.dumps(space))  # noqa: S301
    assert again == space
    assert shapes(again.build(again.largest())) == shapes(space.build(space.largest()))


@pytest.mark.parametrize("key", ["conv-1x8x8", "conv1d-6x64", "mlp-5"])
@pytest.mark.parametrize("pick", [SearchSpace.smallest, SearchSpace.largest])
def test_networks_export_to_a_graph(key: str, pick: Callable[[SearchSpace], Architecture]) -> None:
    space = SPACES[key]
    torch.manual_seed(0)
    network = space.build(pick(space)).eval()
    x = torch.randn(4, *space.input_shape)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (x,), dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    fewer = x[:2]
    torch.testing.assert_close(program.module()(fewer), network(fewer))

"""Extracting, gathering and merging agree with slow loops over single coordinates."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.func import functional_call

from fednas.errors import ConfigurationError, RunDirectoryError
from fednas.space import mlp
from fednas.space.architecture import Architecture
from fednas.space.layers import gates
from fednas.space.search_space import SearchSpace, choice, node
from fednas.supernet import Contribution, Supernet, flatten, load
from tests.supernet import toy

SPACES = {"toy": toy.space(), "mlp": mlp.space((5,), 3)}
NAMES = sorted(SPACES)
SEEDS = st.integers(0, 2**16)


def _contributions(space: SearchSpace, supernet: Supernet, seed: int, count: int) -> list[Contribution]:
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        architecture = space.sample(generator)
        update = generator.normal(size=supernet.gather(architecture).shape).astype(np.float32)
        found.append(
            Contribution(architecture=architecture, update=update, weight=float(generator.uniform(0.1, 5.0)))
        )
    return found


def _coordinates(supernet: Supernet, architecture: Architecture) -> list[tuple[str, tuple[int, ...]]]:
    """List the shared coordinate of each entry of the flat vector, one by one."""
    network = supernet.space.build(architecture)
    found = []
    for name, parameter in sorted(network.trunk.named_parameters()):
        full = supernet.weights[name].shape
        for index in np.ndindex(*parameter.shape):
            found.append(
                (
                    name,
                    tuple(
                        position if axis < 2 else position + (full[axis] - parameter.shape[axis]) // 2
                        for axis, position in enumerate(index)
                    ),
                )
            )
    return found


def _slow_merge(supernet: Supernet, contributions: Sequence[Contribution]) -> dict[str, np.ndarray]:
    numerator: dict[tuple[str, tuple[int, ...]], float] = {}
    denominator: dict[tuple[str, tuple[int, ...]], float] = {}
    for contribution in contributions:
        places = _coordinates(supernet, contribution.architecture)
        for place, change in zip(places, contribution.update.tolist(), strict=True):
            numerator[place] = numerator.get(place, 0.0) + contribution.weight * change
            denominator[place] = denominator.get(place, 0.0) + contribution.weight
    merged = {name: tensor.numpy().astype(np.float64) for name, tensor in supernet.weights.items()}
    for (name, index), total in numerator.items():
        merged[name][index] += total / denominator[name, index]
    return merged


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(NAMES), seed=SEEDS)
def test_an_extracted_network_holds_its_coordinates_of_the_shared_weights(name: str, seed: int) -> None:
    space = SPACES[name]
    supernet = Supernet.initialise(space, seed=seed)
    architecture = space.sample(np.random.default_rng(seed))
    slow = [supernet.weights[n][index].item() for n, index in _coordinates(supernet, architecture)]
    assert supernet.gather(architecture).tolist() == slow
    assert flatten(supernet.extract(architecture)).tolist() == slow


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(NAMES), seed=SEEDS, count=st.integers(0, 4))
def test_overlapping_updates_average_as_in_a_loop_over_coordinates(name: str, seed: int, count: int) -> None:
    supernet = Supernet.initialise(SPACES[name], seed=seed)
    contributions = _contributions(SPACES[name], supernet, seed, count)
    slow = _slow_merge(supernet, contributions)
    for shared, tensor in supernet.merge(contributions).weights.items():
        np.testing.assert_allclose(tensor.numpy(), slow[shared], rtol=1e-6, atol=1e-7)
        assert tensor.dtype == torch.float32


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(NAMES), seed=SEEDS, weight=st.floats(1e-6, 1e6))
def test_one_contribution_is_added_exactly(name: str, seed: int, weight: float) -> None:
    supernet = Supernet.initialise(SPACES[name], seed=seed)
    (given_one,) = _contributions(SPACES[name], supernet, seed, 1)
    one = Contribution(architecture=given_one.architecture, update=given_one.update, weight=weight)
    merged = supernet.merge([one])
    before, after = supernet.gather(one.architecture), merged.gather(one.architecture)
    np.testing.assert_array_equal(after, before + one.update)


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(NAMES), seed=SEEDS)
def test_extracting_and_merging_no_change_is_the_identity(name: str, seed: int) -> None:
    supernet = Supernet.initialise(SPACES[name], seed=seed)
    architecture = SPACES[name].sample(np.random.default_rng(seed))
    update = flatten(supernet.extract(architecture)) - supernet.gather(architecture)
    merged = supernet.merge([Contribution(architecture=architecture, update=update, weight=2.0)])
    for shared, tensor in supernet.weights.items():
        assert torch.equal(merged.weights[shared], tensor)


def test_coordinates_that_nobody_trained_keep_their_bits() -> None:
    space = SPACES["toy"]
    initial = Supernet.initialise(space, seed=0)
    negative = {name: torch.full_like(tensor, -0.0) for name, tensor in initial.weights.items()}
    supernet = Supernet(layout=initial.layout, weights=negative)
    smallest = space.smallest()
    update = np.ones_like(supernet.gather(smallest))
    merged = supernet.merge([Contribution(architecture=smallest, update=update, weight=1.0)])
    trained = set(_coordinates(supernet, smallest))
    assert 0 < len(trained) < supernet.num_parameters
    for name, tensor in merged.weights.items():
        for index in np.ndindex(*tensor.shape):
            value = tensor[index]
            assert value.item() == (1.0 if (name, index) in trained else 0.0)
            assert bool(torch.signbit(value)) == ((name, index) not in trained)


def test_merging_leaves_the_old_supernet_and_training_leaves_the_shared_weights_alone() -> None:
    space = SPACES["toy"]
    supernet = Supernet.initialise(space, seed=1)
    before = {name: tensor.clone() for name, tensor in supernet.weights.items()}
    network = supernet.extract(space.largest())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    supernet.merge(_contributions(space, supernet, 3, 3))
    supernet.gather(space.largest()).fill(7.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in supernet.weights.items())


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(NAMES), seed=SEEDS)
def test_an_extracted_network_has_the_gradient_of_the_shared_weights(name: str, seed: int) -> None:
    space = SPACES[name]
    supernet = Supernet.initialise(space, seed=seed)
    architecture = space.sample(np.random.default_rng(seed))
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(4, *space.input_shape)))
    network = supernet.extract(architecture).double()
    network(x).square().sum().backward()

    shared = {n: w.double().clone().requires_grad_() for n, w in supernet.weights.items()}
    sliced = {
        f"trunk.{part.name}": shared[part.name][part.window] for part in supernet.layout.slices(architecture)
    }
    functional_call(network, sliced, (x,)).square().sum().backward()

    gradients = {n: w.grad if w.grad is not None else torch.zeros_like(w) for n, w in shared.items()}
    places = _coordinates(supernet, architecture)
    expected = [gradients[n][index].item() for n, index in places]
    actual = [
        value
        for _, parameter in sorted(network.trunk.named_parameters())
        for value in (parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
        .ravel()
        .tolist()
    ]
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)
    inside = sum(abs(value) for value in expected)
    everything = sum(float(gradient.abs().sum()) for gradient in gradients.values())
    assert everything == pytest.approx(inside)  # no gradient outside the slices


def test_gates_change_neither_the_vector_nor_the_output() -> None:
    space = SPACES["toy"]
    supernet = Supernet.initialise(space, seed=2)
    plain, gated = (supernet.extract(space.largest(), gated=gated) for gated in (False, True))
    assert gates(gated)
    assert not gates(plain)
    np.testing.assert_array_equal(flatten(plain), flatten(gated))
    x = torch.ones(2, *toy.INPUT_SHAPE)
    assert torch.equal(plain(x), gated(x))


def test_initial_weights_follow_the_seed_and_the_fan_in() -> None:
    space = SPACES["toy"]
    one, same, other = (Supernet.initialise(space, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(tensor, same.weights[name]) for name, tensor in one.weights.items())
    assert not torch.equal(one.weights["hidden.weight"], other.weights["hidden.weight"])
    assert torch.equal(one.weights["norm.weight"], torch.ones(12))
    assert torch.equal(one.weights["norm.bias"], torch.zeros(12))
    assert torch.equal(one.weights["blocks.dense.bias"], torch.zeros(12))
    kernel = one.weights["blocks.dense.weight"]
    bound = (6.0 / (2 * 5 * 5)) ** 0.5
    assert kernel.shape == (12, 2, 5, 5)
    assert 0.95 * bound < kernel.abs().max().item() <= bound
    with pytest.raises(ConfigurationError, match="seed"):
        Supernet.initialise(space, seed=-1)


def test_layouts_are_shared_between_supernets_of_one_space() -> None:
    assert Supernet.initialise(toy.space(), seed=0).layout is Supernet.initialise(toy.space(), seed=1).layout


def test_a_saved_supernet_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    supernet, path = Supernet.initialise(SPACES["toy"], seed=0), tmp_path / "supernet.safetensors"
    supernet.save(path)
    first = path.read_bytes()
    copy = Supernet.load(toy.space(), path)
    assert all(torch.equal(tensor, copy.weights[name]) for name, tensor in supernet.weights.items())
    copy.save(path)
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == ["supernet.safetensors"]


def test_a_foreign_corrupt_or_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "supernet.safetensors"
    with pytest.raises(RunDirectoryError, match="cannot read"):
        Supernet.load(SPACES["toy"], path)
    Supernet.initialise(SPACES["mlp"], seed=0).save(path)
    with pytest.raises(RunDirectoryError, match=r"mlp.*toy"):
        Supernet.load(SPACES["toy"], path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(RunDirectoryError, match="of nothing"):
        Supernet.load(SPACES["toy"], path)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(RunDirectoryError, match="cannot read"):
        Supernet.load(SPACES["toy"], path)
    with pytest.raises(RunDirectoryError, match="cannot write"):
        Supernet.initialise(SPACES["toy"], seed=0).save(tmp_path / "nowhere" / "file")


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_that_is_not_positive_is_refused(weight: float) -> None:
    with pytest.raises(ConfigurationError, match="weight > 0"):
        Contribution(
            architecture=SPACES["toy"].smallest(), update=np.zeros(3, dtype=np.float32), weight=weight
        )


def test_a_malformed_update_is_refused() -> None:
    space = SPACES["toy"]
    supernet, architecture = Supernet.initialise(space, seed=0), space.smallest()
    with pytest.raises(ConfigurationError, match="finite update"):
        Contribution(architecture=architecture, update=np.full(3, np.nan, dtype=np.float32), weight=1.0)
    with pytest.raises(ConfigurationError, match="float32 vector"):
        Contribution(architecture=architecture, update=np.zeros(3), weight=1.0)
    short = Contribution(architecture=architecture, update=np.zeros(3, dtype=np.float32), weight=1.0)
    with pytest.raises(ConfigurationError, match="float32 vector of"):
        supernet.merge([short])


def test_loading_a_vector_of_another_length_or_dtype_leaves_the_network_alone() -> None:
    network = toy.space().build(toy.space().smallest())
    before = flatten(network)
    for wrong in (before[:-1], before.astype(np.float64), before[None, :]):
        with pytest.raises(ConfigurationError, match="float32 vector of"):
            load(network, wrong)
    np.testing.assert_array_equal(flatten(network), before)
    load(network, before[::-1].copy())
    np.testing.assert_array_equal(flatten(network), before[::-1])


def test_an_architecture_outside_the_space_is_refused_and_one_outside_the_cover_is_a_defect() -> None:
    with pytest.raises(ConfigurationError, match="not in the space"):
        Supernet.initialise(SPACES["toy"], seed=0).gather(SPACES["mlp"].smallest())
    liar = toy.space()
    tree = node(
        choice("width", 12, 4, nested=True),  # promises that 4 is the widest
        choice("kernel", 1, 5, nested=True),
        choice("kind", "grouped", "dense"),
        choice("deep", False, True),
    )
    wrong = SearchSpace(
        name="toy", tree=tree, input_shape=liar.input_shape, num_classes=3, builder=liar.builder
    )
    supernet = Supernet.initialise(wrong, seed=0)
    supernet.extract(wrong.largest())
    with pytest.raises(AssertionError, match=r"does not fit the shared .* cover\(\)"):
        supernet.extract(wrong.smallest())

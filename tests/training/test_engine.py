"""The clipped sum against a loop over single records, and what the engine leaves behind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from fednas.export import export, run_onnx
from fednas.privacy.grid import ARITHMETIC_SLACK, GRID_STEP, sensitivity
from fednas.space.layers import Network
from fednas.supernet import flatten
from fednas.training.engine import OpacusEngine, opacus_engine
from tests.training.sites import CHOSEN, SPACES, built, clipped, drawn, record_gradients, trunk_batch

CLIP_NORM = 0.7
TOLERANCE = 2e-5  # float32 against float64, in units of one record's bound
each_network = pytest.mark.parametrize("key", list(CHOSEN))
examples = settings(deadline=None, max_examples=8)
Sum = NDArray[np.float64]


def network_of(key: str) -> Network:
    return built(CHOSEN[key], seed=3)


def batch_of(key: str, network: Network, number: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    return trunk_batch(network, SPACES[CHOSEN[key].space], number, seed=seed)


def summed(
    module: nn.Module, x: Tensor, y: Tensor, *, micro_batch: int = 64, clip_norm: float = CLIP_NORM
) -> Sum:
    with opacus_engine(
        module, clip_norm=clip_norm, learning_rate=0.1, momentum=0.0, micro_batch=micro_batch
    ) as engine:
        units = engine.clipped_sum(x, y)
    assert units.dtype == np.int64
    return units.astype(np.float64) * (clip_norm * GRID_STEP)


def slow_sum(module: nn.Module, x: Tensor, y: Tensor, *, clip_norm: float = CLIP_NORM) -> Sum:
    result: Sum = clipped(record_gradients(module, x, y), clip_norm).sum(axis=0)
    return result


@each_network
@pytest.mark.parametrize("clip_norm", [0.05, 0.7, 1e3])
def test_the_clipped_sum_equals_a_loop_over_single_records(key: str, clip_norm: float) -> None:
    network = network_of(key)
    x, y = batch_of(key, network, 9)
    fast = summed(network.trunk, x, y, clip_norm=clip_norm)
    slow = slow_sum(network.trunk, x, y, clip_norm=clip_norm)
    rounding = 9 * 0.5 * clip_norm * GRID_STEP
    assert np.abs(fast - slow).max() < TOLERANCE * max(1.0, np.abs(slow).max()) + rounding


@pytest.mark.parametrize("space", SPACES.values(), ids=list(SPACES))
@given(seed=st.integers(0, 2**32 - 1), number=st.integers(1, 6))
@examples
def test_the_clipped_sum_equals_the_loop_in_any_sub_network(space: Any, seed: int, number: int) -> None:
    network = built(space.sample(np.random.default_rng(seed)), seed=seed)
    x, y = trunk_batch(network, space, number, seed=seed)
    fast, slow = summed(network.trunk, x, y), slow_sum(network.trunk, x, y)
    # ReLU and max-pooling have kinks: rounding picks a side for a value at zero, seldom and by little.
    assert np.linalg.norm(fast - slow) < 1e-4 * number


def test_a_sum_clipped_parameter_by_parameter_is_another_one() -> None:
    network = network_of("mlp-small")
    x, y = batch_of("mlp-small", network, 9)
    rows = record_gradients(network.trunk, x, y)
    ends = np.cumsum([p.numel() for _, p in sorted(network.trunk.named_parameters())])[:-1]
    apart = np.concatenate([clipped(part, CLIP_NORM).sum(axis=0) for part in np.split(rows, ends, axis=1)])
    assert np.abs(summed(network.trunk, x, y) - apart).max() > 100 * TOLERANCE


@each_network
@pytest.mark.parametrize("micro_batch", [1, 2, 5, 9, 500])
def test_the_micro_batch_changes_nothing_beyond_rounding(key: str, micro_batch: int) -> None:
    network = network_of(key)
    x, y = batch_of(key, network, 9)
    one = summed(network.trunk, x, y)
    other = summed(network.trunk, x, y, micro_batch=micro_batch)
    assert np.abs(one - other).max() < TOLERANCE


@each_network
def test_an_empty_batch_gives_zeros(key: str) -> None:
    network = network_of(key)
    x, y = batch_of(key, network, 0)
    total = summed(network.trunk, x, y)
    assert total.shape == flatten(network).shape
    assert not total.any()


def test_sums_of_one_engine_do_not_add_up() -> None:
    network = network_of("mlp-residual")
    x, y = batch_of("mlp-residual", network, 9)
    with opacus_engine(
        network.trunk, clip_norm=CLIP_NORM, learning_rate=0.1, momentum=0.0, micro_batch=4
    ) as engine:
        first = engine.clipped_sum(x, y)
        assert not engine.clipped_sum(x[:0], y[:0]).any()
        assert np.array_equal(engine.clipped_sum(x, y), first)


@each_network
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e38, -3e38])
@pytest.mark.parametrize("where", ["one", "all"])
def test_a_monstrous_record_adds_at_most_its_bound_and_leaves_the_others_alone(
    key: str, value: float, where: str
) -> None:
    network = network_of(key)
    x, y = batch_of(key, network, 7)
    x = x.clone()
    without = summed(network.trunk, torch.cat([x[:3], x[4:]]), torch.cat([y[:3], y[4:]]))
    if where == "one":
        x[3].view(-1)[1] = value
    else:
        x[3] = value
    total = summed(network.trunk, x, y)
    assert np.isfinite(total).all()
    added = total - without
    assert np.linalg.norm(added) <= CLIP_NORM * GRID_STEP * sensitivity(added.size)
    # What a finite gradient of such a record is hangs on the kernel; whether it is finite does too.
    slow = slow_sum(network.trunk, x[3:4], y[3:4])
    assert np.allclose(added, slow, atol=1e-4) or (abs(value) >= 1e38 and np.allclose(added, 0.0, atol=1e-4))


def test_a_record_that_is_not_finite_adds_nothing_in_any_chunk() -> None:
    network = network_of("mlp-residual")
    x, y = batch_of("mlp-residual", network, 9)
    bad = x.clone()
    bad[[0, 4, 8], 2] = float("nan")
    kept = [1, 2, 3, 5, 6, 7]
    for micro_batch in (1, 2, 3, 64):
        total = summed(network.trunk, bad, y, micro_batch=micro_batch)
        assert np.allclose(total, summed(network.trunk, x[kept], y[kept]), atol=TOLERANCE)
    assert not summed(network.trunk, bad[[0, 4]], y[[0, 4]]).any()


@each_network
@given(
    seed=st.integers(0, 2**32 - 1),
    number=st.integers(0, 8),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    clip_norm=st.sampled_from([1e-3, 1.0, 100.0]),
    micro_batch=st.integers(1, 9),
)
@examples
def test_adding_a_record_moves_the_sum_by_at_most_the_clip_norm(
    key: str, seed: int, number: int, scale: float, clip_norm: float, micro_batch: int
) -> None:
    network = network_of(key)
    x, y = batch_of(key, network, number + 1, seed=seed)
    x = x * scale
    with_it = summed(network.trunk, x, y, micro_batch=micro_batch, clip_norm=clip_norm)
    without = summed(network.trunk, x[:-1], y[:-1], micro_batch=micro_batch, clip_norm=clip_norm)
    bound = clip_norm * GRID_STEP * sensitivity(without.size)
    assert np.linalg.norm(with_it - without) <= bound * (1 + 1e-12)
    # And by nothing but that record's own integers.
    alone = summed(network.trunk, x[-1:], y[-1:], micro_batch=micro_batch, clip_norm=clip_norm)
    np.testing.assert_array_equal(np.rint((with_it - without - alone) / (clip_norm * GRID_STEP)), 0.0)


def test_the_bound_is_reached_so_a_smaller_one_would_be_wrong() -> None:
    network = network_of("mlp-small")
    x, y = batch_of("mlp-small", network, 4)
    moved = summed(network.trunk, 100 * x, y) - summed(network.trunk, 100 * x[:-1], y[:-1])
    assert np.linalg.norm(moved) > CLIP_NORM * (1 - 2 * ARITHMETIC_SLACK) - CLIP_NORM * GRID_STEP * np.sqrt(
        moved.size
    )


def test_a_step_goes_down_the_released_gradient_with_momentum() -> None:
    network = network_of("mlp-residual")
    start = flatten(network).astype(np.float64)
    gradients = np.random.default_rng(0).standard_normal((3, len(start)))
    velocity = np.zeros_like(start)
    expected = start
    with opacus_engine(
        network.trunk, clip_norm=CLIP_NORM, learning_rate=0.1, momentum=0.5, micro_batch=4
    ) as engine:
        for gradient in gradients:
            engine.apply(gradient)
            velocity = 0.5 * velocity + gradient
            expected = expected - 0.1 * velocity
    assert np.allclose(flatten(network), expected, atol=1e-6)


def traces(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Everything that hangs on a module and its parameters, by name."""
    for name, part in module.named_modules():
        for key, value in sorted(vars(part).items()):
            if key == "_is_full_backward_hook":
                continue  # PyTorch's own note of which kind of hook was there last
            yield f"{name}.{key}", len(value) if key.endswith("hooks") else type(value)
    for name, parameter in module.named_parameters():
        yield f"{name} requires_grad", parameter.requires_grad
        yield f"{name} grad", parameter.grad is None
        yield f"{name} attributes", tuple(sorted(vars(parameter)))
        yield f"{name} hooks", bool(parameter._backward_hooks)


def use(engine: OpacusEngine, x: Tensor, y: Tensor) -> None:
    engine.apply(engine.clipped_sum(x, y).astype(np.float64) * GRID_STEP)


@each_network
def test_a_closed_engine_leaves_no_trace(key: str) -> None:
    network = network_of(key)
    x, y = batch_of(key, network, 5)
    before = dict(traces(network))
    settings = {"clip_norm": CLIP_NORM, "learning_rate": 0.1, "momentum": 0.9, "micro_batch": 2}
    with opacus_engine(network.trunk, **settings) as engine:  # type: ignore[arg-type]
        use(engine, x, y)
        assert dict(traces(network)) != before  # the comparison sees what it looks for
    assert dict(traces(network)) == before
    with opacus_engine(network.trunk, **settings):  # type: ignore[arg-type]
        pass
    assert dict(traces(network)) == before


def test_an_engine_that_fails_half_way_leaves_no_trace() -> None:
    network = network_of("mlp-residual")
    x, y = batch_of("mlp-residual", network, 5)
    before = dict(traces(network))
    with (  # noqa: PT012  the engine is closed by what it raises
        pytest.raises(IndexError),
        opacus_engine(
            network.trunk, clip_norm=CLIP_NORM, learning_rate=0.1, momentum=0.0, micro_batch=2
        ) as engine,
    ):
        use(engine, x, y)
        engine.clipped_sum(x, y + 100)
    assert dict(traces(network)) == before


@pytest.mark.parametrize("key", ["mlp-residual"])
def test_the_network_trains_and_exports_afterwards(key: str, tmp_path: Path) -> None:
    network = network_of(key)
    space = SPACES[CHOSEN[key].space]
    x, y = batch_of(key, network, 8)
    with opacus_engine(
        network.trunk, clip_norm=CLIP_NORM, learning_rate=0.1, momentum=0.0, micro_batch=3
    ) as engine:
        use(engine, x, y)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network.trunk(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    files = export(network, CHOSEN[key], tmp_path, input_shape=space.input_shape)
    records, _ = drawn(space, 3)
    with torch.no_grad():
        expected = network(torch.from_numpy(records)).numpy()
    assert np.allclose(run_onnx(files.onnx, records), expected, atol=1e-4)

"""The noise in what is released has the plan's scale: each test rejects two thirds and three halves of it."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fednas.evaluation import noised_counts
from fednas.privacy.ledger import Arrays, Permit
from fednas.privacy.streams import StreamedRecords
from fednas.search.policy import Policy
from fednas.space.layers import gates
from fednas.training import Optimisation, architecture_gradient, train_weights
from tests.training.sites import MLP, NUM_CLASSES, built, drawn, noisy_plan, released, streams_of

LIMIT = 5.0  # standard deviations: correct noise fails once in 1.7 million tests
FACTORS = (2 / 3, 0.8, 1.25, 3 / 2)
SIZE = 200.0
LEARNING_RATE = 0.3


def scale_z(values: NDArray[np.floating], std: float) -> float:
    """Standard score of the chi-square statistic on the scale of independent centred Gaussians."""
    size = values.size
    squares = np.sum(values.astype(np.float64) ** 2) / std**2
    return float((squares - size) / math.sqrt(2.0 * size))


def judge(values: NDArray[np.floating], std: float) -> None:
    """Accept the scale that the plan states, reject others, and a centre that is not zero."""
    assert abs(scale_z(values, std)) < LIMIT
    for factor in FACTORS:
        assert abs(scale_z(values, std * factor)) > LIMIT
    assert abs(scale_z(values, std * 2 / 3)) > 2 * LIMIT
    assert abs(scale_z(values, std * 3 / 2)) > 2 * LIMIT
    assert abs(float(np.mean(values)) / std * math.sqrt(values.size)) < LIMIT


def empty() -> StreamedRecords:
    x, y = drawn(MLP, 0)
    return StreamedRecords(x, y, streams_of(0))


def without_gradients() -> StreamedRecords:
    """Records whose gradients are not finite: each is masked to zero."""
    x, y = drawn(MLP, 40)
    x[:] = np.nan
    return StreamedRecords(x, y, streams_of(40))


@pytest.mark.parametrize("records", [empty(), without_gradients()], ids=["empty", "masked"])
@pytest.mark.parametrize(
    ("sigma", "clip_norm", "q", "steps"), [(1.0, 1.0, 0.5, 1), (0.7, 3.0, 0.2, 4), (4.0, 0.01, 1.0, 9)]
)
def test_an_update_has_the_noise_that_the_plan_states(
    records: StreamedRecords, sigma: float, clip_norm: float, q: float, steps: int, tmp_path: Path
) -> None:
    network = built(MLP.largest())  # 51,000 coordinates: 51,000 draws a step
    how = Optimisation(
        steps=steps, learning_rate=LEARNING_RATE, momentum=0.0, micro_batch=64, divisor_size=SIZE
    )

    def mechanism(permit: Permit) -> Arrays:
        return {"update": train_weights(network, records, permit, allowance="search", optimisation=how)}

    plan = noisy_plan(sigma, q=q, clip_norm=clip_norm)
    update = released(tmp_path, plan, {"search": steps}, mechanism, test_seed=None)["update"]
    judge(update, sigma * clip_norm * LEARNING_RATE / (q * SIZE) * math.sqrt(steps))


def test_steps_do_not_share_their_noise(tmp_path: Path) -> None:
    """Shared noise would add up linearly: sixteen times one step, not four times."""
    network = built(MLP.largest())
    how = Optimisation(steps=16, learning_rate=1.0, momentum=0.0, micro_batch=64, divisor_size=SIZE)

    def mechanism(permit: Permit) -> Arrays:
        return {"update": train_weights(network, empty(), permit, allowance="final", optimisation=how)}

    plan = noisy_plan(1.0, q=0.5)
    update = released(tmp_path, plan, {"final": 16}, mechanism, test_seed=None)["update"]
    std = 1.0 / (0.5 * SIZE)
    judge(update, 4.0 * std)
    assert abs(scale_z(update, 16.0 * std)) > 2 * LIMIT


@pytest.mark.parametrize(("sigma", "q"), [(1.0, 0.5), (6.0, 0.1)])
def test_an_architecture_gradient_has_the_noise_that_the_plan_states(
    sigma: float, q: float, tmp_path: Path
) -> None:
    architecture = MLP.largest()
    network = built(architecture, gated=True)
    shaped = gates(network)
    rows = {name: row for name, row in Policy(MLP).jacobian(architecture).items() if name in shaped}

    def mechanism(permit: Permit) -> Arrays:
        gradients = [
            architecture_gradient(network, empty(), permit, jacobian=rows, divisor_size=SIZE, micro_batch=64)
            for _ in range(400)
        ]
        return {"alphas": np.concatenate(gradients)}

    plan = noisy_plan(sigma, q=q)
    values = released(tmp_path, plan, {"alphas": 400}, mechanism, test_seed=None)["alphas"]
    judge(values, sigma / (q * SIZE))


@pytest.mark.parametrize("sigma", [3.0, 25.0])
def test_each_count_has_its_own_noise_of_the_scale_that_the_plan_states(sigma: float, tmp_path: Path) -> None:
    network = built(MLP.smallest())
    x, y = drawn(MLP, 40)
    records = StreamedRecords(x, np.full_like(y, NUM_CLASSES + 1), streams_of(40))  # nothing is correct

    def mechanism(permit: Permit) -> Arrays:
        return {"correct": noised_counts([network] * 3000, records, permit)}

    plan = noisy_plan(sigma)
    counts = released(tmp_path, plan, {"fitness": 3000}, mechanism, test_seed=None)["correct"]
    judge(counts.astype(np.float64), sigma)
    following = float(np.corrcoef(counts[:-1], counts[1:])[0, 1])
    assert abs(following) * math.sqrt(len(counts)) < LIMIT

"""Private training through a real ledger, against a loop that follows the paper step by step."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fednas.errors import PrivacyError
from fednas.privacy.allowance import ReleaseSchedule
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.entropy import SeededEntropy
from fednas.privacy.grid import GRID_STEP, sensitivity
from fednas.privacy.ledger import Arrays, Operation, Permit, PrivacyLedger
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.streams import StreamedRecords
from fednas.space.layers import Network
from fednas.supernet import flatten, load
from fednas.training import Optimisation, train_weights
from tests.privacy.ledgers import entries
from tests.training.sites import (
    CHOSEN,
    MLP,
    SHARES,
    SPACES,
    built,
    clipped,
    drawn,
    noisy_plan,
    open_plan,
    record_gradients,
    records_of,
    released,
    streams_of,
)

TEST_SEED = 5
SIZE = 100.0


def optimisation(*, steps: int = 3, momentum: float = 0.0, size: float = SIZE) -> Optimisation:
    return Optimisation(steps=steps, learning_rate=0.5, momentum=momentum, micro_batch=3, divisor_size=size)


def trained(
    folder: Path,
    records: StreamedRecords,
    plan: PrivacyPlan,
    *,
    key: str = "mlp-residual",
    allowance: str = "search",
    how: Optimisation | None = None,
    test_seed: int | None = TEST_SEED,
) -> NDArray[np.float32]:
    """The update of one release."""
    how = how or optimisation()
    network = built(CHOSEN[key])

    def mechanism(permit: Permit) -> Arrays:
        return {"update": train_weights(network, records, permit, allowance=allowance, optimisation=how)}

    return released(folder, plan, {allowance: how.steps}, mechanism, test_seed=test_seed)["update"]


def slow_training(
    network: Network,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    plan: PrivacyPlan,
    how: Optimisation,
    *,
    allowance: str,
) -> NDArray[np.float64]:
    """DP-SGD record by record, in float64 but for the gradients, with the noise that the ledger gave."""
    terms = plan.allowance(allowance)
    operation = Operation(run="run", round=1, kind="train", nonce="nonce", digest="0" * 64)
    entropy = SeededEntropy(TEST_SEED, operation.id)
    start = flatten(network).astype(np.float64)
    weights, velocity = start, np.zeros_like(start)
    with torch.no_grad():
        features = network.stem(torch.from_numpy(x))
    for _ in range(how.steps):
        load(network, weights.astype(np.float32))
        chosen = torch.from_numpy(entropy.poisson(terms.sampling_probability, len(x)))
        rows = record_gradients(network.trunk, features[chosen], torch.from_numpy(y)[chosen])
        grid = terms.clip_norm * GRID_STEP
        units = np.rint(clipped(rows, terms.clip_norm) / grid).sum(axis=0)
        units += entropy.noise(terms.noise_multiplier * sensitivity(len(start)), len(start))
        gradient = units * grid / (terms.sampling_probability * how.divisor_size)
        velocity = how.momentum * velocity + gradient
        weights = weights - how.learning_rate * velocity
    change: NDArray[np.float64] = weights - start
    return change


@pytest.mark.parametrize("key", list(CHOSEN))
@pytest.mark.parametrize("sigma", [0.0, 1.5])
def test_training_equals_a_loop_over_single_records(key: str, sigma: float, tmp_path: Path) -> None:
    plan = noisy_plan(sigma, q=0.6, clip_norm=0.8) if sigma else open_plan(q=0.6, clip_norm=0.8)
    x, y = drawn(SPACES[CHOSEN[key].space], 24)
    how = optimisation(momentum=0.5)
    update = trained(tmp_path, records_of(x, y), plan, key=key, how=how)
    mine = streams_of(24) == 0
    slow = slow_training(built(CHOSEN[key]), x[mine], y[mine], plan, how, allowance="search")
    assert update.dtype == np.float32
    assert np.abs(slow).max() > 1e-3
    assert np.allclose(update, slow, atol=1e-5)


def test_training_under_a_calibrated_plan_equals_the_loop(tmp_path: Path) -> None:
    plan = PrivacyPlan.calibrate(
        budget=PrivacyBudget(epsilon=3.0, delta=1e-5),
        proportions=dict(SHARES),
        schedule=ReleaseSchedule(sampling_probability=0.25, search_steps=4, final_steps=2),
    )
    x, y = drawn(MLP, 40)
    for allowance, mine in (("search", streams_of(40) == 0), ("final", np.full(40, True))):
        how = optimisation(steps=2)
        update = trained(tmp_path / allowance, records_of(x, y), plan, allowance=allowance, how=how)
        slow = slow_training(built(CHOSEN["mlp-residual"]), x[mine], y[mine], plan, how, allowance=allowance)
        assert np.allclose(update, slow, atol=1e-5)


def test_search_reads_the_weights_stream_alone(tmp_path: Path) -> None:
    x, y = drawn(MLP, 24)
    streams = streams_of(24)
    bad_x, bad_y = x.copy(), y.copy()
    bad_x[streams != 0], bad_y[streams != 0] = np.nan, 10_000  # no such class: a loss of it would raise
    plan = noisy_plan(1.0)
    update = trained(tmp_path / "all", StreamedRecords(bad_x, bad_y, streams), plan)
    alone = StreamedRecords(x[streams == 0], y[streams == 0], streams[streams == 0])
    assert np.array_equal(update, trained(tmp_path / "alone", alone, plan))
    with pytest.raises(IndexError):
        trained(tmp_path / "final", StreamedRecords(bad_x, bad_y, streams), plan, allowance="final")


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_final_reads_every_stream(stream: int, tmp_path: Path) -> None:
    x, y = drawn(MLP, 24)
    other = y.copy()
    other[np.flatnonzero(streams_of(24) == stream)[0]] += 1
    other %= MLP.num_classes
    plan = open_plan()
    updates = [
        trained(tmp_path / name, records_of(x, labels), plan, allowance="final")
        for name, labels in (("one", y), ("two", other))
    ]
    assert np.abs(updates[0] - updates[1]).max() > 1e-4
    one, two = (
        trained(tmp_path / f"s{i}", records_of(x, labels), plan) for i, labels in enumerate((y, other))
    )
    assert np.array_equal(one, two) == (stream != 0)


@pytest.mark.parametrize("allowance", ["final", "alphas", "fitness"])
def test_training_is_refused_under_an_allowance_that_was_not_charged(allowance: str, tmp_path: Path) -> None:
    x, y = drawn(MLP, 24)
    network = built(CHOSEN["mlp-small"])

    def mechanism(permit: Permit) -> Arrays:
        train_weights(network, records_of(x, y), permit, allowance=allowance, optimisation=optimisation())
        raise AssertionError("it trained")

    with pytest.raises(PrivacyError, match="not charged"):
        released(tmp_path, noisy_plan(1.0), {"search": 3}, mechanism)


@pytest.mark.parametrize("size", [10.0, 1000.0])
def test_a_step_divides_by_the_declared_size_times_the_plans_rate(size: float, tmp_path: Path) -> None:
    plan = open_plan(q=0.5)
    x, y = drawn(MLP, 24)
    how = optimisation(steps=1, size=size)
    update = trained(tmp_path, records_of(x, y), plan, how=how)
    reference = trained(tmp_path / "other", records_of(x, y), plan, how=optimisation(steps=1))
    assert np.allclose(update * size, reference * SIZE, atol=1e-4)


@pytest.mark.parametrize("more", [1, 7])
def test_records_that_add_nothing_change_nothing_so_no_count_is_used(more: int, tmp_path: Path) -> None:
    """At a sampling probability of 1 only a divisor or a rate that counts could tell the two sites apart."""
    x, y = drawn(MLP, 24)
    empty = np.full((more, *x.shape[1:]), np.nan, dtype=np.float32)
    streams = np.concatenate([streams_of(24), np.zeros(more, dtype=np.uint8)])
    larger = StreamedRecords(np.concatenate([x, empty]), np.concatenate([y, y[:more]]), streams)
    plan = open_plan(q=1.0)
    update = trained(tmp_path / "n", records_of(x, y), plan, how=optimisation(momentum=0.9))
    again = trained(tmp_path / "n+", larger, plan, how=optimisation(momentum=0.9))
    assert np.allclose(update, again, atol=1e-7)


@pytest.mark.parametrize("number", [0, 1, 24, 25])
def test_whatever_the_number_of_records_all_but_the_update_looks_the_same(
    number: int, tmp_path: Path
) -> None:
    def play(count: int) -> tuple[object, ...]:
        folder = tmp_path / str(count)
        folder.mkdir(exist_ok=True)
        x, y = drawn(MLP, count)
        network = built(CHOSEN["mlp-residual"])
        path, how = folder / "play", optimisation()
        cap = PrivacyBudget(epsilon=1e6, delta=1e-5)
        with PrivacyLedger.open(path, dataset="ward", cap=cap, test_seed=TEST_SEED) as ledger:
            ledger.open_plan("run", noisy_plan(1.0))
            paid = ledger.release(
                Operation(run="run", round=1, kind="train", nonce="nonce", digest="0" * 64),
                charges={"search": how.steps},
                mechanism=lambda permit: {
                    "update": train_weights(
                        network, records_of(x, y), permit, allowance="search", optimisation=how
                    )
                },
            )
            statement = ledger.statement()
        shapes = {name: (array.dtype, array.shape) for name, array in paid.value.items()}
        written = [json.dumps(entries(path, kind)) for kind in ("OPEN", "PLAN", "RESERVE", "REFUSE")]
        assert np.isfinite(paid.value["update"]).all()
        return shapes, paid.operation_id, paid.entries, written, statement.streams

    assert play(number) == play(number + 1)


def test_an_empty_stream_releases_noise(tmp_path: Path) -> None:
    x, y = drawn(MLP, 24)
    streams = np.full(24, 2, dtype=np.uint8)
    plan = noisy_plan(1.0)
    for name, records in (
        ("other streams", StreamedRecords(x, y, streams)),
        ("nobody", StreamedRecords(x[:0], y[:0], streams[:0])),
    ):
        update = trained(tmp_path / name, records, plan)
        slow = slow_training(
            built(CHOSEN["mlp-residual"]), x[:0], y[:0], plan, optimisation(), allowance="search"
        )
        assert np.count_nonzero(update) > 0.99 * update.size
        assert np.allclose(update, slow, atol=1e-6)


def test_records_that_are_not_finite_release_noise_of_the_same_shape(tmp_path: Path) -> None:
    x, y = drawn(MLP, 24)
    x[:] = np.inf
    update = trained(tmp_path, records_of(x, y), noisy_plan(1.0))
    assert np.isfinite(update).all()
    assert update.shape == flatten(built(CHOSEN["mlp-residual"])).shape


def test_the_network_holds_what_the_update_says(tmp_path: Path) -> None:
    x, y = drawn(MLP, 24)
    network = built(CHOSEN["mlp-residual"])
    before = flatten(network)

    def mechanism(permit: Permit) -> Arrays:
        return {
            "update": train_weights(
                network, records_of(x, y), permit, allowance="search", optimisation=optimisation()
            )
        }

    update = released(tmp_path, noisy_plan(1.0), {"search": 3}, mechanism)["update"]
    assert np.array_equal(flatten(network) - before, update)


def test_fresh_noise_differs_from_release_to_release(tmp_path: Path) -> None:
    x, y = drawn(MLP, 24)
    updates = [
        trained(tmp_path / str(i), records_of(x, y), noisy_plan(1.0), test_seed=None) for i in range(2)
    ]
    assert np.mean(updates[0] == updates[1]) < 0.01

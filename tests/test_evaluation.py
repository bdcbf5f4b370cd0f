"""Counts of correct predictions: exact but for the noise, of one stream alone; accuracy on public data."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fednas.errors import PrivacyError
from fednas.evaluation import noised_counts, predict, public_accuracy
from fednas.privacy.entropy import SeededEntropy
from fednas.privacy.ledger import Arrays, Operation, Permit
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.streams import StreamedRecords
from fednas.space.layers import Network
from tests.training.sites import (
    CHOSEN,
    MLP,
    SPACES,
    built,
    drawn,
    noisy_plan,
    open_plan,
    records_of,
    released,
    streams_of,
)

FITNESS = 2


def counts(
    folder: Path, networks: list[Network], records: StreamedRecords, plan: PrivacyPlan
) -> NDArray[np.int64]:
    def mechanism(permit: Permit) -> Arrays:
        return {"correct": noised_counts(networks, records, permit)}

    result: NDArray[np.int64] = released(folder, plan, {"fitness": len(networks)}, mechanism)["correct"]
    assert result.dtype == np.int64
    assert result.shape == (len(networks),)
    return result


def slow_predictions(network: Network, x: NDArray[np.float32]) -> list[int]:
    with torch.no_grad():
        return [int(network(torch.from_numpy(record[None]))[0].argmax()) for record in x]


def slow_count(network: Network, x: NDArray[np.float32], y: NDArray[np.int64]) -> int:
    return sum(guess == label for guess, label in zip(slow_predictions(network, x), y, strict=True))


@pytest.mark.parametrize("space", list(SPACES))
def test_counts_are_exact_without_noise(space: str, tmp_path: Path) -> None:
    networks = [built(a, seed=i) for i, (k, a) in enumerate(CHOSEN.items()) if k.split("-")[0] == space]
    x, y = drawn(SPACES[space], 80)
    mine = streams_of(80) == FITNESS
    expected = [slow_count(network, x[mine], y[mine]) for network in networks]
    assert counts(tmp_path, networks, records_of(x, y), open_plan()).tolist() == expected
    assert 0 < max(expected) < mine.sum()


def test_counts_carry_the_permits_noise(tmp_path: Path) -> None:
    network = built(CHOSEN["mlp-small"])
    x, y = drawn(MLP, 40)
    exact = counts(tmp_path / "exact", [network] * 5, records_of(x, y), open_plan())
    noised = counts(tmp_path / "noised", [network] * 5, records_of(x, y), noisy_plan(4.0))
    operation = Operation(run="run", round=1, kind="train", nonce="nonce", digest="0" * 64)
    expected = SeededEntropy(5, operation.id).noise(4.0, 5)
    assert len(set(expected.tolist())) > 1
    assert np.array_equal(noised - exact, expected)


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_one_record_changes_each_count_by_at_most_one(stream: int, tmp_path: Path) -> None:
    networks = [built(CHOSEN["mlp-small"], seed=seed) for seed in range(12)]
    x, y = drawn(MLP, 24)
    before = counts(tmp_path / "n", networks, records_of(x, y), open_plan())
    moves = []
    for i, record in enumerate((x[0], x[5] * 1e6, np.full_like(x[0], np.nan))):
        larger = StreamedRecords(
            np.concatenate([x, record[None]]),
            np.concatenate([y, y[:1]]),
            np.append(streams_of(24), np.uint8(stream)),
        )
        moves.append(counts(tmp_path / str(i), networks, larger, open_plan()) - before)
    moved = np.concatenate(moves)
    assert set(moved.tolist()) == ({0, 1} if stream == FITNESS else {0})


def test_only_the_fitness_stream_is_read(tmp_path: Path) -> None:
    network = built(CHOSEN["mlp-residual"])
    x, y = drawn(MLP, 24)
    streams = streams_of(24)
    bad_x = x.copy()
    bad_x[streams != FITNESS] = 0.0
    bad_y = np.where(streams == FITNESS, y, slow_predictions(network, bad_x))  # each of the others is correct
    mine = streams == FITNESS
    found = counts(tmp_path, [network], StreamedRecords(bad_x, bad_y, streams), open_plan())
    assert found.tolist() == [slow_count(network, x[mine], y[mine])]


@pytest.mark.parametrize("charge", ["search", "alphas", "final"])
def test_counting_is_refused_under_another_charge(charge: str, tmp_path: Path) -> None:
    x, y = drawn(MLP, 24)

    def mechanism(permit: Permit) -> Arrays:
        noised_counts([built(CHOSEN["mlp-small"])], records_of(x, y), permit)
        raise AssertionError("it counted")

    with pytest.raises(PrivacyError, match="not charged"):
        released(tmp_path, open_plan(), {charge: 1}, mechanism)


def test_an_empty_stream_counts_zero_plus_noise(tmp_path: Path) -> None:
    network = built(CHOSEN["conv-scattering"])
    x, y = drawn(SPACES["conv"], 0)
    assert counts(tmp_path / "bare", [network] * 3, records_of(x, y), open_plan()).tolist() == [0, 0, 0]
    assert counts(tmp_path / "noised", [network] * 3, records_of(x, y), noisy_plan(50.0)).any()


def test_records_that_are_not_finite_are_counted_without_an_error(tmp_path: Path) -> None:
    x, y = drawn(MLP, 24)
    x[:] = np.nan
    (count,) = counts(tmp_path, [built(CHOSEN["mlp-small"])], records_of(x, y), open_plan())
    assert 0 <= count <= (streams_of(24) == FITNESS).sum()


@given(number=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_public_accuracy_equals_a_loop(number: int, seed: int, classes: int) -> None:
    network = built(CHOSEN["mlp-small"], seed=1)
    x, _ = drawn(MLP, number, seed=seed)
    y = np.random.default_rng(seed).integers(0, classes, number)
    guesses = slow_predictions(network, x)
    right: dict[int, list[bool]] = {}
    for guess, label in zip(guesses, y.tolist(), strict=True):
        right.setdefault(label, []).append(guess == label)
    recalls = [sum(hits) / len(hits) for hits in right.values()]
    result = public_accuracy(network, x, y)
    assert result.accuracy == pytest.approx(sum(map(sum, right.values())) / number)
    assert result.balanced_accuracy == pytest.approx(sum(recalls) / len(recalls))


@pytest.mark.parametrize("number", [0, 1, 512, 513, 1500])
def test_predictions_do_not_depend_on_the_chunks(number: int) -> None:
    network = built(CHOSEN["mlp-small"])
    x, _ = drawn(MLP, number)
    guesses = predict(network, x)
    assert guesses.dtype == np.int64
    assert guesses.tolist() == slow_predictions(network, x)

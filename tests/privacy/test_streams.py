"""Records stay in their streams, and a mechanism stays in its own."""

import hashlib
import hmac
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas.errors import ConfigurationError, DatasetError, StreamViolationError
from fednas.privacy.events import Gaussian
from fednas.privacy.plan import STREAMS, Allowance
from fednas.privacy.streams import StreamedRecords, assign

KEY = bytes(range(32))
PROPORTIONS = {"weights": 0.6, "architecture": 0.25, "fitness": 0.15}
READS = {"search": ("weights",), "alphas": ("architecture",), "fitness": ("fitness",), "final": STREAMS}


@dataclass(frozen=True)
class FakePermit:
    streams: frozenset[str]

    def allowance(self, name: str, /) -> Allowance:
        event = Gaussian(noise_multiplier=1.0, releases=1)
        return Allowance(name=name, streams=READS[name], event=event, clip_norm=1.0)


def permit(*streams: str) -> FakePermit:
    return FakePermit(frozenset(streams))


def records(size: int = 300) -> tuple[StreamedRecords, np.ndarray, np.ndarray]:
    x = np.arange(size * 4, dtype=np.float32).reshape(size, 2, 2)
    streams = assign(KEY, [b"%d" % i for i in range(size)], PROPORTIONS)
    return StreamedRecords(x, np.arange(size, dtype=np.int64) % 3, streams), x, streams


def slow_stream(key: bytes, identifier: bytes) -> int:
    digest = hmac.new(key, identifier, hashlib.sha256).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    return 0 if point < 0.6 else 1 if point < 0.85 else 2


@given(st.lists(st.binary(max_size=40), max_size=50), st.binary(min_size=16, max_size=64))
def test_a_stream_is_a_keyed_hash_of_the_identifier_alone(identifiers: list[bytes], key: bytes) -> None:
    streams = assign(key, identifiers, PROPORTIONS)
    assert streams.dtype == np.uint8
    assert streams.tolist() == [slow_stream(key, identifier) for identifier in identifiers]


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=50), st.data())
def test_removing_a_record_moves_no_other(identifiers: list[bytes], data: st.DataObject) -> None:
    gone = data.draw(st.integers(0, len(identifiers) - 1))
    before = assign(KEY, identifiers, PROPORTIONS)
    after = assign(KEY, identifiers[:gone] + identifiers[gone + 1 :], PROPORTIONS)
    np.testing.assert_array_equal(after, np.delete(before, gone))


def test_shares_are_met_and_a_stream_without_a_share_stays_empty() -> None:
    identifiers = [b"%d" % i for i in range(20_000)]
    counts = np.bincount(assign(KEY, identifiers, PROPORTIONS), minlength=3) / len(identifiers)
    np.testing.assert_allclose(counts, list(PROPORTIONS.values()), atol=0.02)
    for empty in STREAMS:
        shares = {stream: 0.0 if stream == empty else 0.5 for stream in STREAMS}
        assert STREAMS.index(empty) not in assign(KEY, identifiers, shares)
    assert set(assign(KEY, identifiers, {"weights": 0.0, "architecture": 0.0, "fitness": 1.0})) == {2}


def test_another_key_splits_otherwise_and_a_short_key_is_refused() -> None:
    identifiers = [b"%d" % i for i in range(200)]
    assert not np.array_equal(
        assign(KEY, identifiers, PROPORTIONS), assign(KEY[::-1], identifiers, PROPORTIONS)
    )
    with pytest.raises(ConfigurationError, match="16 bytes"):
        assign(b"short", identifiers, PROPORTIONS)


def test_proportions_may_come_as_a_plan_holds_them() -> None:
    identifiers = [b"%d" % i for i in range(200)]
    pairs = tuple(PROPORTIONS.items())
    np.testing.assert_array_equal(assign(KEY, identifiers, pairs), assign(KEY, identifiers, PROPORTIONS))


def test_a_permit_reads_exactly_the_records_of_its_streams() -> None:
    data, x, streams = records()
    for stream, name in zip(STREAMS, ("search", "alphas", "fitness"), strict=True):
        indices = data.indices(permit(stream), name)
        np.testing.assert_array_equal(indices, np.flatnonzero(streams == STREAMS.index(stream)))
        features, labels = data.read(permit(stream), name, indices)
        np.testing.assert_array_equal(features, x[indices])
        np.testing.assert_array_equal(labels, indices % 3)
    assert data.indices(permit(*STREAMS), "final").tolist() == list(range(300))


def test_one_index_of_another_stream_raises() -> None:
    data, _, streams = records()
    indices = data.indices(permit("weights"), "search")
    foreign = np.flatnonzero(streams == 2)[:1]
    with pytest.raises(StreamViolationError, match="outside the streams"):
        data.read(permit("weights"), "search", np.concatenate([indices, foreign]))
    with pytest.raises(StreamViolationError):
        data.read(permit(), "search", indices[:1])


def test_a_release_of_several_allowances_keeps_each_to_its_own_stream() -> None:
    data, _, streams = records()
    both = permit("weights", "architecture")
    foreign = np.flatnonzero(streams == 1)
    with pytest.raises(StreamViolationError, match="outside the streams"):
        data.read(both, "search", foreign)
    assert len(data.read(both, "alphas", foreign)[0]) == len(foreign)


def test_an_allowance_beyond_the_permit_raises() -> None:
    data, _, _ = records()
    with pytest.raises(StreamViolationError, match="architecture"):
        data.indices(permit("weights"), "final")
    with pytest.raises(StreamViolationError, match="fitness"):
        data.indices(permit("weights", "architecture"), "fitness")


@pytest.mark.parametrize(
    "indices",
    [
        np.array([-1]),
        np.array([300]),
        np.array([2**62]),
        np.array([0.0]),
        np.array([True] * 300),
        np.array([[0]]),
        np.array([0], dtype=np.int32),
        np.array(0),
    ],
)
def test_indices_that_are_no_positions_raise(indices: np.ndarray) -> None:
    data, _, _ = records()
    with pytest.raises(StreamViolationError):
        data.read(permit(*STREAMS), "final", indices)


def test_an_empty_sample_reads_an_empty_batch() -> None:
    data, _, _ = records()
    features, labels = data.read(permit("weights"), "search", np.array([], dtype=np.int64))
    assert features.shape == (0, 2, 2)
    assert labels.shape == (0,)


def test_what_is_read_is_a_copy() -> None:
    data, x, _ = records()
    indices = data.indices(permit("weights"), "search")
    data.read(permit("weights"), "search", indices)[0][:] = -1.0
    np.testing.assert_array_equal(data.read(permit("weights"), "search", indices)[0], x[indices])


def test_derived_features_are_computed_once_for_each_stream_and_only_there() -> None:
    data, x, streams = records()
    seen: list[np.ndarray] = []

    def double(batch: np.ndarray) -> np.ndarray:
        seen.append(batch.copy())
        return batch.reshape(len(batch), -1) * 2.0

    weights = permit("weights")
    derived = data.derive(weights, "double", double)
    assert data.derive(weights, "double", double) is derived
    assert derived.record_shape == (4,)
    indices = derived.indices(weights, "search")
    np.testing.assert_array_equal(
        derived.read(weights, "search", indices)[0], x[indices].reshape(-1, 4) * 2.0
    )
    calls = len(seen)
    data.derive(weights, "double", double)
    assert len(seen) == calls
    touched = {tuple(row.ravel()) for batch in seen for row in batch}
    assert not touched & {tuple(row.ravel()) for row in x[streams != 0]}

    with pytest.raises(StreamViolationError, match="never derived"):
        derived.indices(permit("fitness"), "fitness")
    with pytest.raises(StreamViolationError):
        derived.read(permit("fitness"), "fitness", np.flatnonzero(streams == 2))
    everything = permit(*STREAMS)
    assert data.derive(everything, "double", double) is derived
    np.testing.assert_array_equal(
        derived.read(everything, "final", np.arange(300))[0], x.reshape(-1, 4) * 2.0
    )


def test_derived_features_of_a_record_do_not_depend_on_its_neighbours() -> None:
    matrix = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)

    def project(batch: np.ndarray) -> np.ndarray:
        return np.asarray(batch.reshape(len(batch), 4) @ matrix)

    for size in (1, 127, 128, 129, 300):
        data, _, _ = records(size)
        everything = permit(*STREAMS)
        features, _ = data.derive(everything, "p", project).read(everything, "final", np.array([0]))
        reference, _, _ = records(300)
        expected, _ = reference.derive(everything, "p", project).read(everything, "final", np.array([0]))
        np.testing.assert_array_equal(features, expected)


def test_a_function_that_mixes_records_is_refused_before_it_sees_one() -> None:
    data, x, _ = records()
    seen: list[np.ndarray] = []

    def standardise(batch: np.ndarray) -> np.ndarray:
        seen.append(batch.copy())
        return np.asarray((batch - batch.mean(axis=0)) / batch.std(axis=0))

    with pytest.raises(DatasetError, match="mix"):
        data.derive(permit("weights"), "standardised", standardise)
    assert not any(np.array_equal(row, record) for batch in seen for row in batch for record in x[:20])


def test_a_function_that_drops_records_is_refused() -> None:
    data, _, _ = records()
    with pytest.raises(DatasetError, match="as many records"):
        data.derive(permit("weights"), "half", lambda batch: batch[::2])


def test_an_empty_dataset_derives_and_reads_nothing() -> None:
    data, _, _ = records(0)
    everything = permit(*STREAMS)
    derived = data.derive(everything, "flat", lambda batch: batch.reshape(len(batch), -1))
    assert derived.read(everything, "final", derived.indices(everything, "final"))[0].shape == (0, 4)


@pytest.mark.parametrize(
    ("x", "y", "streams"),
    [
        (np.zeros((3, 2)), np.zeros(3, np.int64), np.zeros(3, np.uint8)),
        (np.zeros((3, 2), np.float32), np.zeros(3, np.int32), np.zeros(3, np.uint8)),
        (np.zeros((3, 2), np.float32), np.zeros(2, np.int64), np.zeros(3, np.uint8)),
        (np.zeros((3, 2), np.float32), np.zeros(3, np.int64), np.zeros(2, np.uint8)),
        (np.zeros((3, 2), np.float32), np.zeros(3, np.int64), np.zeros(3, np.int64)),
        (np.zeros((3, 2), np.float32), np.zeros(3, np.int64), np.full(3, 3, np.uint8)),
        (np.float32(0), np.zeros(1, np.int64), np.zeros(1, np.uint8)),
    ],
)
def test_records_of_another_shape_or_type_are_refused(
    x: np.ndarray, y: np.ndarray, streams: np.ndarray
) -> None:
    with pytest.raises(DatasetError):
        StreamedRecords(x, y, streams)

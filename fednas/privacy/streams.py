"""Disjoint streams of a site's records, and the guard that keeps a mechanism inside its own."""

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, final

import numpy as np

from fednas.errors import ConfigurationError, DatasetError, StreamViolationError
from fednas.privacy.allowance import STREAMS, Allowance, stream_shares

_MIN_KEY_BYTES = 16
_BITS = 53
_CHUNK = 128  # records that a per-record function sees at once, always: its arithmetic must not depend on N


class ReadPermit(Protocol):
    """What a permit must answer before records are read: the ledger's `Permit` is one."""

    @property
    def streams(self) -> frozenset[str]:
        """The streams that this release is charged to."""
        ...

    def allowance(self, name: str, /) -> Allowance:
        """Return an allowance that this release is charged under."""
        ...


def assign(
    key: bytes,
    identifiers: Sequence[bytes],
    proportions: Mapping[str, float] | Iterable[tuple[str, float]],
) -> np.ndarray:
    """Return the stream of each record, by a keyed hash of its identifier alone.

    Args:
        key: the site's secret, at least 16 bytes; the same for the life of the dataset.
        identifiers: one per record: a stable identifier or the record's canonical bytes, never its position.
        proportions: share of the records for each of `STREAMS`, adding up to 1.

    Returns:
        uint8 array of shape (len(identifiers),): indices into `STREAMS`.

    Raises:
        ConfigurationError: the key is too short or the proportions are malformed.

    Guarantees:
        - A record's stream depends on the key, its own identifier and the proportions only: adding, removing
          or reordering other records never moves it.

    Source: Krawczyk et al. (1997), RFC 2104, for the keyed hash.
    """
    if len(key) < _MIN_KEY_BYTES:
        raise ConfigurationError(f"expected a stream key of at least {_MIN_KEY_BYTES} bytes, got {len(key)}")
    shares = stream_shares(proportions)
    ends = np.round(np.cumsum([share for _, share in shares]) * 2.0**_BITS).astype(np.uint64)
    last = max(i for i, (_, share) in enumerate(shares) if share > 0.0)
    hashes = (hmac.digest(key, bytes(identifier), hashlib.sha256)[:8] for identifier in identifiers)
    points = np.fromiter((int.from_bytes(d, "big") >> (64 - _BITS) for d in hashes), dtype=np.uint64)
    # A sum of shares just under 1 leaves no gap: the last stream with a share takes the rest.
    return np.minimum(np.searchsorted(ends, points, side="right"), last).astype(np.uint8)


@final
class StreamedRecords:
    """A site's records with their streams: readable only under a permit, and only where it permits.

    Args:
        x: features, float32, shape (records, ...).
        y: labels, int64, shape (records,).
        streams: uint8 indices into `STREAMS`, shape (records,), from `assign`.

    Raises:
        DatasetError: a shape or a type is another.

    Guarantees:
        - Nothing is read of a stream that the permit is not charged to: any such index raises, and so does
          an index that is not an integer, is negative, or lies beyond the records.
        - The number of records is not offered: only a permit tells how many its own streams hold.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, streams: np.ndarray) -> None:
        if x.ndim < 1 or x.dtype != np.float32:
            raise DatasetError(f"expected features as float32 of shape (records, ...), got {x.dtype}")
        if y.ndim != 1 or y.dtype != np.int64 or len(y) != len(x):
            raise DatasetError(f"expected one int64 label for each record, got {y.dtype}")
        if streams.ndim != 1 or streams.dtype != np.uint8 or len(streams) != len(x):
            raise DatasetError("expected one uint8 stream for each record")
        if np.any(streams >= len(STREAMS)):
            raise DatasetError(f"expected streams below {len(STREAMS)}")
        self._x, self._y, self._streams = x, y, streams
        self._present = frozenset(STREAMS)
        self._derived: dict[str, StreamedRecords] = {}

    @property
    def record_shape(self) -> tuple[int, ...]:
        """The public shape of one record's features."""
        return self._x.shape[1:]

    def indices(self, permit: ReadPermit, allowance_name: str, /) -> np.ndarray:
        """Return the positions of the records in an allowance's streams.

        Args:
            permit: of the running release.
            allowance_name: one that the permit is charged under.

        Returns:
            int64 array, ascending; private, like everything under a permit.

        Raises:
            StreamViolationError: the allowance reads a stream that the permit is not charged to.
        """
        streams = permit.allowance(allowance_name).streams
        self._check(permit, streams)
        return np.flatnonzero(self._mask(streams)).astype(np.int64)

    def read(
        self, permit: ReadPermit, allowance_name: str, indices: np.ndarray, /
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return copies of some records.

        Args:
            permit: of the running release.
            allowance_name: what the reading is charged to; a release of several keeps each to its streams.
            indices: int64 positions, shape (n,), from `indices`; none is fine.

        Returns:
            Features, float32, shape (n, ...), and labels, int64, shape (n,).

        Raises:
            StreamViolationError: an index lies outside the allowance's streams or outside the records, or the
                features of its stream were never derived.
        """
        self._check_indices(permit, permit.allowance(allowance_name).streams, indices)
        return self._x[indices], self._y[indices]

    def derive(
        self, permit: ReadPermit, key: str, fn: Callable[[np.ndarray], np.ndarray], /
    ) -> "StreamedRecords":
        """Return the same records with other features, computed once for each stream that is permitted.

        Args:
            permit: of the running release: only its streams are computed; the others stay unreadable.
            key: names the features; the same key must mean the same function.
            fn: maps features of shape (128, ...) to features of shape (128, ...), each record on its own.

        Returns:
            Records with the same streams and labels; the same object whenever the key is the same.

        Raises:
            DatasetError: the function changes the number of records, or mixes one record into another.

        Guarantees:
            - The function always sees 128 records, padded with zeros, so its arithmetic does not depend on
              how many there are; whether it mixes records is tried on noise, which costs no privacy.
        """
        derived = self._derived.get(key)
        if derived is None:
            shape = _per_record_shape(fn, self.record_shape)
            derived = StreamedRecords(np.zeros((len(self._y), *shape), np.float32), self._y, self._streams)
            derived._present = frozenset()
            self._derived[key] = derived
        missing = permit.streams - derived._present
        self._check(permit, missing)
        rows = np.flatnonzero(self._mask(missing))
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            chunk = np.zeros((_CHUNK, *self.record_shape), np.float32)
            chunk[: len(part)] = self._x[part]
            derived._x[part] = fn(chunk)[: len(part)]
        derived._present |= missing
        return derived

    def _mask(self, streams: Iterable[str]) -> np.ndarray:
        mask: np.ndarray = _table(streams)[self._streams]
        return mask

    def _check(self, permit: ReadPermit, streams: Iterable[str]) -> None:
        for stream in streams:
            if stream not in permit.streams:
                raise StreamViolationError(f"this release is not charged to the {stream} stream")
            if stream not in self._present:
                raise StreamViolationError(f"the features of the {stream} stream were never derived")

    def _check_indices(self, permit: ReadPermit, streams: tuple[str, ...], indices: np.ndarray) -> None:
        if indices.ndim != 1 or indices.dtype != np.int64:
            raise StreamViolationError("expected record indices as an int64 array of one dimension")
        if np.any(indices < 0) or np.any(indices >= len(self._y)):
            raise StreamViolationError("a record index lies outside the dataset")
        readable = _table(permit.streams & self._present & frozenset(streams))
        if not np.all(readable[self._streams[indices]]):
            raise StreamViolationError("a record index lies outside the streams of this release")


def _table(streams: Iterable[str]) -> np.ndarray:
    """Return whether each of `STREAMS` is among some, bool."""
    wanted = frozenset(streams)
    return np.array([stream in wanted for stream in STREAMS])


def _per_record_shape(fn: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one record's derived features, having tried on noise that records stay apart."""
    noise = np.random.default_rng(0).standard_normal((_CHUNK, *shape)).astype(np.float32)
    others = noise.copy()
    others[1:] = 2.0 * others[1:] + 1.0
    together, changed = fn(noise), fn(others)
    if together.ndim < 1 or len(together) != _CHUNK or together.shape != changed.shape:
        raise DatasetError("a function of records must return as many records as it was given")
    if not np.array_equal(together[0], changed[0], equal_nan=True):
        raise DatasetError("a function of records must not mix one record into another")
    return together.shape[1:]

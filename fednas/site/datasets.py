"""A site's own records, read and checked where they are; an error never says anything of a record."""

import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fednas.config import DataSchema, SiteConfig
from fednas.errors import DatasetError


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Dataset:
    """The private records of a site; it has no printable form.

    Args:
        x: features, float32, shape (records, *input_shape), finite.
        y: classes, int64, shape (records,), within the schema.
        identifiers: one identifier per record; it decides the record's stream, whatever its position.
        left_out: how many records of the file break the schema: for the owner's eyes, like all else here.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    identifiers: tuple[bytes, ...]
    left_out: int


def load(config: SiteConfig, schema: DataSchema) -> Dataset:
    """Read a site's `.npz` and hold it against the study's public schema.

    Whether a site answers may not hang on a record: its presence would show. So a fault of a record (a
    feature that is not finite, a class that the study does not have) never refuses the file; the record is
    left out by itself. Only what says nothing of a single record refuses: a missing array, a type, the shape
    of records. For the same reason a site without records, or with one class only, takes part: noise leaves.

    Records with equal identifiers are all kept and go to one stream. Dropping all but one would let a
    record's presence decide what another adds. The unit is one record, so what n records of one person spend
    together is what a group of n spends; a site that wants a person's guarantee gives one record a person.

    Args:
        config: the site, with a resolved path to its data: arrays `x` (float32), `y` (int64) and, optionally,
            `id` (bytes). A record with no identifier, or an empty one, is known by its canonical bytes.
        schema: shape and classes of the study.

    Returns:
        The records that follow the schema, unchanged and in the file's order: nothing is imputed or scaled.

    Raises:
        DatasetError: in one line, the rule that is broken and what to do.

    Guarantees:
        Whether a record is kept depends on that record alone, and no record decides whether the file is
        refused.
        No error holds a value, a position, a label or a count of the records.
        No pickle is ever decoded.
    """
    arrays = _read(config)
    if not {"x", "y"} <= arrays.keys() or not arrays.keys() <= {"x", "y", "id"}:
        raise _refuse(config, "expected the arrays x, y and optionally id; write them with numpy.savez")
    x, y = arrays["x"], arrays["y"]
    _check_features(config, schema, x)
    _check_labels(config, y)
    if len(y) != len(x):
        raise _refuse(config, "x and y differ in length; give every record one label")
    names = _check_identifiers(config, arrays.get("id"), y)
    finite = np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
    kept = finite & (y >= 0) & (y < schema.num_classes)
    x, y, names = x[kept], y[kept], names[kept]
    identifiers = tuple(
        name or canonical_bytes(record, label)
        for name, record, label in zip(names.tolist(), x, y, strict=True)
    )
    return Dataset(x=x, y=y, identifiers=identifiers, left_out=int(np.sum(~kept)))


def canonical_bytes(x: NDArray[np.float32], label: int) -> bytes:
    """Return what a record without identifier is known by: its features and class, little-endian.

    Equal records have equal bytes, and so go to the same stream; a negative zero is a zero.
    """
    return b"record:" + (x + np.float32(0.0)).astype("<f4").tobytes() + int(label).to_bytes(8, "little")


def _read(config: SiteConfig) -> dict[str, NDArray[Any]]:
    advice = "expected an .npz file written by numpy.savez"
    path = config.data
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DatasetError(f"{path.name}: {advice}")
        with archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist; set data in site.toml to the site's .npz file") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read; {advice}, readable by this user") from error
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise _refuse(config, f"{advice}, without Python objects in it") from error


def _check_features(config: SiteConfig, schema: DataSchema, x: NDArray[Any]) -> None:
    if x.dtype != np.float32:
        raise _refuse(config, 'expected x as float32; convert it with x.astype("float32")')
    if x.ndim != 1 + len(schema.input_shape) or x.shape[1:] != schema.input_shape:
        expected = ", ".join(str(size) for size in schema.input_shape)
        raise _refuse(config, f"expected x of shape (records, {expected}); encode records as the study says")


def _check_labels(config: SiteConfig, y: NDArray[Any]) -> None:
    if y.dtype != np.int64 or y.ndim != 1:
        raise _refuse(config, 'expected y as int64 of shape (records,); convert it with y.astype("int64")')


def _check_identifiers(
    config: SiteConfig, given: NDArray[Any] | None, y: NDArray[np.int64]
) -> NDArray[np.bytes_]:
    """The identifiers, empty where there is none."""
    if given is None:
        return np.zeros(len(y), dtype="S1")
    if given.dtype.kind != "S" or given.shape != y.shape:
        raise _refuse(
            config, 'expected id as bytes of shape (records,); convert it with numpy.char.encode(id, "utf-8")'
        )
    return given


def _refuse(config: SiteConfig, reason: str) -> DatasetError:
    return DatasetError(f"{config.name}, {config.data.name}: {reason}")

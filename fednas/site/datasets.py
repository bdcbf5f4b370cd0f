"""A site's own records, read and checked where they are; an error never says anything of a record."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fednas.config import ColumnsSection, DataSchema, SiteConfig
from fednas.errors import DatasetError
from fednas.site.readers import Records, read_archive, read_csv, read_function, read_images, read_parquet


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
    """Read a site's records, whatever they are kept in, and hold them against the study's public schema.

    Whether a site answers may not hang on a record: its presence would show. So a fault of a record (a
    feature that is not finite, a class that the study does not have, a line or an image that cannot be read)
    never refuses the file; the record is left out by itself. Only what says nothing of a single record
    refuses: a missing file, array or column, a type, the shape of records. For the same reason a site without
    records, or with one class only, takes part: noise leaves.

    Records with equal identifiers are all kept and go to one stream. Dropping all but one would let a
    record's presence decide what another adds. The unit is one record, so what n records of one person spend
    together is what a group of n spends; a site that wants a person's guarantee gives one record a person.

    Args:
        config: the site, with its `data`, by what they are:
            `.npz`: arrays `x` (float32), `y` (int64) and, optionally, `id` (bytes);
            `.csv`, `.parquet`: a column of labels, one of identifiers if there is any, and features;
            a folder: one sub-folder of images a class;
            `package.module:function`: a function that returns the arrays of an `.npz`.
            A record with no identifier, or an empty one, is known by its canonical bytes.
        schema: shape and classes of the study.

    Returns:
        The records that follow the schema, in the file's order: nothing is imputed, and nothing is scaled but
        by what the configuration states. The same records give the same bits whatever they are kept in.

    Raises:
        DatasetError: in one line, the rule that is broken and what to do.
        MissingExtraError: a reader needs what is not installed.

    Guarantees:
        Whether a record is kept depends on that record alone, and no record decides whether the file is
        refused.
        No error holds a value, a position, a label or a count of the records.
        No pickle is ever decoded.
    """
    try:
        records = _read(config, schema)
        names = _check(records, schema)
    except DatasetError as error:
        path, reason = config.data if isinstance(config.data, str) else config.data.name, str(error)
        raise DatasetError(f"{config.name}, {path}: {reason}") from error
    x, y = records.x, records.y
    finite = np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
    kept = finite & (y >= 0) & (y < schema.num_classes)
    left_out = records.left_out + int(np.sum(~kept))
    x, y, names = x[kept], y[kept], [name for name, good in zip(names, kept, strict=True) if good]
    identifiers = tuple(
        name or canonical_bytes(record, label) for name, record, label in zip(names, x, y, strict=True)
    )
    return Dataset(x=x, y=y, identifiers=identifiers, left_out=left_out)


def canonical_bytes(x: NDArray[np.float32], label: int) -> bytes:
    """Return what a record without identifier is known by: its features and class, little-endian.

    Equal records have equal bytes, and so go to the same stream; a negative zero is a zero.
    """
    return b"record:" + (x + np.float32(0.0)).astype("<f4").tobytes() + int(label).to_bytes(8, "little")


def _read(config: SiteConfig, schema: DataSchema) -> Records:
    path, columns = config.data, config.columns or ColumnsSection()
    if isinstance(path, str):
        return read_function(path, schema)
    if os.path.isdir(path):
        return read_images(path, schema)
    if not os.path.exists(path):
        raise DatasetError(f"{path} does not exist; set data in site.toml to the site's records")
    if path.suffix.lower() == ".csv":
        return read_csv(path, columns, schema)
    if path.suffix.lower() == ".parquet":
        return read_parquet(path, columns, schema)
    return read_archive(path)


def _check(records: Records, schema: DataSchema) -> Sequence[bytes]:
    """Check types and shapes, which say nothing of a single record; the identifiers, empty without one."""
    x, y = records.x, records.y
    if x.dtype != np.float32:
        raise DatasetError('expected x as float32; convert it with x.astype("float32")')
    if x.ndim != 1 + len(schema.input_shape) or x.shape[1:] != schema.input_shape:
        expected = ", ".join(str(size) for size in schema.input_shape)
        raise DatasetError(f"expected x of shape (records, {expected}); encode records as the study says")
    if y.dtype != np.int64 or y.ndim != 1:
        raise DatasetError('expected y as int64 of shape (records,); convert it with y.astype("int64")')
    if len(y) != len(x):
        raise DatasetError("x and y differ in length; give every record one label")
    if records.names is None:
        return [b""] * len(y)
    if not isinstance(records.names, np.ndarray):
        return records.names
    if records.names.dtype.kind != "S" or records.names.shape != y.shape:
        raise DatasetError(
            'expected id as bytes of shape (records,); convert it with numpy.char.encode(id, "utf-8")'
        )
    names: list[bytes] = records.names.tolist()
    return names

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
        identifiers: one stable identifier per record; it decides the record's stream, whatever its position.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    identifiers: tuple[bytes, ...]


def load(config: SiteConfig, schema: DataSchema) -> Dataset:
    """Read a site's `.npz` and hold it against the study's public schema.

    Args:
        config: the site, with a resolved path to its data: arrays `x` (float32), `y` (int64) and, optionally,
            `id` (bytes). A record with no identifier, or an empty one, is known by its canonical bytes.
        schema: shape and classes of the study.

    Returns:
        The records, unchanged: nothing is imputed, scaled or dropped.

    Raises:
        DatasetError: in one line, the rule that is broken and what to do.

    Guarantees:
        No error holds a value, a position, a label or a count of the records.
        No pickle is ever decoded.
    """
    arrays = _read(config)
    if not {"x", "y"} <= arrays.keys() or not arrays.keys() <= {"x", "y", "id"}:
        raise _refuse(config, "expected the arrays x, y and optionally id; write them with numpy.savez")
    x, y = arrays["x"], arrays["y"]
    _check_features(config, schema, x)
    _check_labels(config, schema, y)
    if len(y) != len(x):
        raise _refuse(config, "x and y differ in length; give every record one label")
    return Dataset(x=x, y=y, identifiers=_identify(config, arrays.get("id"), x, y))


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
    if not len(x):
        raise _refuse(config, "it holds no record; a site needs records to take part")
    if not np.isfinite(x).all():
        raise _refuse(
            config,
            "a feature is NaN or infinite; encode a missing value as a public constant with an indicator",
        )


def _check_labels(config: SiteConfig, schema: DataSchema, y: NDArray[Any]) -> None:
    if y.dtype != np.int64 or y.ndim != 1:
        raise _refuse(config, 'expected y as int64 of shape (records,); convert it with y.astype("int64")')
    if (y < 0).any() or (y >= schema.num_classes).any():
        raise _refuse(
            config,
            f"a label lies outside the study's classes, 0 to {schema.num_classes - 1}; map labels to them",
        )
    if len(y) and (y == y[0]).all():
        raise _refuse(config, "all records have one class; a site needs at least two to learn from")


def _identify(
    config: SiteConfig, given: NDArray[Any] | None, x: NDArray[np.float32], y: NDArray[np.int64]
) -> tuple[bytes, ...]:
    if given is None:
        return tuple(canonical_bytes(record, label) for record, label in zip(x, y, strict=True))
    if given.dtype.kind != "S" or given.shape != y.shape:
        raise _refuse(
            config, 'expected id as bytes of shape (records,); convert it with numpy.char.encode(id, "utf-8")'
        )
    names = given.tolist()
    explicit = [name for name in names if name]
    if len(set(explicit)) != len(explicit):
        raise _refuse(config, "two records share an identifier; make identifiers unique, one per record")
    return tuple(
        name or canonical_bytes(record, label) for name, record, label in zip(names, x, y, strict=True)
    )


def _refuse(config: SiteConfig, reason: str) -> DatasetError:
    return DatasetError(f"{config.name}, {config.data.name}: {reason}")

"""Records as rows of a CSV or Parquet file: each row is parsed by itself, whatever the others hold."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fednas.config import ColumnsSection, DataSchema
from fednas.errors import DatasetError, MissingExtraError
from fednas.site.readers.records import Records, classes_by_name


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Which columns are read, and how: of the configuration, the header and the study alone.

    Args:
        features: columns in the order of the study's shape.
        label: the column of classes.
        id: the column of identifiers, if there is one.
        offset: subtracted from features, shape (features,) or ().
        scale: by which features are divided then, of the same shapes.
    """

    features: tuple[str, ...]
    label: str
    id: str | None
    offset: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, columns: ColumnsSection, header: Sequence[str], schema: DataSchema) -> Self:
        """Find the columns in a header.

        Raises:
            DatasetError: a column is missing, there are too many or too few, or constants do not fit them.
        """
        features = columns.features
        if features is None:
            features = tuple(name for name in header if name not in (columns.label, columns.id))
        named = (columns.label, *([] if columns.id is None else [columns.id]), *(columns.features or ()))
        for expected in named:
            if expected not in header:
                raise DatasetError(
                    f"its header has no column {expected!r:.60}; name its columns in [columns] of site.toml"
                )
        if len(set(header)) != len(header):
            raise DatasetError("its header names a column twice; give each column its own name")
        offset, scale = np.array(columns.offset), np.array(columns.scale)
        _check_size(schema, len(features), offset, scale)
        return cls(features=features, label=columns.label, id=columns.id, offset=offset, scale=scale)

    def scaled(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """Apply the public constants; what is too large for float32 becomes infinite, and is left out."""
        with np.errstate(all="ignore"):
            return ((values - self.offset) / self.scale).astype(np.float32)


def _check_size(schema: DataSchema, size: int, *constants: NDArray[np.float64]) -> None:
    expected = math.prod(schema.input_shape)
    if size != expected:
        raise DatasetError(
            f"expected {expected} columns of features beside the label; name them in features of [columns]"
        )
    if any(constant.ndim and constant.shape != (expected,) for constant in constants):
        raise DatasetError(f"expected one number, or {expected}, in offset and scale of [columns]")


def read_csv(path: Path, columns: ColumnsSection, schema: DataSchema) -> Records:
    """Read a CSV file: a header, then one record a line; UTF-8, commas, double quotes.

    A record is a line, so no line decides how another is read: a quote that is not closed ends with its line.
    A field with a line break in it breaks its record into pieces, each judged by itself: remove such breaks,
    or write Parquet. Let no record decide how a program writes the others: one missing integer makes some of
    them write 17 as 17.0, which is another identifier.

    Raises:
        DatasetError: no such file, no header, or other columns than the study needs.

    Guarantees:
        A line that is ragged, no CSV, no UTF-8, or holds what is no number or no class is left out by itself.
    """
    try:
        with path.open("rb") as file:
            header = _fields(file.readline().removeprefix(b"\xef\xbb\xbf"))
            if not header:
                raise DatasetError("expected a header of comma-separated names in UTF-8 as its first line")
            layout = _Layout.of(columns, header, schema)
            return _read_lines(file, layout, {name: at for at, name in enumerate(header)}, schema)
    except OSError as error:
        raise DatasetError("cannot be read; expected a CSV file, readable by this user") from error


def _read_lines(file: Any, layout: _Layout, places: Mapping[str, int], schema: DataSchema) -> Records:
    classes = classes_by_name(schema)
    features = [places[name] for name in layout.features]
    label, named = places[layout.label], None if layout.id is None else places[layout.id]
    rows: list[NDArray[np.float32]] = []
    labels: list[int] = []
    names: list[bytes] = []
    left_out = 0
    for line in file:
        fields = _fields(line)
        try:
            if fields is None or len(fields) != len(places):
                raise ValueError
            values = np.array([_number(fields[at]) for at in features])
            labels.append(classes[fields[label]])
        except (ValueError, KeyError):
            left_out += 1
            continue
        rows.append(layout.scaled(values))
        names.append(b"" if named is None else fields[named].encode())
    x = np.array(rows, dtype=np.float32).reshape(len(rows), *schema.input_shape)
    return Records(x=x, y=np.array(labels, dtype=np.int64), names=names, left_out=left_out)


def _fields(line: bytes) -> list[str] | None:
    """The fields of one line, or None if it is none."""
    try:
        text = line.removesuffix(b"\n").removesuffix(b"\r").decode()
        return next(csv.reader([text], strict=True), None)
    except (UnicodeDecodeError, csv.Error):
        return None


def _number(text: str) -> float:
    if "_" in text:  # Python's own spelling of numbers, and nobody else's
        raise ValueError
    return float(text)


def read_parquet(path: Path, columns: ColumnsSection, schema: DataSchema) -> Records:
    """Read a Parquet file, whose types are schema: numbers as features, text or numbers as classes.

    Raises:
        DatasetError: no such file, or other columns or types than the study needs.
        MissingExtraError: with the command that installs what is missing.

    Guarantees:
        A record with a null, with text that is no UTF-8 or with what is no class is left out by itself.
    """
    if find_spec("pyarrow") is None:
        raise MissingExtraError('pyarrow is not installed; run: pip install "fednas[tables]"')
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            header = file.schema_arrow
            layout = _Layout.of(columns, header.names, schema)
            types = {name: _plain(pa, header.field(name).type) for name in header.names}
            _check_types(pa, layout, types)
            needed = [*layout.features, layout.label, *([] if layout.id is None else [layout.id])]
            table = file.read(columns=needed)
            found = {name: table.column(name).cast(types[name]) for name in needed}
            return _read_columns(pa, found, layout, schema)
    except (pa.ArrowException, OSError):
        raise DatasetError("cannot be read; expected a Parquet file, readable by this user") from None


def _plain(pa: Any, kind: Any) -> Any:
    """A type without its dictionary: categories are text or numbers that are written once."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _check_types(pa: Any, layout: _Layout, types: Mapping[str, Any]) -> None:
    # The type of nothing is what a column without any value has: then all its records are left out.
    def is_number(kind: Any) -> bool:
        return any(is_kind(kind) for is_kind in (pa.types.is_integer, pa.types.is_floating, pa.types.is_null))

    if not all(is_number(types[name]) for name in layout.features):
        raise DatasetError("expected integers or floating-point numbers in every column of features")
    if not (is_number(types[layout.label]) or _is_text(pa, types[layout.label])):
        raise DatasetError("expected text or whole numbers in the column of labels")
    if layout.id is not None:
        kind = types[layout.id]
        if not (is_number(kind) or _is_text(pa, kind) or _is_bytes(pa, kind)):
            raise DatasetError("expected text, bytes or numbers in the column of identifiers")


def _is_text(pa: Any, kind: Any) -> bool:
    return any(
        is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )


def _is_bytes(pa: Any, kind: Any) -> bool:
    return any(
        is_kind(kind) for is_kind in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    )


def _read_columns(pa: Any, found: Mapping[str, Any], layout: _Layout, schema: DataSchema) -> Records:
    classes = classes_by_name(schema)
    labels = [classes.get(_text(value), -1) for value in _values(pa, found[layout.label])]
    # Not safe in Arrow's words: an integer that a double cannot hold is rounded, and refuses no file.
    numbers = [found[name].cast(pa.float64(), safe=False).fill_null(math.nan) for name in layout.features]
    x = layout.scaled(np.stack([np.asarray(column.to_numpy(), dtype=np.float64) for column in numbers], 1))
    names = [b""] * len(labels)
    if layout.id is not None:
        names = [_text(value).encode(errors="surrogateescape") for value in _values(pa, found[layout.id])]
    return Records(
        x=x.reshape(len(labels), *schema.input_shape), y=np.array(labels, dtype=np.int64), names=names
    )


def _values(pa: Any, column: Any) -> list[Any]:
    """Values as they are in the file; text as bytes, since one that is no UTF-8 would refuse them all."""
    return list((column.cast(pa.large_binary()) if _is_text(pa, column.type) else column).to_pylist())


def _text(value: bytes | float | None) -> str:
    """A value as a CSV file would hold it; programs make fractions of all integers when one is missing."""
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None or value != value else str(value)

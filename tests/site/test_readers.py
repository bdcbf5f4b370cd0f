"""Whatever a site keeps its records in, the same records come out, and one more changes no other."""

import csv
import io
import math
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from sklearn.datasets import load_breast_cancer, load_digits

from fednas.config import ColumnsSection, DataSchema
from fednas.errors import DatasetError, MissingExtraError
from fednas.site.datasets import Dataset, canonical_bytes, load
from tests.architecture.test_what_leaves import violations
from tests.architecture.test_wire_gate import name_of, sources
from tests.site.test_datasets import site

SCHEMA = DataSchema(input_shape=(1, 2, 3), class_names=("no", "yes", "maybe"))
ROW = DataSchema(input_shape=(2,), class_names=("no", "yes"))
SECRET = 7.328125
MODULE = "hospital_of_the_tests"


@dataclass(frozen=True, kw_only=True)
class Given:
    """Records of which a kind makes a file."""

    x: Any
    y: Any
    names: Sequence[bytes] | None
    schema: DataSchema


def six_pixels(*, named: bool, schema: DataSchema = SCHEMA) -> Given:
    """Images that any kind can hold, in the order of their folders."""
    pixels = np.random.default_rng(3).integers(0, 256, size=(17, *schema.input_shape))
    order = sorted(range(schema.num_classes), key=lambda index: schema.class_names[index])
    y = np.array(sorted((index % schema.num_classes for index in range(17)), key=order.index), dtype=np.int64)
    names = [b"", "zoë".encode(), *(f"patient-{number}".encode() for number in range(15))] if named else None
    return Given(x=pixels.astype(np.float32) / np.float32(255), y=y, names=names, schema=schema)


def arrays(records: Given) -> dict[str, Any]:
    named = {} if records.names is None else {"id": np.array(records.names, dtype="S")}
    return {"x": records.x, "y": records.y} | named


def rows(records: Given, kind: type = np.float32) -> pd.DataFrame:
    flat = records.x.reshape(len(records.y), math.prod(records.schema.input_shape))
    flat = flat.astype(kind)
    table = pd.DataFrame({f"f{column}": flat[:, column] for column in range(flat.shape[1])})
    table.insert(2, "diagnosis", [records.schema.class_names[label] for label in records.y])
    if records.names is not None:
        table.insert(0, "patient", [name.decode() for name in records.names])
    return table


def columns_of(records: Given) -> ColumnsSection:
    return ColumnsSection(label="diagnosis", id=None if records.names is None else "patient")


def as_archive(folder: Path, records: Given) -> Dataset:
    np.savez(folder / "data.npz", **arrays(records))
    return load(site(folder / "data.npz"), records.schema)


def as_function(folder: Path, records: Given) -> Dataset:
    module = ModuleType(MODULE)
    module.records = lambda schema: tuple(arrays(records).values())  # type: ignore[attr-defined]
    sys.modules[MODULE] = module
    return load(site(f"{MODULE}:records"), records.schema)


def as_csv(folder: Path, records: Given) -> Dataset:
    table = rows(records, np.float64)
    table.to_csv(folder / "data.csv", index=False)
    return load(site(folder / "data.csv", columns_of(records)), records.schema)


def as_csv_of_spreadsheets(folder: Path, records: Given) -> Dataset:
    """With a mark of byte order, quotes, lines as on Windows, no last line break, and numbers of classes."""
    table = rows(records, np.float64)
    table["diagnosis"] = records.y
    text = table.to_csv(index=False, quoting=csv.QUOTE_ALL, lineterminator="\r\n").removesuffix("\r\n")
    (folder / "data.csv").write_bytes(text.encode("utf-8-sig"))
    return load(site(folder / "data.csv", columns_of(records)), records.schema)


def as_parquet(folder: Path, records: Given) -> Dataset:
    rows(records).to_parquet(folder / "data.parquet")
    return load(site(folder / "data.parquet", columns_of(records)), records.schema)


def as_parquet_of_categories(folder: Path, records: Given) -> Dataset:
    """Text that is written once, several row groups, doubles, and columns in another order."""
    table = pa.Table.from_pandas(rows(records).astype({"diagnosis": "category", "f0": np.float64}))
    order = sorted(table.column_names, reverse=True)
    parquet.write_table(table.select(order), folder / "data.parquet", row_group_size=5)
    features = tuple(sorted(name for name in order if name.startswith("f")))
    columns = columns_of(records).model_copy(update={"features": features})
    return load(site(folder / "data.parquet", columns), records.schema)


def as_images(folder: Path, records: Given) -> Dataset:
    for index, (x, y) in enumerate(zip(records.x, records.y, strict=True)):
        file = folder / "scans" / records.schema.class_names[y] / f"{index:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_image(np.rint(x * 255).astype(np.uint8), file)
    return load(site(folder / "scans"), records.schema)


def save_image(pixels: Any, file: Path | io.BytesIO) -> None:
    plain = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    Image.fromarray(plain).save(file, format="PNG")


@pytest.fixture(autouse=True)
def _forget_the_module() -> Iterator[None]:
    yield
    sys.modules.pop(MODULE, None)


Read = Callable[[Path, Given], Dataset]
TABLES: tuple[Read, ...] = (as_csv, as_csv_of_spreadsheets, as_parquet, as_parquet_of_categories)


def assert_same(found: Dataset, expected: Dataset) -> None:
    assert found.x.dtype == expected.x.dtype
    assert found.x.shape == expected.x.shape
    assert found.x.tobytes() == expected.x.tobytes()
    assert found.y.dtype == expected.y.dtype
    assert found.y.tolist() == expected.y.tolist()
    assert found.identifiers == expected.identifiers


@pytest.mark.parametrize("read", [as_function, *TABLES, as_images])
def test_the_same_records_are_the_same_dataset_in_every_kind(read: Read, tmp_path: Path) -> None:
    records = six_pixels(named=False)
    assert_same(read(tmp_path, records), as_archive(tmp_path, records))


@pytest.mark.parametrize("read", [as_function, *TABLES])
def test_identifiers_are_the_same_in_every_kind(read: Read, tmp_path: Path) -> None:
    records = six_pixels(named=True)
    found = read(tmp_path, records)
    assert_same(found, as_archive(tmp_path, records))
    assert found.identifiers[0] == canonical_bytes(records.x[0], int(records.y[0]))
    assert found.identifiers[1] == "zoë".encode()


def test_images_with_colours_are_the_same_dataset(tmp_path: Path) -> None:
    records = six_pixels(named=False, schema=DataSchema(input_shape=(3, 4, 2), class_names=("b", "a")))
    assert_same(as_images(tmp_path, records), as_archive(tmp_path, records))


@pytest.mark.parametrize("read", [as_archive, as_function, *TABLES, as_images])
def test_no_record_at_all_is_a_dataset_in_every_kind(read: Read, tmp_path: Path) -> None:
    whole = six_pixels(named=False)
    (tmp_path / "scans").mkdir()
    found = read(tmp_path, Given(x=whole.x[:0], y=whole.y[:0], names=None, schema=SCHEMA))
    assert found.x.shape == (0, *SCHEMA.input_shape)
    assert (len(found.y), found.identifiers, found.left_out) == (0, (), 0)


# One record more, whatever it holds.

USUAL = [b"0.5,no,a,1.5", b"2.5,yes,b,3.5", b'"4.5","no","c, the third","5.5"', b"6.5,1,,7.5"]
NAMED = ColumnsSection(id="who")


def read_lines(folder: Path, lines: list[bytes], columns: ColumnsSection = NAMED) -> Dataset:
    (folder / "data.csv").write_bytes(b"\n".join([b"f,label,who,g", *lines]) + b"\n")
    return load(site(folder / "data.csv", columns), ROW)


def assert_one_more(found: Dataset, usual: Dataset, place: int) -> None:
    """All records of `usual` are there in their order; the other was left out, or stands at its place."""
    assert usual.left_out == 0
    if found.left_out == 1:
        assert_same(found, usual)
        return
    assert found.left_out == 0
    keep = [index for index in range(len(found.y)) if index != place]
    names = tuple(found.identifiers[index] for index in keep)
    rest = Dataset(x=found.x[keep], y=found.y[keep], identifiers=names, left_out=0)
    assert_same(rest, usual)
    assert bool(np.isfinite(found.x).all())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


FIELDS = st.one_of(
    st.sampled_from(
        ["nan", "-inf", "1e999", "", "no", "yes", "2", "-1", "1_0", '"', '""', '"x', "=1+1", "\0", "٣"]
    ),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.text(max_size=20),
)
LINES = st.one_of(
    st.binary(max_size=60),
    st.lists(FIELDS, max_size=6).map(lambda fields: ",".join(fields).encode(errors="surrogatepass")),
    st.sampled_from(
        [b"9" * 200_000 + b",no,a,1", b"1,no," + b"x" * 200_000 + b",1", b'1,no,"a', b"\r", b"1,no,a,1\r"]
    ),
)


@given(line=LINES, place=st.integers(0, len(USUAL)))
def test_one_line_more_changes_no_other_record(line: bytes, place: int, folder: Path) -> None:
    line = line.replace(b"\n", b"")
    found = read_lines(folder, [*USUAL[:place], line, *USUAL[place:]])
    assert_one_more(found, read_lines(folder, USUAL), place)


@pytest.mark.parametrize(
    "line",
    [
        *("", "1,no,a", "1,no,a,1,1", "1;no;a;1", '1,no,"a,1', '1,no,"a"b,1', "1,no,a\r,1", "1,no,\udcff,1"),
        *(",no,a,1", "nan,no,a,1", "1e39,no,a,1", "x,no,a,1", "1 000,no,a,1", "1_0,no,a,1"),
        *("1,No,a,1", "1,,a,1", "1,2,a,1", "1,-1,a,1"),
    ],
)
def test_a_line_that_breaks_the_schema_is_left_out(line: str, tmp_path: Path) -> None:
    found = read_lines(tmp_path, [*USUAL[:2], line.encode(errors="surrogateescape"), *USUAL[2:]])
    assert found.left_out == 1
    assert_same(found, read_lines(tmp_path, USUAL))


def test_a_line_break_in_a_field_breaks_its_own_record_only(tmp_path: Path) -> None:
    found = read_lines(tmp_path, [*USUAL[:2], b'1,no,"a\nb",1', *USUAL[2:]])
    assert found.left_out == 2
    assert_same(found, read_lines(tmp_path, USUAL))


def test_a_field_of_any_length_makes_no_other_record_larger(tmp_path: Path) -> None:
    found = read_lines(tmp_path, [*USUAL, b"1,no," + b"x" * 100_000 + b",1"])
    assert [len(name) for name in found.identifiers[:3]] == [1, 1, 12]
    assert len(found.identifiers[-1]) == 100_000


TYPES = pa.schema([("f", pa.float32()), ("label", pa.string()), ("who", pa.string()), ("g", pa.int64())])
CELLS: dict[str, list[Any]] = {
    "f": [0.5, 2.5, 4.5],
    "label": [b"no", b"yes", b"no"],
    "who": [b"a", b"b", None],
    "g": [1, 3, 5],
}


def read_cells(folder: Path, cells: dict[str, list[Any]], *, categories: bool = False) -> Dataset:
    """Text is put in as bytes: Arrow takes its word that they are UTF-8."""
    columns = []
    for field in TYPES:
        text = pa.types.is_string(field.type)
        column = pa.array(cells[field.name], pa.binary() if text else field.type)
        if text:
            buffers = column.buffers()
            column = pa.Array.from_buffers(pa.string(), len(column), buffers)
            column = column.dictionary_encode() if categories and field.name == "label" else column
        columns.append(column)
    parquet.write_table(pa.table(columns, names=TYPES.names), folder / "data.parquet")
    return load(site(folder / "data.parquet", NAMED), ROW)


TEXTS = (
    st.none()
    | st.binary(max_size=12)
    | st.sampled_from([b"no", b"1", b"\xff", b"\xed\xa0\x80", b"x" * 100_000])
)


@given(
    f=st.none() | st.floats(width=32),
    g=st.none() | st.integers(-(2**63), 2**63 - 1),
    label=TEXTS,
    who=TEXTS,
    place=st.integers(0, 3),
    categories=st.booleans(),
)
def test_one_row_more_changes_no_other_record(
    f: float | None,
    g: int | None,
    label: bytes | None,
    who: bytes | None,
    place: int,
    categories: bool,
    folder: Path,
) -> None:
    row = {"f": f, "g": g, "label": label, "who": who}
    cells = {name: [*cells[:place], row[name], *cells[place:]] for name, cells in CELLS.items()}
    found = read_cells(folder, cells, categories=categories)
    assert_one_more(found, read_cells(folder, CELLS, categories=categories), place)
    assert found.left_out == int(
        f is None or g is None or not np.isfinite(f) or label not in (b"no", b"yes", b"0", b"1")
    )


def test_columns_without_any_value_refuse_no_file(tmp_path: Path) -> None:
    """Arrow gives them a type of their own, which the first value would change."""
    cells: dict[str, Any] = {"f": [None, None], "label": [None, None], "who": [None, None], "g": [None, None]}
    for changes in ({}, {"label": ["no", "yes"], "f": [1.0, 2.0]}):
        parquet.write_table(pa.table(cells | changes), tmp_path / "data.parquet")
        found = load(site(tmp_path / "data.parquet", NAMED), ROW)
        assert (found.x.shape, found.left_out) == ((0, 2), 2)


def png(width: int, height: int, *, mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height), 7 if mode == "L" else None).save(file, format="PNG")
    return file.getvalue()


def bomb() -> bytes:
    """A small file that says it is a huge image."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    pieces = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


GOOD = png(3, 2)
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "text": b"no image",
    "half an image": GOOD[: len(GOOD) // 2],
    "another size": png(3, 3),
    "turned": png(2, 3),
    "a huge size": bomb(),
    "sixteen bits": png(3, 2, mode="I;16"),
    "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 3 2\nshowpage\n",
    "a damaged header": GOOD[:20] + b"\xff" + GOOD[21:],
}


def read_scans(folder: Path) -> Dataset:
    return load(site(folder / "scans"), SCHEMA)


def write_scans(folder: Path) -> Dataset:
    return as_images(folder, six_pixels(named=False))


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_file_that_is_no_such_image_is_left_out(content: bytes, tmp_path: Path) -> None:
    usual = write_scans(tmp_path)
    (tmp_path / "scans" / "yes" / "0000.png").write_bytes(content)
    found = read_scans(tmp_path)
    assert found.left_out == 1
    assert_same(found, usual)


@given(
    content=st.binary(max_size=80)
    | st.builds(
        lambda at, by: GOOD[:at] + by + GOOD[at + 1 :], st.integers(0, len(GOOD)), st.binary(max_size=4)
    )
)
def test_one_file_more_changes_no_other_record(content: bytes, folder: Path) -> None:
    usual = write_scans(folder)
    extra = folder / "scans" / "yes" / "0000.png"
    extra.write_bytes(content)
    try:
        assert_one_more(read_scans(folder), usual, int(np.flatnonzero(usual.y == 1)[0]))
    finally:
        extra.unlink()


def test_a_folder_of_no_class_is_left_out(tmp_path: Path) -> None:
    usual = write_scans(tmp_path)
    (tmp_path / "scans" / "perhaps").mkdir()
    (tmp_path / "scans" / "perhaps" / "a.png").write_bytes(GOOD)
    (tmp_path / "scans" / "yes" / "more").mkdir()
    (tmp_path / "scans" / "README").write_text("who took these")
    found = read_scans(tmp_path)
    assert found.left_out == 2
    assert_same(found, usual)


def test_the_name_of_an_image_says_nothing(tmp_path: Path) -> None:
    usual = write_scans(tmp_path)
    first, *_ = sorted((tmp_path / "scans" / "no").iterdir())
    first.rename(first.with_name("zzz.png"))
    assert set(read_scans(tmp_path).identifiers) == set(usual.identifiers)


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_an_image_in_other_colours_is_kept_in_those_of_the_study(mode: str, tmp_path: Path) -> None:
    (tmp_path / "scans" / "yes").mkdir(parents=True)
    form, name = ("JPEG", "a.jpg") if mode == "CMYK" else ("PNG", "a.png")
    Image.new("L", (3, 2), 255).convert(mode).save(tmp_path / "scans" / "yes" / name, format=form)
    found = read_scans(tmp_path)
    assert found.left_out == 0
    assert bool((found.x == 1.0).all())


# What refuses, in one line without a private value.

HEADER = "f,label,who,g\n"


def refusal(data: Path | str, columns: ColumnsSection | None = None, schema: DataSchema = ROW) -> str:
    with pytest.raises(DatasetError) as caught:
        load(site(data, columns), schema)
    text = str(caught.value)
    assert text.startswith("north, ")
    assert "\n" not in text
    assert str(SECRET) not in text
    return text


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        ("\n", None, "expected a header"),
        (f"{SECRET},no,a,{SECRET}\n", None, "its header has no column 'label'"),
        ("f,class,g\n", None, "its header has no column 'label'"),
        ("f,label,g\n", NAMED, "its header has no column 'who'"),
        ("f,label,g\n", ColumnsSection(features=("f", "h")), "its header has no column 'h'"),
        (HEADER, None, "expected 2 columns of features"),
        ("f,label\n", None, "expected 2 columns of features"),
        (HEADER, ColumnsSection(features=("f",)), "expected 2 columns of features"),
        ("f,f,label\n", None, "names a column twice"),
        (HEADER, ColumnsSection(id="who", offset=(1.0, 2.0, 3.0)), "expected one number, or 2, in offset"),
        (HEADER, ColumnsSection(id="who", scale=(1.0,)), "expected one number, or 2, in offset"),
    ],
)
def test_a_table_with_other_columns_is_refused(
    header: str, columns: ColumnsSection | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / "data.csv").write_text(header + f"{SECRET},no,a,{SECRET}\n" * 3)
    assert message in refusal(tmp_path / "data.csv", columns)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"g": ["1", "2", "3"]}, "expected integers or floating-point numbers"),
        ({"g": [True, False, None]}, "expected integers or floating-point numbers"),
        ({"g": [[1.0], [SECRET], []]}, "expected integers or floating-point numbers"),
        ({"label": [True, False, None]}, "expected text or whole numbers"),
        ({"who": [True, False, None]}, "expected text, bytes or numbers"),
    ],
)
def test_a_column_of_another_type_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    cells: dict[str, Any] = {"f": [SECRET] * 3, "label": ["no"] * 3, "who": ["a"] * 3, "g": [SECRET] * 3}
    parquet.write_table(pa.table(cells | changes), tmp_path / "data.parquet")
    assert message in refusal(tmp_path / "data.parquet", NAMED)


def test_an_empty_file_has_no_header(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(b"")
    assert "expected a header" in refusal(tmp_path / "data.csv")


def test_a_parquet_file_with_other_columns_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"f": [SECRET], "class": ["no"], "g": [SECRET]}), tmp_path / "data.parquet")
    assert "its header has no column 'label'" in refusal(tmp_path / "data.parquet")


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_text(HEADER + f"{SECRET},no,a,{SECRET}\n")
    assert "expected a Parquet file" in refusal(tmp_path / "data.parquet")


@pytest.mark.parametrize("name", ["data.csv", "data.parquet", "data.npz", "scans"])
def test_data_that_are_not_there_are_refused(name: str, tmp_path: Path) -> None:
    assert "does not exist; set data in site.toml" in refusal(tmp_path / name)


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 2, 3)])
def test_a_folder_is_refused_by_a_study_without_images(shape: tuple[int, ...], tmp_path: Path) -> None:
    schema = DataSchema(input_shape=shape, class_names=("no", "yes"))
    assert "not (1 or 3, height, width)" in refusal(tmp_path, schema=schema)


def raising(schema: DataSchema) -> Any:
    raise ValueError(f"record 17 has the value {SECRET}")


def leaving(schema: DataSchema) -> Any:
    raise SystemExit(str(SECRET))


X, Y = np.full((3, 2), SECRET, dtype=np.float32), np.zeros(3, dtype=np.int64)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raising, "has raised an exception; call it yourself"),
        (leaving, "has raised an exception; call it yourself"),
        (SECRET, "has raised an exception; call it yourself"),
        (lambda schema: None, "expected a tuple of NumPy arrays"),
        (lambda schema: (X,), "expected a tuple of NumPy arrays"),
        (lambda schema: [X, Y], "expected a tuple of NumPy arrays"),
        (lambda schema: (X.tolist(), Y), "expected a tuple of NumPy arrays"),
        (lambda schema: (np.ma.masked_equal(X, 0), Y), "expected a tuple of NumPy arrays"),
        (lambda schema: (X.astype(np.float64), Y), "expected x as float32"),
        (lambda schema: (X[:, :1], Y), "expected x of shape (records, 2)"),
        (lambda schema: (X, Y[:2]), "x and y differ in length"),
        (lambda schema: (X, Y, np.array(["a", "b", "c"])), "expected id as bytes"),
    ],
)
def test_a_function_that_fails_is_refused_without_its_words(
    function: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType(MODULE)
    module.records = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, MODULE, module)
    assert message in refusal(f"{MODULE}:records")


@pytest.mark.parametrize("source", ["no_such_module_anywhere:records", "json:no_such_function"])
def test_a_function_that_is_not_there_is_refused(source: str) -> None:
    assert "cannot be imported or has raised an exception" in refusal(source)


def test_nothing_of_an_owners_exception_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(MODULE)
    module.records = raising  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, MODULE, module)
    with pytest.raises(DatasetError) as caught:
        load(site(f"{MODULE}:records"), ROW)
    error: BaseException | None = caught.value
    while error is not None:
        assert str(SECRET) not in str(error)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    ("package", "data", "extra"), [("pyarrow", "data.parquet", "tables"), ("PIL", "scans", "images")]
)
def test_a_reader_that_is_not_installed_says_how_to_install_it(
    package: str, data: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_parquet(tmp_path, six_pixels(named=False))
    write_scans(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf'pip install "fednas\[{extra}\]"'):
        load(site(tmp_path / data), SCHEMA)


@pytest.mark.parametrize("path", sources("fednas/site/readers"), ids=name_of)
def test_readers_are_watched_as_closely_as_what_calls_them(path: Path) -> None:
    """But for this: to read a file, they open it."""
    source = path.read_text()
    found = violations(source, "fednas/site/datasets.py")
    assert [violation for violation in found if not violation.endswith("calls open")] == []
    opened = set(re.findall(r"\w+\.open\([^)]*\)", source))
    assert opened <= {'path.open("rb")', "Image.open(file, formats=_FORMATS)"}


# Constants, and names of classes.


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_features_are_scaled_by_the_owners_constants_alone(kind: str, tmp_path: Path) -> None:
    values = np.random.default_rng(4).normal(50, 20, size=(40, 2))
    table = pd.DataFrame({"age": values[:, 0], "label": ["no", "yes"] * 20, "dose": values[:, 1]})
    file = tmp_path / f"data.{kind}"
    table.to_csv(file, index=False) if kind == "csv" else table.to_parquet(file)
    columns = ColumnsSection(features=("dose", "age"), offset=(10.0, 50.0), scale=(4.0, 0.1))
    found = load(site(file, columns), ROW)
    expected = (values[:, ::-1] - np.array([10.0, 50.0])) / np.array([4.0, 0.1])
    assert np.array_equal(found.x, expected.astype(np.float32))
    one = load(site(file, ColumnsSection(offset=0.5, scale=255.0)), ROW)
    assert np.array_equal(one.x, ((values - 0.5) / 255.0).astype(np.float32))


def labels_read(folder: Path, labels: list[str], names: tuple[str, ...]) -> list[int]:
    schema = DataSchema(input_shape=(1,), class_names=names)
    (folder / "data.csv").write_text("label,f\n" + "".join(f"{label},0\n" for label in labels))
    found: list[int] = load(site(folder / "data.csv"), schema).y.tolist()
    return found


def test_a_class_is_known_by_its_name_or_its_number(tmp_path: Path) -> None:
    assert labels_read(tmp_path, ["yes", "0", "1", "1.0", "no", "2", "01", "-1"], ("no", "yes")) == [
        1,
        0,
        1,
        1,
        0,
    ]


def test_a_number_is_a_name_where_classes_are_named_by_numbers(tmp_path: Path) -> None:
    """A study of grades 1 to 3 reads 0 as no class, not as the first."""
    assert labels_read(tmp_path, ["0", "1", "2.0", "3"], ("1", "2", "3")) == [0, 1, 2]


def test_one_missing_number_of_a_class_moves_no_other(tmp_path: Path) -> None:
    """A program that writes tables makes fractions of all whole numbers when one is missing."""
    for labels in ([0, 1, 1], [0, None, 1, 1]):
        table = pd.DataFrame({"label": labels, "f": [0.5] * len(labels)})
        table.to_parquet(tmp_path / "data.parquet")
        table.to_csv(tmp_path / "data.csv", index=False)
        for name in ("data.csv", "data.parquet"):
            found = load(site(tmp_path / name), DataSchema(input_shape=(1,), class_names=("no", "yes")))
            assert found.y.tolist() == [0, 1, 1]


def test_one_missing_number_of_a_patient_moves_no_other(tmp_path: Path) -> None:
    schema = DataSchema(input_shape=(1,), class_names=("no", "yes"))
    for numbers in ([17, 4, 5], [17, 4, 5, None]):
        table = pd.DataFrame({"who": numbers, "label": ["no"] * len(numbers), "f": [0.5] * len(numbers)})
        table.to_parquet(tmp_path / "data.parquet")
        found = load(site(tmp_path / "data.parquet", NAMED), schema)
        assert found.identifiers[:3] == (b"17", b"4", b"5")
        assert found.left_out == 0


# Real records.


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_real_patients_come_back_from_a_table(kind: str, tmp_path: Path) -> None:
    patients = load_breast_cancer(as_frame=True)
    table = patients.frame.assign(target=patients.target_names[patients.target])
    file = tmp_path / f"data.{kind}"
    table.to_csv(file, index=False) if kind == "csv" else table.to_parquet(file)
    schema = DataSchema(input_shape=(30,), class_names=tuple(patients.target_names))
    found = load(site(file, ColumnsSection(label="target")), schema)
    assert np.array_equal(found.x, patients.data.to_numpy().astype(np.float32))
    assert np.array_equal(found.y, patients.target)
    assert found.left_out == 0


def test_real_digits_come_back_from_a_folder(tmp_path: Path) -> None:
    digits = load_digits()
    order = np.argsort(digits.target[:300], kind="stable")
    pixels, y = (digits.images[order] * 15).astype(np.uint8)[:, None], digits.target[order]
    schema = DataSchema(input_shape=(1, 8, 8), class_names=tuple("0123456789"))
    x = pixels.astype(np.float32) / np.float32(255)
    records = Given(x=x, y=y.astype(np.int64), names=None, schema=schema)
    assert_same(as_images(tmp_path, records), as_archive(tmp_path, records))

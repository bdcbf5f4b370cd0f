from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fednas.config import ColumnsSection, DataSchema, SiteConfig
from fednas.devices import DeviceProfile
from fednas.errors import DatasetError
from fednas.site.datasets import Dataset, canonical_bytes, load

SCHEMA = DataSchema(input_shape=(3,), class_names=("no", "yes", "maybe"))
SECRET = 7.328125  # exact in float32; no error may show it


def site(data: Path | str, columns: ColumnsSection | None = None) -> SiteConfig:
    device = DeviceProfile(
        tier="any",
        memory_bytes=1,
        training_memory_bytes=1,
        upload_bytes=1,
        max_latency_ms=1.0,
        macs_per_ms=1.0,
    )
    return SiteConfig(
        name="north",
        dataset="north",
        data=data,
        columns=columns,
        declared_size=50,
        epsilon=3.0,
        ledger=Path("ledger.db"),
        device=device,
    )


def records(count: int = 37) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(5)
    x = generator.normal(size=(count, 3)).astype(np.float32)
    x[:, 2] = SECRET
    return {
        "x": x,
        "y": np.arange(count) % 3,
        "id": np.array([f"patient-{number}" for number in range(count)], dtype="S"),
    }


def read(folder: Path, arrays: Mapping[str, Any], schema: DataSchema = SCHEMA) -> Dataset:
    np.savez(folder / "data.npz", **arrays)
    return load(site(folder / "data.npz"), schema)


def test_a_good_dataset_comes_back_unchanged(tmp_path: Path) -> None:
    arrays = records()
    dataset = read(tmp_path, arrays)
    assert np.array_equal(dataset.x, arrays["x"])
    assert np.array_equal(dataset.y, arrays["y"])
    assert dataset.identifiers == tuple(arrays["id"].tolist())


def test_a_dataset_without_identifiers_is_known_by_its_records_in_any_order(tmp_path: Path) -> None:
    arrays = {name: array for name, array in records().items() if name != "id"}
    forward = read(tmp_path, arrays).identifiers
    backward = read(tmp_path, {name: array[::-1] for name, array in arrays.items()}).identifiers
    assert len(set(forward)) == len(forward)
    assert forward == backward[::-1]


def test_only_a_record_with_an_empty_identifier_falls_back_to_its_bytes(tmp_path: Path) -> None:
    arrays = records()
    arrays["id"][[4, 9]] = b""
    identifiers = read(tmp_path, arrays).identifiers
    assert identifiers[4] == canonical_bytes(arrays["x"][4], int(arrays["y"][4]))
    assert identifiers[4] != identifiers[9]
    assert identifiers[5] == b"patient-5"


def test_equal_records_without_identifiers_are_both_kept(tmp_path: Path) -> None:
    arrays = {name: np.concatenate([array, array]) for name, array in records().items() if name != "id"}
    identifiers = read(tmp_path, arrays).identifiers
    assert identifiers[:37] == identifiers[37:]


def test_a_negative_zero_is_the_same_record() -> None:
    zero = np.zeros(3, dtype=np.float32)
    assert canonical_bytes(zero, 1) == canonical_bytes(-zero, 1)
    assert canonical_bytes(zero, 1) != canonical_bytes(zero, 2)


def test_a_dataset_does_not_print_its_records(tmp_path: Path) -> None:
    assert str(SECRET) not in repr(read(tmp_path, records()))


def changed(name: str, value: Any, *, where: Any = 11) -> dict[str, Any]:
    arrays = records()
    arrays[name][where] = value
    return arrays


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "double features": (records() | {"x": records()["x"].astype(np.float64)}, "float32"),
    "narrow labels": (records() | {"y": records()["y"].astype(np.int32)}, "int64"),
    "fractional labels": (records() | {"y": records()["y"].astype(np.float64)}, "int64"),
    "column of labels": (records() | {"y": records()["y"][:, None]}, "int64"),
    "other shape": (records() | {"x": records()["x"][:, :2]}, r"shape \(records, 3\)"),
    "flat": (records() | {"x": records()["x"][:, 0]}, r"shape \(records, 3\)"),
    "scalar": (records() | {"x": np.float32(SECRET)}, r"shape \(records, 3\)"),
    "too few labels": (records() | {"y": records()["y"][:-1]}, "differ in length"),
    "too few identifiers": (records() | {"id": records()["id"][:-1]}, "expected id as bytes"),
    "text identifiers": (records() | {"id": records()["id"].astype("U")}, "expected id as bytes"),
    "no labels": ({"x": records()["x"]}, "expected the arrays x, y"),
    "another array": (records() | {"z": records()["y"]}, "expected the arrays x, y"),
    "Python objects": (records() | {"y": np.array([{"secret": SECRET}, 2], dtype=object)}, "without Python"),
}


@pytest.mark.parametrize(("arrays", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_dataset_is_refused_in_one_line_without_a_private_value(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        read(tmp_path, arrays)
    text = str(caught.value)
    assert text.startswith("north, data.npz: ")
    assert "\n" not in text
    for private in (str(SECRET), "37", "36", "11", "patient"):
        assert private not in text


FAULTS: dict[str, tuple[str, Any]] = {
    "NaN": ("x", np.nan),
    "infinity": ("x", np.inf),
    "minus infinity": ("x", -np.inf),
    "a negative label": ("y", -1),
    "an unknown label": ("y", 3),
    "a huge label": ("y", 2**63 - 1),
    "the smallest label": ("y", -(2**63)),
}


@pytest.mark.parametrize(("name", "value"), FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("named", [True, False], ids=["with id", "without id"])
def test_a_record_that_breaks_the_schema_is_left_out_and_moves_no_other(
    name: str, value: Any, named: bool, tmp_path: Path
) -> None:
    broken, whole = changed(name, value), records()
    if not named:
        del broken["id"], whole["id"]
    found = read(tmp_path, broken)
    without = read(tmp_path, {key: np.delete(array, 11, axis=0) for key, array in whole.items()})
    assert np.array_equal(found.x, without.x)
    assert np.array_equal(found.y, without.y)
    assert found.identifiers == without.identifiers
    assert (found.left_out, without.left_out) == (1, 0)


def test_one_feature_is_enough_to_leave_a_record_out(tmp_path: Path) -> None:
    found = read(tmp_path, changed("x", np.nan, where=(11, 2)))
    assert len(found.y) == 36


@pytest.mark.parametrize("value", [3.4e38, -3.4e38, 1e-45])
def test_a_record_that_is_monstrous_but_finite_is_kept(value: float, tmp_path: Path) -> None:
    found = read(tmp_path, changed("x", value))
    assert found.left_out == 0
    assert bool((found.x[11] == np.float32(value)).all())


@pytest.mark.parametrize(
    "arrays",
    [
        {name: array[:0] for name, array in records().items()},
        changed("x", np.nan, where=slice(None)),
        changed("y", 1, where=slice(None)),
        {name: array[:1] for name, array in records().items()},
    ],
    ids=["no record", "none that follows the schema", "one class", "one record"],
)
def test_no_choice_of_records_refuses_a_file(arrays: dict[str, Any], tmp_path: Path) -> None:
    found = read(tmp_path, arrays)
    assert found.x.shape[1:] == (3,)
    assert len(found.x) == len(found.y) == len(found.identifiers) == len(arrays["y"]) - found.left_out


def test_records_that_share_an_identifier_are_all_kept(tmp_path: Path) -> None:
    """Were one dropped, a record's presence would decide what another adds."""
    found = read(tmp_path, changed("id", b"patient-3"))
    assert found.identifiers[3] == found.identifiers[11] == b"patient-3"
    assert len(found.y) == 37
    assert found.left_out == 0


def test_a_missing_file_says_where_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"does not exist; set data in site\.toml"):
        load(site(tmp_path / "data.npz"), SCHEMA)


def write_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, records()["x"])


def write_damaged(path: Path) -> None:
    arrays: dict[str, Any] = records()
    np.savez(path, **arrays)
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("x,y\n1,2\n"),
        lambda path: path.write_bytes(b"PK\x03\x04 no archive"),
        write_array,
        write_damaged,
    ],
    ids=["empty", "text", "no archive", "one array", "damaged"],
)
def test_a_file_that_is_no_archive_is_refused(write: Any, tmp_path: Path) -> None:
    write(tmp_path / "data.npz")
    with pytest.raises(DatasetError, match=r"data\.npz: expected an \.npz file"):
        load(site(tmp_path / "data.npz"), SCHEMA)

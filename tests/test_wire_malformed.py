"""Messages that nobody should have sent: each is refused by one error, or read as what it says."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from fednas.errors import ExchangeError
from fednas.wire import (
    PROTOCOL,
    Answer,
    Refusal,
    SiteFacts,
    Task,
    decode,
    decode_facts,
    decode_task,
    encode_facts,
    encode_task,
)
from tests.messages import BLOB, DEVICE, FACTS, SMALLEST, TASK, json_record, manifest_of, packed

examples = settings(deadline=None, max_examples=150)


def facts_with(**changes: Any) -> RecordDict:
    raw = json.loads(str(encode_facts(FACTS).config_records["facts"]["json"])) | changes
    return RecordDict({"facts": json_record({k: v for k, v in raw.items() if v is not ...})})


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"facts": ConfigRecord()}),
        RecordDict({"facts": MetricRecord({"json": 1})}),
        RecordDict({"facts": json_record("[" * 100_000)}),
        RecordDict({"facts": json_record("9" * 10_000)}),
        RecordDict({"facts": json_record("{")}),
        *[RecordDict({"facts": json_record(text)}) for text in ("[]", "null", "1", '"x"', "{}")],
        facts_with(site=...),
        facts_with(records=439),
        facts_with(site=3),
        facts_with(site=""),
        facts_with(site="a\nb"),
        facts_with(site="a" * 81),
        facts_with(dataset=None),
        facts_with(declared_size=0),
        facts_with(declared_size=4.5),
        facts_with(declared_size=True),
        facts_with(declared_size="440"),
        facts_with(epsilon_cap=0.0),
        facts_with(epsilon_cap=math.nan),
        facts_with(epsilon_cap="3"),
        facts_with(delta=1.0),
        facts_with(delta=math.nan),
        facts_with(protocol="1"),
        facts_with(device=None),
        facts_with(device=[]),
        facts_with(device={}),
        facts_with(device=DEVICE.as_dict() | {"tier": ""}),
        facts_with(device=DEVICE.as_dict() | {"memory_bytes": -1}),
        facts_with(device=DEVICE.as_dict() | {"colour": "red"}),
        facts_with(device=DEVICE.as_dict() | {"macs_per_ms": math.nan}),
    ],
)
def test_malformed_facts_are_refused(content: RecordDict) -> None:
    with pytest.raises(ExchangeError):
        decode_facts(content)


def task_with(**changes: Any) -> RecordDict:
    raw = manifest_of(encode_task(TASK)) | changes
    return packed({k: v for k, v in raw.items() if v is not ...}, BLOB)


def test_what_the_malformed_tasks_are_made_from_is_well_formed() -> None:
    assert decode_task(task_with()).digest() == TASK.digest()


@pytest.mark.parametrize(
    "content",
    [
        *[task_with(**{name: ...}) for name in manifest_of(encode_task(TASK))],
        task_with(more=1),
        task_with(arrays={}),
        task_with(protocol=PROTOCOL + 1),
        task_with(protocol=str(PROTOCOL)),
        task_with(kind="peek"),
        task_with(kind=["train"]),
        task_with(kind=None),
        task_with(round="3"),
        task_with(round=3.0),
        task_with(round=True),
        task_with(run=7),
        task_with(plan={}),
        task_with(plan=None),
        task_with(study=[]),
        task_with(mark=None),
        task_with(mark="somewhere"),
        task_with(architectures=None),
        task_with(architectures="abc"),
        task_with(architectures=[1]),
        task_with(architectures=["{}"]),
        task_with(architectures=["["]),
        task_with(architectures=["[" * 100_000]),
        task_with(architectures=[]),
        task_with(architectures=[SMALLEST.to_json()] * 2),
        packed(manifest_of(encode_task(TASK)), save({"weights.1": np.zeros(1)})),
        packed(manifest_of(encode_task(TASK)), save({"weights.0": np.zeros(1), "more": np.zeros(1)})),
    ],
)
def test_malformed_tasks_are_refused(content: RecordDict) -> None:
    with pytest.raises(ExchangeError):
        decode_task(content)


def with_array(array: Array) -> RecordDict:
    content = task_with()
    content["data"] = ArrayRecord({"flat": array})
    return content


def npy(header: str, payload: bytes = b"") -> Array:
    """What numpy would read: any header, any payload."""
    text = header.encode().ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + payload
    return Array(dtype="uint8", shape=(3,), stype="numpy.ndarray", data=data)


def foreign(dtype: str, shape: list[int], size: int) -> bytes:
    """A safetensors file with an array of any type and shape."""
    header = json.dumps({"weights.0": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


WHOLE = Array(np.frombuffer(BLOB, dtype=np.uint8))
SHAPE = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }"
BROKEN: list[RecordDict] = [
    RecordDict(),
    RecordDict({"manifest": json_record({})}),
    RecordDict({"data": ArrayRecord({"flat": WHOLE})}),
    RecordDict({"manifest": ConfigRecord(), "data": ArrayRecord({"flat": WHOLE})}),
    RecordDict({"manifest": ConfigRecord({"json": 3}), "data": ArrayRecord({"flat": WHOLE})}),
    RecordDict({"manifest": ConfigRecord({"json": [1, 2]}), "data": ArrayRecord({"flat": WHOLE})}),
    RecordDict({"manifest": MetricRecord({"json": 1}), "data": ArrayRecord({"flat": WHOLE})}),
    RecordDict({"manifest": json_record({}), "data": ArrayRecord()}),
    RecordDict({"manifest": json_record({}), "data": ConfigRecord({"flat": b"1"})}),
    *[packed(text, BLOB) for text in ("{", "[]", "null", "3", '"x"', "[" * 100_000, "9" * 10_000, "")],
    *[packed(manifest_of(encode_task(TASK)), BLOB[:cut]) for cut in (0, 1, 7, 8, 20, len(BLOB) - 1)],
    packed(manifest_of(encode_task(TASK)), BLOB + b"1"),
    packed(manifest_of(encode_task(TASK)), b"\xff" * 64),
    packed(manifest_of(encode_task(TASK)), foreign("BF16", [2], 4)),
    packed(manifest_of(encode_task(TASK)), foreign("F8_E4M3", [2], 2)),
    packed(manifest_of(encode_task(TASK)), foreign("F32", [2**63, 2**63], 4)),
    packed(manifest_of(encode_task(TASK)), foreign("F32", [-1], 4)),
    packed(manifest_of(encode_task(TASK)), foreign("OBJECT", [1], 4)),
    with_array(Array(np.zeros(4, dtype=np.float32))),
    with_array(Array(np.frombuffer(BLOB, dtype=np.int8))),
    with_array(Array(np.frombuffer(BLOB, dtype=np.uint8).reshape(1, -1))),
    with_array(Array(dtype="uint8", shape=(3,), stype="numpy.ndarray", data=b"")),
    with_array(Array(dtype="uint8", shape=(3,), stype="numpy.ndarray", data=b"PK\x03\x04" + BLOB)),
    with_array(Array(dtype="uint8", shape=(3,), stype="numpy.ndarray", data=b"\x80\x04K\x01." * 40)),
    with_array(Array(dtype="uint8", shape=(3,), stype="torch.tensor", data=BLOB)),
    with_array(npy(SHAPE % ("|u1", "(10**15,)"), BLOB)),
    with_array(npy(SHAPE % ("|u1", f"({10**15},)"), BLOB)),
    with_array(npy(SHAPE % ("|O", f"({len(BLOB)},)"), BLOB)),
    with_array(npy("(((((", BLOB)),
    with_array(npy("\x00", BLOB)),
]


@pytest.mark.parametrize("content", BROKEN)
def test_messages_of_another_form_are_refused(content: RecordDict) -> None:
    with pytest.raises(ExchangeError):
        decode_task(content)
    with pytest.raises(ExchangeError):
        decode(content)


GOOD = {"entries": 4, "operation": "1" * 32, "previous": "0" * 64, "signature": "2" * 128}


def reply(manifest: object) -> RecordDict:
    if isinstance(manifest, dict):
        manifest = {name: value for name, value in manifest.items() if value is not ...}
    return packed(manifest, BLOB)


def test_what_the_malformed_replies_are_made_from_is_well_formed() -> None:
    assert isinstance(decode(reply(GOOD)), Answer)


@pytest.mark.parametrize(
    "content",
    [
        reply({}),
        reply({"operation": "0"}),
        reply({"previous": "0"}),
        *[reply(GOOD | {name: ...}) for name in GOOD],
        *[reply(GOOD | {"entries": entries}) for entries in (0, -1, 1.0, True, "4", 10**13, None)],
        *[reply(GOOD | {"previous": digest}) for digest in (None, 3, "", "A" * 64, "0" * 63)],
        reply(GOOD | {"operation": 1}),
        reply(GOOD | {"signature": None}),
        reply(GOOD | {"accuracy": 0.93}),
        reply(json.dumps(GOOD)),
        encode_task(TASK),
        encode_facts(FACTS),
        RecordDict({"refusal": ConfigRecord()}),
        RecordDict({"refusal": MetricRecord({"code": 1})}),
        *[
            RecordDict({"refusal": ConfigRecord({"code": code})})
            for code in ("", "OUT_OF_CLOTH", 3, [1], b"x")
        ],
    ],
)
def test_malformed_replies_are_refused(content: RecordDict) -> None:
    with pytest.raises(ExchangeError):
        decode(content)


# --- anything at all

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from([*manifest_of(encode_task(TASK)), "operation", "head", "code", "more"])
manifests = st.one_of(
    st.text(max_size=40),
    plain.map(json.dumps),
    st.dictionaries(fields, plain, max_size=3).map(
        lambda changes: json.dumps(manifest_of(encode_task(TASK)) | changes)
    ),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The blob with some bytes changed, cut or added."""
    blob = bytearray(draw(st.sampled_from([BLOB, save({}), WHOLE.data])))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(len(blob) - 1, 0)))
        blob[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(blob)


arrays = st.one_of(
    damaged().map(lambda blob: Array(np.frombuffer(blob, dtype=np.uint8))),
    damaged().map(lambda blob: Array(dtype="uint8", shape=(1,), stype="numpy.ndarray", data=blob)),
    st.binary(max_size=200).map(
        lambda data: Array(dtype="float32", shape=(2, 2), stype="numpy.ndarray", data=data)
    ),
)
scalars = st.one_of(st.integers(-(2**62), 2**62), st.booleans(), st.text(max_size=8), st.binary(max_size=8))
records = st.one_of(
    st.builds(ConfigRecord, st.dictionaries(st.sampled_from(["json", "code", "x"]), scalars, max_size=2)),
    manifests.map(json_record),
    arrays.map(lambda array: ArrayRecord({"flat": array})),
    st.just(ArrayRecord()),
    st.just(MetricRecord({"json": 1.0})),
)
messages = st.one_of(
    st.builds(
        lambda manifest, array: RecordDict(
            {"manifest": json_record(manifest), "data": ArrayRecord({"flat": array})}
        ),
        manifests,
        arrays,
    ),
    st.dictionaries(st.sampled_from(["manifest", "data", "refusal", "facts"]), records, max_size=4).map(
        RecordDict
    ),
)


@given(messages)
@settings(deadline=None, max_examples=400)
def test_whatever_arrives_is_read_or_refused_and_nothing_else(content: RecordDict) -> None:
    for read, kind in ((decode_task, Task), (decode, (Answer, Refusal)), (decode_facts, SiteFacts)):
        try:
            result: object = read(content)
        except ExchangeError:
            continue
        assert isinstance(result, kind)


@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(SiteFacts)]), plain, max_size=2))
@examples
def test_facts_with_any_values_are_read_or_refused(changes: dict[str, Any]) -> None:
    try:
        facts = decode_facts(facts_with(**changes))
    except ExchangeError:
        return
    assert decode_facts(encode_facts(facts)) == facts


def test_another_spelling_of_the_same_task_is_refused() -> None:
    """Otherwise what is signed and what came would be two things."""
    text = json.dumps(json.loads(SMALLEST.to_json()), indent=2)
    others = [
        task_with(architectures=[text]),
        packed(json.dumps(manifest_of(encode_task(TASK)), indent=1), BLOB),
        packed(
            manifest_of(encode_task(TASK)),
            save(dict(TASK.arrays), metadata={"a": "b"}),
        ),
        RecordDict(dict(encode_task(TASK)) | {"more": ConfigRecord()}),
    ]
    for content in others:
        with pytest.raises(ExchangeError):
            decode_task(content)

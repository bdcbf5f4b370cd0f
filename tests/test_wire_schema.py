"""The wire schema explains every byte of every reply, and refuses what it does not name."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import PushObjectRequest
from safetensors.numpy import save

from fednas.devices import DeviceProfile
from fednas.privacy.ledger import Arrays, Released
from fednas.site import open_site
from fednas.wire import Refusal, SiteFacts, encode, encode_facts, encode_refusal
from fednas.wire_schema import CODES, ENVELOPE, FIELDS, Origin, UnexplainedByteError, explain, schema_rows
from server.app import conduct
from simulations import internals
from tests.flower_bytes import MESSAGE, explain_message, explain_posts, posts
from tests.integration.spy import SpyGrid
from tests.messages import FACTS, json_record
from tests.privacy.ledgers import SMALL as PLAN
from tests.privacy.ledgers import open_ledger, operation
from tests.simulations import tiny
from tests.site.sites import LARGE, SMALL, TOO_LARGE_SITE, Sites, task

UPDATE = np.arange(6, dtype=np.float32)
ALPHAS = np.array([0.5, np.nan])
COUNTS = np.array([3, -1], dtype=np.int64)


def num_bytes(content: RecordDict) -> int:
    """All bytes of a reply's records, counted without the schema."""
    total = 0
    for name, record in content.items():
        total += len(name)
        for key, value in record.items():
            total += len(key) + len(value.data if isinstance(value, Array) else str(value).encode())
    return total


def explained(content: RecordDict) -> dict[str, int]:
    """Bytes by field, after a check that none is left over."""
    spans: Counter[str] = Counter()
    for span in explain(content):
        spans[span.field.name] += span.num_bytes
    assert spans.total() == num_bytes(content)
    return dict(spans)


@pytest.fixture
def pay(tmp_path: Path) -> Iterator[Callable[[Arrays], Released[Arrays]]]:
    with open_ledger(tmp_path / "ledger") as ledger:
        ledger.open_plan("run", PLAN)
        yield lambda arrays: ledger.release(operation(1), charges={"search": 1}, mechanism=lambda _: arrays)


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    yield Sites(tiny.make_run(tmp_path / "run", tiny.study(search={"strategy": "differentiable"})))
    open_site.cache_clear()


# The table


def test_every_fact_of_a_site_is_in_the_schema_and_nothing_else() -> None:
    facts = {f.name for f in dataclasses.fields(SiteFacts)} - {"device"}
    device = {f"device.{f.name}" for f in dataclasses.fields(DeviceProfile)}
    assert {f.name for f in FIELDS if f.message == "facts"} == facts | device | {"names", "framing"}


def test_every_refusal_is_in_the_schema_and_nothing_else() -> None:
    assert {code.value for code in Refusal} == CODES


def test_every_row_says_why_and_no_two_are_the_same() -> None:
    rows = schema_rows()
    assert len({(row.message, row.name) for row in rows}) == len(rows)
    assert all(row.why and row.size and row.type for row in rows)
    assert {row.origin for row in rows} == set(Origin)


def test_only_released_arrays_depend_on_records_in_what_we_send() -> None:
    assert {f.name for f in FIELDS if f.origin is Origin.RELEASE} == {"update", "alphas", "correct"}
    assert not [f.name for f in FIELDS if f.origin is Origin.TIMING]


def test_what_tells_the_time_is_said_to_be_uncovered() -> None:
    timing = {f.name: f.why for f in ENVELOPE if f.origin is Origin.TIMING}
    assert {"metadata.ttl", "metadata.created_at", "push.clientapp_runtime_list", "calls"} <= timing.keys()
    assert all("NOT COVERED" in why for name, why in timing.items() if name != "telemetry")


def paths(descriptor: Any, path: str = "") -> Iterator[str]:
    """Every leaf that a Protobuf message could hold, of the records that we send."""
    for field in descriptor.fields:
        inner = f"{path}{field.name}"
        if field.type == MESSAGE and field.message_type.name != descriptor.name:
            yield from paths(field.message_type, f"{inner}.")
        elif field.type != MESSAGE:
            yield inner


def test_flowers_envelope_has_no_field_that_the_schema_does_not_name() -> None:
    named = {field.name for field in ENVELOPE}
    found = set(paths(ProtoMessage.DESCRIPTOR))
    found |= {path for path in paths(PushMessagesRequest.DESCRIPTOR, "push.") if "messages_list" not in path}
    found |= set(paths(PushObjectRequest.DESCRIPTOR, "object."))
    unused = {path for path in found if "metric_record" in path}
    # Of the values of a text record only the text is used; `explain` refuses any other.
    value = "content.items.config_record.items.value."
    unused |= {path for path in found if path.startswith(value) and path != f"{value}string"}
    assert found - unused - named == set(), "Flower sends something new: explain it in wire_schema.ENVELOPE"
    assert {name for name in named - found if not name.startswith("object.")} == {
        "framing",
        "calls",
        "telemetry",
    }


# Messages of ours


def test_every_byte_of_a_released_reply_has_a_name(pay: Callable[[Arrays], Released[Arrays]]) -> None:
    spans = explained(encode(pay({"update": UPDATE, "alphas": ALPHAS})))
    assert spans["update"] == UPDATE.nbytes
    assert spans["alphas"] == ALPHAS.nbytes
    assert (spans["npy header"], spans["previous"], spans["operation"]) == (128, 66, 34)


@pytest.mark.parametrize("size", [0, 1, 2, 7, 999, 1000, 123_456])
def test_arrays_of_any_length_are_explained(size: int) -> None:
    content = message({"update": np.ones(size, dtype=np.float32)})
    assert explained(content)["update"] == 4 * size


def test_every_byte_of_facts_and_refusals_has_a_name() -> None:
    assert explained(encode_facts(FACTS))["dataset"] == len('"ward/1"')
    assert explained(encode_facts(dataclasses.replace(FACTS, epsilon_cap=float("inf"))))["epsilon_cap"] == 8
    for code in Refusal:
        assert explained(encode_refusal(code)) == {"names": 11, "code": len(code.value)}


def message(arrays: Arrays | bytes, **changes: Any) -> RecordDict:
    """A released reply with any arrays, or any bytes, and with changes to its manifest."""
    blob = arrays if isinstance(arrays, bytes) else save(arrays)
    manifest = {"entries": 4, "previous": "0" * 64, "operation": "1" * 32, "signature": "2" * 128} | changes
    text = json.dumps(
        {k: v for k, v in manifest.items() if v is not None}, sort_keys=True, separators=(",", ":")
    )
    flat = Array(np.frombuffer(blob, dtype=np.uint8))
    return RecordDict({"manifest": json_record(text), "data": ArrayRecord({"flat": flat})})


def respelled(change: Callable[[str], str]) -> RecordDict:
    content = encode_facts(FACTS)
    return RecordDict({"facts": json_record(change(str(content.config_records["facts"]["json"])))})


def header(text: str, data: bytes = bytes(24)) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + data


def with_array(**changes: Any) -> RecordDict:
    content = message({"update": UPDATE})
    array = content.array_records["data"]["flat"]
    values = {"dtype": array.dtype, "shape": array.shape, "stype": array.stype, "data": array.data} | changes
    content["data"] = ArrayRecord({"flat": Array(**values)})
    return content


def extended(content: RecordDict, **more: Any) -> RecordDict:
    for name, record in more.items():
        content[name] = record
    return content


FINE = message({"update": UPDATE})
DATA = FINE.array_records["data"]["flat"].data
SPELLED = '{"update":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}}'
UNEXPLAINED: dict[str, Callable[[], RecordDict]] = {
    "nothing": RecordDict,
    "an unknown record": lambda: RecordDict({"note": ConfigRecord({"json": "{}"})}),
    "metrics beside facts": lambda: extended(encode_facts(FACTS), metrics=MetricRecord({"loss": 0.5})),
    "metrics beside arrays": lambda: extended(message({"update": UPDATE}), metrics=MetricRecord({"n": 64})),
    "metrics in the place of facts": lambda: RecordDict({"facts": MetricRecord({"json": 64})}),
    "a refusal with a reason": lambda: RecordDict(
        {"refusal": ConfigRecord({"code": "SITE_FAILURE", "reason": "record 17"})}
    ),
    "a refusal in other words": lambda: RecordDict({"refusal": ConfigRecord({"code": "record 17"})}),
    "a refusal that is a number": lambda: RecordDict({"refusal": ConfigRecord({"code": 64})}),
    "a fact more": lambda: respelled(lambda text: text.replace('"site"', '"records":64,"site"')),
    "a fact less": lambda: respelled(lambda text: text.replace('"delta":1e-05,', "")),
    "a fact of the device more": lambda: respelled(
        lambda text: text.replace('"tier"', '"records":64,"tier"')
    ),
    "a space in the facts": lambda: respelled(lambda text: text.replace(",", ", ", 1)),
    "an escape in the facts": lambda: respelled(lambda text: text.replace("ward", "\\u0077ard", 1)),
    "a zero in the facts": lambda: respelled(lambda text: text.replace("3.0", "3.00", 1)),
    "a fact twice": lambda: respelled(lambda text: text.replace('"site"', '"site":"64","site"')),
    "a table where a number belongs": lambda: respelled(lambda text: text.replace("440", "[440]")),
    "a size that is true": lambda: respelled(lambda text: text.replace("440", "true")),
    "a list of facts": lambda: respelled(lambda text: f"[{text}]"),
    "facts that are no JSON": lambda: respelled(lambda text: text[1:]),
    "facts that never end": lambda: respelled(lambda _: "[" * 100_000),
    "a loss in the manifest": lambda: message({"update": UPDATE}, loss=0.5),
    "a count in the manifest": lambda: message({"update": UPDATE}, num_examples=64),
    "no entry before": lambda: message({"update": UPDATE}, previous=None),
    "a digest of other length": lambda: message({"update": UPDATE}, previous="64"),
    "a digest of capitals": lambda: message({"update": UPDATE}, previous="A" * 64),
    "a signature of other length": lambda: message({"update": UPDATE}, signature="2" * 130),
    "a number of entries that is a word": lambda: message({"update": UPDATE}, entries="64"),
    "an operation with words": lambda: message({"update": UPDATE}, operation="record 17".rjust(32)),
    "an array more": lambda: message({"update": UPDATE, "loss": UPDATE}),
    "an array of another name": lambda: message({"histogram": COUNTS}),
    "counts beside weights": lambda: message({"update": UPDATE, "correct": COUNTS}),
    "alphas alone": lambda: message({"alphas": ALPHAS}),
    "no array": lambda: message({}),
    "an array of another type": lambda: message({"update": UPDATE.astype(np.float64)}),
    "an array of two dimensions": lambda: message({"update": UPDATE[None]}),
    "words in the header": lambda: message(save({"update": UPDATE}, metadata={"records": "64"})),
    "padding of other length": lambda: message(header(SPELLED + " " * 12)),
    "padding of another kind": lambda: message(header(SPELLED + "\t\t\t\t")),
    "another spelling of the header": lambda: message(header(SPELLED.replace(":[0", ": [0") + "   ")),
    "a gap before an array": lambda: message(header(SPELLED.replace("0,24", "4,28") + "    ", bytes(28))),
    "bytes after the arrays": lambda: message(header(SPELLED + "    ", bytes(32))),
    "fewer bytes than the arrays": lambda: message(header(SPELLED + "    ", bytes(20))),
    "a header longer than the message": lambda: message((1 << 40).to_bytes(8, "little")),
    "a header that is no JSON": lambda: message(header("########")),
    "a header that is no table": lambda: message(header("[1,2,34]")),
    "an array that is no table": lambda: message(header('{"update":1}    ')),
    "no safetensors at all": lambda: message(b"1234"),
    "another numpy header": lambda: with_array(data=DATA[:100] + b"64" + DATA[102:]),
    "another type of array": lambda: with_array(dtype="int8"),
    "another shape of array": lambda: with_array(shape=(1, len(DATA) - 128)),
    "another kind of array": lambda: with_array(stype="loss 0.5"),
    "an array of nothing": lambda: with_array(data=b""),
    "two arrays": lambda: extended(
        message({"update": UPDATE}),
        data=ArrayRecord({n: Array(np.zeros(9, np.uint8)) for n in ("flat", "more")}),
    ),
}


@pytest.mark.parametrize("content", UNEXPLAINED.values(), ids=UNEXPLAINED.keys())
def test_what_the_schema_does_not_name_is_refused(content: Callable[[], RecordDict]) -> None:
    with pytest.raises(UnexplainedByteError):
        explain(content())


def test_the_refusals_above_are_of_changes_to_something_fine() -> None:
    assert explained(FINE)["update"] == 24
    assert explained(message(header(SPELLED + "    ")))["update"] == 24
    assert explained(respelled(str))
    assert explained(with_array())


def test_every_flipped_bit_of_what_stands_before_the_arrays_is_refused() -> None:
    """Nothing can be said there: headers are a function of what follows them."""
    start = 128 + 8 + len(SPELLED + "    ")
    assert len(DATA) == start + UPDATE.nbytes
    for bit in range(8 * start):
        flipped = bytearray(DATA)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UnexplainedByteError):
            explain(with_array(data=bytes(flipped)))


def test_a_refusal_of_the_schema_repeats_nothing_of_the_message() -> None:
    with pytest.raises(UnexplainedByteError) as caught:
        explain(message({"update": UPDATE}, loss=0.4242))
    assert "loss" not in str(caught.value)
    assert "4242" not in str(caught.value)


# Real sites and whole studies


def test_every_byte_of_every_kind_of_reply_of_a_real_site_has_a_name(sites: Sites) -> None:
    weights = 4 * task().arrays["weights.0"].size
    assert explained(sites.send(RecordDict(), "query.hello"))["dataset"] > 2
    assert explained(sites.ask(task(alphas=True)))["update"] == weights
    assert explained(sites.ask(task("final")))["update"] == weights
    assert explained(sites.ask(task("evaluate", SMALL, LARGE)))["correct"] == 16
    assert explained(sites.ask(task("final", LARGE), site=TOO_LARGE_SITE)) == {"names": 11, "code": 12}
    assert explained(sites.send(RecordDict()))["code"] == len("MALFORMED")


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """Every reply of a client on the grids of this process."""
    replies: list[Message] = []
    answer = internals.answer

    def listen(app: ClientApp, question: Message, context: Context) -> Message:
        replies.append(answer(app, question, context))
        return replies[-1]

    monkeypatch.setattr(internals, "answer", listen)
    return replies


def test_every_byte_of_every_message_of_a_whole_study_has_a_name_also_on_flowers_real_transport(
    tmp_path: Path, heard: list[Message]
) -> None:
    open_site.cache_clear()
    path = tiny.make_run(tmp_path / "run", tiny.study(search={"strategy": "differentiable"}))
    (path / "sites" / "site-1" / "data.npz").unlink()
    conduct(SpyGrid(path), path, resume=False)
    open_site.cache_clear()

    seen: set[str] = set()
    for reply in heard:
        fields = explained(reply.content)
        seen |= fields.keys()

        one = internals.encode(reply)
        spans = explain_message(one)
        assert spans.total() == len(one)
        assert spans["content.items.array_record.items.value.data"] == sum(
            fields.get(name, 0)
            for name in ("npy header", "safetensors header", "update", "alphas", "correct")
        )

        push, objects = posts(reply)
        spans = explain_posts(push, objects, reply.content)
        repeated = len(objects) - len(set(objects))
        assert not repeated
        assert spans.total() == len(push) + sum(map(len, objects))
    assert {"facts", "refusal", "released"} == {f.message for f in FIELDS if f.name in seen}
    assert {"update", "alphas", "correct", "code", "declared_size"} <= seen


def test_an_error_with_a_text_of_flower_would_be_seen() -> None:
    internals.enter(internals.SUPERLINK_NODE_ID)
    question = Message(RecordDict(), 7, "train")
    refused = internals.refuse(question)
    assert explain_message(internals.encode(refused))["error.reason"] > 0
    answered = Message(encode_refusal(Refusal.SITE_FAILURE), reply_to=question)
    assert explain_message(internals.encode(answered))["error.reason"] == 0

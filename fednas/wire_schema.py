"""Every byte that a site sends, by name: where it comes from, and why it says nothing of a record.

The table is kept apart from `wire`, which writes the messages: a field that is added there and not here is
refused by `explain`. So is whatever could hide something beside the fields: another spelling of the same
JSON, padding, a gap between arrays, a record or an array of another name.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol, cast

import numpy as np

from fednas.errors import PrivacyError


class Origin(StrEnum):
    """Where a byte comes from; only the last two depend on records."""

    CONFIGURATION = "configuration"  # what the site's owner declares
    REQUEST = "request"  # an echo of the task, or a public function of it
    LEDGER = "ledger"  # digests, counts and signatures of entries, none of which holds anything of a record
    CONSTANT = "constant"  # the same in every message of its kind
    RELEASE = "release"  # charged, clipped and noised
    TIMING = "timing"  # when, and how long: a side channel outside the claim


@dataclass(frozen=True, kw_only=True)
class Field:
    """One thing that a site sends.

    Args:
        message: the kind of message it is part of.
        name: its path within the message.
        type: what a value must be.
        size: how many bytes, in words.
        origin: where its bytes come from.
        why: why they say nothing of a record, or what has been paid for them.
    """

    message: str
    name: str
    type: str
    size: str
    origin: Origin
    why: str


@dataclass(frozen=True, kw_only=True)
class Span:
    """A part of a reply and the field that explains it."""

    field: Field
    num_bytes: int


class UnexplainedByteError(PrivacyError):
    """A message holds something that the schema does not name; its text says nothing of what it is."""


class FlatArray(Protocol):
    """What is read of Flower's array."""

    dtype: str
    shape: Any
    stype: str
    data: bytes


CODES: Final = frozenset(
    {
        "BUDGET_EXHAUSTED",
        "REPLAY_MISMATCH",
        "DOES_NOT_FIT",
        "MALFORMED",
        "LEDGER_FAILURE",
        "LEDGER_ROLLED_BACK",
        "PRIVACY_REFUSAL",
        "PAUSED",
        "WITHDRAWN",
        "UNKNOWN_SERVER",
        "SITE_FAILURE",
    }
)
"""Every word about a failure that may leave a site."""

_PUBLIC: Final = "declared in site.toml; nothing is counted or measured on data"
_SPELLING: Final = "braces, quotes, commas and names of canonical JSON"
_CHAIN: Final = "sha256 of the last entry; no entry holds a value of a record"
_ECHO: Final = "copied from the message that is answered"
_UNCOVERED: Final = "NOT COVERED by any epsilon: how long a site takes may depend on its records"


def _table(message: str, *rows: tuple[str, str, str, Origin, str]) -> tuple[Field, ...]:
    return tuple(
        Field(message=message, name=name, type=type_, size=size, origin=origin, why=why)
        for name, type_, size, origin, why in rows
    )


_FACTS: Final = _table(
    "facts",
    ("names", "bytes", "9", Origin.CONSTANT, "the record `facts` and its key `json`"),
    ("framing", "bytes", "fixed", Origin.CONSTANT, _SPELLING),
    ("dataset", "text", "3 to 82", Origin.CONFIGURATION, _PUBLIC),
    ("declared_size", "integer", "its digits", Origin.CONFIGURATION, "declared, not the number of records"),
    ("delta", "number", "its digits", Origin.CONFIGURATION, _PUBLIC),
    ("device.macs_per_ms", "number", "its digits", Origin.CONFIGURATION, _PUBLIC),
    ("device.max_latency_ms", "number", "its digits", Origin.CONFIGURATION, _PUBLIC),
    ("device.memory_bytes", "integer", "its digits", Origin.CONFIGURATION, _PUBLIC),
    ("device.overhead_ms", "number", "its digits", Origin.CONFIGURATION, _PUBLIC),
    ("device.tier", "text", "3 to 82", Origin.CONFIGURATION, _PUBLIC),
    ("device.training_memory_bytes", "integer", "its digits", Origin.CONFIGURATION, _PUBLIC),
    ("device.upload_bytes", "integer", "its digits", Origin.CONFIGURATION, _PUBLIC),
    ("epsilon_cap", "number", "its digits", Origin.CONFIGURATION, _PUBLIC),
    ("entries", "integer", "its digits", Origin.LEDGER, "how often the ledger wrote; no record is counted"),
    ("head", "digest or none", "2 or 66", Origin.LEDGER, _CHAIN),
    ("order", "integer or null", "1 to 4", Origin.CONFIGURATION, _PUBLIC),
    ("protocol", "integer", "its digits", Origin.CONSTANT, "the version of the message format"),
    (
        "signer",
        "digest or none",
        "2 or 66",
        Origin.LEDGER,
        "its public half; the operating system drew it",
    ),
    ("site", "text", "3 to 82", Origin.CONFIGURATION, _PUBLIC),
)
_REFUSAL: Final = _table(
    "refusal",
    ("names", "bytes", "11", Origin.CONSTANT, "the record `refusal` and its key `code`"),
    ("code", "code", "9 to 18", Origin.CONSTANT, f"{', '.join(sorted(CODES))}: never a word of an exception"),
)
_RELEASED: Final = _table(
    "released",
    ("names", "bytes", "20", Origin.CONSTANT, "records `manifest` and `data`, keys `json` and `flat`"),
    ("framing", "bytes", "fixed", Origin.CONSTANT, _SPELLING),
    ("entries", "integer", "its digits", Origin.LEDGER, "how often the ledger wrote; no record is counted"),
    (
        "operation",
        "operation",
        "34",
        Origin.REQUEST,
        "hash of the run, the round, the kind and the site's name",
    ),
    ("previous", "digest", "66", Origin.LEDGER, "sha256 of the entry before this release's own"),
    (
        "signature",
        "signature",
        "130",
        Origin.LEDGER,
        "under dataset, entries and the release's entry; it has no randomness",
    ),
    ("npy header", "bytes", "128", Origin.CONSTANT, "numpy's header of a flat array of bytes: its length"),
    ("safetensors header", "bytes", "8 n", Origin.REQUEST, "names, types and lengths, by the architecture"),
    ("update", "F32", "4 a parameter", Origin.RELEASE, "clipped, summed, noised; charged to search or final"),
    (
        "alphas",
        "F64",
        "8 a logit",
        Origin.RELEASE,
        "clipped, summed, noised; charged to alphas; NaN off the path",
    ),
    ("correct", "I64", "8 a candidate", Origin.RELEASE, "correct predictions, noised; charged to fitness"),
)
FIELDS: Final = _FACTS + _REFUSAL + _RELEASED
"""All of what `wire` encodes at a site."""

ENVELOPE: Final = _table(
    "envelope",
    ("framing", "bytes", "a few", Origin.CONSTANT, "Protobuf's tags and lengths"),
    ("metadata.run_id", "integer", "to 10", Origin.REQUEST, _ECHO),
    (
        "metadata.message_id",
        "text",
        "0 or 64",
        Origin.REQUEST,
        "empty, or sha256 of bytes that are named here",
    ),
    ("metadata.src_node_id", "integer", "to 10", Origin.REQUEST, "the node's number, drawn by the SuperLink"),
    ("metadata.dst_node_id", "integer", "to 10", Origin.REQUEST, _ECHO),
    ("metadata.reply_to_message_id", "text", "to 64", Origin.REQUEST, _ECHO),
    ("metadata.group_id", "text", "any", Origin.REQUEST, _ECHO),
    ("metadata.ttl", "number", "8", Origin.TIMING, f"what is left of the task's time. {_UNCOVERED}"),
    ("metadata.message_type", "text", "5 to 11", Origin.REQUEST, _ECHO),
    ("metadata.created_at", "number", "8", Origin.TIMING, f"the site's clock. {_UNCOVERED}"),
    ("metadata.src_task_id", "integer", "to 10", Origin.REQUEST, "a number that Flower gave the task"),
    ("metadata.dst_task_id", "integer", "to 10", Origin.REQUEST, _ECHO),
    ("content.items.key", "text", "4 to 8", Origin.CONSTANT, "names of records, above"),
    ("content.items.config_record.items.key", "text", "4", Origin.CONSTANT, "`json` or `code`"),
    ("content.items.config_record.items.value.string", "text", "any", Origin.LEDGER, "the one text, above"),
    ("content.items.array_record.items.key", "text", "4", Origin.CONSTANT, "`flat`"),
    ("content.items.array_record.items.value.dtype", "text", "5", Origin.CONSTANT, "`uint8`"),
    ("content.items.array_record.items.value.shape", "integer", "to 5", Origin.REQUEST, "how many bytes"),
    ("content.items.array_record.items.value.stype", "text", "13", Origin.CONSTANT, "`numpy.ndarray`"),
    ("content.items.array_record.items.value.data", "bytes", "any", Origin.RELEASE, "the one array, above"),
    ("error.code", "integer", "0", Origin.CONSTANT, "absent; Flower makes one where no app answers"),
    ("error.reason", "text", "0", Origin.CONSTANT, "absent; the app answers every failure with a refusal"),
    ("push.node.node_id", "integer", "to 10", Origin.REQUEST, "the node's number, drawn by the SuperLink"),
    ("push.message_object_trees.object_id", "text", "64", Origin.REQUEST, "sha256 of an object, below"),
    ("push.clientapp_runtime_list", "number", "8", Origin.TIMING, f"seconds the app took. {_UNCOVERED}"),
    ("object.node.node_id", "integer", "to 10", Origin.REQUEST, "the node's number, drawn by the SuperLink"),
    ("object.run_id", "integer", "to 10", Origin.REQUEST, _ECHO),
    ("object.object_id", "text", "64", Origin.REQUEST, "sha256 of the object"),
    ("object.session_id", "text", "any", Origin.REQUEST, "given by the SuperLink for this upload"),
    ("object.object_content", "bytes", "any", Origin.RELEASE, "a piece of the message, named above"),
    ("object.head", "text", "by its parts", Origin.REQUEST, "kind of piece, sha256 of its parts, its length"),
    ("calls", "requests", "by Flower", Origin.TIMING, f"heartbeats, polls, keys, versions. {_UNCOVERED}"),
    ("telemetry", "JSON", "by Flower", Origin.TIMING, "to Flower's makers, unless FLWR_TELEMETRY_ENABLED=0"),
)
"""What Flower puts around it on the real transport."""


def schema_rows() -> tuple[Field, ...]:
    """Everything that leaves a site, in the order of a table: its own messages, then what Flower adds."""
    return FIELDS + ENVELOPE


def explain(content: Mapping[str, Any]) -> tuple[Span, ...]:
    """Split the records of a reply into fields of the schema.

    Args:
        content: a reply as `wire` encodes it, a `RecordDict`.

    Returns:
        Spans whose lengths add up to all bytes of the records: names, keys, texts, and the array's bytes.

    Raises:
        UnexplainedByteError: anything is there that the schema does not name, or in another form.

    Guarantees:
        - Two replies of equal fields have equal bytes: nothing can be said by spelling, order or padding.
        - A field holds a value of its type and no other: no number where a digest belongs.
    """
    return tuple(_explained(content))


def _explained(content: Mapping[str, Any]) -> Iterator[Span]:
    names = list(content)
    if names == ["facts"]:
        yield _span("facts", "names", len("factsjson"))
        yield from _json("facts", _text(content["facts"], "json"))
    elif names == ["refusal"]:
        code = _text(content["refusal"], "code")
        _require(code in CODES)
        yield _span("refusal", "names", len("refusalcode"))
        yield _span("refusal", "code", len(code))
    else:
        _require(names == ["manifest", "data"])
        yield _span("released", "names", len("manifestjsondataflat"))
        yield from _json("released", _text(content["manifest"], "json"))
        _require(list(content["data"]) == ["flat"])
        yield from _flat(cast(FlatArray, content["data"]["flat"]))


_BY_NAME: Final = {(f.message, f.name): f for f in FIELDS}
_ARRAYS: Final = {"update": ("F32", 4), "alphas": ("F64", 8), "correct": ("I64", 8)}
_TOGETHER: Final = ({"update"}, {"update", "alphas"}, {"correct"})


def _hexadecimal(digits: int) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, str) and len(value) == digits and set(value) <= set("0123456789abcdef")
    )


_TYPES: Final[Mapping[str, Callable[[object], bool]]] = {
    "text": lambda value: isinstance(value, str) and 0 < len(value) <= 80 and value.isprintable(),
    "integer": lambda value: type(value) is int and value >= 0,
    "integer or null": lambda value: value is None or type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "operation": _hexadecimal(32),
    "digest": _hexadecimal(64),
    "digest or none": lambda value: value == "" or _hexadecimal(64)(value),
    "signature": _hexadecimal(128),
}


def _require(condition: bool) -> None:
    if not condition:
        raise UnexplainedByteError(
            "a message holds something that the wire schema does not name; add it there"
        )


def _span(message: str, name: str, num_bytes: int) -> Span:
    field = _BY_NAME.get((message, name))
    _require(field is not None)
    return Span(field=cast(Field, field), num_bytes=num_bytes)


def _text(record: Mapping[str, Any], key: str) -> str:
    """The only value of a record: a text."""
    _require(list(record) == [key] and type(record[key]) is str)
    return str(record[key])


def _json(message: str, text: str) -> Iterator[Span]:
    """The fields of a JSON object in its one spelling."""
    try:
        value = json.loads(text)
        canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        raise UnexplainedByteError("a message holds something that is no JSON") from None
    _require(text.isascii() and text == canonical and isinstance(value, dict))
    leaves = dict(_leaves(value))
    expected = {f.name: f for f in FIELDS if f.message == message and f.type in _TYPES}
    _require(leaves.keys() == expected.keys())
    rest = len(text)
    for name, leaf in leaves.items():
        _require(_TYPES[expected[name].type](leaf))
        num_bytes = len(json.dumps(leaf))
        rest -= num_bytes
        yield _span(message, name, num_bytes)
    yield _span(message, "framing", rest)


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, f"{path}{key}.")
        else:
            yield f"{path}{key}", inner


def _flat(array: FlatArray) -> Iterator[Span]:
    """The one array: numpy's header, then safetensors' header, then the released arrays without a gap."""
    npy = io.BytesIO()
    size = len(array.data) - len(_npy_header(0))
    _require(size >= 8)
    npy.write(_npy_header(size))
    _require(array.data[: npy.tell()] == npy.getvalue())
    _require((array.dtype, tuple(array.shape), array.stype) == ("uint8", (size,), "numpy.ndarray"))
    yield _span("released", "npy header", npy.tell())

    blob = memoryview(array.data)[npy.tell() :]
    length = int.from_bytes(blob[:8], "little")
    _require(length <= size - 8)
    try:
        header = json.loads(bytes(blob[8 : 8 + length]))
    except (ValueError, RecursionError):
        raise UnexplainedByteError("a message holds arrays without their header") from None
    _require(isinstance(header, dict) and set(header) in _TOGETHER)
    yield _span("released", "safetensors header", 8 + length)
    end, rebuilt = 0, {}
    # safetensors writes wide types first, then by name.
    for name in sorted(header, key=lambda name: (-_ARRAYS[name][1], name)):
        dtype, width = _ARRAYS[name]
        shape = header[name].get("shape") if isinstance(header[name], dict) else None
        _require(isinstance(shape, list) and len(shape) == 1 and type(shape[0]) is int and shape[0] >= 0)
        begin, end = end, end + width * cast(list[int], shape)[0]
        rebuilt[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        yield _span("released", name, end - begin)
    spelled = json.dumps(rebuilt, separators=(",", ":")).encode()
    spelled += b" " * (-len(spelled) % 8)
    _require(bytes(blob[8 : 8 + length]) == spelled and 8 + length + end == size)


def _npy_header(size: int) -> bytes:
    """What numpy writes before a flat array of bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
    return buffer.getvalue()

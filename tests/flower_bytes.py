"""Flower's real transport, byte by byte: what a SuperNode posts for a reply, taken apart by an own reader.

The requests are built by Flower's own functions, in the order of its `run_clientapp.push_message` and
`fleet_http_connection.send`; the reader knows only the wire format of Protobuf and the names of the fields.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import ConfigRecord as ProtoConfigRecord
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from fednas.wire_schema import ENVELOPE

NAMED = {field.name for field in ENVELOPE}
RUNTIME_S = 1.25
MESSAGE = 11  # the number of the type in a descriptor

Spans = Counter[str]


def fields(data: bytes, descriptor: Any, path: str = "") -> Iterator[tuple[str, bytes]]:
    """Every field of a serialised message with its bytes; tags and lengths come as `framing`."""
    position = 0
    while position < len(data):
        start = position
        tag, position = _varint(data, position)
        field = descriptor.fields_by_number[tag >> 3]
        end = position
        if tag & 7 == 0:
            _, end = _varint(data, position)
        elif tag & 7 == 1:
            end = position + 8
        else:
            assert tag & 7 == 2, "Flower's messages use no other wire type"
            length, position = _varint(data, position)
            end = position + length
        assert end <= len(data)
        yield "framing", data[start:position]
        inner = data[position:end]
        if field.type == MESSAGE:
            yield from fields(inner, field.message_type, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", inner
        position = end


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def explain_message(data: bytes) -> Spans:
    """Named lengths of a reply as it stands in one Protobuf message."""
    return _named(fields(data, ProtoMessage.DESCRIPTOR))


def _named(found: Iterator[tuple[str, bytes]]) -> Spans:
    spans: Spans = Counter()
    for path, value in found:
        for repeated in ("message_object_trees.", "messages_list."):
            path = path.removeprefix(f"push.{repeated}") if repeated == "messages_list." else path
        while "children." in path:
            path = path.replace("children.", "")
        assert path in NAMED, f"{path} leaves a site and is not in the wire schema"
        spans[path] += len(value)
    return spans


def posts(reply: Message, node: int = 7) -> tuple[bytes, list[bytes]]:
    """The requests by which a SuperNode sends a reply: one for the message, one for each of its objects."""
    reply.metadata.__dict__["_message_id"] = reply.object_id
    push = PushMessagesRequest(
        node=Node(node_id=node),
        messages_list=[message_to_proto(remove_content_from_message(reply))],
        message_object_trees=[get_object_tree(reply)],
        clientapp_runtime_list=[RUNTIME_S],
    )
    objects = [
        PushObjectRequest(
            node=Node(node_id=node),
            run_id=reply.metadata.run_id,
            object_id=identity,
            object_content=piece.deflate(),
            session_id="session",
        ).SerializeToString()
        for identity, piece in get_all_nested_objects(reply).items()
    ]
    return push.SerializeToString(), objects


def explain_posts(push: bytes, objects: list[bytes], content: RecordDict) -> Spans:
    """Named lengths of all requests of a reply; its content is explained elsewhere, here it is only found."""
    spans = _named(fields(push, PushMessagesRequest.DESCRIPTOR, "push."))
    pieces: dict[str, bytes] = {}
    for request in objects:
        for path, value in fields(request, PushObjectRequest.DESCRIPTOR, "object."):
            assert path == "framing" or path in NAMED
            if path == "object.object_content":
                pieces[hashlib.sha256(value).hexdigest()] = value
            else:
                spans[path] += len(value)
    for piece in pieces.values():
        spans += _piece(piece, pieces, content)
    return spans


def _piece(piece: bytes, pieces: dict[str, bytes], content: RecordDict) -> Spans:
    head, body = piece.split(b"\0", 1)
    kind, children, length = head.decode().split(" ")
    ids = children.split(",") if children else []
    assert int(length) == len(body)
    assert set(ids) <= pieces.keys(), "a part is one of the objects of this message"
    spans: Spans = Counter({"object.head": len(head) + 1})
    if kind == "Message":
        return spans + explain_message(body)
    if kind == "ConfigRecord":
        return spans + _named(fields(body, ProtoConfigRecord.DESCRIPTOR, "content.items.config_record."))
    if kind == "ArrayChunk":
        return spans + Counter({"content.items.array_record.items.value.data": len(body)})
    value = json.loads(body)
    assert json.dumps(value).encode() == body, "one spelling"
    if kind == "Array":
        assert list(value) == ["dtype", "shape", "stype", "arraychunk_ids"]
        assert (value["dtype"], value["stype"]) == ("uint8", "numpy.ndarray")
        array = content.array_records["data"]["flat"]
        assert value["shape"] == list(array.shape)
        assert b"".join(pieces[ids[i]].split(b"\0", 1)[1] for i in value["arraychunk_ids"]) == array.data
    else:
        assert kind in ("RecordDict", "ArrayRecord")
        assert list(value) == (list(content) if kind == "RecordDict" else ["flat"])
        assert set(value.values()) == set(ids)
    return spans + Counter({"framing": len(body)})

"""The private parts of Flower that a local grid needs, in one file so that one contract test guards them."""

import logging
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict, UserConfigValue
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "RUN_ID",
    "SUPERLINK_NODE_ID",
    "Run",
    "answer",
    "copy",
    "decode",
    "empty_run",
    "encode",
    "enter",
    "expired",
    "header",
    "lost",
    "new_context",
    "refuse",
    "stamp",
]

RUN_ID = 1
_LOG = logging.getLogger(__name__)


def enter(node_id: int) -> None:
    """Declare which node this process speaks for: `Message(...)` reads its sender from there."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN_ID, 1, node_id


def empty_run() -> Run:
    """Return the run that every local grid operates in."""
    return Run.create_empty(run_id=RUN_ID)


def new_context(
    node_id: int, node_config: Mapping[str, UserConfigValue], run_config: Mapping[str, UserConfigValue]
) -> Context:
    """Return the context of a node at the start of a run; it owns copies of both configurations."""
    return Context(
        run_id=RUN_ID,
        node_id=node_id,
        node_config=dict(node_config),
        state=RecordDict(),
        run_config=dict(run_config),
    )


def stamp(message: Message, message_id: str) -> None:
    """Give a message its id, which a SuperLink would do."""
    message.metadata.__dict__["_message_id"] = message_id


def encode(message: Message) -> bytes:
    """Serialise a message as Flower does on the wire: no pickle."""
    return bytes(message_to_proto(message).SerializeToString())


def decode(data: bytes) -> Message:
    """Restore a message from its wire format."""
    return message_from_proto(ProtoMessage.FromString(data))


def copy(message: Message) -> Message:
    """Return a message that shares no record with this one; refuses what the wire format refuses."""
    return message_from_proto(message_to_proto(message))


def header(message: Message) -> Message:
    """Return the message without its content: enough to answer for it."""
    proto = message_to_proto(remove_content_from_message(message))
    return message_from_proto(proto)


def expired(message: Message, now_s: float) -> bool:
    """Return whether a message outlived its ttl.

    Args:
        message: an instruction or a reply, created at a Unix time in seconds.
        now_s: the present, in seconds of Unix time.
    """
    return message.metadata.created_at + message.metadata.ttl < now_s


def refuse(message: Message) -> Message:
    """Return the error that a SuperLink makes for a message that outlived its ttl."""
    reply = _error(message, ErrorCode.MESSAGE_UNAVAILABLE, "MESSAGE_UNAVAILABLE")
    reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
    return reply


def lost(message: Message) -> Message:
    """Return the error that a SuperLink makes for a node that is gone."""
    reply = _error(message, ErrorCode.NODE_UNAVAILABLE, "NODE_UNAVAILABLE")
    reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
    return reply


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """Run an app on a message: its reply, or an error with a constant code when it raises.

    Args:
        app: the client app.
        message: the instruction; the app may change it.
        context: the node's context; the app may change its state.

    Returns:
        A reply to this message that shares no record with the app. The exception's text stays on the node:
        not even its log holds it, only the type and the place.
    """
    question = header(message)
    try:
        reply = copy(app(message, context))
    except Exception as error:  # noqa: BLE001  the edge of the node: an app may raise anything
        _LOG.error("node %d: the client app raised %s", context.node_id, _place(error))
    else:
        if reply.metadata.reply_to_message_id == question.metadata.message_id:
            return reply
        _LOG.error("node %d: the client app answered another message", context.node_id)
    return _error(question, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "CLIENT_APP_RAISED_EXCEPTION")


def _error(message: Message, code: int, reason: str) -> Message:
    return Message(Error(code, reason), reply_to=message)


def _place(error: Exception) -> str:
    """Name an exception's type and where it was raised: facts about the code, none about the data."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
    return f"{type(error).__name__}{where}"

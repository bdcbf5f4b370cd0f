"""Flower's private parts that we lean on: when one of these fails, Flower changed, not fednas.

Read `simulations/internals.py` beside the new Flower, adapt that one file, then this one.
"""

import inspect

import flwr
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, Metadata, RecordDict, UserConfig
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from server.exchange import ERROR_CODES
from simulations import internals
from simulations.loopback import LocalGrid

CHANGED = f"Flower {flwr.__version__} changed this: adapt simulations/internals.py"


@pytest.fixture
def message() -> Message:
    internals.enter(SUPERLINK_NODE_ID)
    content = RecordDict({"order": ConfigRecord({"key": [1, 2], "bytes": b"\x00"})})
    return Message(content, 7, "train.step", ttl=30.0, group_id="3")


def test_the_error_numbers_of_the_wire_are_those_we_name() -> None:
    theirs = {value: name for name, value in vars(ErrorCode).items() if isinstance(value, int)}
    assert theirs == dict(ERROR_CODES), "Flower's error numbers changed: adapt server/exchange.py"


def test_the_superlink_is_node_one() -> None:
    assert SUPERLINK_NODE_ID == 1, CHANGED


def test_a_message_takes_its_sender_from_the_task_identity(message: Message) -> None:
    metadata = message.metadata
    assert (metadata.run_id, metadata.src_node_id) == (internals.RUN_ID, SUPERLINK_NODE_ID), CHANGED
    assert TaskIdentity.task_id == 1, CHANGED


def test_a_message_id_can_be_stamped(message: Message) -> None:
    assert message.metadata.message_id == "", CHANGED
    internals.stamp(message, "abc")
    assert message.metadata.message_id == "abc", CHANGED
    assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == "abc", CHANGED


def test_an_empty_run_has_our_id() -> None:
    run = internals.empty_run()
    assert isinstance(run, Run)
    assert run.run_id == internals.RUN_ID, CHANGED


def test_a_message_survives_the_wire_format(message: Message) -> None:
    internals.stamp(message, "abc")
    for twin in (internals.decode(internals.encode(message)), internals.copy(message)):
        assert twin.metadata == message.metadata, CHANGED
        assert twin.content == message.content, CHANGED
        assert twin.content["order"] is not message.content["order"], CHANGED
    assert isinstance(internals.encode(message), bytes)


def test_an_error_survives_the_wire_format(message: Message) -> None:
    reply = Message(Error(2, "CODE"), reply_to=message)
    twin = internals.decode(internals.encode(reply))
    assert twin.has_error(), CHANGED
    assert not twin.has_content(), CHANGED
    assert (twin.error.code, twin.error.reason) == (2, "CODE"), CHANGED


def test_a_header_is_the_message_without_its_content(message: Message) -> None:
    header = internals.header(message)
    assert header.metadata == message.metadata, CHANGED
    assert header.metadata is not message.metadata, CHANGED
    assert len(header.content) == 0, CHANGED
    assert len(message.content) == 1, CHANGED


def test_errors_in_the_name_of_the_superlink_have_its_id(message: Message) -> None:
    internals.stamp(message, "abc")
    for reply, code in ((internals.refuse(message), 3), (internals.lost(message), 5)):
        assert reply.metadata.src_node_id == SUPERLINK_NODE_ID, CHANGED
        assert reply.metadata.reply_to_message_id == "abc", CHANGED
        assert reply.error.code == code, CHANGED


def test_a_message_expires_after_its_ttl(message: Message) -> None:
    created = message.metadata.created_at
    assert not internals.expired(message, created + 29.9)
    assert internals.expired(message, created + 30.1)


def test_a_context_is_made_of_what_we_give_it() -> None:
    own: UserConfig = {"partition-id": 3}
    context = internals.new_context(7, own, {"resume": False})
    assert isinstance(context, Context)
    assert (context.node_id, context.node_config, context.run_config) == (7, own, {"resume": False}), CHANGED
    assert context.node_config is not own
    assert len(context.state) == 0, CHANGED


def test_a_grid_has_the_verbs_we_implement() -> None:
    verbs = {
        "create_message",
        "get_node_ids",
        "pull_messages",
        "push_messages",
        "run",
        "send_and_receive",
        "set_run",
    }
    assert Grid.__abstractmethods__ == verbs, CHANGED
    assert inspect.isabstract(LocalGrid)


def test_metadata_keeps_its_fields_where_we_write_them() -> None:
    names = {"_message_id", "_src_node_id"}
    internals.enter(SUPERLINK_NODE_ID)
    metadata = Message(RecordDict(), 7, "train").metadata
    assert isinstance(metadata, Metadata)
    assert names <= set(vars(metadata)), CHANGED

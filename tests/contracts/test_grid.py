"""What every grid of this project promises to the server app and to the client app."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict, UserConfig
from flwr.serverapp import Grid

from server.exchange import exchange
from simulations.loopback import InProcessGrid
from simulations.workers import WorkerGrid
from tests.simulations import echo

NODES: dict[int, UserConfig] = {71: {"own": "a"}, 11: {"own": "b"}, 5: {"own": "c"}}
RUN_CONFIG: UserConfig = {"shared": "s"}
FAST_S = 30.0


def ask(node: int, kind: str, content: RecordDict | None = None, ttl: float = 60.0) -> Message:
    return Message(RecordDict() if content is None else content, node, kind, ttl=ttl)


def numbers() -> RecordDict:
    array = Array(np.arange(6, dtype=np.float32).reshape(2, 3))
    return RecordDict(
        {
            "numbers": ArrayRecord({"flat": array}),
            "metrics": MetricRecord({"value": 2.5, "several": [1, 2]}),
            "order": ConfigRecord({"bytes": b"\x00\xff", "flag": True, "names": ["a", "b"]}),
        }
    )


class GridContract(ABC):
    """Inherit and build the grid: the echo app on NODES with RUN_CONFIG."""

    @pytest.fixture(scope="class")
    @classmethod
    def grid(cls) -> Iterator[Grid]:
        yield from cls.build()

    @classmethod
    @abstractmethod
    def build(cls) -> Iterator[Grid]: ...

    def one(self, grid: Grid, message: Message) -> Message:
        (reply,) = grid.send_and_receive([message], timeout=FAST_S)
        return reply

    def test_nodes_are_listed_in_the_order_of_their_configurations(self, grid: Grid) -> None:
        assert list(grid.get_node_ids()) == [71, 11, 5]

    def test_a_run_is_set_and_read(self, grid: Grid) -> None:
        run = grid.run
        grid.set_run(run)
        assert grid.run.run_id == run.run_id

    def test_a_created_message_travels(self, grid: Grid) -> None:
        message = grid.create_message(numbers(), "train", 5, "7", ttl=60.0)
        reply = self.one(grid, message)
        assert reply.metadata.group_id == "7"

    def test_records_return_as_they_were_sent(self, grid: Grid) -> None:
        message = ask(11, "train", numbers())
        reply = self.one(grid, message)
        assert reply.content == numbers()
        returned = reply.content.array_records["numbers"]["flat"].numpy()
        np.testing.assert_array_equal(returned, np.arange(6, dtype=np.float32).reshape(2, 3), strict=True)

    def test_a_reply_names_its_message_its_node_and_the_server(self, grid: Grid) -> None:
        message = ask(11, "train", numbers())
        (identity,) = grid.push_messages([message])
        assert identity == message.metadata.message_id != ""
        (reply,) = pull_all(grid, [identity])
        assert reply.metadata.reply_to_message_id == identity
        assert reply.metadata.src_node_id == 11
        assert reply.metadata.dst_node_id == message.metadata.src_node_id == 1
        assert reply.metadata.message_type == "train"

    def test_a_reply_is_handed_over_once(self, grid: Grid) -> None:
        identities = list(grid.push_messages([ask(5, "train")]))
        assert len(pull_all(grid, identities)) == 1
        assert list(grid.pull_messages(identities)) == []

    def test_a_reply_waits_for_who_asks_for_it(self, grid: Grid) -> None:
        first, second = grid.push_messages([ask(5, "train"), ask(5, "train")])
        assert [reply.metadata.reply_to_message_id for reply in pull_all(grid, [second])] == [second]
        assert [reply.metadata.reply_to_message_id for reply in pull_all(grid, [first])] == [first]

    def test_the_state_of_a_node_persists_and_is_its_own(self, grid: Grid) -> None:
        counts = []
        for node in (71, 71, 11, 71):
            reply = self.one(grid, ask(node, "query.count"))
            counts.append(reply.content.metric_records["metrics"]["times"])
        assert counts == [1, 2, 1, 3]

    def test_a_node_sees_its_configuration_and_that_of_the_run(self, grid: Grid) -> None:
        replies = grid.send_and_receive([ask(node, "query.facts") for node in NODES], timeout=FAST_S)
        seen = {reply.metadata.src_node_id: reply.content.config_records["facts"] for reply in replies}
        assert {node: record["own"] for node, record in seen.items()} == {71: "a", 11: "b", 5: "c"}
        assert all(record["node"] == node and record["shared"] == "s" for node, record in seen.items())

    def test_client_and_server_share_no_record(self, grid: Grid) -> None:
        content = numbers()
        reply = self.one(grid, ask(5, "train.spoil", content))
        assert content == numbers()
        reply.content.metric_records["metrics"]["value"] = 99.0
        again = self.one(grid, ask(5, "query.kept"))
        assert again.content.metric_records["metrics"]["value"] == 5.0

    def test_a_message_is_what_it_was_when_it_was_sent(self, grid: Grid) -> None:
        content = numbers()
        identities = list(grid.push_messages([ask(5, "train", content)]))
        content["metrics"] = MetricRecord({"value": -3.0})
        (reply,) = pull_all(grid, identities)
        assert reply.content == numbers()

    @pytest.mark.parametrize("kind", ["query.raise", "query.nothing", "query.wrong", "query.unknown"])
    def test_an_app_that_raises_sends_a_constant_code_only(self, grid: Grid, kind: str) -> None:
        message = ask(11, kind)
        reply = self.one(grid, message)
        assert reply.error.code == 2
        assert reply.error.reason == "CLIENT_APP_RAISED_EXCEPTION"
        assert reply.metadata.reply_to_message_id == message.metadata.message_id

    def test_a_node_that_raised_answers_the_next_message(self, grid: Grid) -> None:
        assert self.one(grid, ask(11, "query.raise")).has_error()
        assert self.one(grid, ask(11, "train")).has_content()

    def test_a_message_that_outlived_its_ttl_is_refused_unread(self, grid: Grid) -> None:
        late = ask(5, "query.die", ttl=5.0)
        late.metadata.created_at = time.time() - 10.0
        reply = self.one(grid, late)
        assert reply.error.reason == "MESSAGE_UNAVAILABLE"
        assert reply.metadata.src_node_id == 1
        assert self.one(grid, ask(5, "train")).has_content()

    def test_an_unknown_node_gets_an_empty_id(self, grid: Grid) -> None:
        first, second = grid.push_messages([ask(4, "train"), ask(5, "train")])
        assert first == ""
        assert len(pull_all(grid, [second])) == 1

    def test_a_ttl_that_is_not_positive_is_refused(self, grid: Grid) -> None:
        message = ask(5, "train")
        message.metadata.ttl = 0.0
        with pytest.raises(ValueError, match="ttl"):
            grid.push_messages([message])

    def test_nothing_asked_for_is_nothing_returned(self, grid: Grid) -> None:
        assert list(grid.push_messages([])) == []
        assert list(grid.pull_messages([])) == []
        assert list(grid.pull_messages(["unknown"])) == []
        assert list(grid.send_and_receive([])) == []

    def test_an_exchange_hands_over_in_the_order_of_the_messages(self, grid: Grid) -> None:
        order: list[int] = []
        messages = [ask(node, "train") for node in (5, 71, 11)] + [ask(404, "train")]
        outcome = exchange(
            grid, messages, on_reply=lambda node, reply: order.append(node), deadline_s=FAST_S, poll_s=0.05
        )
        assert order == [5, 71, 11]
        assert outcome.ok == (5, 71, 11)
        assert outcome.rejected == (404,)


def pull_all(grid: Grid, identities: list[str]) -> list[Message]:
    """Look until every reply is there."""
    replies: list[Message] = []
    end = time.monotonic() + FAST_S
    while len(replies) < len(identities) and time.monotonic() < end:
        replies += grid.pull_messages(identities)
        time.sleep(0.002)
    return replies


class TestInProcessGrid(GridContract):
    @classmethod
    def build(cls) -> Iterator[Grid]:
        yield InProcessGrid(echo.app, NODES, RUN_CONFIG)


class TestWorkerGrid(GridContract):
    @classmethod
    def build(cls) -> Iterator[Grid]:
        with WorkerGrid("tests.simulations.echo:app", NODES, RUN_CONFIG) as grid:
            yield grid

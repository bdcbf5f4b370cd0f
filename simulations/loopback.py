"""A Flower grid without a network: the unmodified apps talk to each other inside this machine."""

import itertools
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import final

from flwr.app import Message, RecordDict, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from simulations import internals

Clock = Callable[[], float]
_POLL_S = 0.005


def node_configs(num_sites: int) -> dict[int, dict[str, UserConfigValue]]:
    """What Flower tells the nodes of a simulation: their partition and how many there are, by node id."""
    return {i + 1: {"partition-id": i, "num-partitions": num_sites} for i in range(num_sites)}


class LocalGrid(Grid):
    """What grids inside one machine share: ids, the refusal of unknown nodes, and blocking exchange."""

    def __init__(self, node_ids: Iterable[int]) -> None:
        self._nodes = tuple(node_ids)
        self._run = internals.empty_run()
        self._serial = itertools.count(1)
        internals.enter(internals.SUPERLINK_NODE_ID)

    @abstractmethod
    def _accept(self, message: Message) -> None:
        """Take a stamped message for a known node; the caller may change the object afterwards."""

    def set_run(self, run: internals.Run) -> None:
        """Set the run this grid operates in."""
        self._run = run

    @property
    def run(self) -> internals.Run:
        """The run this grid operates in."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message; `Message(...)` itself is the modern spelling."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the node ids in the order of their configurations."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages.

        Args:
            messages: instructions with a positive ttl.

        Returns:
            One id per message, in order; empty for a node that does not exist.

        Raises:
            ValueError: a ttl is not positive.
        """
        ids = []
        for message in messages:
            ttl = message.metadata.ttl
            if ttl <= 0:
                raise ValueError(f"expected {ttl=} > 0: give the message a time to live in seconds")
            known = message.metadata.dst_node_id in self._nodes
            identity = f"{next(self._serial):032x}" if known else ""
            if known:
                internals.stamp(message, identity)
                self._accept(message)
            ids.append(identity)
        return ids

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and wait for their replies.

        Args:
            messages: instructions with a positive ttl.
            timeout: seconds to wait; None waits for all.

        Returns:
            The replies that came, in the order of their arrival.
        """
        pending = {identity for identity in self.push_messages(messages) if identity}
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while pending:
            arrived = list(self.pull_messages(pending))
            replies += arrived
            pending -= {reply.metadata.reply_to_message_id for reply in arrived}
            if end is not None and time.monotonic() >= end:
                break
            if pending and not arrived:
                time.sleep(_POLL_S)
        return replies


def forget(replies: Mapping[str, Message], now_s: float) -> dict[str, Message]:
    """Drop the replies that nobody fetched in time, as a SuperLink does: abandoned rounds cost no memory.

    Args:
        replies: message id to its reply.
        now_s: the present, in seconds of Unix time.

    Returns:
        The replies still within their ttl.
    """
    return {key: reply for key, reply in replies.items() if not internals.expired(reply, now_s)}


@final
class InProcessGrid(LocalGrid):
    """Runs a client app in this thread, one message at a time in the order they were sent.

    A look for replies (`pull_messages`) runs the app until one of the messages asked for is answered, so
    deadlines bind between messages, never within one. Records are copied both ways.
    """

    def __init__(
        self,
        client_app: ClientApp,
        node_configs: Mapping[int, Mapping[str, UserConfigValue]],
        run_config: Mapping[str, UserConfigValue],
        *,
        clock: Clock = time.time,
    ) -> None:
        """Place one node per configuration.

        Args:
            client_app: the app of every node.
            node_configs: node id to what only this node knows.
            run_config: what every node knows.
            clock: the present in seconds of Unix time; a message's ttl is measured with it.
        """
        super().__init__(node_configs)
        self._app = client_app
        self._contexts = {
            node: internals.new_context(node, config, run_config) for node, config in node_configs.items()
        }
        self._clock = clock
        self._queue: deque[Message] = deque()
        self._replies: dict[str, Message] = {}

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there, running the app until there is one.

        Args:
            message_ids: ids from `push_messages`.

        Returns:
            The replies not handed over before; empty when nothing asked for is under way.
        """
        asked = list(message_ids)
        while self._queue and not any(identity in self._replies for identity in asked):
            message = self._queue.popleft()
            # The app may change the message, so what answers for it is set aside.
            question = internals.header(message)
            self._replies[question.metadata.message_id] = self._answer(question, message)
        return [self._replies.pop(identity) for identity in asked if identity in self._replies]

    def _accept(self, message: Message) -> None:
        self._replies = forget(self._replies, self._clock())
        self._queue.append(internals.copy(message))

    def _answer(self, question: Message, message: Message) -> Message:
        if internals.expired(question, self._clock()):
            return internals.refuse(question)
        reply = internals.answer(self._app, message, self._contexts[question.metadata.dst_node_id])
        return internals.refuse(question) if internals.expired(question, self._clock()) else reply

"""Push once, stream the replies, stop at the deadline: one exchange with a cohort over any Flower grid."""

import logging
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, final

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from fednas.errors import ExchangeError
from fednas.logs import Event, tagged

# The numbers travel on the wire, so they are part of Flower's protocol; a contract test compares them.
ERROR_CODES: Mapping[int, str] = {
    0: "UNKNOWN",
    1: "LOAD_CLIENT_APP_EXCEPTION",
    2: "CLIENT_APP_RAISED_EXCEPTION",
    3: "MESSAGE_UNAVAILABLE",
    4: "REPLY_MESSAGE_UNAVAILABLE",
    5: "NODE_UNAVAILABLE",
    6: "MOD_FAILED_PRECONDITION",
    7: "INVALID_FAB",
    8: "CLIENT_APP_CRASHED",
}
MALFORMED_REPLY = "MALFORMED_REPLY"
MISROUTED_REPLY = "MISROUTED_REPLY"

# The SuperLink answers for a message that outlived its ttl: its node is late, not broken.
_EXPIRED = frozenset({3, 4})
_CODE = re.compile(r"[A-Z_]{1,40}")
_FIRST_PAUSE_S = 0.005
# What Flower raises on bytes that are no message. It is no failure of the network: that travels.
_UNREADABLE = (DecodeError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
_log = logging.getLogger("fednas.server")


class Clock(Protocol):
    """Elapsed time and a pause, so that tests neither wait nor race."""

    def now(self) -> float:
        """Return seconds since an arbitrary start; never goes backwards."""

    def pause(self, seconds: float) -> None:
        """Return after this many seconds."""


@final
class MonotonicClock:
    """The real clock."""

    def now(self) -> float:
        """Return the seconds of the system's monotonic clock."""
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of each message; every node addressed is in exactly one of the five.

    Attributes:
        ok: nodes whose reply was handed over, in the order of the messages.
        failed: node to a constant code in `[A-Z_]{1,40}`, never an exception's text.
        late: nodes that did not answer in time, or before the quorum ended the exchange.
        rejected: nodes whose message the SuperLink did not accept.
        skipped: nodes that the caller knew to be busy; nothing was sent to them.
    """

    ok: tuple[int, ...] = ()
    failed: Mapping[int, str] = field(default_factory=dict)
    late: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()


def error_code(error: Error) -> str:
    """Reduce a Flower error to a constant: its reason may hold anything, so only a bounded code passes.

    Args:
        error: the error of a reply.

    Returns:
        The reason when all of it is a code in `[A-Z_]{1,40}`, else the name of the error's number, else
        "UNKNOWN".
    """
    if error.reason is not None and _CODE.fullmatch(error.reason):
        return error.reason
    return ERROR_CODES.get(error.code, "UNKNOWN")


def num_bytes(content: RecordDict) -> int:
    """How many bytes the arrays and the texts of a message have, whatever else is in it.

    Flower's own count refuses an empty text, which a hostile reply may hold.
    """
    arrays = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    values = (value for record in content.config_records.values() for value in record.values())
    return arrays + sum(len(value) for value in values if isinstance(value, str | bytes))


def exchange(
    grid: Grid,
    messages: Sequence[Message],
    *,
    on_reply: Callable[[int, Message], None],
    deadline_s: float,
    quorum: int | None = None,
    poll_s: float = 0.5,
    busy: Collection[int] = frozenset(),
    clock: Clock | None = None,
) -> Outcome:
    """Send one message to each node and hand the replies over in the order of the messages.

    Replies are collected as they arrive and handed over at the end, so what the caller makes of them does
    not depend on who was fastest. Each message gets `ttl = deadline_s`: a straggler builds no backlog.

    Args:
        grid: any Flower grid.
        messages: at most one per node; their order is the order of the hand-over.
        on_reply: called with the node and its reply; an ExchangeError marks the reply MALFORMED_REPLY.
        deadline_s: seconds to wait for replies, at least 0 (then the replies are looked for once).
        quorum: stop as soon as this many nodes answered without an error; None waits for all.
        poll_s: the longest pause between two looks, in seconds; pauses grow up to it while nothing comes.
        busy: nodes still at work on an earlier message; they are skipped.
        clock: elapsed time; the real clock by default.

    Returns:
        What became of each node.
    """
    assert deadline_s >= 0, "the federation's configuration bounds it"
    assert poll_s > 0, "a pause takes time"
    clock = clock or MonotonicClock()
    order = [message.metadata.dst_node_id for message in messages]
    assert len(set(order)) == len(order), "one message per node: fuse them into one"
    sent = [message for message in messages if message.metadata.dst_node_id not in busy]

    pending = _push(grid, sent, deadline_s)
    accepted = frozenset(pending.values())
    replies = _collect(grid, pending, deadline_s=deadline_s, quorum=quorum, poll_s=poll_s, clock=clock)

    ok: list[int] = []
    failed: dict[int, str] = {}
    late = set(pending.values())
    for node in order:
        reply = replies.get(node)
        if reply is None:
            continue
        if isinstance(reply, str):
            failed[node] = reply
        elif reply.has_error():
            if reply.error.code in _EXPIRED:
                late.add(node)
            else:
                failed[node] = error_code(reply.error)
        elif reply.metadata.src_node_id != node:
            failed[node] = MISROUTED_REPLY
        else:
            try:
                on_reply(node, reply)
            except ExchangeError:
                failed[node] = MALFORMED_REPLY
            else:
                ok.append(node)
    return Outcome(
        ok=tuple(ok),
        failed=failed,
        late=tuple(node for node in order if node in late),
        rejected=tuple(node for node in order if node not in accepted and node not in busy),
        skipped=tuple(node for node in order if node in busy),
    )


def _push(grid: Grid, messages: list[Message], deadline_s: float) -> dict[str, int]:
    """Send a list (an HTTP grid iterates twice) and return the accepted message ids with their nodes."""
    if not messages:
        return {}
    for message in messages:
        # A ttl of 0 reads as "no ttl": the shortest that Flower accepts is positive.
        message.metadata.ttl = max(deadline_s, 1e-3)
    ids = list(grid.push_messages(messages))
    if len(ids) == len(messages):
        pairs = zip(ids, messages, strict=True)
        return {identity: message.metadata.dst_node_id for identity, message in pairs if identity}
    # Grids that leave rejected messages out (in memory, or an HTTP payload that is too large) have written
    # the id into each message.
    known = set(ids)
    return {
        message.metadata.message_id: message.metadata.dst_node_id
        for message in messages
        if message.metadata.message_id in known
    }


def _collect(
    grid: Grid,
    pending: dict[str, int],
    *,
    deadline_s: float,
    quorum: int | None,
    poll_s: float,
    clock: Clock,
) -> dict[int, Message | str]:
    """Take replies out of `pending` until all came, enough came, or time is up; what remains is late."""
    replies: dict[int, Message | str] = {}
    good = 0
    end = clock.now() + deadline_s
    pause = min(_FIRST_PAUSE_S, poll_s)
    while pending:
        begun, arrived = clock.now(), False
        for identity in list(pending):
            reply = _look(grid, identity)
            if reply is None:
                continue
            arrived = True
            replies[pending.pop(identity)] = reply
            good += not isinstance(reply, str) and not reply.has_error()
            if clock.now() > end:
                break
        remaining = end - clock.now()
        if not pending or remaining <= 0 or (quorum is not None and good >= quorum):
            break
        if arrived:
            pause = min(_FIRST_PAUSE_S, poll_s)
        else:
            # Over a network each look is a request: they take at most a quarter of the time.
            clock.pause(min(max(pause, 3.0 * (clock.now() - begun)), remaining))
            pause = min(2 * pause, poll_s)
    return replies


def _look(grid: Grid, identity: str) -> Message | str | None:
    """The reply to one message, a constant code for one that cannot be read or answers another, or None.

    Messages are looked for one by one: a node writes all of its reply, also the part that says who answers
    what. Of several replies at once, one that Flower cannot read would take the others with it, and one could
    stand in another's place.
    """
    try:
        found = list(grid.pull_messages([identity]))
    except _UNREADABLE as error:
        unreadable = tagged(Event.REPLY_UNREADABLE, error=type(error).__name__)
        _log.warning("a reply cannot be read: %s", type(error).__name__, extra=unreadable)
        return MALFORMED_REPLY
    if not found:
        return None
    (reply,) = found
    return reply if reply.metadata.reply_to_message_id == identity else MISROUTED_REPLY

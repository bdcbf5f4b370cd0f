"""One exchange: what is sent, what counts, what each node is reported as."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from flwr.app import Array, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fednas.errors import ExchangeError
from server.exchange import ERROR_CODES, MonotonicClock, error_code, exchange
from simulations import internals
from simulations.loopback import LocalGrid

NEVER = 10_000.0


class FakeClock:
    """Time that passes only in pauses."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.pauses: list[float] = []

    def now(self) -> float:
        return self.seconds

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.seconds += seconds


def agree(message: Message) -> Message:
    return Message(RecordDict(), reply_to=message)


class ScriptedGrid(LocalGrid):
    """Nodes that answer a given number of seconds after they were asked, each in its own way."""

    def __init__(self, clock: FakeClock, delays_s: dict[int, float]) -> None:
        super().__init__(delays_s)
        self.clock = clock
        self.delays_s = delays_s
        self.answers: dict[int, Callable[[Message], Message]] = {}
        self.sent: list[Message] = []
        self.looks = 0
        self._due: dict[str, tuple[float, Message]] = {}

    def _accept(self, message: Message) -> None:
        node = message.metadata.dst_node_id
        self.sent.append(message)
        answer = self.answers.get(node, agree)
        self._due[message.metadata.message_id] = (self.clock.seconds + self.delays_s[node], answer(message))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.looks += 1
        ready = [key for key in message_ids if key in self._due and self._due[key][0] <= self.clock.seconds]
        ready.sort(key=lambda key: self._due[key][0])
        return [self._due.pop(key)[1] for key in ready]


def ask(*nodes: int) -> list[Message]:
    return [Message(RecordDict(), node, "train") for node in nodes]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def handed() -> list[int]:
    return []


@pytest.fixture
def keep(handed: list[int]) -> Callable[[int, Message], None]:
    return lambda node, reply: handed.append(node)


Keep = Callable[[int, Message], None]


def test_replies_are_handed_over_in_the_order_of_the_messages(
    clock: FakeClock, handed: list[int], keep: Keep
) -> None:
    grid = ScriptedGrid(clock, {1: 3.0, 2: 1.0, 3: 2.0})
    outcome = exchange(grid, ask(3, 1, 2), on_reply=keep, deadline_s=10.0, clock=clock)
    assert handed == [3, 1, 2]
    assert outcome.ok == (3, 1, 2)
    assert (outcome.failed, outcome.late, outcome.rejected, outcome.skipped) == ({}, (), (), ())


@given(delays=st.lists(st.floats(0.0, 5.0), min_size=1, max_size=8), data=st.data())
def test_what_is_aggregated_does_not_depend_on_who_was_fastest(
    delays: list[float], data: st.DataObject
) -> None:
    nodes = data.draw(st.permutations(range(10, 10 + len(delays))))
    sums = []
    for swift in (delays, delays[::-1]):
        clock, total = FakeClock(), 0.0
        grid = ScriptedGrid(clock, dict(zip(nodes, swift, strict=True)))

        def add(node: int, reply: Message) -> None:
            nonlocal total
            total = total / 3.0 + node * 0.1

        exchange(grid, ask(*nodes), on_reply=add, deadline_s=60.0, clock=clock)
        sums.append(total)
    assert sums[0].hex() == sums[1].hex()


def test_it_ends_when_all_replied(clock: FakeClock, keep: Keep) -> None:
    grid = ScriptedGrid(clock, {1: 1.0, 2: 2.0})
    exchange(grid, ask(1, 2), on_reply=keep, deadline_s=NEVER, clock=clock)
    assert 102.0 <= clock.seconds < 103.0


def test_it_ends_at_the_deadline_and_not_after_it(clock: FakeClock, handed: list[int], keep: Keep) -> None:
    grid = ScriptedGrid(clock, {1: 1.0, 2: NEVER, 3: 8.0})
    outcome = exchange(grid, ask(1, 2, 3), on_reply=keep, deadline_s=8.0, poll_s=5.0, clock=clock)
    assert clock.seconds == 108.0
    assert handed == [1, 3]
    assert outcome.late == (2,)


def test_a_deadline_of_zero_looks_once_for_each_reply(clock: FakeClock, keep: Keep) -> None:
    grid = ScriptedGrid(clock, {1: 0.0, 2: 1.0})
    outcome = exchange(grid, ask(1, 2), on_reply=keep, deadline_s=0.0, clock=clock)
    assert (outcome.ok, outcome.late, grid.looks) == ((1,), (2,), 2)


def test_it_ends_at_the_quorum_and_counts_no_errors(clock: FakeClock, handed: list[int], keep: Keep) -> None:
    grid = ScriptedGrid(clock, {1: 1.0, 2: 2.0, 3: 3.0, 4: NEVER})
    grid.answers[1] = lambda m: Message(Error(2, "OUT_OF_BUDGET"), reply_to=m)
    outcome = exchange(grid, ask(1, 2, 3, 4), on_reply=keep, deadline_s=NEVER, quorum=2, clock=clock)
    assert clock.seconds < 104.0
    assert handed == [2, 3]
    assert outcome.failed == {1: "OUT_OF_BUDGET"}
    assert outcome.late == (4,)


def test_replies_beyond_the_quorum_that_are_there_count_too(clock: FakeClock, keep: Keep) -> None:
    grid = ScriptedGrid(clock, {1: 0.0, 2: 0.0, 3: 0.0})
    outcome = exchange(grid, ask(1, 2, 3), on_reply=keep, deadline_s=NEVER, quorum=1, clock=clock)
    assert outcome.ok == (1, 2, 3)


def test_every_message_lives_as_long_as_the_deadline(clock: FakeClock, keep: Keep) -> None:
    grid = ScriptedGrid(clock, {1: 0.0, 2: 0.0})
    exchange(grid, ask(1, 2), on_reply=keep, deadline_s=7.5, clock=clock)
    assert [message.metadata.ttl for message in grid.sent] == [7.5, 7.5]


def test_a_busy_node_is_skipped_and_nothing_is_sent_to_it(clock: FakeClock, keep: Keep) -> None:
    grid = ScriptedGrid(clock, {1: 0.0, 2: 0.0, 3: 0.0})
    outcome = exchange(grid, ask(1, 2, 3), on_reply=keep, deadline_s=1.0, busy={2}, clock=clock)
    assert [message.metadata.dst_node_id for message in grid.sent] == [1, 3]
    assert (outcome.ok, outcome.skipped, outcome.late, outcome.rejected) == ((1, 3), (2,), (), ())


def test_nobody_to_ask_is_no_exchange(clock: FakeClock, keep: Keep) -> None:
    grid = ScriptedGrid(clock, {1: 0.0})
    assert exchange(grid, ask(1), on_reply=keep, deadline_s=1.0, busy=[1], clock=clock).skipped == (1,)
    assert exchange(grid, [], on_reply=keep, deadline_s=1.0, clock=clock).ok == ()
    assert grid.looks == 0


def test_an_unknown_node_is_rejected(clock: FakeClock, keep: Keep) -> None:
    grid = ScriptedGrid(clock, {1: 0.0})
    outcome = exchange(grid, ask(9, 1), on_reply=keep, deadline_s=1.0, clock=clock)
    assert (outcome.ok, outcome.rejected) == ((1,), (9,))


class OmittingGrid(ScriptedGrid):
    """Leaves the messages it rejects out of the ids, as Flower's grid in memory does."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [identity for identity in super().push_messages(messages) if identity]


class FullGrid(ScriptedGrid):
    """Takes nothing, as Flower's grid over HTTP does with a payload that is too large."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return []


def test_rejections_are_attributed_when_the_grid_leaves_them_out(clock: FakeClock, keep: Keep) -> None:
    grid = OmittingGrid(clock, {1: 0.0, 2: 0.0})
    outcome = exchange(grid, ask(9, 1, 8, 2), on_reply=keep, deadline_s=1.0, clock=clock)
    assert (outcome.ok, outcome.rejected) == ((1, 2), (9, 8))


def test_a_grid_that_takes_nothing_rejects_everyone(clock: FakeClock, keep: Keep) -> None:
    outcome = exchange(FullGrid(clock, {1: 0.0}), ask(1), on_reply=keep, deadline_s=1.0, clock=clock)
    assert outcome.rejected == (1,)


def test_errors_of_the_superlink_are_told_apart_by_what_they_answer(clock: FakeClock, keep: Keep) -> None:
    grid = ScriptedGrid(clock, {1: 0.0, 2: 0.0, 3: 0.0})
    grid.answers[1] = internals.lost
    grid.answers[2] = internals.refuse
    outcome = exchange(grid, ask(1, 2, 3), on_reply=keep, deadline_s=1.0, clock=clock)
    assert outcome.failed == {1: "NODE_UNAVAILABLE"}
    assert outcome.late == (2,)
    assert outcome.ok == (3,)


def test_a_malformed_reply_fails_its_node_only(clock: FakeClock) -> None:
    grid = ScriptedGrid(clock, {1: 0.0, 2: 0.0})

    def read(node: int, reply: Message) -> None:
        if node == 1:
            raise ExchangeError("a manifest is missing")

    outcome = exchange(grid, ask(1, 2), on_reply=read, deadline_s=1.0, clock=clock)
    assert (outcome.ok, outcome.failed) == ((2,), {1: "MALFORMED_REPLY"})


def test_a_bug_in_the_hand_over_travels(clock: FakeClock) -> None:
    def read(node: int, reply: Message) -> None:
        raise KeyError(node)

    with pytest.raises(KeyError):
        exchange(ScriptedGrid(clock, {1: 0.0}), ask(1), on_reply=read, deadline_s=1.0, clock=clock)


def test_a_reply_in_the_name_of_another_node_is_refused(clock: FakeClock, keep: Keep) -> None:
    grid = ScriptedGrid(clock, {1: 0.0})

    def forge(message: Message) -> Message:
        reply = Message(RecordDict(), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 2
        return reply

    grid.answers[1] = forge
    outcome = exchange(grid, ask(1), on_reply=keep, deadline_s=1.0, clock=clock)
    assert outcome.failed == {1: "MISROUTED_REPLY"}


def test_a_reply_that_answers_another_message_is_refused(
    clock: FakeClock, handed: list[int], keep: Keep
) -> None:
    grid = ScriptedGrid(clock, {1: 0.0, 2: 1.0})

    def stray(message: Message) -> Message:
        reply = Message(RecordDict(), reply_to=message)
        reply.metadata.__dict__["_reply_to_message_id"] = "of another round"
        return reply

    grid.answers[1] = stray
    outcome = exchange(grid, ask(1, 2), on_reply=keep, deadline_s=2.0, clock=clock)
    assert (handed, outcome.failed) == ([2], {1: "MISROUTED_REPLY"})


def test_a_node_cannot_answer_in_the_place_of_another(
    clock: FakeClock, handed: list[int], keep: Keep
) -> None:
    grid = ScriptedGrid(clock, {1: 0.0, 2: 1.0})

    def forge(message: Message) -> Message:
        reply = Message(RecordDict(), reply_to=message)
        victim = grid.sent[-1].metadata.message_id[:-1] + "2"
        reply.metadata.__dict__.update(_reply_to_message_id=victim, _src_node_id=2)
        return reply

    grid.answers[1] = forge
    outcome = exchange(grid, ask(1, 2), on_reply=keep, deadline_s=2.0, clock=clock)
    assert (handed, outcome.failed) == ([2], {1: "MISROUTED_REPLY"})


class GarblingGrid(ScriptedGrid):
    """One reply has a body that is no protocol buffer; a SuperLink looks at the head of it only."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = super().pull_messages(message_ids)
        for message in found:
            if message.metadata.src_node_id == 1:
                inflated = Array(np.zeros(3)).deflate()
                head, divider, body = inflated.partition(b"\x00")
                Array.inflate(head + divider + b"\xff" * len(body))
        return found


def test_a_reply_that_flower_cannot_read_costs_its_own_node_and_nobody_else(
    clock: FakeClock, handed: list[int], keep: Keep
) -> None:
    grid = GarblingGrid(clock, {1: 0.0, 2: 0.0, 3: 0.0})
    outcome = exchange(grid, ask(2, 1, 3), on_reply=keep, deadline_s=2.0, clock=clock)
    assert (handed, outcome.failed) == ([2, 3], {1: "MALFORMED_REPLY"})


class BrokenGrid(ScriptedGrid):
    """A network that is gone."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        raise ConnectionError("the SuperLink is gone")


def test_a_network_that_fails_is_no_malformed_reply(clock: FakeClock, keep: Keep) -> None:
    with pytest.raises(ConnectionError):
        exchange(BrokenGrid(clock, {1: 0.0}), ask(1), on_reply=keep, deadline_s=2.0, clock=clock)


def test_two_messages_for_one_node_are_our_mistake(clock: FakeClock, keep: Keep) -> None:
    with pytest.raises(AssertionError, match="fuse"):
        exchange(ScriptedGrid(clock, {1: 0.0}), ask(1, 1), on_reply=keep, deadline_s=1.0, clock=clock)


def test_pauses_grow_to_the_longest_and_start_anew_with_each_arrival(clock: FakeClock, keep: Keep) -> None:
    grid = ScriptedGrid(clock, {1: 2.0, 2: 4.0})
    exchange(grid, ask(1, 2), on_reply=keep, deadline_s=10.0, poll_s=0.5, clock=clock)
    assert max(clock.pauses) == 0.5
    assert clock.pauses.count(0.005) == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Error(2, "BUDGET_EXHAUSTED"), "BUDGET_EXHAUSTED"),
        (Error(2, "A" * 40), "A" * 40),
        (Error(2, "A" * 41), "CLIENT_APP_RAISED_EXCEPTION"),
        (Error(2, "<class 'ValueError'>:<'the patient in bed seven'>"), "CLIENT_APP_RAISED_EXCEPTION"),
        (Error(2, "PATIENT 7"), "CLIENT_APP_RAISED_EXCEPTION"),
        (Error(2, "EPSILON\n"), "CLIENT_APP_RAISED_EXCEPTION"),
        (Error(2, "ÉPSILON"), "CLIENT_APP_RAISED_EXCEPTION"),
        (Error(5, ""), "NODE_UNAVAILABLE"),
        (Error(5), "NODE_UNAVAILABLE"),
        (Error(99, "what?"), "UNKNOWN"),
    ],
)
def test_an_error_is_reduced_to_a_constant(error: Error, code: str) -> None:
    assert error_code(error) == code


@given(st.integers(), st.none() | st.text())
def test_whatever_an_error_says_a_bounded_code_is_left(number: int, reason: str | None) -> None:
    code = error_code(Error(number, reason))
    assert 1 <= len(code) <= 40
    assert set(code) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ_")
    assert code in ERROR_CODES.values() or code == reason


def test_the_real_clock_goes_forward_and_pauses() -> None:
    clock = MonotonicClock()
    before = clock.now()
    clock.pause(0.0)
    assert clock.now() >= before


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_metrics_reach_the_hand_over_untouched(clock: FakeClock, value: float) -> None:
    grid = ScriptedGrid(clock, {1: 0.0})
    grid.answers[1] = lambda m: Message(RecordDict({"m": MetricRecord({"v": value})}), reply_to=m)
    seen: list[object] = []
    exchange(
        grid,
        ask(1),
        on_reply=lambda node, reply: seen.append(reply.content.metric_records["m"]["v"]),
        deadline_s=1.0,
        clock=clock,
    )
    assert str(seen) == str([value])

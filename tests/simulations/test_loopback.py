"""The grid in this process: what it does beyond the contract of every grid."""

import logging

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from simulations.loopback import InProcessGrid
from tests.simulations import echo

NODES: dict[int, UserConfig] = {3: {"own": "a"}, 9: {"own": "b"}}


class Hand:
    """A clock set by hand, in seconds of Unix time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def ask(node: int, kind: str = "train", ttl: float = 60.0) -> Message:
    return Message(RecordDict(), node, kind, ttl=ttl)


def local(app: ClientApp) -> InProcessGrid:
    return InProcessGrid(app, NODES, {"shared": "s"})


def test_messages_run_in_the_order_they_were_sent_whoever_is_asked_for() -> None:
    ran: list[str] = []
    app = ClientApp()

    @app.train()
    def note(message: Message, context: Context) -> Message:
        ran.append(message.metadata.group_id)
        return Message(RecordDict(), reply_to=message)

    grid = local(app)
    messages = [Message(RecordDict(), node, "train", group_id=name) for name, node in zip("abc", (3, 9, 3))]
    ids = grid.push_messages(messages)
    assert ran == []
    grid.pull_messages([ids[1]])
    assert ran == ["a", "b"]
    grid.pull_messages(ids)
    assert ran == ["a", "b"], "what is there is handed over before more is run"
    grid.pull_messages([ids[2]])
    assert ran == ["a", "b", "c"]


def test_an_app_that_runs_past_the_ttl_is_refused() -> None:
    clock = Hand()
    app = ClientApp()

    @app.train()
    def dawdle(message: Message, context: Context) -> Message:
        clock.seconds += 100.0
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, NODES, {}, clock=clock)
    message = ask(3, ttl=60.0)
    clock.seconds = message.metadata.created_at
    (reply,) = grid.send_and_receive([message])
    assert reply.error.reason == "MESSAGE_UNAVAILABLE"


def test_a_reply_nobody_fetched_is_forgotten_with_its_ttl() -> None:
    clock = Hand()
    grid = InProcessGrid(echo.app, NODES, {"shared": "s"}, clock=clock)
    abandoned, waiting = ask(3, ttl=60.0), ask(3, ttl=600.0)
    clock.seconds = waiting.metadata.created_at
    first, second, third = grid.push_messages([abandoned, waiting, ask(9, ttl=600.0)])
    assert len(grid.pull_messages([third])) == 1
    clock.seconds += 120.0
    grid.push_messages([ask(9, ttl=600.0)])
    assert grid.pull_messages([first]) == []
    assert len(grid.pull_messages([second])) == 1


def test_the_text_of_an_exception_is_not_even_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        local(echo.app).send_and_receive([ask(3, "query.raise")])
    assert "ValueError at echo.py:" in caplog.text
    assert "patient" not in caplog.text


def test_an_interrupt_travels() -> None:
    app = ClientApp()

    @app.train()
    def stop(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    grid = local(app)
    with pytest.raises(KeyboardInterrupt):
        grid.send_and_receive([ask(3)])


def test_waiting_ends_at_the_timeout() -> None:
    clock = Hand()
    grid = InProcessGrid(echo.app, NODES, {"shared": "s"}, clock=clock)
    assert len(grid.send_and_receive([ask(3), ask(9)], timeout=0.0)) == 1


def test_a_server_app_of_flower_runs_unchanged() -> None:
    client = ClientApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        weights = message.content.array_records["arrays"]["w"].numpy()
        step = np.float32(context.node_id)
        content = RecordDict(
            {
                "arrays": ArrayRecord({"w": Array(weights + step)}),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )
        return Message(content, reply_to=message)

    server = ServerApp()
    found: list[np.ndarray] = []

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=2)
        start = ArrayRecord({"w": Array(np.zeros(3, dtype=np.float32))})
        result = strategy.start(grid=grid, initial_arrays=start, num_rounds=2)
        found.append(result.arrays["w"].numpy())

    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    server(local(client), context)
    np.testing.assert_array_equal(found[0], np.full(3, 12.0, dtype=np.float32))


def test_configurations_are_copied() -> None:
    own: UserConfig = {"own": "a"}
    shared: UserConfig = {"shared": "s"}
    grid = InProcessGrid(echo.app, {3: own}, shared)
    own["own"] = shared["shared"] = "changed"
    (reply,) = grid.send_and_receive([ask(3, "query.facts")])
    facts: ConfigRecord = reply.content.config_records["facts"]
    assert (facts["own"], facts["shared"]) == ("a", "s")

"""The grid over worker processes: what it does beyond the contract of every grid."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict, UserConfig

from fednas.errors import ConfigurationError
from simulations.loopback import InProcessGrid
from simulations.workers import WorkerGrid, load_app
from tests.simulations import echo

APP = "tests.simulations.echo:app"
NODES: dict[int, UserConfig] = {node: {"own": str(node)} for node in (10, 20, 30, 40)}
RUN_CONFIG: UserConfig = {"shared": "s"}
FAST_S = 30.0
FOREVER = RecordDict({"order": ConfigRecord({"seconds": 3600.0})})


def ask(node: int, kind: str = "train", content: RecordDict | None = None) -> Message:
    return Message(RecordDict() if content is None else content, node, kind, ttl=600.0)


def facts(grid: WorkerGrid) -> dict[int, ConfigRecord]:
    replies = grid.send_and_receive(
        [ask(node, "query.facts") for node in grid.get_node_ids()], timeout=FAST_S
    )
    return {reply.metadata.src_node_id: reply.content.config_records["facts"] for reply in replies}


def process_of(grid: WorkerGrid, node: int) -> int:
    return int(str(facts(grid)[node]["process"]))


def no_children_left() -> bool:
    return multiprocessing.active_children() == []


@pytest.fixture
def grid() -> Iterator[WorkerGrid]:
    with WorkerGrid(APP, NODES, RUN_CONFIG) as grid:
        yield grid
    assert no_children_left()


def test_nodes_are_pinned_to_two_single_threaded_processes_that_are_not_this_one(grid: WorkerGrid) -> None:
    first, second = facts(grid), facts(grid)
    processes = {node: record["process"] for node, record in first.items()}
    assert processes == {node: record["process"] for node, record in second.items()}
    assert processes[10] == processes[30] != processes[20] == processes[40]
    assert os.getpid() not in processes.values()
    assert {record["threads"] for record in first.values()} == {1}


def test_both_grids_inside_this_machine_answer_the_same_bytes(grid: WorkerGrid) -> None:
    questions = ["train", "query.count", "query.count", "query.raise", "train"]
    twin = InProcessGrid(echo.app, NODES, RUN_CONFIG)
    for question in questions:
        contents = []
        for one in (grid, twin):
            replies = one.send_and_receive([ask(node, question) for node in NODES], timeout=FAST_S)
            ordered = sorted(replies, key=lambda reply: reply.metadata.src_node_id)
            contents.append([r.error.reason if r.has_error() else r.content.object_id for r in ordered])
        assert contents[0] == contents[1]
        assert len(contents[0]) == len(NODES)


def test_a_worker_that_dies_answers_with_errors_and_leaves_the_other_alone(grid: WorkerGrid) -> None:
    other = process_of(grid, 20)
    kinds = ["query.die", "train", "train"]
    doomed = [ask(node, kind) for node, kind in zip((10, 30, 10), kinds)]
    replies = grid.send_and_receive([*doomed, ask(20), ask(40)], timeout=FAST_S)
    by_message = {reply.metadata.reply_to_message_id: reply for reply in replies}
    assert len(by_message) == 5
    for message in doomed:
        reply = by_message[message.metadata.message_id]
        assert (reply.error.code, reply.error.reason) == (5, "NODE_UNAVAILABLE")
        assert reply.metadata.src_node_id == 1
    (reply,) = grid.send_and_receive([ask(30)], timeout=FAST_S)
    assert reply.error.reason == "NODE_UNAVAILABLE"
    (reply,) = grid.send_and_receive([ask(40)], timeout=FAST_S)
    assert reply.has_content()

    identities = grid.push_messages([ask(20, "query.wait", FOREVER)])
    assert grid.pull_messages(identities) == []
    os.kill(other, signal.SIGKILL)
    assert [reply.error.reason for reply in pull_one(grid, identities)] == ["NODE_UNAVAILABLE"]


def pull_one(grid: WorkerGrid, identities: list[str]) -> list[Message]:
    end = time.monotonic() + FAST_S
    replies: list[Message] = []
    while not replies and time.monotonic() < end:
        replies = grid.pull_messages(identities)
        time.sleep(0.002)
    return replies


def test_a_node_at_work_holds_up_its_worker_only_and_not_the_closing(grid: WorkerGrid) -> None:
    grid.push_messages([ask(10, "query.wait", FOREVER)])
    assert grid.send_and_receive([ask(30)], timeout=0.0) == []
    (reply,) = grid.send_and_receive([ask(20)], timeout=FAST_S)
    assert reply.has_content()
    grid.close(patience_s=0.0)
    assert no_children_left()


def test_a_closed_grid_has_no_nodes_and_can_be_closed_again() -> None:
    grid = WorkerGrid(APP, NODES, RUN_CONFIG, num_workers=1)
    grid.close()
    grid.close()
    assert grid.get_node_ids() == []
    assert grid.push_messages([ask(10)]) == [""]
    assert no_children_left()


def test_there_are_never_more_workers_than_nodes() -> None:
    with WorkerGrid(APP, {10: {"own": "a"}}, RUN_CONFIG, num_workers=8):
        assert len(multiprocessing.active_children()) == 1
    assert no_children_left()


def test_no_worker_at_all_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        WorkerGrid(APP, NODES, RUN_CONFIG, num_workers=0)


def test_an_app_that_workers_cannot_import_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigurationError, match="no_such_app") as caught:
        WorkerGrid("tests.simulations.echo:no_such_app", NODES, RUN_CONFIG, num_workers=1)
    assert "\n" not in str(caught.value)
    assert no_children_left()


def test_an_app_that_ends_the_worker_while_it_is_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "crashing_app.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    with pytest.raises(ConfigurationError, match="ended while it started"):
        WorkerGrid("crashing_app:app", NODES, RUN_CONFIG, num_workers=1)
    assert no_children_left()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("tests.simulations.echo", "module:attribute"),
        (":app", "module:attribute"),
        ("tests.simulations.echo:a.b", "module:attribute"),
        ("tests.simulations.nowhere:app", "cannot import"),
        ("tests.simulations.echo:missing", "not a flwr.clientapp.ClientApp"),
        ("tests.simulations.echo:not_an_app", "not a flwr.clientapp.ClientApp"),
    ],
)
def test_a_reference_names_a_client_app(reference: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_app(reference)


def test_a_good_reference_is_imported() -> None:
    assert load_app(APP) is echo.app

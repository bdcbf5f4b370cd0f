"""The sync comes before the computation, and before the send: read off the log of a real site's disk."""

from collections.abc import Sequence
from pathlib import Path

from fednas.wire import Answer
from tests.crashes import children
from tests.crashes.nursery import MARK, REPLY, Job, Nursery, frames
from tests.crashes.power import Event, events
from tests.crashes.witness import answer_of, content_of

TASKS = [("train", 1), ("final", 2), ("train", 3)]


def record(nursery: Nursery, folder: Path, *, unsynced: bool = False) -> list[Event]:
    path = children.make_site(folder / "site")
    log = folder / "log"
    arguments = {"path": str(path), "tasks": TASKS, "unsynced": unsynced}
    end = nursery.one(Job(program="site", arguments=arguments, log=str(log), root=str(folder / "site")))
    assert end.status == 0, nursery.errors()
    return events(log)


def synced(found: Sequence[Event], text: str, start: int, end: int) -> bool:
    """Whether a text goes into the write-ahead log between two calls and is on the disk before the second.

    Everything that was written into the log by then must be.
    """
    log = [
        (number, event.kind, text.encode() in event.data)
        for number, event in enumerate(found[:end])
        if event.path.endswith("-wal") and event.kind in "WS"
    ]
    written = [number for number, kind, holds in log if kind == "W" and holds and number >= start]
    return bool(written) and log[-1][1] == "S" and log[-1][0] > written[0]


def violations(found: Sequence[Event]) -> list[str]:
    """What is out of order in the log of a site that answered all `TASKS`."""
    wrong, releases, start, begun = [], 0, 0, 0
    for number, event in enumerate(found):
        for kind, data in frames(event.data) if event.kind == "P" else ():
            if kind == MARK:
                assert data == b"mechanism"
                begun = number
            elif kind == REPLY:
                _, answer = answer_of(data)
                assert isinstance(answer, Answer)
                if not synced(found, f'"operation":"{answer.operation_id}"', start, begun):
                    wrong.append(f"operation {releases}: the computation began before the charge was synced")
                if not synced(found, content_of(answer), begun, number):
                    wrong.append(f"operation {releases}: the reply was sent before its release was synced")
                releases, start = releases + 1, number
    assert releases == len(TASKS)
    return wrong


def test_each_charge_is_synced_before_the_computation_and_each_release_before_it_is_sent(
    watched: Nursery, tmp_path: Path
) -> None:
    assert violations(record(watched, tmp_path)) == []


def test_a_ledger_that_does_not_sync_is_found_out_of_order(watched: Nursery, tmp_path: Path) -> None:
    """So the test above can fail."""
    wrong = violations(record(watched, tmp_path, unsynced=True))
    assert len(wrong) == 2 * len(TASKS)

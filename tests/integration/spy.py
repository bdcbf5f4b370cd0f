"""A grid that watches another one, and ends a run when it is told to."""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import final

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from client.app import app
from fednas.wire import Task, decode_task
from server.app import conduct
from server.report import Completed
from simulations import internals
from simulations.loopback import InProcessGrid
from tests.simulations import tiny


class Killed(BaseException):
    """Ends a run at once, as a signal would."""


@final
class SpyGrid(Grid):
    """Passes everything on to the tiny sites of a run.

    Args:
        path: the run directory.
        die_after: looks for replies until the run is killed; None lets it live.
    """

    def __init__(self, path: Path, *, die_after: int | None = None) -> None:
        nodes = {i + 1: {"partition-id": i} for i in range(tiny.NUM_SITES)}
        self._grid = InProcessGrid(app, nodes, {"sites-dir": str(path / "sites")})
        self._left = die_after
        self.tasks: list[tuple[int, Task]] = []

    def set_run(self, run: internals.Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> internals.Run:
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> list[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        sent = list(messages)
        for message in sent:
            if message.metadata.message_type != "query.hello":
                self.tasks.append((message.metadata.dst_node_id - 1, decode_task(message.content)))
        return self._grid.push_messages(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = self._grid.pull_messages(message_ids)
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise Killed
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)


def whole(path: Path, *, resume: bool = False) -> Completed:
    """Conduct the study of a run directory to its end."""
    return conduct(SpyGrid(path), path, resume=resume)


def until(attempts: int, attempt: Callable[[int], Completed]) -> tuple[Completed, int]:
    """Try until an attempt is not killed: what it completed, and how many were."""
    for number in range(attempts):
        try:
            return attempt(number), number
        except Killed:
            continue
    raise AssertionError(f"none of {attempts} attempts reached the end")


def weights(completed: Completed) -> bytes:
    file = completed.directory.path / "weights.safetensors"
    completed.coordinator.supernet.save(file)
    return file.read_bytes()


def charged(ledger: Path) -> tuple[Counter[str], Counter[str]]:
    """What a ledger's reservations charge to each allowance: all of them, and those never answered."""
    with sqlite3.connect(ledger) as connection:
        rows = connection.execute("SELECT kind, body FROM entries ORDER BY seq").fetchall()
    connection.close()
    total: Counter[str] = Counter()
    waiting: dict[str, list[dict[str, int]]] = {}
    for kind, text in rows:
        body = json.loads(text)
        if kind == "RESERVE":
            total.update(body["charges"])
            waiting.setdefault(body["operation"], []).append(body["charges"])
        elif kind == "RELEASE":
            waiting[body["operation"]].pop()
    left: Counter[str] = Counter()
    for charges in (c for many in waiting.values() for c in many):
        left.update(charges)
    return total, left

"""What children do: a site answers tasks, a server conducts a study, several share one ledger."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from flwr.app import Message
from safetensors.torch import save
from sklearn.datasets import load_iris

import fednas.export
import fednas.site.site
import fednas.supernet.supernet
from client.app import app
from fednas.config import SiteConfig, dump_study, save_site
from fednas.errors import LedgerError, PrivacyError
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.ledger import Arrays, Permit
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.released import serialise
from fednas.privacy.store import LedgerStore
from fednas.schedule import release_schedule
from fednas.site import open_site
from fednas.space import create
from fednas.supernet import Supernet
from fednas.wire import Task, TaskKind, encode_task
from server.app import conduct
from server.report import write_results
from simulations import internals
from simulations.loopback import InProcessGrid
from tests.crashes import points
from tests.crashes.nursery import MARK, REPLY, frame
from tests.privacy.ledgers import noise, open_ledger, operation, plan_of, search_event
from tests.simulations import tiny

STUDY = tiny.study(schedule={"spare_rounds": 60})
SPACE = create("mlp", (4,), 3)
RACES = {
    "one": plan_of(search=search_event(20)),
    "long": plan_of(search=search_event(1000, sigma=200.0, q=1.0)),
    "two": plan_of(search=search_event(8, sigma=1.0)),
    "filtered": plan_of(PrivacyBudget(epsilon=3.0, delta=1e-5, order=8), search=search_event(12, sigma=1.3)),
}


# A site


def make_site(folder: Path, *, epsilon: float = 3.0) -> Path:
    """A site with the 150 flowers of Fisher's iris data and secret noise."""
    flowers = load_iris()
    (folder / "ledger").mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "data.npz", x=flowers.data.astype(np.float32), y=np.asarray(flowers.target, dtype=np.int64)
    )
    config = SiteConfig(
        name="iris",
        dataset="test/iris",
        data=Path("data.npz"),
        declared_size=150,
        epsilon=epsilon,
        delta=STUDY.privacy.delta,
        ledger=folder / "ledger" / "ledger.sqlite",
        device=tiny.device("large"),
    )
    save_site(config, folder / "site.toml")
    return folder / "site.toml"


@cache
def site_plan() -> PrivacyPlan:
    """The plan of the site's study."""
    return PrivacyPlan.calibrate(
        budget=STUDY.privacy.budget,
        proportions=STUDY.privacy.proportions,
        schedule=release_schedule(STUDY, tiny.NUM_SITES),
    )


def make_task(kind: str, round_number: int) -> Task:
    """A task as the server would send it: the same bytes for the same round."""
    path = SPACE.smallest()
    return Task(
        kind=cast(TaskKind, kind),
        run="run",
        round=round_number,
        plan=site_plan().to_json(),
        study=dump_study(STUDY),
        architectures=(path,),
        arrays={"weights.0": Supernet.initialise(SPACE, seed=0).gather(path)},
    )


def site(
    network: int,
    *,
    path: str,
    tasks: Sequence[tuple[str, int]],
    die: tuple[str, int] | None = None,
    unsynced: bool = False,
) -> None:
    """Answer tasks with the real client app; replies are what is sent.

    Marks say when a mechanism starts, and what the app says to the site's operator.
    """
    _mark_mechanisms(network)
    logging.getLogger("fednas.client").addHandler(_Overheard(network))
    if unsynced:
        _leave_unsynced()
    if die is not None:
        points.arm(*die)
    grid = InProcessGrid(app, {1: {"site": path}}, {})
    for kind, round_number in tasks:
        message = Message(
            encode_task(make_task(kind, round_number)), 1, kind.replace("final", "train"), ttl=60.0
        )
        (reply,) = grid.send_and_receive([message])
        os.write(network, frame(REPLY, internals.encode(reply)))
    open_site.cache_clear()


class _Overheard(logging.Handler):
    """Passes on what an operator reads."""

    def __init__(self, network: int) -> None:
        super().__init__()
        self._network = network

    def emit(self, record: logging.LogRecord) -> None:
        trace = " with a traceback" if record.exc_info else ""
        os.write(self._network, frame(MARK, f"log{trace} {record.getMessage()}".encode()))


def _mark_mechanisms(network: int) -> None:
    """Say so whenever private computation begins, before it reads a record."""
    module: Any = fednas.site.site
    original = module.train_weights

    def marked(*arguments: Any, **options: Any) -> Any:
        os.write(network, frame(MARK, b"mechanism"))
        return original(*arguments, **options)

    module.train_weights = marked


def _leave_unsynced() -> None:
    """The mutant: commits return before they are on the disk."""
    prepare = LedgerStore._prepare

    def careless(self: LedgerStore, busy_timeout_s: float) -> None:
        prepare(self, busy_timeout_s)
        self._connection.execute("PRAGMA synchronous=OFF")

    LedgerStore._prepare = careless  # type: ignore[method-assign]


# A server


def server(network: int, *, path: str, die: tuple[str, int] | None = None, results: bool = False) -> None:
    """Conduct, or resume, the tiny study; every reply that arrives is passed on, at last the supernet."""
    writers: list[Any] = [fednas.supernet.supernet, fednas.export]
    for module in writers:
        module.save_file = _save_file
    if die is not None:
        points.arm(*die)
    pull = InProcessGrid.pull_messages

    def watched(self: InProcessGrid, message_ids: Iterable[str]) -> list[Message]:
        replies = pull(self, message_ids)
        for reply in replies:
            os.write(network, frame(REPLY, internals.encode(reply)))
        return replies

    InProcessGrid.pull_messages = watched  # type: ignore[method-assign]
    nodes = {i + 1: {"partition-id": i} for i in range(tiny.NUM_SITES)}
    grid = InProcessGrid(app, nodes, {"sites-dir": str(Path(path) / "sites")})
    completed = conduct(grid, Path(path), resume=True)
    weights = completed.coordinator.supernet.weights
    digest = hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights)))
    os.write(network, frame(MARK, digest.hexdigest().encode()))
    if results:
        write_results(completed)
    open_site.cache_clear()


def _save_file(tensors: dict[str, Any], path: Path, metadata: dict[str, str]) -> None:
    """Write the same bytes through libc: safetensors renames by a system call that no library can watch."""
    Path(path).write_bytes(save(tensors, metadata=metadata))


# A race


def spend(network: int, *, path: str, runs: Sequence[str], plan: str, first: int) -> None:
    """Open plans, take one unit after the other until the ledger refuses, and say what was granted."""
    granted = {"plans": 0, "units": 0}
    refused = ""
    terms = RACES[plan]
    with open_ledger(Path(path), cap=terms.budget) as ledger:
        for run in runs:
            try:
                ledger.open_plan(run, terms)
                granted["plans"] += 1
            except PrivacyError as error:
                refused = type(error).__name__
        number = first
        while granted["plans"] and not refused:
            try:
                ledger.release(
                    operation(number, run=runs[number % len(runs)]), charges={"search": 1}, mechanism=noise
                )
            except PrivacyError as error:
                refused = type(error).__name__
            else:
                granted["units"] += 1
                number += 1
    os.write(network, frame(MARK, f"{granted['plans']} {granted['units']} {refused}".encode()))


# Wear


def wear(
    network: int, *, path: str, first: int, count: int, unsynced: bool = False, abrupt: bool = False
) -> None:
    """Make releases; marks say when each mechanism starts, and what is sent.

    Args:
        abrupt: an error of the ledger ends the process at once, without closing anything.
    """
    if unsynced:
        _leave_unsynced()
    terms = RACES["long"]

    def mechanism(permit: Permit) -> Arrays:
        os.write(network, frame(MARK, b"mechanism"))
        return noise(permit)

    try:
        ledger = open_ledger(Path(path))
        ledger.open_plan("run", terms)
        for number in range(first, first + count):
            released = ledger.release(operation(number), charges={"search": 1}, mechanism=mechanism)
            content = hashlib.sha256(serialise(dict(released.value))).hexdigest()
            text = f"sent {released.operation_id} {released.head} {content}"
            os.write(network, frame(MARK, text.encode()))
    except LedgerError:
        if abrupt:
            points.die()
        raise
    ledger.close()


def warm() -> None:
    """Fill the caches of accountants and libraries once, so that a child starts at work."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_site(Path(folder) / "site")
        grid = InProcessGrid(app, {1: {"site": str(path)}}, {})
        for kind in ("train", "evaluate"):
            grid.send_and_receive([Message(encode_task(make_task(kind, 1)), 1, kind, ttl=60.0)])
        open_site.cache_clear()
        for name, terms in RACES.items():
            with open_ledger(Path(folder) / name, cap=terms.budget) as ledger, suppress(PrivacyError):
                ledger.open_plan("left", terms)
                ledger.open_plan("right", terms)
        run = tiny.make_run(Path(folder) / "run", STUDY)
        nodes = {i + 1: {"partition-id": i} for i in range(tiny.NUM_SITES)}
        conduct(InProcessGrid(app, nodes, {"sites-dir": str(run / "sites")}), run, resume=False)
        open_site.cache_clear()

"""Labelled points at which a process kills itself: functions of the program, wrapped from outside."""

import functools
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fednas.privacy.ledger
import fednas.privacy.store
import fednas.site.site
import fednas.training.weights
import server.report
from fednas.privacy.ledger import PrivacyLedger
from fednas.privacy.store import LedgerStore
from fednas.supernet import Supernet
from server.checkpoint import RunDirectory
from simulations.loopback import InProcessGrid
from tests.crashes.nursery import REPLY

Test = Callable[..., bool]

# What each label needs: (where, name, before or after, and for which arguments).
_Point = tuple[Any, str, str, Test]


def _any(*_: Any, **__: Any) -> bool:
    return True


def _kind(kind: str) -> Test:
    return lambda store, name, body: name == kind


def _named(suffix: str) -> Test:
    return lambda path, *_: str(path).endswith(suffix)


CLIENT: dict[str, _Point] = {
    "creating the ledger: an empty file": (sqlite3, "connect", "before", _any),
    "creating the ledger: no entry yet": (LedgerStore, "append", "before", _kind("OPEN")),
    "creating the ledger: OPEN not committed": (LedgerStore, "append", "after", _kind("OPEN")),
    "creating the key: not yet in place": (Path, "replace", "before", _named(".key.new")),
    "creating the key: in place": (Path, "replace", "after", _named(".key.new")),
    "opening a plan: not committed": (LedgerStore, "append", "after", _kind("PLAN")),
    "opening a plan: committed": (PrivacyLedger, "open_plan", "after", _any),
    "before the reservation": (PrivacyLedger, "release", "before", _any),
    "inside the reservation's commit": (LedgerStore, "append", "after", _kind("RESERVE")),
    "after the reservation": (fednas.privacy.ledger, "SecureEntropy", "before", _any),
    "inside the mechanism": (fednas.site.site, "train_weights", "before", _any),
    "inside the mechanism: after a noised step": (fednas.training.weights, "noised_sum", "after", _any),
    "after the noise, before it is stored": (fednas.privacy.ledger, "serialise", "after", _any),
    "inside the release's commit: reply stored": (LedgerStore, "keep", "after", _any),
    "inside the release's commit: entry written": (LedgerStore, "append", "after", _kind("RELEASE")),
    "after the release, before it is sent": (PrivacyLedger, "release", "after", _any),
    "after it was sent": (os, "write", "after", lambda network, data: data[:1] == REPLY),
}
SERVER: dict[str, _Point] = {
    "after the tasks were pushed": (InProcessGrid, "push_messages", "after", _any),
    "after the replies, before the merge": (Supernet, "merge", "before", _any),
    "before the round's record": (RunDirectory, "write", "before", lambda run, name, _: "rounds/" in name),
    "after the round's record": (RunDirectory, "write", "after", lambda run, name, _: "rounds/" in name),
    "inside the checkpoint: before its rename": (Path, "rename", "before", _named(".draft")),
    "inside the checkpoint: after its rename": (Path, "rename", "after", _named(".draft")),
    "after the checkpoint": (RunDirectory, "save", "after", _any),
}
RESULTS: dict[str, _Point] = {
    "writing results: before a network": (server.report, "export", "before", _any),
    "writing results: before the last file": (
        RunDirectory,
        "write",
        "before",
        lambda run, name, _: name == "result.json",
    ),
    "writing results: after the last file": (
        RunDirectory,
        "write",
        "after",
        lambda run, name, _: name == "result.json",
    ),
}
POINTS = CLIENT | SERVER | RESULTS


def die() -> None:
    """End this process as a power switch would: nothing is flushed, nobody is told."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(label: str, passage: int) -> None:
    """Make this process kill itself at a passage of a labelled point, the first being 1."""
    owner, name, when, applies = POINTS[label]
    passed: Counter[str] = Counter()

    def here(*arguments: Any) -> None:
        if applies(*arguments):
            passed[label] += 1
            if passed[label] == passage:
                die()

    original = getattr(owner, name)

    @functools.wraps(original, updated=())
    def wrapped(*arguments: Any, **options: Any) -> Any:
        if when == "before":
            here(*arguments)
        result = original(*arguments, **options)
        if when == "after":
            here(*arguments)
        return result

    setattr(owner, name, wrapped)

"""Power losses: what was acknowledged is on the disk, whatever becomes of writes that were not synced."""

import errno
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from fednas.errors import LedgerError
from fednas.wire import Answer
from tests.crashes import children
from tests.crashes.nursery import KILLED, MARK, REPLY, Fault, Job, Nursery, frame, frames
from tests.crashes.power import Disk, Event, cuts, events
from tests.crashes.witness import Witness, answer_of
from tests.privacy.ledgers import noise, open_ledger, operation
from tests.simulations import tiny

# The calls at an opening: syncs of a log, a database and their folder, and the opening of that folder.
OPENING = [("s", call, errno.EIO) for call in range(8)] + [("o", call, errno.EROFS) for call in range(10)]
QUICK = {(0, "s", 0), (1, "s", 1), (1, "s", 3)}  # each is found by a ledger without one of its precautions


def hear(network: Sequence[Event], witnesses: Sequence[Witness]) -> int:
    """Tell the witnesses what had been sent; returns how many mechanisms had begun."""
    begun = 0
    for event in network:
        for kind, data in frames(event.data):
            if kind == REPLY:
                node, answer = answer_of(data)
                if isinstance(answer, Answer):
                    witnesses[node - 1].receive(answer)
            elif kind == MARK:
                word, *sent = data.decode().split()
                if word == "mechanism":
                    begun += 1
                elif word == "sent":
                    witnesses[0].note(*sent)
    return begun


@dataclass(kw_only=True)
class Losses:
    """What came of some power losses.

    Args:
        cuts: how many there were.
        charges: acknowledged charges, entries and replies that were lost, or chains that were broken.
        bad: cuts with any of that.
        refused: cuts after which the ledger refused to open: none that had acknowledged anything.
    """

    cuts: int = 0
    charges: int = 0
    bad: int = 0
    refused: int = 0

    def add(self, charges: int) -> None:
        """Count one more cut."""
        self.cuts += 1
        self.charges += charges
        self.bad += charges > 0

    def __iadd__(self, other: "Losses") -> Self:
        self.cuts += other.cuts
        self.charges += other.charges
        self.bad += other.bad
        self.refused += other.refused
        return self


def lose_power(folder: Path, log: Path, count: int, seed: int) -> Losses:
    """Cut a ledger's log at random moments.

    Args:
        folder: where the ledger is, empty when the log began; the cut files go beside it.
        log: of its disk and its network.
        count: how many cuts.
        seed: of public randomness.
    """
    moments = random.Random(seed)
    found = events(log)
    empty = folder.with_name("empty")
    empty.mkdir(exist_ok=True)
    disk, at = Disk(folder, empty, moments), 0
    losses = Losses()
    for number, end in enumerate(cuts(found, count, moments)):
        for event in found[at:end]:
            disk.take(event)
        at = end
        out = folder.with_name(f"cut-{seed}-{number}")
        disk.lose_power(out)
        witness = Witness(path=out / "ledger.sqlite")
        begun = hear([event for event in found[:end] if event.kind == "P"], [witness])
        witness.look()
        missing = witness.lost + witness.uncharged + witness.broken + max(0, begun - witness.reservations)
        losses.add(missing)
        try:
            with open_ledger(out / "ledger.sqlite") as ledger:
                ledger.open_plan("run", children.RACES["long"])
                ledger.release(operation(10**6), charges={"search": 1}, mechanism=noise)
            Witness(path=out / "ledger.sqlite").look()
        except LedgerError:
            losses.refused += 1
            assert missing or not begun, "what was acknowledged is readable"
        shutil.rmtree(out)
    return losses


def record(
    nursery: Nursery,
    folder: Path,
    *,
    count: int = 3,
    lives: int = 2,
    fault: Fault | None = None,
    faulty: int = 0,
    unsynced: bool = False,
) -> Path:
    """The log of a ledger's whole life, over some processes.

    Args:
        nursery: whose disk is watched.
        folder: to be made.
        count: releases that each process makes.
        lives: processes, one after the other.
        fault: in the life of number `faulty`; the process then ends at once.
        unsynced: the mutant.
    """
    folder.mkdir()
    log = folder.with_suffix(".log")
    for life in range(lives):
        arguments = {
            "path": str(folder / "ledger.sqlite"),
            "first": 1000 * life,
            "count": count,
            "unsynced": unsynced,
            "abrupt": True,
        }
        trouble = fault if life == faulty else None
        end = nursery.one(
            Job(program="wear", arguments=arguments, log=str(log), root=str(folder), fault=trouble)
        )
        assert end.status in ((0, KILLED) if trouble else (0,)), nursery.errors()
    return log


def lose_power_of_server(nursery: Nursery, run: Path, log: Path, count: int, seed: int) -> Losses:
    """Cut the log of a whole study, of its sites and its server at once, and resume it from what is found.

    Args:
        nursery: where the study goes on.
        run: the run directory after the study; beside it, with the suffix `.before`, as it was before.
        log: of the study, which went from its beginning to its end.
        count: how many cuts.
        seed: of public randomness.
    """
    moments = random.Random(seed)
    found = events(log)
    network = [event for event in found if event.kind == "P"]
    (expected,) = [word for event in network for kind, word in frames(event.data) if kind == MARK][-1:]
    disk, at, losses = Disk(run, run.with_suffix(".before"), moments), 0, Losses()
    for end in cuts(found, count, moments):
        for event in found[at:end]:
            disk.take(event)
        at = end
        shutil.rmtree(run)
        disk.lose_power(run)
        witnesses = [Witness(path=ledger) for ledger in tiny.ledger_files(run).values()]
        hear([event for event in found[:end] if event.kind == "P"], witnesses)
        for witness in witnesses:
            witness.look()
        resumed = nursery.one(Job(program="server", arguments={"path": str(run)}))
        assert resumed.status == 0, nursery.errors()
        assert resumed.marks[-1] == expected.decode()
        hear([Event(kind="P", path="", data=frame(*each)) for each in resumed.frames], witnesses)
        for witness in witnesses:
            witness.look()
        losses.add(sum(w.lost + w.uncharged + w.broken for w in witnesses))
    return losses


def record_study(nursery: Nursery, run: Path, *, results: bool = False) -> Path:
    """The log of a whole study; what it began with is kept beside it."""
    tiny.make_run(run, children.STUDY)
    shutil.copytree(run, run.with_suffix(".before"))
    log = run.with_suffix(".log")
    arguments = {"path": str(run), "results": results}
    end = nursery.one(Job(program="server", arguments=arguments, log=str(log), root=str(run)))
    assert end.status == 0, nursery.errors()
    return log


def test_a_power_loss_costs_no_acknowledged_charge(watched: Nursery, tmp_path: Path) -> None:
    killed = Fault(kinds="ws", first=60, last=60, action="kill before")
    log = record(watched, tmp_path / "ward", fault=killed)
    assert not lose_power(tmp_path / "ward", log, 8, 0).charges


def test_a_ledger_that_does_not_sync_loses_charges(watched: Nursery, tmp_path: Path) -> None:
    """So the simulated power losses can fail."""
    log = record(watched, tmp_path / "ward", unsynced=True)
    assert lose_power(tmp_path / "ward", log, 8, 0).charges > 0


def test_a_power_loss_of_all_machines_at_once_changes_no_result(watched: Nursery, tmp_path: Path) -> None:
    log = record_study(watched, tmp_path / "run")
    assert not lose_power_of_server(watched, tmp_path / "run", log, 2, 0).charges


@pytest.mark.parametrize(
    ("life", "kinds", "call", "error"),
    [
        pytest.param(life, *each, marks=[] if (life, *each[:2]) in QUICK else [pytest.mark.slow])
        for life in range(2)
        for each in OPENING
    ],
)
def test_a_ledger_of_which_a_sync_failed_at_its_opening_never_loses_a_later_charge(
    watched: Nursery, tmp_path: Path, life: int, kinds: str, call: int, error: int
) -> None:
    """SQLite says nothing of some of these failures: then a commit is undone by the next power loss."""
    fault = Fault(kinds=kinds, first=call, last=call, error=error)
    log = record(watched, tmp_path / "ward", count=2, fault=fault, faulty=life, lives=2 + life)
    assert not lose_power(tmp_path / "ward", log, 8, call).charges


@pytest.mark.slow
def test_results_that_are_announced_are_on_the_disk(watched: Nursery, tmp_path: Path) -> None:
    run = tmp_path / "run"
    found = events(record_study(watched, run, results=True))
    files = [run / "supernet.safetensors", *sorted(p for p in run.glob("tiers/**/*") if p.is_file())]
    assert len(files) == 1 + 5 * tiny.NUM_SITES
    expected = {str(path.relative_to(run)): path.read_bytes() for path in files}
    announced = 0
    for seed in range(30):
        disk = Disk(run, run.with_suffix(".before"), random.Random(seed))
        for event in found[: len(found) - seed]:
            disk.take(event)
        out = tmp_path / str(seed)
        disk.lose_power(out)
        if (out / "result.json").exists():
            announced += 1
            assert {name: (out / name).read_bytes() for name in expected} == expected
    assert announced


@pytest.mark.slow
def test_two_hundred_power_losses_cost_no_acknowledged_charge(watched: Nursery, tmp_path: Path) -> None:
    total, mutant = Losses(), Losses()
    for number in range(12):
        call = 10 + 7 * number
        fault = Fault(kinds="owsn", first=call, last=call, action="kill before")
        folder = tmp_path / f"killed-{number}"
        log = record(watched, folder, count=12, lives=3, fault=fault, faulty=number % 2)
        total += lose_power(folder, log, 10, number)
    long = tmp_path / "long"  # its log is copied into the file several times while it works
    total += lose_power(long, record(watched, long, count=400), 30, 0)
    run = tmp_path / "run"
    total += lose_power_of_server(watched, run, record_study(watched, run), 60, 0)
    for number in range(3):
        careless = tmp_path / f"careless-{number}"
        mutant += lose_power(careless, record(watched, careless, unsynced=True), 10, number)
    sys.stdout.write(f"\nsynced: {total}\nnot synced: {mutant}\n")
    assert total.cuts >= 200
    assert not total.charges
    assert mutant.charges > 0

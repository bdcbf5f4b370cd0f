"""Disks that refuse: no reply without a durable charge, one line to the operator, one code to the server."""

import errno
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from fednas.wire import Answer, Refusal
from tests.crashes import children
from tests.crashes.nursery import REPLY, Fault, Job, Nursery, frames
from tests.crashes.power import Disk, Event, events
from tests.crashes.witness import Witness, answer_of

FOR_EVER = 1 << 30
TASKS = [("train", 1), ("final", 2), ("train", 3)]
DISKS = {
    "full": ("w", "fail", errno.ENOSPC),
    "failing writes": ("w", "fail", errno.EIO),
    "failing syncs": ("s", "fail", errno.EIO),
    "read-only": ("own", "fail", errno.EROFS),
    "short writes": ("w", "short", 0),
}


class Outcomes:
    """What the operators and servers of some sites saw."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def hear(self, replies: list[bytes], words: list[str], witness: Witness) -> int:
        """Tell a witness of the replies; returns how many are answers.

        Anything but an answer is the constant code of a ledger's failure, and one line of text.
        """
        answers = 0
        for _, answer in map(answer_of, replies):
            if isinstance(answer, Answer):
                witness.receive(answer)
                answers += 1
            else:
                assert answer is Refusal.LEDGER_FAILURE
        assert len(words) == len(replies) - answers
        for line in words:
            assert line.startswith("log refused with LEDGER_FAILURE: "), line
            assert "\n" not in line
        self.counts.update(answered=answers, refused=len(words))
        return answers


def suffer(nursery: Nursery, folder: Path, fault: Fault, outcomes: Outcomes, seed: int) -> bool:
    """Let a site work on a bad disk, lose power, and work again on a good one; whether the fault happened."""
    path = children.make_site(folder)
    ledger, log = folder / "ledger", folder / "log"
    witness = Witness(path=ledger / "ledger.sqlite")

    def work(fault: Fault | None) -> tuple[int, int]:
        arguments = {"path": str(path), "tasks": TASKS}
        end = nursery.one(
            Job(program="site", arguments=arguments, log=str(log), root=str(ledger), fault=fault)
        )
        assert end.status == 0, nursery.errors()
        assert len(end.replies) == len(TASKS)
        words = [mark for mark in end.marks if mark.startswith("log")]
        return outcomes.hear(end.replies, words, witness), end.calls

    _, calls = work(fault)
    witness.look()
    lose_power(ledger, events(log), seed)
    answers, _ = work(None)
    witness.look()
    assert (witness.lost, witness.uncharged, witness.broken) == (0, 0, 0)
    outcomes.counts.update(sites=1, usable=answers == len(TASKS))
    return calls > fault.first


def lose_power(ledger: Path, found: list[Event], seed: int) -> None:
    """After each reply that was sent on the bad disk, see what a power loss would leave of its charge."""
    empty = ledger.with_name("empty")
    empty.mkdir()
    disk = Disk(ledger, empty, random.Random(seed))
    sent = []
    for event in found:
        disk.take(event)
        replies = [data for kind, data in frames(event.data) if kind == REPLY] if event.kind == "P" else []
        sent += [answer for _, answer in map(answer_of, replies) if isinstance(answer, Answer)]
        if replies and sent:
            out = ledger.with_name("cut")
            disk.lose_power(out)
            witness = Witness(path=out / "ledger.sqlite")
            for answer in sent:
                witness.receive(answer)
            witness.look()
            assert (witness.lost, witness.uncharged, witness.broken) == (0, 0, 0)
            shutil.rmtree(out)


def fault_of(disk: str, call: int, *, for_ever: bool) -> Fault:
    kinds, action, error = DISKS[disk]
    last = FOR_EVER if for_ever else call
    return Fault(kinds=kinds, first=call, last=last, action=action, error=error)  # type: ignore[arg-type]


@pytest.mark.parametrize("disk", DISKS)
def test_a_site_on_a_bad_disk_never_replies_without_a_durable_charge(
    watched: Nursery, tmp_path: Path, disk: str
) -> None:
    outcomes = Outcomes()
    moments = random.Random(disk)
    for number, call in enumerate([0, moments.randint(1, 15), moments.randint(16, 30)]):
        fault = fault_of(disk, call, for_ever=number == 1)
        suffer(watched, tmp_path / str(number), fault, outcomes, call)
    if disk != "short writes":
        assert outcomes.counts["refused"], "the disk was bad"


@pytest.mark.slow
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("disk", DISKS)
def test_every_call_of_a_site_may_fail_in_turn(
    watched: Nursery, tmp_path: Path, disk: str, for_ever: bool
) -> None:
    outcomes, call = Outcomes(), 0
    while suffer(watched, tmp_path / str(call), fault_of(disk, call, for_ever=for_ever), outcomes, call):
        call += 1
    sys.stdout.write(f"\n{disk}: {call} calls, {dict(outcomes.counts)}\n")  # seen with `pytest -s`
    assert call >= 10

"""SIGKILL at labelled points of client and server: no uncharged release, no lost entry, no broken chain."""

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import pytest

from fednas.wire import Answer, Refusal
from tests.crashes import children, points
from tests.crashes.nursery import KILLED, End, Fault, Job, Nursery
from tests.crashes.witness import Witness, answer_of
from tests.simulations import tiny

KINDS = ("train", "final")
CREATION = tuple(label for label in points.CLIENT if label.startswith(("creating", "opening")))
AT_WORK = tuple(label for label in points.CLIENT if label not in CREATION)
FINDINGS = ("uncharged", "lost", "broken")


class Tally:
    """What came of the kills at each label."""

    def __init__(self) -> None:
        self.kills: Counter[str] = Counter()
        self.found: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, label: str, witnesses: Iterable[Witness], *, kills: int = 1) -> None:
        """Count kills at a label, and what the witnesses have found since the last call."""
        self.kills[label] += kills
        for witness in witnesses:
            for name in FINDINGS:
                self.found[label][name] += getattr(witness, name)
                setattr(witness, name, 0)

    def table(self) -> str:
        lines = [f"{'killed':48} {'kills':>6} " + " ".join(f"{name:>10}" for name in FINDINGS)]
        for label, kills in self.kills.items():
            findings = " ".join(f"{self.found[label][name]:10}" for name in FINDINGS)
            lines.append(f"{label:48} {kills:6} {findings}")
        return "\n".join([*lines, f"{'in all':48} {self.kills.total():6}"])

    def check(self, *, kills: int, labels: Iterable[str]) -> None:
        sys.stdout.write(f"\n{self.table()}\n")  # seen with `pytest -s`
        missing = [label for label in labels if not self.kills[label]]
        assert not missing
        assert self.kills.total() >= kills
        assert not sum(sum(found.values()) for found in self.found.values()), self.table()


def kill_site(nursery: Nursery, folder: Path, labels: Sequence[str], tally: Tally, seed: int) -> None:
    """Kill one site again and again; the server goes on asking until each task is answered, some twice."""
    moments = random.Random(seed)
    path = children.make_site(folder)
    witness = Witness(path=folder / "ledger" / "ledger.sqlite")
    answered = 0

    def ask(first: int, count: int, die: tuple[str, int] | None = None) -> End:
        tasks = [(KINDS[number % 2], number) for number in range(first, first + count)]
        end = nursery.one(Job(program="site", arguments={"path": str(path), "tasks": tasks, "die": die}))
        assert end.status in (0, KILLED), nursery.errors()
        for reply in end.replies:
            _, answer = answer_of(reply)
            assert isinstance(answer, Answer), answer
            witness.receive(answer)
        witness.look()
        return end

    for label in labels:
        repeat = min(answered, moments.randint(0, 1))
        first = answered + 1 - repeat
        end = ask(first, 3, (label, moments.randint(1, 2) if label in AT_WORK else 1))
        answered = max(answered, first - 1 + len(end.replies))
        tally.add(label, [witness], kills=end.status == KILLED)
    assert len(ask(1, answered + 1).replies) == answered + 1
    tally.add(labels[-1], [witness], kills=0)


def kill_study(
    nursery: Nursery,
    folder: Path,
    labels: Sequence[str],
    tally: Tally,
    *,
    seed: int,
    expected: str,
    passages: int = 1,
) -> None:
    """Kill a study again and again, then let it end: its supernet is the one of a study that never died."""
    moments = random.Random(seed)
    path = tiny.make_run(folder, children.STUDY)
    witnesses = [Witness(path=ledger) for ledger in tiny.ledger_files(path).values()]

    def conduct(die: tuple[str, int] | None = None) -> End:
        results = die is not None and die[0] in points.RESULTS
        arguments = {"path": str(path), "die": die, "results": results}
        end = nursery.one(Job(program="server", arguments=arguments))
        assert end.status in (0, KILLED), nursery.errors()
        for node, answer in map(answer_of, end.replies):
            assert not isinstance(answer, Refusal), answer
            if answer is not None:
                witnesses[node - 1].receive(answer)
        for witness in witnesses:
            witness.look()
        return end

    for label in labels:
        end = conduct((label, moments.randint(1, passages if label in points.SERVER else 1)))
        tally.add(label, witnesses, kills=end.status == KILLED)
        if end.marks:
            assert end.marks == [expected]
    assert conduct().marks == [expected]
    tally.add(labels[-1], witnesses, kills=0)


def uninterrupted(nursery: Nursery, folder: Path) -> str:
    path = tiny.make_run(folder, children.STUDY)
    end = nursery.one(Job(program="server", arguments={"path": str(path)}))
    assert end.status == 0, nursery.errors()
    (digest,) = end.marks
    return digest


def test_a_site_killed_at_every_labelled_point_loses_no_charge(nursery: Nursery, tmp_path: Path) -> None:
    tally = Tally()
    for number, label in enumerate(CREATION):
        kill_site(nursery, tmp_path / f"site-{number}", [label], tally, number)
    kill_site(nursery, tmp_path / "site", AT_WORK, tally, 0)
    tally.check(kills=len(points.CLIENT), labels=points.CLIENT)


def test_a_server_killed_at_every_labelled_point_ends_where_it_would_have(
    nursery: Nursery, tmp_path: Path
) -> None:
    tally = Tally()
    expected = uninterrupted(nursery, tmp_path / "whole")
    labels = [*points.SERVER, "writing results: before a network"]
    kill_study(nursery, tmp_path / "pieces", labels, tally, seed=0, expected=expected)
    tally.check(kills=len(labels), labels=labels)


@pytest.mark.slow
def test_a_thousand_kills_leave_no_uncharged_release_no_lost_entry_and_no_broken_chain(
    nursery: Nursery, tmp_path: Path
) -> None:
    tally = Tally()
    moments = random.Random(3)
    expected = uninterrupted(nursery, tmp_path / "whole")
    number = 0
    while tally.kills.total() < 1000:
        number += 1
        for label in CREATION:
            kill_site(nursery, tmp_path / f"{number}-{CREATION.index(label)}", [label], tally, number)
        labels = [*AT_WORK, *AT_WORK, *AT_WORK]
        moments.shuffle(labels)
        kill_site(nursery, tmp_path / f"site-{number}", labels, tally, number)
        labels = [*points.SERVER, *points.SERVER, *points.SERVER]
        moments.shuffle(labels)
        labels += points.RESULTS if number % 4 == 1 else ["writing results: before a network"]
        study = tmp_path / f"study-{number}"
        kill_study(nursery, study, labels, tally, seed=number, expected=expected, passages=3)
    tally.check(kills=1000, labels=points.POINTS)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["kill before", "kill after"])
def test_every_call_of_a_site_to_its_disk_may_be_the_last(
    watched: Nursery, tmp_path: Path, moment: Literal["kill before", "kill after"]
) -> None:
    tally, call, end = Tally(), 0, None
    while end is None or end.status == KILLED:
        path = children.make_site(tmp_path / str(call))
        witness = Witness(path=path.parent / "ledger" / "ledger.sqlite")
        fault = Fault(kinds="owsn", first=call, last=call, action=moment)
        arguments = {"path": str(path), "tasks": [("train", 1), ("final", 2)]}
        end = watched.one(Job(program="site", arguments=arguments, root=str(path.parent), fault=fault))
        for again in (end, watched.one(Job(program="site", arguments=arguments))):
            for _, answer in map(answer_of, again.replies):
                assert isinstance(answer, Answer), answer
                witness.receive(answer)
            witness.look()
        assert len(witness.heads) == 2
        tally.add(moment, [witness], kills=end.status == KILLED)
        call += 1
    tally.check(kills=50, labels=[moment])

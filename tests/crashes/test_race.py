"""Sixteen processes and one ledger: exactly the room there is gets granted, to whoever comes first."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from fednas.privacy.verify import Verification, verify
from tests.crashes import children
from tests.crashes.nursery import Job, Nursery
from tests.crashes.witness import read
from tests.privacy.ledgers import open_ledger

PROCESSES = 16


def race(
    nursery: Nursery, path: Path, plan: str, runs: Sequence[Sequence[str]]
) -> tuple[list[int], list[int]]:
    """Let processes spend from one ledger at once.

    Args:
        nursery: where they live.
        path: of the ledger, which they create if there is none.
        plan: that each of them opens.
        runs: for each process, under which names.

    Returns:
        How many plans and units each was granted.
    """
    jobs = [
        Job(
            program="spend",
            arguments={"path": str(path), "runs": list(names), "plan": plan, "first": 1000 * number},
        )
        for number, names in enumerate(runs)
    ]
    ends = nursery.run(*jobs)
    assert all(end.status == 0 for end in ends), nursery.errors()
    said = [end.marks[0].split() for end in ends]
    assert {refused for _, _, refused in said} == {"BudgetExhaustedError"}
    return [int(plans) for plans, _, _ in said], [int(units) for _, units, _ in said]


def charged(path: Path) -> Verification:
    """What the ledger's verifier counts, after a look that each charge is of one unit."""
    assert all(line.body["charges"] == {"search": 1} for line in read(path) if line.kind == "RESERVE")
    found = verify(path)
    assert not found.open_reservations
    return found


def race_for_units(nursery: Nursery, path: Path) -> None:
    """One run of twenty units."""
    _, units = race(nursery, path, "one", [["run"]] * PROCESSES)
    assert sum(units) == charged(path).reservations == 20
    assert charged(path).plans == 1


def race_for_plans(nursery: Nursery, path: Path) -> None:
    """Two runs of eight units each, of which the cap allows one."""
    half = PROCESSES // 2
    plans, units = race(nursery, path, "two", [["left"]] * half + [["right"]] * half)
    assert sorted([sum(plans[:half]), sum(plans[half:])]) == [0, half]
    assert sum(units) == charged(path).reservations == 8
    assert charged(path).plans == 1


def race_for_epsilon(nursery: Nursery, path: Path, room: int) -> None:
    """Two runs of twelve units each under a filter that allows fewer than all of them."""
    terms = children.RACES["filtered"]
    with open_ledger(path, cap=terms.budget) as ledger:
        ledger.open_plan("left", terms)
        ledger.open_plan("right", terms)
    _, units = race(nursery, path, "filtered", [["left", "right"]] * PROCESSES)
    assert sum(units) == charged(path).reservations == room
    assert charged(path).plans == 2


def room_of_filter(nursery: Nursery, path: Path) -> int:
    """How many units one process alone is granted."""
    _, (units,) = race(nursery, path, "filtered", [["left", "right"]])
    assert 12 < units < 24
    assert charged(path).reservations == units
    return units


def rounds(nursery: Nursery, folder: Path, count: int) -> None:
    """Each of the three races in turn."""
    room = room_of_filter(nursery, folder / "alone")
    for number in range(count):
        path = folder / str(number)
        if number % 3 == 0:
            race_for_units(nursery, path)
        elif number % 3 == 1:
            race_for_plans(nursery, path)
        else:
            race_for_epsilon(nursery, path, room)


def test_sixteen_processes_are_granted_exactly_the_room_there_is(nursery: Nursery, memory: Path) -> None:
    rounds(nursery, memory, 3)


@pytest.mark.slow
def test_sixteen_processes_never_overspend_in_a_hundred_rounds(nursery: Nursery, memory: Path) -> None:
    rounds(nursery, memory, 100)

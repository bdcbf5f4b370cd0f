"""Processes that die or race: nothing is given back, nothing is spent twice."""

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from fednas.privacy.ledger import Arrays, BudgetExhaustedError, Permit, Released
from fednas.privacy.verify import verify
from tests.privacy.ledgers import (
    SMALL,
    entries,
    forbidden,
    noise,
    open_ledger,
    operation,
    plan_of,
    same,
    search_event,
)

PREAMBLE = """
import os, signal, sys
from pathlib import Path
from fednas.privacy.ledger import BudgetExhaustedError
from tests.privacy.ledgers import SMALL, noise, open_ledger, operation, plan_of, search_event

path = Path(sys.argv[1])

def die(permit):
    os.kill(os.getpid(), signal.SIGKILL)

def wait_for_the_others():
    print("ready", flush=True)
    sys.stdin.readline()
"""

RELEASES = """
wait_for_the_others()
first, count = int(sys.argv[2]), int(sys.argv[3])
spent = 0
with open_ledger(path) as ledger:
    ledger.open_plan("run", SMALL)
    try:
        for number in range(first, first + count):
            ledger.release(operation(number), charges={"search": 1}, mechanism=noise)
            spent += 1
    except BudgetExhaustedError:
        pass
print(spent)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def race(script: str, *arguments: tuple[object, ...]) -> list[str]:
    """Run one process for each tuple of arguments, let all go at once, and return their last lines."""
    processes = [start(script, *each) for each in arguments]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = []
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        results.append(output.strip())
    return results


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def test_a_process_that_is_killed_inside_its_mechanism_leaves_the_charge(path: Path) -> None:
    for _ in range(2):
        victim = start(
            "ledger = open_ledger(path)\n"
            "ledger.open_plan('run', SMALL)\n"
            "ledger.release(operation(1), charges={'search': 6}, mechanism=die)\n",
            path,
        )
        victim.communicate(timeout=120)
        assert victim.returncode == -signal.SIGKILL
    with open_ledger(path) as ledger:
        assert ledger.statement().open_reservations == 2
        first = ledger.release(operation(1), charges={"search": 6}, mechanism=noise)  # a retry pays again
        again = ledger.release(operation(1), charges={"search": 6}, mechanism=forbidden)  # a repeat does not
        with pytest.raises(BudgetExhaustedError, match="exceeds the 2"):
            ledger.release(operation(2), charges={"search": 3}, mechanism=forbidden)
    assert same(first.value, again.value)
    assert [entry["charges"] for entry in entries(path, "RESERVE")] == [{"search": 6}] * 3
    assert verify(path).open_reservations == 2


def test_two_processes_never_overspend_an_allowance(path: Path) -> None:
    spent = [int(text) for text in race(RELEASES, (path, 0, 100), (path, 1000, 100))]
    assert sum(spent) == SMALL.allowance("search").amount
    assert len(entries(path, "RESERVE")) == SMALL.allowance("search").amount
    assert len(entries(path, "OPEN")) == len(entries(path, "PLAN")) == 1
    assert verify(path).open_reservations == 0


def test_two_processes_with_the_same_requests_send_the_same_replies(path: Path) -> None:
    assert race(RELEASES, (path, 0, 8), (path, 0, 8)) == ["8", "8"]
    released = Counter(str(entry["operation"]) for entry in entries(path, "RELEASE"))
    assert list(released.values()) == [1] * 8
    assert 8 <= len(entries(path, "RESERVE")) <= 16
    verify(path)


def test_of_two_answers_to_one_request_only_the_first_ever_leaves(path: Path) -> None:
    inner: list[Released[Arrays]] = []

    def overtaken(permit: Permit) -> Arrays:
        with open_ledger(path) as other:  # as another process would
            inner.append(other.release(operation(1), charges={"search": 1}, mechanism=noise))
        return noise(permit)

    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        outer = ledger.release(operation(1), charges={"search": 1}, mechanism=overtaken)
        assert ledger.statement().open_reservations == 1  # both were charged
    assert same(outer.value, inner[0].value)
    assert outer.head == inner[0].head
    verify(path)


def test_threads_that_share_a_ledger_never_overspend(path: Path) -> None:
    spent: list[int] = []

    def work(first: int) -> None:
        for number in range(first, first + 10):
            try:
                ledger.release(operation(number), charges={"search": 1}, mechanism=noise)
            except BudgetExhaustedError:
                return
            ledger.statement()
            spent.append(number)

    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        threads = [threading.Thread(target=work, args=(first,)) for first in (0, 100, 200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
    assert len(spent) == len(set(spent)) == SMALL.allowance("search").amount
    assert verify(path).open_reservations == 0


def test_two_runs_that_do_not_fit_together_are_not_both_opened(path: Path) -> None:
    plan = "plan_of(search=search_event(60))"
    with open_ledger(path.with_name("alone")) as ledger:
        ledger.open_plan("first", plan_of(search=search_event(60)))
        with pytest.raises(BudgetExhaustedError):
            ledger.open_plan("second", plan_of(search=search_event(60)))
    outcomes = race(
        f"""
wait_for_the_others()
with open_ledger(path) as ledger:
    try:
        ledger.open_plan(sys.argv[2], {plan})
    except BudgetExhaustedError as error:
        print(error.code)
""",
        (path, "left"),
        (path, "right"),
    )
    assert sorted(outcomes) == ["", "BUDGET_EXHAUSTED"]
    assert len(entries(path, "PLAN")) == 1


def test_processes_that_create_a_ledger_at_once_share_one_key(path: Path) -> None:
    keys = race(
        "wait_for_the_others()\nwith open_ledger(path) as ledger:\n    print(ledger.stream_key.hex())\n",
        *[(path,)] * 4,
    )
    assert len(set(keys)) == 1
    assert [json.dumps(entry["dataset"]) for entry in entries(path, "OPEN")] == ['"ward"']

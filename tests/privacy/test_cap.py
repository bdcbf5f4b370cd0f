"""One cap over all runs, and one file that belongs to one dataset, key and owner."""

import math
from pathlib import Path

import pytest

from fednas.errors import (
    LedgerError,
    PrivacyError,
    ReplayMismatchError,
)
from fednas.privacy.accounting import epsilon_pld
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.ledger import BudgetExhaustedError, PrivacyLedger
from fednas.privacy.plan import STREAMS
from fednas.privacy.verify import verify
from tests.privacy.ledgers import (
    CAP,
    SMALL,
    UNPROTECTED,
    entries,
    forbidden,
    noise,
    open_ledger,
    operation,
    plan_of,
    search_event,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ward.ledger"


def test_opening_a_plan_is_idempotent_and_a_run_keeps_its_plan(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        head = ledger.head
        ledger.open_plan("run", SMALL)
        assert ledger.head == head
        with pytest.raises(ReplayMismatchError, match="another plan"):
            ledger.open_plan("run", plan_of(search=search_event(1)))
    assert len(entries(path, "PLAN")) == 1
    assert [entry["code"] for entry in entries(path, "REFUSE")] == ["REPLAY_MISMATCH"]


def test_plans_of_all_runs_share_one_cap_and_a_new_process_forgets_nothing(path: Path) -> None:
    plan = plan_of(search=search_event(30))
    number = 0
    while epsilon_pld([search_event(30 * (number + 1))], CAP.delta) <= CAP.epsilon:
        number += 1
    assert number >= 2
    for index in range(number):
        with open_ledger(path) as ledger:
            ledger.open_plan(f"run {index}", plan)
    with open_ledger(path) as ledger:
        for _ in range(2):
            with pytest.raises(BudgetExhaustedError, match="would exceed the cap 3") as refusal:
                ledger.open_plan("one too many", plan)
        assert refusal.value.code == "BUDGET_EXHAUSTED"
        with pytest.raises(PrivacyError, match="no plan"):
            ledger.release(operation(1, run="one too many"), charges={"search": 1}, mechanism=forbidden)
        assert ledger.statement().claimed_epsilon <= CAP.epsilon
    assert len(entries(path, "REFUSE")) == 1


def test_a_cap_is_met_exactly_and_missed_by_a_hair(tmp_path: Path) -> None:
    claim = epsilon_pld(SMALL.events("weights"), CAP.delta)
    assert claim == max(epsilon_pld(SMALL.events(stream), CAP.delta) for stream in STREAMS)
    with open_ledger(tmp_path / "a", cap=PrivacyBudget(epsilon=claim, delta=1e-5)) as ledger:
        ledger.open_plan("run", SMALL)
    hair = PrivacyBudget(epsilon=claim * (1.0 - 1e-9), delta=1e-5)
    with open_ledger(tmp_path / "b", cap=hair) as ledger, pytest.raises(BudgetExhaustedError):
        ledger.open_plan("run", SMALL)


def test_streams_compose_in_parallel_and_a_final_on_all_of_them_is_charged_to_each(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        ledger.release(operation(1), charges={"final": 2}, mechanism=noise)
        statement = ledger.statement()
    for spend in statement.streams:
        assert spend.claimed_epsilon == epsilon_pld(SMALL.events(spend.stream), CAP.delta)
        assert spend.charged_epsilon == epsilon_pld([search_event(2)], CAP.delta)
    assert statement.claimed_epsilon == max(spend.claimed_epsilon for spend in statement.streams)
    assert statement.delta == CAP.delta
    assert not statement.non_private


def test_twenty_runs_of_one_round_cost_what_one_run_of_twenty_rounds_costs(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "many") as many, open_ledger(tmp_path / "one") as one:
        one.open_plan("run", plan_of(search=search_event(40)))
        for number in range(20):
            many.open_plan(f"run {number}", plan_of(search=search_event(2)))
            many.release(operation(1, run=f"run {number}"), charges={"search": 2}, mechanism=noise)
            one.release(operation(number), charges={"search": 2}, mechanism=noise)
        left, right = many.statement(), one.statement()
    assert left.claimed_epsilon == pytest.approx(right.claimed_epsilon, abs=1e-9)
    assert left.stream("weights") == right.stream("weights")
    assert verify(tmp_path / "many").streams == verify(tmp_path / "one").streams


def test_no_privacy_needs_a_cap_that_says_so(path: Path) -> None:
    with open_ledger(path) as ledger, pytest.raises(BudgetExhaustedError, match="epsilon inf"):
        ledger.open_plan("run", UNPROTECTED)
    with open_ledger(path, cap=PrivacyBudget.non_private()) as ledger:
        ledger.open_plan("run", UNPROTECTED)
        ledger.release(operation(1), charges={"search": 1}, mechanism=noise)
        statement = ledger.statement()
        assert statement.non_private
        assert statement.claimed_epsilon == math.inf
        with pytest.raises(BudgetExhaustedError):
            ledger.release(operation(2), charges={"search": 20}, mechanism=forbidden)
    with (
        open_ledger(path) as ledger,
        pytest.raises(BudgetExhaustedError),
    ):  # the cap is back, the loss remains
        ledger.open_plan("private again", SMALL)


def test_an_owner_may_move_the_cap_and_a_lower_one_stops_what_was_planned(path: Path) -> None:
    claim = epsilon_pld(SMALL.events("weights"), CAP.delta)
    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        ledger.release(operation(1), charges={"search": 1}, mechanism=noise)
    low = PrivacyBudget(epsilon=claim / 2, delta=1e-5)
    with open_ledger(path, cap=low) as ledger:
        with pytest.raises(BudgetExhaustedError, match="would exceed the cap"):
            ledger.release(operation(2), charges={"search": 1}, mechanism=forbidden)
        ledger.release(
            operation(1), charges={"search": 1}, mechanism=forbidden
        )  # a stored reply costs nothing
    with open_ledger(path, cap=PrivacyBudget(epsilon=claim * 2, delta=1e-5)) as ledger:
        ledger.release(operation(2), charges={"search": 1}, mechanism=noise)
        assert ledger.statement().cap.epsilon == claim * 2
    assert [entry["cap"] for entry in entries(path, "CAP")] == [
        {"delta": "1e-05", "epsilon": repr(claim / 2)},
        {"delta": "1e-05", "epsilon": repr(claim * 2)},
    ]


def test_a_foreign_file_is_refused(path: Path) -> None:
    open_ledger(path).close()
    with pytest.raises(LedgerError, match="belongs to dataset 'ward', not 'clinic'"):
        PrivacyLedger.open(path, dataset="clinic", cap=CAP)
    with pytest.raises(LedgerError, match="delta"):
        open_ledger(path, cap=PrivacyBudget(epsilon=3.0, delta=1e-6))
    with pytest.raises(LedgerError, match="test ledger"):
        open_ledger(path, test_seed=1)
    test = path.with_name("test")
    open_ledger(test, test_seed=1).close()
    for seed in (None, 2):
        with pytest.raises(LedgerError, match="key"):
            open_ledger(test, test_seed=seed)


def test_the_stream_key_is_secret_stays_and_is_missed(path: Path) -> None:
    key = path.with_name(path.name + ".key")
    with open_ledger(path) as ledger:
        secret = ledger.stream_key
    assert key.read_bytes() == secret
    assert len(secret) == 32
    assert key.stat().st_mode & 0o777 == path.stat().st_mode & 0o777 == 0o600
    with open_ledger(path) as ledger:
        assert ledger.stream_key == secret
    assert secret not in path.read_bytes()
    assert secret.hex().encode() not in path.read_bytes()
    key.write_bytes(bytes(32))
    with pytest.raises(LedgerError, match="another stream key"):
        open_ledger(path)
    key.unlink()
    with pytest.raises(LedgerError, match="restore it"):
        open_ledger(path)
    assert not key.exists()


def test_a_deleted_ledger_is_missed_beside_its_key(path: Path) -> None:
    open_ledger(path).close()
    path.unlink()
    with pytest.raises(LedgerError, match="has lost its ledger"):
        open_ledger(path)

"""A cap with an order: charges may depend on earlier releases, and their sum at the order never passes it."""

import math
from pathlib import Path

import pytest

from fednas.errors import LedgerError
from fednas.privacy.accounting import epsilon_at_order, renyi_budget, renyi_divergence
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.events import Event, NonPrivate
from fednas.privacy.ledger import BudgetExhaustedError
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.verify import LedgerTampered, verify
from tests.privacy.ledgers import (
    UNPROTECTED,
    fill,
    forbidden,
    noise,
    open_ledger,
    operation,
    plan_of,
    search_event,
)

CAP = PrivacyBudget(epsilon=3.0, delta=1e-5, order=8)
BOUND = renyi_budget(3.0, 1e-5, 8)


def room(sigma: float) -> int:
    """How many steps of a noise multiplier the cap pays for, by the plain formula."""
    return math.floor(BOUND / renyi_divergence([search_event(1, sigma=sigma)], 8))


def searching(steps: int, sigma: float = 1.5) -> PrivacyPlan:
    return plan_of(search=search_event(steps, sigma=sigma))


def test_charges_not_plans_use_the_filter_up(tmp_path: Path) -> None:
    steps = room(1.5)
    with open_ledger(tmp_path / "ledger", cap=CAP) as ledger:
        for run in range(5):  # each plan could take everything; none does
            ledger.open_plan(f"run{run}", searching(steps - run))
            ledger.release(operation(0, run=f"run{run}"), charges={"search": 1}, mechanism=noise)
        statement = ledger.statement()
    spent: list[Event] = [search_event(5)]
    assert statement.stream("weights").charged_epsilon == epsilon_at_order(spent, 1e-5, 8)
    assert statement.stream("weights").claimed_epsilon == 3.0, "the claim is what the filter enforces"
    assert statement.stream("fitness").claimed_epsilon == 0.0, "nothing was charged there"


def test_the_last_step_that_fits_is_granted_and_the_next_is_not(tmp_path: Path) -> None:
    steps = room(1.5)
    with open_ledger(tmp_path / "ledger", cap=CAP) as ledger:
        ledger.open_plan("first", searching(steps))
        ledger.open_plan("second", searching(steps))
        for number in range(steps):
            run = ("first", "second")[number % 2]
            ledger.release(operation(number, run=run), charges={"search": 1}, mechanism=noise)
        with pytest.raises(BudgetExhaustedError, match="order 8"):
            ledger.release(operation(steps, run="first"), charges={"search": 1}, mechanism=forbidden)
        with pytest.raises(BudgetExhaustedError, match="order 8"):
            ledger.open_plan("third", searching(1))
        assert ledger.statement().claimed_epsilon == 3.0
    assert verify(tmp_path / "ledger").order == 8


def test_noise_may_be_chosen_after_earlier_releases(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger", cap=CAP) as ledger:
        ledger.open_plan("run0", searching(room(1.5) // 2))
        paid = ledger.release(operation(0, run="run0"), charges={"search": 3}, mechanism=noise)
        sigma = 1.2 if paid.value["update"][0] > 0 else 2.0  # depends on what was released
        ledger.open_plan("run1", searching(4, sigma))
        ledger.release(operation(1, run="run1"), charges={"search": 4}, mechanism=noise)
        spent: list[Event] = [search_event(3), search_event(4, sigma=sigma)]
        assert ledger.statement().stream("weights").charged_epsilon == epsilon_at_order(spent, 1e-5, 8)


def test_however_a_spend_is_split_it_adds_up_to_the_same(tmp_path: Path) -> None:
    for parts in ([20], [1] * 20, [7, 13]):
        path = tmp_path / f"ledger{len(parts)}"
        with open_ledger(path, cap=CAP) as ledger:
            for number, amount in enumerate(parts):
                ledger.open_plan(f"run{number}", searching(amount))
                ledger.release(
                    operation(number, run=f"run{number}"), charges={"search": amount}, mechanism=noise
                )
            charged = ledger.statement().stream("weights").charged_epsilon
        assert charged == pytest.approx(epsilon_at_order([search_event(20)], 1e-5, 8), rel=1e-12)


def test_a_plan_that_cannot_be_finished_is_refused_at_once(tmp_path: Path) -> None:
    with (
        open_ledger(tmp_path / "ledger", cap=CAP) as ledger,
        pytest.raises(BudgetExhaustedError, match="would exceed"),
    ):
        ledger.open_plan("run", searching(room(1.5) + 1))


def test_nothing_without_noise_passes_a_filter(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger", cap=CAP) as ledger:
        for plan in (UNPROTECTED, plan_of(search=NonPrivate(reason="a baseline", releases=1))):
            with pytest.raises(BudgetExhaustedError, match="too little noise"):
                ledger.open_plan("run", plan)


@pytest.mark.parametrize(
    "cap",
    [
        PrivacyBudget(epsilon=3.0, delta=1e-5),
        PrivacyBudget(epsilon=3.0, delta=1e-5, order=9),
        PrivacyBudget(epsilon=3.1, delta=1e-5, order=8),
        PrivacyBudget(epsilon=3.0, delta=1e-4, order=8),
    ],
    ids=["no order", "another order", "raised", "another delta"],
)
def test_what_a_filter_promised_cannot_be_loosened(tmp_path: Path, cap: PrivacyBudget) -> None:
    open_ledger(tmp_path / "ledger", cap=CAP).close()
    with pytest.raises(LedgerError, match="expected a cap"):
        open_ledger(tmp_path / "ledger", cap=cap)


def test_a_ledger_of_plans_never_becomes_a_filter(tmp_path: Path) -> None:
    fill(tmp_path / "ledger")
    with pytest.raises(LedgerError, match="never changes"):
        open_ledger(tmp_path / "ledger", cap=CAP)


def test_a_lowered_filter_stops_earlier_and_keeps_the_first_claim(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with open_ledger(path, cap=CAP) as ledger:
        ledger.open_plan("run", searching(room(1.5)))
        ledger.release(operation(0), charges={"search": room(1.5) // 2}, mechanism=noise)
    lower = PrivacyBudget(epsilon=2.0, delta=1e-5, order=8)
    with open_ledger(path, cap=lower) as ledger:
        with pytest.raises(BudgetExhaustedError):
            ledger.release(operation(1), charges={"search": room(1.5) // 2}, mechanism=forbidden)
        assert ledger.statement().claimed_epsilon == 3.0
    assert verify(path).streams["weights"]["claimed_rdp"] == 3.0


def test_the_stranger_recomputes_the_filter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fednas.privacy.renyi_filter import RenyiFilter

    path, steps = tmp_path / "ledger", room(1.5)
    monkeypatch.setattr(RenyiFilter, "refusal", lambda *_: None)  # a ledger that does not filter
    with open_ledger(path, cap=CAP) as ledger:
        ledger.open_plan("run", searching(2 * steps))
        ledger.release(operation(0), charges={"search": steps}, mechanism=noise)
        verify(path)
        ledger.release(operation(1), charges={"search": 1}, mechanism=noise)
    with pytest.raises(LedgerTampered, match="more than its filter allows"):
        verify(path)

"""The gate: a charge comes first and stays, and a repeat costs nothing."""

import math
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas.errors import (
    BudgetExceededError,
    ConfigurationError,
    PrivacyError,
    ReplayMismatchError,
)
from fednas.privacy.accounting import epsilon_pld
from fednas.privacy.ledger import Arrays, BudgetExhaustedError, Operation, Permit, PrivacyLedger
from fednas.privacy.verify import verify
from tests.privacy.ledgers import (
    CAP,
    SMALL,
    entries,
    forbidden,
    noise,
    open_ledger,
    operation,
    same,
    search_event,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ward.ledger"


def test_the_charge_is_on_the_disk_before_the_mechanism_runs(path: Path) -> None:
    seen = []

    def look(permit: Permit) -> Arrays:
        seen.append((entries(path, "RESERVE"), entries(path, "RELEASE")))
        return noise(permit)

    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        request = operation(1)
        ledger.release(request, charges={"search": 3}, mechanism=look)
    expected = {
        "charges": {"search": 3},
        "digest": "0" * 64,
        "kind": "train",
        "noise": "secure",
        "operation": request.id,
        "round": 1,
        "run": "run",
    }
    assert seen == [([expected], [])]


def test_a_repeat_returns_the_stored_reply_without_noise_or_charge(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        first = ledger.release(operation(1), charges={"search": 20}, mechanism=noise)
        before = ledger.statement()
        again = ledger.release(operation(1), charges={"search": 20}, mechanism=forbidden)
        assert ledger.statement() == before
    with open_ledger(path) as ledger:  # a new process sees the same
        third = ledger.release(operation(1), charges={"search": 20}, mechanism=forbidden)
    for repeat in (again, third):
        assert same(first.value, repeat.value)
        assert (first.operation_id, first.head, first.entries) == (
            repeat.operation_id,
            repeat.head,
            repeat.entries,
        )


def test_an_operation_with_another_message_is_refused_before_and_after_its_release(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        with pytest.raises(AssertionError):
            ledger.release(operation(1), charges={"search": 1}, mechanism=forbidden)
        with pytest.raises(ReplayMismatchError, match="another message"):
            ledger.release(operation(1, message="1"), charges={"search": 1}, mechanism=forbidden)
        ledger.release(operation(1), charges={"search": 1}, mechanism=noise)
        for altered in (operation(1, message="1"), operation(1, kind="final")):
            with pytest.raises(ReplayMismatchError):
                ledger.release(altered, charges={"search": 1}, mechanism=forbidden)


def test_release_beyond_the_allowance_leaves_the_data_untouched(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        ledger.release(operation(1), charges={"fitness": 3}, mechanism=noise)
        for _ in range(3):
            with pytest.raises(BudgetExceededError) as refusal:
                ledger.release(operation(2), charges={"search": 1, "fitness": 2}, mechanism=forbidden)
        assert isinstance(refusal.value, BudgetExhaustedError)
        assert refusal.value.code == "BUDGET_EXHAUSTED"
        ledger.release(operation(3), charges={"search": 20, "fitness": 1}, mechanism=noise)
        assert ledger.statement().refusals == 1
    assert entries(path, "REFUSE") == [
        {"code": "BUDGET_EXHAUSTED", "run": "run", "subject": f"operation {operation(2).id} {'0' * 64}"}
    ]
    assert [entry["charges"] for entry in entries(path, "RESERVE")] == [
        {"fitness": 3},
        {"fitness": 1, "search": 20},
    ]


def test_a_mechanism_that_fails_keeps_its_charge_and_pays_again(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        for _ in range(2):
            with pytest.raises(AssertionError, match="touched"):
                ledger.release(operation(1), charges={"search": 7}, mechanism=forbidden)
        assert ledger.statement().open_reservations == 2
        with pytest.raises(BudgetExhaustedError, match="exceeds the 6"):
            ledger.release(operation(1), charges={"search": 7}, mechanism=noise)
        charged = ledger.statement().stream("weights").charged_epsilon
        assert charged == epsilon_pld([search_event(14)], CAP.delta)


@pytest.mark.parametrize(
    "result",
    [
        None,
        [np.zeros(2)],
        {"loss": 1.0},
        {1: np.zeros(2)},
        {"o": np.array(["text"])},
        {"o": np.array([None])},
    ],
)
def test_a_mechanism_returns_named_numeric_arrays_only(path: Path, result: Arrays) -> None:
    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        with pytest.raises(PrivacyError, match="dictionary of named numeric arrays"):
            ledger.release(operation(1), charges={"search": 1}, mechanism=lambda permit: result)
        assert ledger.statement().open_reservations == 1


def test_a_strided_view_leaves_as_the_numbers_it_shows(path: Path) -> None:
    secret = np.arange(12.0).reshape(3, 4)
    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        made = {"t": secret.T, "column": secret[:, 1], "scalar": np.array(3), "none": np.zeros((0, 2))}
        released = ledger.release(operation(1), charges={"search": 1}, mechanism=lambda permit: made)
    assert same(released.value, made)


def test_a_released_value_cannot_be_added_to_or_changed(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        released = ledger.release(operation(1), charges={"search": 1}, mechanism=noise)
    with pytest.raises(TypeError):
        released.value["loss"] = np.zeros(1)
    with pytest.raises(ValueError, match="read-only"):
        released.value["update"][0] = 1


def test_a_permit_names_its_streams_and_ends_with_its_release(path: Path) -> None:
    kept: list[Permit] = []

    def keep(permit: Permit) -> Arrays:
        assert permit.streams == {"weights", "architecture"}
        assert permit.allowance("alphas").noise_multiplier == 3.0
        assert permit.amount("search") == 2
        assert permit.entropy.private
        with pytest.raises(PrivacyError, match="not charged"):
            permit.allowance("fitness")
        kept.append(permit)
        return noise(permit)

    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        ledger.release(operation(1), charges={"search": 2, "alphas": 1}, mechanism=keep)
        ledger.release(
            operation(2), charges={"final": 1}, mechanism=lambda p: {"n": np.array(len(p.streams))}
        )
    for access in (
        lambda: kept[0].streams,
        lambda: kept[0].entropy,
        lambda: kept[0].allowance("search"),
        lambda: kept[0].amount("search"),
    ):
        with pytest.raises(PrivacyError, match="over"):
            access()


@pytest.mark.parametrize(
    "charges", [{}, {"unknown": 1}, {"search": 0}, {"search": -1}, {"search": True}, {"search": 1.5}]
)
def test_a_malformed_charge_is_refused_and_leaves_no_entry(path: Path, charges: dict[str, int]) -> None:
    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        before = ledger.head
        with pytest.raises(PrivacyError, match="expected"):
            ledger.release(operation(1), charges=charges, mechanism=forbidden)
        with pytest.raises(PrivacyError, match="open its plan first"):
            ledger.release(operation(1, run="other"), charges={"search": 1}, mechanism=forbidden)
        assert ledger.head == before


def test_a_test_ledger_repeats_its_noise_and_claims_nothing(path: Path) -> None:
    def run(where: Path) -> list[Arrays]:
        with open_ledger(where, test_seed=7) as ledger:
            ledger.open_plan("run", SMALL)
            return [
                ledger.release(operation(n), charges={"search": 1}, mechanism=noise).value for n in (1, 2)
            ]

    first, second = run(path), run(path.with_name("twin"))
    assert same(first[0], second[0])
    assert same(first[1], second[1])
    assert not same(first[0], first[1])
    with open_ledger(path, test_seed=7) as ledger:
        statement = ledger.statement()
        weights = statement.stream("weights")
        with pytest.raises(BudgetExhaustedError):  # budgets are enforced as usual
            ledger.release(operation(3), charges={"search": 19}, mechanism=forbidden)
        assert ledger.stream_key != b""
    assert statement.non_private
    assert weights.claimed_epsilon == weights.charged_epsilon == math.inf
    assert weights.nominal_charged_epsilon == epsilon_pld([search_event(2)], CAP.delta)
    assert statement.nominal_claimed_epsilon <= CAP.epsilon
    assert [entry["noise"] for entry in entries(path, "RESERVE")] == ["seeded", "seeded"]
    assert not path.with_name(path.name + ".key").exists()


def test_a_production_ledger_never_repeats_its_noise(tmp_path: Path) -> None:
    values = []
    for name in ("a", "b"):
        with open_ledger(tmp_path / name) as ledger:
            ledger.open_plan("run", SMALL)
            values.append(ledger.release(operation(1), charges={"search": 1}, mechanism=noise).value)
    assert not same(values[0], values[1])


@pytest.mark.parametrize("text", ["", "x" * 201, "a\nb", "é", 3, None])
def test_names_are_printable_and_short(path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match="printable"):
        Operation(run=text, round=1, kind="train", nonce="n", digest="0" * 64)
    with pytest.raises(ConfigurationError, match="printable"):
        PrivacyLedger.open(path, dataset=text, cap=CAP)
    with open_ledger(path) as ledger, pytest.raises(ConfigurationError, match="printable"):
        ledger.open_plan(text, SMALL)


@pytest.mark.parametrize(
    ("number", "digest"), [(-1, "0" * 64), (True, "0" * 64), (1, "0" * 63), (1, "G" * 64)]
)
def test_an_operation_has_a_round_and_a_digest(number: int, digest: str) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        Operation(run="run", round=number, kind="train", nonce="n", digest=digest)


def test_operations_differ_whenever_their_run_round_or_nonce_differs() -> None:
    names = [("a", 1, "b"), ("a", 1, "c"), ("a", 11, "b"), ("a1", 1, "b"), ("a", 1, '1","b')]
    ids = {Operation(run=r, round=n, kind="k", nonce=c, digest="0" * 64).id for r, n, c in names}
    assert len(ids) == len(names)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.sampled_from(["search", "alphas", "fitness", "final"]),
            st.integers(1, 8),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_the_ledger_agrees_with_a_slow_twin(requests: list[tuple[int, str, int, bool]]) -> None:
    spent: Counter[str] = Counter()
    replies: dict[int, Arrays] = {}
    limits = {allowance.name: allowance.amount for allowance in SMALL.allowances}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        with open_ledger(path) as ledger:
            ledger.open_plan("run", SMALL)
            for number, name, amount, fails in requests:
                mechanism = forbidden if fails else noise
                try:
                    value = ledger.release(
                        operation(number), charges={name: amount}, mechanism=mechanism
                    ).value
                except BudgetExhaustedError:
                    assert number not in replies
                    assert spent[name] + amount > limits[name]
                except AssertionError:
                    assert fails
                    assert number not in replies
                    spent[name] += amount
                else:
                    if number in replies:
                        assert same(value, replies[number])
                    else:
                        spent[name] += amount
                        replies[number] = value
            events = [
                SMALL.allowance(name).event.scaled(n)
                for name, n in spent.items()
                if name in ("search", "final")
            ]
            charged = ledger.statement().stream("weights").charged_epsilon
        assert charged == pytest.approx(epsilon_pld(events, CAP.delta), abs=1e-9)
        assert all(spent[name] <= limits[name] for name in limits)
        verify(path)

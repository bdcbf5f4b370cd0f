"""Streams compose in parallel only while every record stays in its own for ever."""

import dataclasses
import json
from pathlib import Path

import pytest

from fednas.privacy.ledger import StreamsFixedError, read_statement
from fednas.privacy.numbers import canonical_json
from fednas.privacy.store import LedgerStore
from fednas.privacy.verify import LedgerTampered, verify
from tests.privacy.ledgers import CAP, open_ledger, plan_of, search_event

FIRST = plan_of(search=search_event(5))
MOVED = dataclasses.replace(
    plan_of(search=search_event(6)), proportions=(("weights", 0.8), ("architecture", 0.1), ("fitness", 0.1))
)


def test_a_plan_with_other_proportions_is_refused_for_ever(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ward.sqlite") as ledger:
        ledger.open_plan("first", FIRST)
        before = ledger.statement()
        for _ in range(2):
            with pytest.raises(StreamsFixedError, match=r"weights 0\.9"):
                ledger.open_plan("second", MOVED)
        after = ledger.statement()
    assert after.claimed_epsilon == before.claimed_epsilon
    assert after.refusals == 1


def test_the_verifier_finds_a_file_whose_plans_divide_the_records_differently(tmp_path: Path) -> None:
    path = tmp_path / "ward.sqlite"
    with open_ledger(path) as ledger:
        ledger.open_plan("first", FIRST)
    with LedgerStore(path) as store, store.transaction():
        body = {"id": MOVED.id, "plan": json.loads(MOVED.to_json()), "run": "second"}
        store.append("PLAN", body)
    assert canonical_json(body["plan"]) == MOVED.to_json()
    with pytest.raises(LedgerTampered, match="streams are not disjoint"):
        verify(path)


def test_a_statement_is_read_without_touching_the_file(tmp_path: Path) -> None:
    path = tmp_path / "ward.sqlite"
    with open_ledger(path) as ledger:
        ledger.open_plan("first", FIRST)
        written = ledger.statement()
    content = path.read_bytes()
    path.chmod(0o400)
    assert read_statement(path) == written
    assert path.read_bytes() == content
    assert written.cap == CAP

"""What a ledger has spent and has left: its own figures, and no error however damaged its file is."""

import math
import random
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fednas.config import SiteConfig
from fednas.monitoring import ledgers
from fednas.monitoring.ledgers import LedgerWatch
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.ledger import read_statement
from tests.privacy.ledgers import (
    CAP,
    SMALL,
    UNPROTECTED,
    fill,
    noise,
    open_ledger,
    operation,
    plan_of,
    search_event,
)
from tests.simulations import tiny


def site(path: Path, cap: PrivacyBudget = CAP) -> SiteConfig:
    """The site of the dataset `ward`, whose ledger is at a path."""
    return SiteConfig(
        name="ward",
        dataset="ward",
        data=path.with_name("data.npz"),
        declared_size=100,
        epsilon=cap.epsilon,
        delta=cap.delta,
        order=cap.order,
        non_private=not cap.is_private,
        ledger=path,
        device=tiny.device("small"),
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    fill(path)
    return path


def test_it_states_what_the_ledger_states(ledger: Path) -> None:
    reading = LedgerWatch(site(ledger)).read()
    statement = read_statement(ledger)
    assert reading.healthy
    assert (reading.dataset, reading.cap, reading.entries) == ("ward", 3.0, statement.entries)
    assert reading.spent == {spend.stream: spend.claimed_epsilon for spend in statement.streams}
    assert reading.left == {stream: 3.0 - epsilon for stream, epsilon in reading.spent.items()}


def test_under_a_cap_with_an_order_what_is_left_is_what_was_not_charged(tmp_path: Path) -> None:
    path, cap = tmp_path / "ledger.sqlite", replace(CAP, order=8)
    with open_ledger(path, cap=cap) as opened:
        opened.open_plan("run", plan_of(cap, search=search_event(20)))
        opened.release(operation(1), charges={"search": 2}, mechanism=noise)
    reading = LedgerWatch(site(path, cap)).read()
    assert reading.spent["weights"] == 3.0, "the filter enforces the cap, and that is what is stated"
    assert 0.0 < reading.left["weights"] < 3.0
    assert reading.left["fitness"] == 3.0


def test_where_noise_is_reproducible_spent_is_infinite_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with open_ledger(path, test_seed=0) as opened:
        opened.open_plan("run", SMALL)
        opened.release(operation(1), charges={"search": 2, "alphas": 1}, mechanism=noise)
    reading = LedgerWatch(site(path)).read()
    assert reading.healthy
    assert math.isinf(reading.spent["weights"])
    assert reading.left["weights"] == 0.0


def test_without_privacy_spent_and_left_are_infinite(tmp_path: Path) -> None:
    path, cap = tmp_path / "ledger.sqlite", PrivacyBudget.non_private(delta=CAP.delta)
    with open_ledger(path, cap=cap) as opened:
        opened.open_plan("run", UNPROTECTED)
        opened.release(operation(1), charges={"search": 2}, mechanism=noise)
    reading = LedgerWatch(site(path, cap)).read()
    assert math.isinf(reading.spent["weights"])
    assert set(reading.left.values()) == {math.inf}


def test_a_site_that_never_took_part_has_spent_nothing(tmp_path: Path) -> None:
    watch = LedgerWatch(site(tmp_path / "ledger.sqlite"))
    assert watch.read() == watch.read()
    assert (watch.read().healthy, watch.read().entries, set(watch.read().spent.values())) == (True, 0, {0.0})
    assert not (tmp_path / "ledger.sqlite").exists()
    fill(tmp_path / "ledger.sqlite")
    assert watch.read().entries == read_statement(tmp_path / "ledger.sqlite").entries


@pytest.mark.parametrize("key", [True, False])
def test_a_ledger_that_is_gone_is_not_healthy(ledger: Path, key: bool) -> None:
    """Its key tells that there was one, or whoever saw it before."""
    watch = LedgerWatch(site(ledger))
    if not key:
        assert watch.read().healthy
        ledger.with_name(ledger.name + ".key").unlink()
    ledger.unlink()
    assert not watch.read().healthy


def test_accountants_run_only_when_the_file_changed(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, asked = LedgerWatch(site(ledger)), []

    def counting(path: Path) -> object:
        asked.append(path)
        return read_statement(path)

    monkeypatch.setattr(ledgers, "read_statement", counting)
    first = watch.read()
    assert watch.read() == first
    assert len(asked) == 1
    with open_ledger(ledger) as opened:  # its log is not in the file yet: the writer is still at work
        opened.release(operation(9), charges={"search": 1}, mechanism=noise)
        assert (watch.read().entries or 0) > (first.entries or 0)
    assert len(asked) == 2


def test_the_ledger_is_not_written_to(ledger: Path) -> None:
    before = {path.name: path.read_bytes() for path in ledger.parent.iterdir()}
    LedgerWatch(site(ledger)).read()
    assert {path.name: path.read_bytes() for path in ledger.parent.iterdir()} == before


def unsigned(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER entries_delete")
        connection.execute("DELETE FROM entries WHERE seq > 5")


def odd(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER entries_update")
        connection.execute("UPDATE entries SET body = ?, digest = ? WHERE seq = 0", (b"\xff", "x"))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "no database": lambda path: path.write_bytes(b"ledger" * 999),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "a folder": folder,
    "entries are gone": unsigned,
    "no text": odd,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_is_not_healthy_and_no_figure_of_it_is_told(damage: str, ledger: Path) -> None:
    watch = LedgerWatch(site(ledger))
    assert watch.read().healthy
    DAMAGES[damage](ledger)
    reading = watch.read()
    assert not reading.healthy
    assert (reading.entries, reading.spent, reading.left) == (None, {}, {})


def test_a_ledger_of_another_dataset_is_not_healthy(ledger: Path) -> None:
    other = site(ledger).model_copy(update={"dataset": "clinic"})
    assert not LedgerWatch(other).read().healthy


def test_whatever_bytes_a_ledger_has_reading_it_raises_nothing(ledger: Path) -> None:
    generator, original = random.Random(3), ledger.read_bytes()
    expected, healthy = LedgerWatch(site(ledger)).read(), 0
    for _ in range(150):
        spoiled = bytearray(original)
        for _ in range(generator.randint(1, 4)):
            spoiled[generator.randrange(len(spoiled))] = generator.randrange(256)
        ledger.write_bytes(spoiled)
        reading = LedgerWatch(site(ledger)).read()
        healthy += reading.healthy
        assert not reading.healthy or reading == expected, "a figure that is told is the true one"
    assert healthy < 150

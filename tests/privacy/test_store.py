"""The store only grows, reaches the disk, and says so when the disk does not take it."""

import json
import os
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest

from fednas.errors import LedgerError
from fednas.privacy.ledger import Arrays, Permit
from fednas.privacy.store import GENESIS, SCHEMA, Entry, LedgerStore, chain
from tests.privacy.ledgers import SMALL, forbidden, noise, open_ledger, operation, same


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


def fill(path: Path, *kinds: str) -> None:
    with LedgerStore(path) as store:
        for number, kind in enumerate(kinds):
            with store.transaction():
                store.append(kind, {"number": number})


def replayed(store: LedgerStore) -> list[Entry]:
    entries: list[Entry] = []
    store.replay(entries.append)
    return entries


def test_every_commit_is_written_to_the_disk_before_it_returns(path: Path) -> None:
    with LedgerStore(path) as store:
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_the_chain_covers_position_kind_and_body(path: Path) -> None:
    fill(path, "A", "B")
    with LedgerStore(path) as store:
        first, second = replayed(store)
        assert replayed(store) == []
    assert first.digest == chain(GENESIS, 0, "A", '{"number":0}')
    assert second.digest == chain(first.digest, 1, "B", '{"number":1}')
    alternatives = {
        chain(first.digest, 1, "B", '{"number":1}'),
        chain(GENESIS, 1, "B", '{"number":1}'),
        chain(first.digest, 2, "B", '{"number":1}'),
        chain(first.digest, 1, "C", '{"number":1}'),
        chain(first.digest, 1, "B", '{"number":2}'),
    }
    assert len(alternatives) == 5


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET body = '{}' WHERE seq = 1",
        "DELETE FROM entries WHERE seq = 1",
        "INSERT OR REPLACE INTO entries VALUES (1, 'A', '{}', 'x')",
        "REPLACE INTO entries VALUES (0, 'A', '{}', 'x')",
        "INSERT INTO entries VALUES (9, 'A', '{}', 'x')",
        "UPDATE replies SET reply = x'00'",
        "DELETE FROM replies",
        "INSERT OR REPLACE INTO replies VALUES ('operation', x'00')",
    ],
)
def test_nothing_that_was_written_can_be_changed_through_sql(path: Path, statement: str) -> None:
    fill(path, "A", "B")
    with LedgerStore(path) as store:
        with store.transaction():
            store.keep("operation", b"reply")
        before = replayed(store)
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="only grow"):
        connection.execute(statement)
    connection.close()
    with LedgerStore(path) as store:
        assert replayed(store) == before
        assert store.reply("operation") == b"reply"
        assert store.reply("other") is None


def test_a_reply_is_kept_once(path: Path) -> None:
    with LedgerStore(path) as store:
        with store.transaction():
            store.keep("operation", b"first")
        with pytest.raises(LedgerError, match="only grow"), store.transaction():
            store.keep("operation", b"second")
        assert store.reply("operation") == b"first"


def interrupted(store: LedgerStore) -> None:
    with store.transaction():
        store.append("A", {})
        store.append("B", {"number": float("nan")})


def test_a_failed_transaction_leaves_nothing(path: Path) -> None:
    with LedgerStore(path) as store:
        with pytest.raises(ValueError, match="JSON"):
            interrupted(store)
        assert replayed(store) == []
        with store.transaction():
            store.append("B", {})
        assert [entry.kind for entry in replayed(store)] == ["B"]


def test_entries_of_another_connection_are_seen(path: Path) -> None:
    with LedgerStore(path) as left, LedgerStore(path) as right:
        for number in range(4):
            with (left if number % 2 else right).transaction():
                (left if number % 2 else right).append("A", {"number": number})
            assert [entry.body["number"] for entry in replayed(left)] == [number]
        assert [entry.seq for entry in replayed(right)] == [0, 1, 2, 3]


def test_an_entry_that_is_refused_comes_again(path: Path) -> None:
    fill(path, "A", "B")

    def refuse(entry: Entry) -> None:
        if entry.kind == "B":
            raise KeyError(entry.kind)

    with LedgerStore(path) as store:
        for _ in range(2):
            with pytest.raises(KeyError):
                store.replay(refuse)
        assert [entry.kind for entry in replayed(store)] == ["B"]


def test_a_chain_that_shrinks_under_a_running_process_is_noticed(path: Path) -> None:
    fill(path, "A", "B")
    with LedgerStore(path) as store:
        assert len(replayed(store)) == 2
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("DROP TRIGGER entries_delete")
        connection.execute("DELETE FROM entries WHERE seq = 1")
        connection.close()
        with pytest.raises(LedgerError, match="lost entry 1"):
            replayed(store)


def test_a_file_that_is_no_ledger_is_refused(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    with pytest.raises(LedgerError, match="cannot be read"):
        LedgerStore(path)
    other = tmp_path / "other"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE notes (text)")
    connection.close()
    with pytest.raises(LedgerError, match="other tables"):
        LedgerStore(other)
    with pytest.raises(LedgerError, match="No such file"):
        LedgerStore(tmp_path / "missing" / "store")


@pytest.mark.parametrize("index", range(2, len(SCHEMA)))
def test_a_missing_trigger_is_noticed(path: Path, index: int) -> None:
    fill(path, "A")
    connection = sqlite3.connect(path)
    connection.execute(f"DROP TRIGGER {SCHEMA[index].split()[2]}")
    connection.close()
    with pytest.raises(LedgerError, match="triggers"):
        LedgerStore(path)


def test_a_writer_waits_for_another_and_gives_up_in_the_end(path: Path) -> None:
    with LedgerStore(path) as holder, LedgerStore(path, busy_timeout_s=0.05) as impatient:
        with holder.transaction():
            with pytest.raises(LedgerError, match="locked"), impatient.transaction():
                raise AssertionError("two writers")
            holder.append("A", {})
        done = threading.Event()

        def patient() -> None:
            with LedgerStore(path) as store, store.transaction():
                store.append("B", {})
            done.set()

        with holder.transaction():
            thread = threading.Thread(target=patient)
            thread.start()
            assert not done.wait(0.1)
            holder.append("A", {})
        thread.join(timeout=30.0)
        assert [entry.kind for entry in replayed(holder)] == ["A", "A", "B"]


def test_a_connection_does_not_survive_a_fork(path: Path) -> None:
    with LedgerStore(path) as store:
        child = os.fork()
        if child == 0:
            try:
                with store.transaction():
                    store.append("A", {})
            except LedgerError:
                os._exit(17)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
        assert replayed(store) == []


def test_a_closed_store_refuses(path: Path) -> None:
    store = LedgerStore(path)
    store.close()
    with pytest.raises(LedgerError, match="closed"), store.transaction():
        pass


def test_a_full_disk_stops_the_charge_and_so_the_mechanism(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        connection = ledger._store._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        for number in range(100):  # until the last page is full
            connection.execute(f"PRAGMA max_page_count = {pages}")
            try:
                ledger.release(operation(number), charges={"search": 1}, mechanism=forbidden)
            except AssertionError:
                continue
            except LedgerError:
                break
        else:
            pytest.fail("the disk never filled up")
        spent = ledger.statement().open_reservations
        assert spent == number
        connection.execute("PRAGMA max_page_count = 100000")
        ledger.release(operation(number), charges={"search": 1}, mechanism=noise)


def test_a_full_disk_stops_the_release_but_not_the_charge(path: Path) -> None:
    made: list[Arrays] = []

    def large(permit: Permit) -> Arrays:
        made.append({"update": permit.entropy.noise(1e6, 10_000)})
        return made[-1]

    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        connection = ledger._store._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 5}")
        with pytest.raises(LedgerError, match="full"):
            ledger.release(operation(1), charges={"search": 3}, mechanism=large)
        assert ledger.statement().open_reservations == 1
        connection.execute("PRAGMA max_page_count = 100000")
        released = ledger.release(operation(1), charges={"search": 3}, mechanism=large)
        assert ledger.statement().open_reservations == 1
        assert same(released.value, made[1])
        assert not np.array_equal(made[0]["update"], made[1]["update"])
        bodies = [
            json.loads(row[0])
            for row in connection.execute("SELECT body FROM entries WHERE kind = 'RESERVE'")
        ]
        assert [body["charges"] for body in bodies] == [{"search": 3}, {"search": 3}]

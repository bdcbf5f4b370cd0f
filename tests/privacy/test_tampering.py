"""Whatever is done to a ledger file is found, or needs a head that somebody else kept."""

import hashlib
import json
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from fednas.errors import LedgerError
from fednas.privacy.store import GENESIS, SCHEMA, chain
from fednas.privacy.verify import LedgerTampered, verify
from tests.privacy.ledgers import SMALL, fill, forbidden, open_ledger, operation

Change = Callable[[sqlite3.Connection], object]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger"
    fill(path)
    return path


def tamper(path: Path, *changes: str | Change, recompute: bool = False) -> None:
    """Change entries as the file's owner could: triggers off, change, chain anew if asked, triggers on."""
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in SCHEMA[2:]:
        connection.execute(f"DROP TRIGGER {statement.split()[2]}")
    for change in changes:
        if isinstance(change, str):
            connection.execute(change)
        else:
            change(connection)
    if recompute:
        head = GENESIS
        for seq, kind, body in connection.execute(
            "SELECT seq, kind, body FROM entries ORDER BY seq"
        ).fetchall():
            head = chain(head, seq, kind, body)
            connection.execute("UPDATE entries SET digest = ? WHERE seq = ?", (head, seq))
    for statement in SCHEMA[2:]:
        connection.execute(statement)
    connection.close()


def edit(kind: str, **fields: object) -> Change:
    """Replace fields in the first entry of a kind."""

    def change(connection: sqlite3.Connection) -> None:
        seq, text = connection.execute(
            "SELECT seq, body FROM entries WHERE kind = ? LIMIT 1", (kind,)
        ).fetchone()
        body = json.dumps(json.loads(text) | fields, sort_keys=True, separators=(",", ":"))
        connection.execute("UPDATE entries SET body = ? WHERE seq = ?", (body, seq))

    return change


CHANGES: dict[str, tuple[str | Change, ...]] = {
    "an edited body": (
        "UPDATE entries SET body = replace(body, '\"search\":2', '\"search\":1') WHERE seq = 2",
    ),
    "an edited kind": ("UPDATE entries SET kind = 'REFUSE' WHERE seq = 2",),
    "an edited digest": ("UPDATE entries SET digest = upper(digest) WHERE seq = 2",),
    "a body of bytes": ("UPDATE entries SET body = CAST(body AS BLOB) WHERE seq = 2",),
    "a deletion": ("DELETE FROM entries WHERE seq = 2",),
    "a deletion that closes the gap": (
        "DELETE FROM entries WHERE seq = 2",
        "UPDATE entries SET seq = seq - 1 WHERE seq > 2",
    ),
    "no first entry": ("DELETE FROM entries WHERE seq = 0", "UPDATE entries SET seq = seq - 1"),
    "an insertion": (
        "UPDATE entries SET seq = -seq - 1 WHERE seq >= 2",
        "UPDATE entries SET seq = -seq WHERE seq < 0",
        "INSERT INTO entries SELECT 2, kind, body, digest FROM entries WHERE seq = 3",
    ),
    "a repeated tail": (
        "INSERT INTO entries SELECT seq + 1, kind, body, digest FROM entries WHERE seq = 10",
    ),
    "a swap": (
        "UPDATE entries SET seq = -1 WHERE seq = 2",
        "UPDATE entries SET seq = 2 WHERE seq = 4",
        "UPDATE entries SET seq = 4 WHERE seq = -1",
    ),
    "a lost release": ("DELETE FROM entries WHERE seq = (SELECT max(seq) FROM entries)",),
    "a lost reply": ("DELETE FROM replies WHERE rowid = 1",),
    "an edited reply": ("UPDATE replies SET reply = substr(reply, 2) WHERE rowid = 1",),
    "a foreign reply": ("INSERT INTO replies VALUES ('operation', x'00')",),
    "a reply of text": ("UPDATE replies SET reply = 'text' WHERE rowid = 1",),
    "nothing left": ("DELETE FROM entries", "DELETE FROM replies"),
    "another table": ("CREATE TABLE notes (text)",),
}


@pytest.mark.parametrize("name", CHANGES)
def test_it_finds(path: Path, name: str) -> None:
    tamper(path, *CHANGES[name])
    with pytest.raises(LedgerTampered):
        verify(path)


FORGERIES: dict[str, Change] = {
    "a charge beyond the plan": edit("RESERVE", charges={"search": 21}),
    "a refund": edit("RESERVE", charges={"search": -2, "alphas": 1}),
    "a free release": edit("RESERVE", charges={}),
    "a charge of half a step": edit("RESERVE", charges={"search": 0.5}),
    "a charge to no allowance": edit("RESERVE", charges={"unknown": 1}),
    "a charge to another run": edit("RESERVE", run="other"),
    "a release of another operation": edit("RELEASE", operation="other"),
    "another reply's digest": edit("RELEASE", reply="0" * 64),
    "a plan under another plan's id": edit("PLAN", id="0" * 64),
    "an infinite delta": edit("OPEN", cap={"delta": "inf", "epsilon": "3.0"}),
    "a number in another spelling": edit("OPEN", cap={"delta": "1e-5", "epsilon": "3.0"}),
    "an unknown format": edit("OPEN", format=2),
    "a private fact": edit("RESERVE", num_records=1000),
    "an unknown kind": lambda connection: connection.execute(
        "UPDATE entries SET kind = 'NOTE' WHERE seq = 2"
    ),
    "a second opening": lambda connection: connection.execute(
        "UPDATE entries SET kind = 'OPEN' WHERE seq = 1"
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_recomputed_chain_does_not_hide(path: Path, name: str) -> None:
    tamper(path, FORGERIES[name], recompute=True)
    with pytest.raises(LedgerTampered):
        verify(path)


@pytest.mark.parametrize(
    "event",
    [
        {"noise_multiplier": "nan"},
        {"noise_multiplier": "inf"},
        {"noise_multiplier": "-1.5"},
        {"noise_multiplier": "0.0"},
        {"noise_multiplier": 1.5},
        {"sampling_probability": "1.5"},
        {"steps": 0},
        {"steps": 10**8},
        {"steps": True},
        {"kind": "os.system"},
    ],
)
def test_a_plan_with_an_impossible_event_is_found_under_its_own_id(
    path: Path, event: dict[str, object]
) -> None:
    def change(connection: sqlite3.Connection) -> None:
        plan = json.loads(SMALL.to_json())
        plan["allowances"][0]["event"] |= event
        text = json.dumps(plan, sort_keys=True, separators=(",", ":"))
        edit("PLAN", plan=plan, id=hashlib.sha256(text.encode()).hexdigest())(connection)

    tamper(path, change, recompute=True)
    with pytest.raises(LedgerTampered):
        verify(path)
    with pytest.raises(LedgerError):
        open_ledger(path)


def test_what_a_chain_cannot_prove_needs_a_head_that_somebody_else_kept(path: Path) -> None:
    head, entries = verify(path).head, verify(path).entries
    with open_ledger(path) as ledger, pytest.raises(AssertionError):
        ledger.release(operation(9), charges={"search": 14}, mechanism=forbidden)
    grown = verify(path, expected_head=head)
    assert grown.entries == entries + 1
    tamper(path, f"DELETE FROM entries WHERE seq = {entries}")
    assert verify(path).head == head  # a charge without a release was cut off: nothing shows
    with pytest.raises(LedgerTampered, match="cut back or replaced"):
        verify(path, expected_head=grown.head)
    tamper(path, edit("RESERVE", charges={"search": 1, "alphas": 1}), recompute=True)
    verify(path)  # written anew as a whole: nothing shows
    with pytest.raises(LedgerTampered, match="cut back or replaced"):
        verify(path, expected_head=head)


def test_every_flipped_bit_of_an_entry_is_found_and_no_other_changes_a_figure(path: Path) -> None:
    raw, expected = path.read_bytes(), verify(path)
    connection = sqlite3.connect(path)
    texts = [t.encode() for row in connection.execute("SELECT kind, body, digest FROM entries") for t in row]
    connection.close()
    covered = sorted({raw.index(text) + n for text in texts if len(text) > 10 for n in range(len(text))})
    generator = random.Random(1)
    positions = [(place, True) for place in generator.sample(covered, 200)]
    positions += [(generator.randrange(len(raw)), False) for _ in range(400)]
    found = 0
    for place, must in positions:
        altered = bytearray(raw)
        altered[place] ^= 1 << generator.randrange(8)
        path.write_bytes(altered)
        try:
            assert verify(path) == expected
            assert not must
        except LedgerTampered:
            found += 1
    assert found >= 200


def test_a_flipped_bit_never_opens_a_ledger_with_another_history(path: Path) -> None:
    raw = path.read_bytes()
    with open_ledger(path) as ledger:
        expected = ledger.head
    generator = random.Random(2)
    refused = 0
    for _ in range(200):
        altered = bytearray(raw)
        altered[generator.randrange(len(raw))] ^= 1 << generator.randrange(8)
        path.write_bytes(altered)
        try:
            with open_ledger(path) as ledger:
                assert ledger.head == expected
        except LedgerError:
            refused += 1
    assert refused > 20

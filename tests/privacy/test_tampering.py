"""Whatever is done to a ledger file is found, or needs a fact that somebody else kept."""

import hashlib
import json
import os
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fednas.errors import LedgerError
from fednas.privacy.ledger import PrivacyLedger
from fednas.privacy.signing import Signer
from fednas.privacy.verify import LedgerTampered, verify
from tests.privacy.ledger_content import Original, altering, read, write
from tests.privacy.ledgers import CAP, SMALL, fill, forbidden, noise, open_ledger, operation, same
from tests.privacy.tampering import KINDS, OUTSIDE

Change = Callable[[sqlite3.Connection], object]
FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger"
    fill(path)
    return path


def tamper(path: Path, *changes: str | Change, sign: bool = False) -> None:
    """Change entries as the file's owner could, who can also make the chain and its signatures fit again."""
    with altering(path) as connection:
        for change in changes:
            if isinstance(change, str):
                connection.execute(change)
            else:
                change(connection)
    if sign:
        content, _ = read(path)
        content.rechain(Signer(path.with_name(path.name + ".key").read_bytes()))
        write(content, path)


def edit(kind: str, **fields: object) -> Change:
    """Replace fields in the first entry of a kind."""

    def change(connection: sqlite3.Connection) -> None:
        seq, text = connection.execute(
            "SELECT seq, body FROM entries WHERE kind = ? LIMIT 1", (kind,)
        ).fetchone()
        body = json.dumps(json.loads(text) | fields, sort_keys=True, separators=(",", ":"))
        connection.execute("UPDATE entries SET body = ? WHERE seq = ?", (body, seq))

    return change


def put(body: str) -> Change:
    """Replace the body of the first RESERVE."""

    def change(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE entries SET body = ? WHERE seq = 5", (body,))

    return change


CHANGES: dict[str, tuple[str | Change, ...]] = {
    "an edited body": (
        "UPDATE entries SET body = replace(body, '\"search\":2', '\"search\":1') WHERE seq = 5",
    ),
    "an edited kind": ("UPDATE entries SET kind = 'REFUSE' WHERE seq = 5",),
    "an edited digest": ("UPDATE entries SET digest = upper(digest) WHERE seq = 5",),
    "a body of bytes": ("UPDATE entries SET body = CAST(body AS BLOB) WHERE seq = 5",),
    "a deletion": ("DELETE FROM entries WHERE seq = 5",),
    "a deletion that closes the gap": (
        "DELETE FROM entries WHERE seq = 5",
        "UPDATE entries SET seq = seq - 1 WHERE seq > 5",
    ),
    "no first entry": ("DELETE FROM entries WHERE seq = 0", "UPDATE entries SET seq = seq - 1"),
    "an insertion": (
        "UPDATE entries SET seq = -seq - 1 WHERE seq >= 5",
        "UPDATE entries SET seq = -seq WHERE seq < 0",
        "INSERT INTO entries SELECT 5, kind, body, digest FROM entries WHERE seq = 6",
    ),
    "a repeated tail": (
        "INSERT INTO entries SELECT seq + 1, kind, body, digest FROM entries WHERE seq = 22",
    ),
    "a swap": (
        "UPDATE entries SET seq = -1 WHERE seq = 5",
        "UPDATE entries SET seq = 5 WHERE seq = 9",
        "UPDATE entries SET seq = 9 WHERE seq = -1",
    ),
    "a lost signature": ("DELETE FROM entries WHERE seq = 22",),
    "a lost release": ("DELETE FROM entries WHERE seq > 20",),
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
    "an old format": edit("OPEN", format=1),
    "an unknown format": edit("OPEN", format=3),
    "an order out of bounds": edit("OPEN", cap={"delta": "1e-05", "epsilon": "3.0", "order": 257}),
    "an order that is no integer": edit("OPEN", cap={"delta": "1e-05", "epsilon": "3.0", "order": True}),
    "a filter that has no room": edit("OPEN", cap={"delta": "1e-05", "epsilon": "3.0", "order": 4}),
    "no key to sign with": edit("OPEN", signer=""),
    "a key that is no point of the curve": edit("OPEN", signer="ff" * 32),
    "a signature too many": lambda connection: connection.execute(
        "UPDATE entries SET kind = 'CHECKPOINT', body = (SELECT body FROM entries WHERE seq = 22)"
        " WHERE seq = 21"
    ),
    "a key that is no text": edit("OPEN", signer=5),
    "a dataset without a name": edit("OPEN", dataset=None),
    "noise of an unknown kind": edit("RESERVE", noise="quantum"),
    "noise that is no text": edit("OPEN", noise=0),
    "a format that is no integer": edit("OPEN", format=2.0),
    "a size that is no integer": edit("DECLARE", declared_size="many"),
    "a round before the first": edit("RESERVE", round=-1),
    "a body that is no object": put("[]"),
    "a body that is no JSON": put("{"),
    "a body deeper than any": put("[" * 100_000),
    "a number longer than any": put("9" * 10_000),
    "a private fact": edit("RESERVE", num_records=1000),
    "an unknown kind": lambda connection: connection.execute(
        "UPDATE entries SET kind = 'NOTE' WHERE seq = 5"
    ),
    "a second opening": lambda connection: connection.execute(
        "UPDATE entries SET kind = 'OPEN' WHERE seq = 1"
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_not_even_the_owners_signature_hides(path: Path, name: str) -> None:
    tamper(path, FORGERIES[name], sign=True)
    with pytest.raises(LedgerTampered):
        verify(path)


@pytest.mark.parametrize(
    "name",
    [name for name in FORGERIES if name.startswith(("a charge", "a refund", "a body", "a number", "a key"))],
)
def test_a_ledger_does_not_go_on_with_what_it_would_not_write(path: Path, name: str) -> None:
    tamper(path, FORGERIES[name], sign=True)
    with pytest.raises(LedgerError):
        open_ledger(path)


def test_a_filter_that_nothing_fits_is_found(path: Path) -> None:
    """Numbers at the edge of what a float can hold are a finding, too, not a failure of the verifier."""
    plan = json.loads(SMALL.to_json())
    plan["allowances"][0]["event"] |= {"noise_multiplier": "1e-153", "sampling_probability": "1.0"}
    text = json.dumps(plan, sort_keys=True, separators=(",", ":"))
    tamper(
        path,
        edit("OPEN", cap={"delta": "1e-05", "epsilon": "1e+300", "order": 8}),
        edit("PLAN", plan=plan, id=hashlib.sha256(text.encode()).hexdigest()),
        edit("RESERVE", charges={"search": 20}),
        sign=True,
    )
    with pytest.raises(LedgerTampered):
        verify(path)


def test_a_signature_that_is_no_text_is_found(path: Path) -> None:
    tamper(path, "UPDATE entries SET body = '{\"signature\":5}' WHERE seq = 22")
    content, _ = read(path)
    content.rechain()
    write(content, path)
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

    tamper(path, change, sign=True)
    with pytest.raises(LedgerTampered):
        verify(path)
    with pytest.raises(LedgerError):
        open_ledger(path)


def test_what_a_signature_cannot_prove_needs_a_head_that_somebody_else_kept(path: Path) -> None:
    head, entries = verify(path).head, verify(path).entries
    with open_ledger(path) as ledger, pytest.raises(AssertionError):
        ledger.release(operation(9), charges={"search": 14}, mechanism=forbidden)
    grown = verify(path, expected_head=head)
    assert grown.entries == entries + 2
    tamper(path, f"DELETE FROM entries WHERE seq >= {entries}")
    assert verify(path).head == head  # a charge without a release was cut off: nothing shows
    with pytest.raises(LedgerTampered, match="cut back or replaced"):
        verify(path, expected_head=grown.head)
    tamper(path, edit("RESERVE", charges={"search": 1, "alphas": 1}), sign=True)
    verify(path, expected_signer=grown.signer)  # written anew as a whole by its owner: nothing shows
    with pytest.raises(LedgerTampered, match="cut back or replaced"):
        verify(path, expected_head=head)


def copy(original: Original) -> Path:
    """A closed copy to tamper with, in place of the last one."""
    path = original.path.with_name("tampered")
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    shutil.copyfile(f"{original.path}.key", f"{path}.key")
    return Path(shutil.copyfile(original.path, path))


def tampered(original: Original, times: int, *, first: int) -> dict[str, Counter[str]]:
    """Tamper again and again, each kind in turn; how often each was done, and what found it."""
    for untouched in (original.path, original.dead):
        assert verify(untouched, expected_head=original.head).entries == len(original.content.rows)
    found: dict[str, Counter[str]] = {}
    for number in range(first, first + times):
        generator = random.Random(number)
        name, change = EVERYTHING[number % len(EVERYTHING)]
        path = copy(original)
        change(path, generator, original)
        counter = found.setdefault(name, Counter())
        counter["done"] += 1
        counter["by itself"] += finds(path)
        counter["by the head"] += finds(path, head=original.head)
        counter["by the key"] += finds(path, signer=original.signer.public_key)
        if name in FLIPS and not finds(path, head=original.head):
            # No reader can see bytes outside the rows, such as the unused part of a page.
            assert read(path) == (original.content, original.schema)
            counter["nothing to see"] += 1
    return found


def finds(path: Path, *, head: str | None = None, signer: str | None = None) -> bool:
    """Whether the verifier refuses a file."""
    try:
        verify(path, expected_head=head, expected_signer=signer)
    except LedgerTampered:
        return True
    return False


def flip_the_file(path: Path, generator: random.Random, _: Original) -> None:
    raw = bytearray(path.read_bytes())
    raw[generator.randrange(len(raw))] ^= 1 << generator.randrange(8)
    path.write_bytes(raw)


def flip_the_log(path: Path, generator: random.Random, original: Original) -> None:
    """SQLite takes a flipped frame for the end of its log: the file is an older state of itself."""
    shutil.copyfile(original.dead, path)
    log = Path(f"{path}-wal")
    shutil.copyfile(f"{original.dead}-wal", log)
    flip_the_file(log, generator, original)


WAYS = ("done", "by itself", "by the head", "by the key", "nothing to see")
FLIPS = {"flip a bit of the file": flip_the_file, "flip a bit of the log of a dead process": flip_the_log}
EVERYTHING = [*[*FLIPS.items()] * 4, *KINDS.items(), *OUTSIDE.items()]


# A ledger holds a reply against its release when it is asked for, so it opens beside such a change.
REPLIES = {
    "flip a bit of a reply",
    "cut the entries, keep the replies",
    "swap two replies",
    "drop a reply",
    "add a reply",
}


def check_all_found(found: dict[str, Counter[str]]) -> None:
    assert found.keys() == {*FLIPS, *KINDS, *OUTSIDE}
    for name, counter in found.items():
        way = "by itself" if name in KINDS else "by the head"
        assert counter[way] + counter["nothing to see"] == counter["done"], name
        assert counter[way] > 0


@pytest.fixture(scope="module")
def original() -> Iterator[Original]:
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        yield Original.make(Path(folder))


def test_whatever_is_done_is_found(original: Original) -> None:
    check_all_found(tampered(original, 210, first=0))


def test_a_ledger_that_others_wrote_on_is_never_opened_and_never_gives_another_reply(
    original: Original,
) -> None:
    with PrivacyLedger.open(original.path, dataset="ward", cap=CAP) as ledger:
        first = ledger.release(operation(0, run="run 0"), charges={"search": 1}, mechanism=forbidden)
    for number, name in enumerate((*KINDS, "write it anew under a stranger's key")):
        path = copy(original)
        (KINDS | OUTSIDE)[name](path, random.Random(number), original)
        if name not in REPLIES:
            with pytest.raises(LedgerError):
                open_ledger(path)
            continue
        with open_ledger(path) as ledger, suppress(LedgerError):
            again = ledger.release(operation(0, run="run 0"), charges={"search": 1}, mechanism=noise)
            assert same(again.value, first.value)


@pytest.mark.slow
def test_ten_thousand_times_whatever_is_done_is_found(original: Original) -> None:
    found = tampered(original, 10_000, first=1000)
    for name, counter in found.items():
        print(f"{name:50}", *(f"{counter[what]:4} {what}" for what in WAYS), sep="  ")  # noqa: T201
    check_all_found(found)


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

"""A file that only grows: entries in a hash chain and the replies they name, in SQLite."""

import hashlib
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, final

from fednas.errors import LedgerError
from fednas.privacy.numbers import canonical_json

GENESIS: Final = "0" * 64
BUSY_TIMEOUT_S: Final = 30.0

# The verifier compares these statements with the file's own, word for word: a missing trigger is a finding.
# The insert triggers matter because INSERT OR REPLACE fires no delete trigger.
SCHEMA: Final = (
    "CREATE TABLE entries"
    " (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, digest TEXT NOT NULL)",
    "CREATE TABLE replies (operation TEXT PRIMARY KEY, reply BLOB NOT NULL)",
    "CREATE TRIGGER entries_append BEFORE INSERT ON entries"
    " WHEN NEW.seq <> (SELECT coalesce(max(seq) + 1, 0) FROM entries)"
    " BEGIN SELECT RAISE(ABORT, 'entries only grow'); END",
    "CREATE TRIGGER entries_update BEFORE UPDATE ON entries"
    " BEGIN SELECT RAISE(ABORT, 'entries only grow'); END",
    "CREATE TRIGGER entries_delete BEFORE DELETE ON entries"
    " BEGIN SELECT RAISE(ABORT, 'entries only grow'); END",
    "CREATE TRIGGER replies_append BEFORE INSERT ON replies"
    " WHEN EXISTS (SELECT 1 FROM replies WHERE operation = NEW.operation)"
    " BEGIN SELECT RAISE(ABORT, 'replies only grow'); END",
    "CREATE TRIGGER replies_update BEFORE UPDATE ON replies"
    " BEGIN SELECT RAISE(ABORT, 'replies only grow'); END",
    "CREATE TRIGGER replies_delete BEFORE DELETE ON replies"
    " BEGIN SELECT RAISE(ABORT, 'replies only grow'); END",
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the ledger: its position, what happened, the public facts, and the chain's digest here."""

    seq: int
    kind: str
    body: Mapping[str, Any]
    digest: str


def chain(previous: str, seq: int, kind: str, body: str) -> str:
    """Digest of an entry: sha256 over the previous digest, the position, the kind and the body.

    Args:
        previous: Hexadecimal digest of the entry before, or `GENESIS`.
        seq: Position, counted from 0.
        kind: What happened; it holds no newline, so the fields cannot run into each other.
        body: Canonical JSON.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(f"{previous}\n{seq}\n{kind}\n{body}".encode()).hexdigest()


def release_body(operation: str, reply: bytes) -> dict[str, str]:
    """What a RELEASE entry says: which operation was answered, and with exactly which bytes.

    Args:
        operation: the operation's identifier.
        reply: the bytes that are stored and sent.
    """
    return {"operation": operation, "reply": hashlib.sha256(reply).hexdigest()}


def release_head(previous: str, entries: int, operation: str, reply: bytes) -> str:
    """Digest of the RELEASE entry of a reply: whoever has the reply can compute what its ledger signed.

    Args:
        previous: digest of the entry before it.
        entries: number of entries with it, at least 1.
        operation: the operation's identifier.
        reply: the bytes that are stored and sent.

    Returns:
        64 hexadecimal digits.
    """
    return chain(previous, entries - 1, "RELEASE", canonical_json(release_body(operation, reply)))


@final
class LedgerStore:
    """Durable, append-only storage; it knows nothing about privacy.

    Every commit reaches the disk before it returns (WAL, `synchronous=FULL`). Writers of several threads and
    processes wait for each other. A connection does not survive a fork: a child must open its own.
    """

    def __init__(
        self, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S, read_only: bool = False
    ) -> None:
        self._path = path
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._tail = (-1, GENESIS)  # last entry that was read and checked
        if read_only:
            with self._translate():
                self._connection = _open_read_only(path, busy_timeout_s)
            return
        with self._translate():
            # Created here, so that SQLite's own files inherit the owner-only mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(
                path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(busy_timeout_s)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, busy_timeout_s: float) -> None:
        deadline = time.monotonic() + busy_timeout_s
        while True:  # switching to WAL does not wait for a busy file by itself
            try:
                # All rows: the switch is committed after the first one, and only then fails if the disk does.
                self._connection.execute("PRAGMA journal_mode=WAL").fetchall()
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if self._connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            raise LedgerError(  # in any other mode a commit may be undone by a power loss
                f"{self._path} cannot have a write-ahead log; put the ledger on a local disk"
            )
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("BEGIN IMMEDIATE")
        found = [row[0] for row in self._connection.execute("SELECT sql FROM sqlite_master") if row[0]]
        if not found:
            for statement in SCHEMA:
                self._connection.execute(statement)
        elif set(found) != set(SCHEMA):
            raise LedgerError(f"{self._path} has other tables or triggers than a ledger; open the right file")
        self._connection.execute("COMMIT")
        # What a process left behind, its last sync having failed, may be in the cache only: write it anew.
        while self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0]:
            if time.monotonic() > deadline:
                raise LedgerError(f"{self._path} stays busy; try again when fewer processes use it")
            time.sleep(0.01)  # SQLite does not wait for somebody else who does the same
        # The names of the file and of its log. SQLite does so too, but goes on when the disk refuses.
        _sync_folder(self._path)

    @contextmanager
    def _translate(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeError) as error:
            raise LedgerError(
                f"the ledger {self._path} cannot be read or written ({error}); nothing was released: "
                "check the disk and run `fednas ledger verify` on the file"
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the file's only write lock; commit durably at the end, or roll everything back.

        Raises:
            LedgerError: When the disk refuses, or the file stays busy beyond the timeout.
        """
        if os.getpid() != self._process:
            raise LedgerError(f"the ledger {self._path} was opened in another process: open it again here")
        with self._lock, self._translate():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def replay(self, take: Callable[[Entry], None]) -> None:
        """Hand over the entries that were committed since the last call, by anyone, once their chain holds.

        Args:
            take: called with each new entry in order; one at which it raises comes again next time.

        Raises:
            LedgerError: the chain is broken, or an entry that was already read has gone.
        """
        with self._lock:
            seq, head = self._tail
            with self._translate():
                rows = self._connection.execute(
                    "SELECT seq, kind, body, digest FROM entries WHERE seq >= ? ORDER BY seq", (max(seq, 0),)
                ).fetchall()
            if seq >= 0:  # the first row is known
                if not rows or (rows[0][0], rows[0][3]) != (seq, head):
                    raise LedgerError(
                        f"the ledger {self._path} lost entry {seq}, which it had; restore a file that has it"
                    )
                rows = rows[1:]
            for position, kind, body, digest in rows:
                seq += 1
                if position != seq or not isinstance(body, str) or chain(head, seq, kind, body) != digest:
                    raise LedgerError(
                        f"the ledger {self._path} is broken at entry {seq}: its chain of digests does not "
                        "hold; restore an intact copy"
                    )
                head = digest
                try:
                    facts = json.loads(body)
                except (ValueError, RecursionError) as error:
                    raise LedgerError(
                        f"entry {seq} of the ledger {self._path} is no JSON; restore an intact copy"
                    ) from error
                take(Entry(seq=seq, kind=kind, body=facts, digest=digest))
                self._tail = (seq, head)

    def contains(self, digest: str) -> bool:
        """Whether some entry has this digest; recent ones are found first.

        Raises:
            LedgerError: When the disk refuses.
        """
        with self._lock, self._translate():
            found = self._connection.execute(
                "SELECT 1 FROM entries WHERE digest = ? ORDER BY seq DESC LIMIT 1", (digest,)
            ).fetchone()
        return found is not None

    def tail(self) -> tuple[int, str, str]:
        """Number of entries, and kind and digest of the last one; those of an open transaction count.

        Raises:
            LedgerError: When the disk refuses.
        """
        with self._lock, self._translate():
            row = self._connection.execute(
                "SELECT seq, kind, digest FROM entries ORDER BY seq DESC LIMIT 1"
            ).fetchone()
        return (row[0] + 1, row[1], row[2]) if row else (0, "", GENESIS)

    def append(self, kind: str, body: Mapping[str, Any]) -> None:
        """Add an entry inside a transaction; `replay` hands it over after the commit.

        Args:
            kind: What happened, without a newline.
            body: Public facts only.

        Raises:
            LedgerError: When the disk refuses.
        """
        assert self._connection.in_transaction
        text = canonical_json(body)
        seq, _, head = self.tail()
        with self._translate():
            self._connection.execute(
                "INSERT INTO entries VALUES (?, ?, ?, ?)", (seq, kind, text, chain(head, seq, kind, text))
            )

    def reply(self, operation: str) -> bytes | None:
        """The stored bytes of an operation's reply, or None.

        Args:
            operation: The operation's identifier.

        Raises:
            LedgerError: When the disk refuses.
        """
        with self._lock, self._translate():
            row = self._connection.execute(
                "SELECT reply FROM replies WHERE operation = ?", (operation,)
            ).fetchone()
        return bytes(row[0]) if row else None

    def keep(self, operation: str, reply: bytes) -> None:
        """Store an operation's reply inside a transaction, once and for ever.

        Args:
            operation: The operation's identifier.
            reply: The bytes that will be sent.

        Raises:
            LedgerError: When the operation has a reply already, or the disk refuses.
        """
        assert self._connection.in_transaction
        with self._translate():
            self._connection.execute("INSERT INTO replies VALUES (?, ?)", (operation, reply))

    def close(self) -> None:
        """Close the file; a closed store refuses everything."""
        with self._lock, self._translate():
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_entries(path: Path) -> tuple[Entry, ...]:
    """All entries of a ledger file, which is not written to; their chain holds, no signature is verified.

    Args:
        path: of the file.

    Raises:
        LedgerError: it is missing or foreign, or its chain is broken.
    """
    entries: list[Entry] = []
    with LedgerStore(path, read_only=True) as store:
        store.replay(entries.append)
    return tuple(entries)


def _open_read_only(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """Open a ledger as it is: nothing is created, and a closed file on a read-only disk can be read."""
    uri = path.resolve().as_uri() + "?mode=ro"
    if not path.with_name(path.name + "-wal").exists():
        uri += "&immutable=1"
    connection = sqlite3.connect(uri, uri=True, timeout=busy_timeout_s, isolation_level=None)
    found = {row[0] for row in connection.execute("SELECT sql FROM sqlite_master") if row[0]}
    if found != set(SCHEMA):
        connection.close()
        raise LedgerError(f"{path} has other tables or triggers than a ledger; open the right file")
    return connection


def _sync_folder(path: Path) -> None:
    """Make a new name durable: a file whose folder was never synced may be gone after a power cut."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def key_file(ledger: Path) -> Path:
    """Where the secret of a ledger lies: beside it, under its name with `.key`."""
    return ledger.with_name(ledger.name + ".key")


def stream_key(path: Path, test_seed: int | None, *, create: bool) -> bytes:
    """Read, or make, the secret that assigns a dataset's records to streams and signs its ledger.

    Args:
        path: of the key file, readable by its owner only.
        test_seed: derives the key instead, without any file.
        create: whether a missing key may be made: only for a ledger without entries.

    Returns:
        32 bytes.

    Raises:
        LedgerError: the file is missing, damaged, or the disk refuses.
    """
    if test_seed is not None:
        return hashlib.sha256(f"fednas test stream key\0{int(test_seed)}".encode()).digest()
    try:
        if create and not path.exists():
            draft = path.with_name(path.name + ".new")
            draft.unlink(missing_ok=True)
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
                file.flush()
                os.fsync(handle)
            draft.replace(path)  # appears whole or not at all
            _sync_folder(path)
        key = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"the stream key {path} cannot be read or written ({error}): restore it") from error
    if len(key) != 32:
        raise LedgerError(f"the stream key {path} holds {len(key)} bytes, not 32: restore it")
    return key

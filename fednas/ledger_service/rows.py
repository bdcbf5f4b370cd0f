"""The rows of a ledger file as they are, read in moments so short that no writer ever waits for them."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from fednas.errors import LedgerError
from fednas.privacy.store import SCHEMA

BUSY_TIMEOUT_S: Final = 2.0
CHUNK_ROWS: Final = 500
_ATTEMPTS: Final = 5

DAMAGED: Final = "the ledger is not readable as one"


@dataclass(frozen=True, kw_only=True)
class State:
    """A state that a ledger is in.

    Args:
        dataset: its public name, as its first entry says.
        signer: its public key, likewise.
        entries: how many there are.
        head: digest of the last one.
    """

    dataset: str
    signer: str
    entries: int
    head: str


@final
class Rows:
    """Reads a ledger file for others.

    Every read opens the file anew with `mode=ro` and closes it before anything is sent: no transaction
    outlives a query, so a writer that wants to empty its write-ahead log is never kept waiting by a slow
    auditor. Rows never change, so what is read in several moments fits together.

    SQLite writes nothing but its lock bytes and read marks (`-shm`) where a writer's log is there, and
    nothing at all where there is none: such a file is opened as immutable, and read again when it was not.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def state(self) -> State:
        """The state that the ledger is in now.

        Raises:
            LedgerError: there is no such ledger; the text is always the same.
        """
        first = self._read("SELECT seq, kind, body, digest FROM entries WHERE seq = 0")
        last = self._read("SELECT seq, kind, body, digest FROM entries ORDER BY seq DESC LIMIT 1")
        if not first or not last:
            raise LedgerError(DAMAGED)
        seq, _, body, _ = _entry(first[0])
        try:
            facts = json.loads(body)
            dataset, signer = facts["dataset"], facts["signer"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise LedgerError(DAMAGED) from error
        if seq != 0 or not isinstance(dataset, str) or not isinstance(signer, str):
            raise LedgerError(DAMAGED)
        seq, _, _, head = _entry(last[0])
        return State(dataset=dataset, signer=signer, entries=seq + 1, head=head)

    def operations(self) -> list[str]:
        """The operations whose replies the file holds.

        Raises:
            LedgerError: there is no such ledger.
        """
        names = [row[0] for row in self._read("SELECT operation FROM replies ORDER BY rowid")]
        if not all(isinstance(name, str) for name in names):
            raise LedgerError(DAMAGED)
        return names

    def entries(self, start: int, end: int) -> Iterator[list[tuple[int, str, str, str]]]:
        """Entries of the positions start <= seq < end, some at a time.

        Raises:
            LedgerError: there is no such ledger.
        """
        while start < end:
            rows = self._read(
                "SELECT seq, kind, body, digest FROM entries WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT ?",
                (start, end, CHUNK_ROWS),
            )
            if not rows:
                return  # positions are missing: whoever gets the rows notices
            found = [_entry(row) for row in rows]
            yield found
            start = found[-1][0] + 1

    def reply(self, operation: str) -> bytes | None:
        """The stored reply of an operation, or None.

        Raises:
            LedgerError: there is no such ledger, or the reply is not bytes.
        """
        rows = self._read("SELECT reply FROM replies WHERE operation = ?", (operation,))
        if rows and not isinstance(rows[0][0], bytes):
            raise LedgerError(DAMAGED)
        return rows[0][0] if rows else None

    def _read(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            for _ in range(_ATTEMPTS):
                before = self._stamp()
                rows = self._query(query, values, closed=before is not None)
                if before is None or before == self._stamp():
                    return rows
        except (sqlite3.Error, OSError, UnicodeError, OverflowError) as error:
            raise LedgerError(DAMAGED) from error
        raise LedgerError(DAMAGED)

    def _stamp(self) -> tuple[int, int] | None:
        """What tells that a file without a log was not written to meanwhile; None for one with a log."""
        if self._path.with_name(self._path.name + "-wal").exists():
            return None
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size

    def _query(self, query: str, values: tuple[Any, ...], *, closed: bool) -> list[tuple[Any, ...]]:
        uri = self._path.resolve().as_uri() + "?mode=ro" + "&immutable=1" * closed
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            found = {row[0] for row in connection.execute("SELECT sql FROM sqlite_master") if row[0]}
            if found != set(SCHEMA):
                raise LedgerError(DAMAGED)
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()


def _entry(row: tuple[Any, ...]) -> tuple[int, str, str, str]:
    seq, kind, body, digest = row
    if not isinstance(seq, int) or seq < 0 or not all(isinstance(text, str) for text in (kind, body, digest)):
        raise LedgerError(DAMAGED)
    return seq, kind, body, digest

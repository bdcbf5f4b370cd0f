"""A ledger's file past the ledger's own code: read, looked at, and altered as whoever holds it could."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

Body = dict[str, Any]


def connect(path: Path) -> sqlite3.Connection:
    """A connection of one's own that only reads; the ledger may be in use, or closed."""
    uri = path.resolve().as_uri() + "?mode=ro"
    if not path.with_name(path.name + "-wal").exists():
        uri += "&immutable=1"
    return sqlite3.connect(uri, uri=True, isolation_level=None)


def read_entries(path: Path, *kinds: str) -> list[tuple[str, Body]]:
    """The committed entries of some kinds, or of all, as (kind, body)."""
    with closing(connect(path)) as connection:
        rows = connection.execute("SELECT kind, body FROM entries ORDER BY seq").fetchall()
    return [(kind, json.loads(body)) for kind, body in rows if not kinds or kind in kinds]


def write_lock_is_held(path: Path) -> bool:
    """Whether somebody holds the file's only write lock at this moment."""
    with closing(sqlite3.connect(path, timeout=0.0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.execute("ROLLBACK")
    return False


def durability(holder: object) -> tuple[str, int]:
    """The journal mode and the synchronous level of the SQLite connection that an object works with.

    The level is a property of a connection and not of a file, so it is asked there: found by its type.

    Raises:
        LookupError: the object holds no connection.
    """
    seen, waiting = set[int](), [holder]
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, sqlite3.Connection):
            journal = str(thing.execute("PRAGMA journal_mode").fetchone()[0])
            return journal, int(thing.execute("PRAGMA synchronous").fetchone()[0])
        if id(thing) not in seen:
            seen.add(id(thing))
            waiting += getattr(thing, "__dict__", {}).values()
    raise LookupError("no SQLite connection was found")


@contextmanager
def altering(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection without the triggers that keep a ledger append-only; they are back afterwards.

    Args:
        path: of a closed ledger.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        connection.execute("BEGIN")
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        yield connection
        for _, statement in triggers:
            connection.execute(statement)
        connection.execute("COMMIT")


def edit(path: Path, kind: str, change: Callable[[Body], Body], *, rechained: bool) -> None:
    """Change the last entry of a kind in a closed ledger, as somebody without its key would.

    Args:
        path: of the file.
        kind: of the entry.
        change: of its body.
        rechained: whether the digests are made to fit again.
    """
    with altering(path) as connection:
        rows = connection.execute("SELECT seq, kind, body, digest FROM entries ORDER BY seq").fetchall()
        chosen = max(seq for seq, found, _, _ in rows if found == kind)
        head = rows[chosen - 1][3]
        for seq, found, body, digest in rows[chosen:]:
            if seq == chosen:
                body = json.dumps(change(json.loads(body)), sort_keys=True, separators=(",", ":"))
            if rechained:
                digest = hashlib.sha256(f"{head}\n{seq}\n{found}\n{body}".encode()).hexdigest()
            connection.execute("UPDATE entries SET body = ?, digest = ? WHERE seq = ?", (body, digest, seq))
            head = digest


def spoil_reply(path: Path) -> None:
    """Flip the last bit of the last stored reply of a closed ledger."""
    with altering(path) as connection:
        row, reply = connection.execute(
            "SELECT rowid, reply FROM replies ORDER BY rowid DESC LIMIT 1"
        ).fetchone()
        spoilt = reply[:-1] + bytes([reply[-1] ^ 1])
        connection.execute("UPDATE replies SET reply = ? WHERE rowid = ?", (spoilt, row))

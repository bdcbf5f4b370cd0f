"""What was seen of a ledger from outside, held against its file after every crash."""

import hashlib
import json
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from fednas.privacy.released import serialise
from fednas.privacy.verify import LedgerTampered, verify
from fednas.wire import Answer, Refusal, decode
from simulations import internals


@dataclass(frozen=True, kw_only=True)
class Line:
    """One entry of a ledger, read past it."""

    seq: int
    kind: str
    body: dict[str, Any]
    digest: str


def read(path: Path) -> list[Line]:
    """The entries of a file; none while there is no file or no table."""
    if not path.exists():
        return []
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT seq, kind, body, digest FROM entries ORDER BY seq").fetchall()
    except sqlite3.DatabaseError:
        return []
    finally:
        connection.close()
    return [
        Line(seq=seq, kind=kind, body=json.loads(body), digest=digest) for seq, kind, body, digest in rows
    ]


def answer_of(reply: bytes) -> tuple[int, Answer | Refusal | None]:
    """Which node a reply from the network is of, and what it says; None for a site's facts."""
    message = internals.decode(reply)
    content = message.content
    said = None if "facts" in content.config_records else decode(content)
    return message.metadata.src_node_id, said


def content_of(answer: Answer) -> str:
    """sha256 of the bytes that the ledger released."""
    return hashlib.sha256(serialise(dict(answer.arrays))).hexdigest()


@final
@dataclass(kw_only=True)
class Witness:
    """Remembers what one ledger acknowledged, and finds what it forgot.

    Args:
        path: of the ledger's file.
    """

    path: Path
    heads: dict[str, str] = field(default_factory=dict)  # operation -> head of its release
    contents: dict[str, str] = field(default_factory=dict)  # operation -> sha256 of its reply
    charges: Counter[str] = field(default_factory=Counter)
    seen: int = 0  # entries
    reservations: int = 0
    uncharged: int = 0
    lost: int = 0
    broken: int = 0

    def receive(self, answer: Answer) -> None:
        """A reply has arrived: from now on its charge may never be gone, nor its content change."""
        self.note(answer.operation_id, answer.head, content_of(answer))

    def note(self, operation: str, head: str, content: str) -> None:
        """The same, of a release that is known by its head and its content's digest."""
        if self.contents.setdefault(operation, content) != content:
            self.uncharged += 1  # a second release under the charge of the first
        self.heads[operation] = head

    def look(self) -> None:
        """Hold the file against everything that was seen of it; what is wrong adds up."""
        try:
            verify(self.path)  # first: it leaves the file as it is
            whole = True
        except LedgerTampered:
            whole = False
        lines = read(self.path)
        self.broken += not whole and bool(lines or self.heads)
        digests = {line.digest for line in lines}
        self.lost += sum(head not in digests for head in self.heads.values())
        self.uncharged += sum(not _is_paid(lines, operation, self) for operation in self.heads)
        charges: Counter[str] = Counter()
        self.reservations = sum(line.kind == "RESERVE" for line in lines)
        for line in lines:
            if line.kind == "RESERVE":
                charges.update(line.body["charges"])
        self.lost += bool(self.charges - charges) + (len(lines) < self.seen)
        self.charges, self.seen = charges, len(lines)


def _is_paid(lines: list[Line], operation: str, witness: Witness) -> bool:
    """Whether a reply that was received has its reservation, and then its release, of the same content."""
    reserved = [li.seq for li in lines if li.kind == "RESERVE" and li.body["operation"] == operation]
    released = [li for li in lines if li.kind == "RELEASE" and li.body["operation"] == operation]
    return (
        len(released) == 1
        and bool(reserved)
        and reserved[0] < released[0].seq
        and released[0].digest == witness.heads[operation]
        and released[0].body["reply"] == witness.contents[operation]
    )

"""The content of a ledger file as values that a test can change, and ledgers worth changing."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.events import Gaussian
from fednas.privacy.ledger import BudgetExhaustedError, PrivacyLedger
from fednas.privacy.numbers import canonical_json
from fednas.privacy.signing import Signer
from fednas.privacy.store import GENESIS, SCHEMA, chain
from tests.privacy.ledgers import CAP, forbidden, noise, operation, plan_of, search_event

PLAN = plan_of(
    search=search_event(200, sigma=6.0),
    alphas=search_event(60, sigma=6.0),
    fitness=Gaussian(noise_multiplier=60.0, releases=40),
    final=search_event(20, sigma=6.0),
)
GREEDY = plan_of(search=search_event(200, sigma=0.6))


@dataclass(frozen=True)
class Row:
    """One entry as a file holds it."""

    seq: int
    kind: str
    body: str
    digest: str

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.body)
        return facts

    def saying(self, **facts: Any) -> "Row":
        return replace(self, body=canonical_json(self.facts | facts))


@dataclass
class Content:
    """All that a reader of a ledger file can see, but its schema."""

    rows: list[Row]
    replies: dict[str, bytes]

    def copy(self) -> "Content":
        return Content(list(self.rows), dict(self.replies))

    def places(self, *kinds: str) -> list[int]:
        return [n for n, row in enumerate(self.rows) if row.kind in kinds]

    def rechain(self, signer: Signer | None = None) -> None:
        """Make positions and digests fit again; with a key, the signatures too."""
        head = GENESIS
        dataset = self.rows[0].facts["dataset"] if self.rows else ""
        for seq, row in enumerate(self.rows):
            if signer is not None and row.kind == "CHECKPOINT":
                row = row.saying(signature=signer.sign(dataset, seq, head))
            head = chain(head, seq, row.kind, row.body)
            self.rows[seq] = Row(seq, row.kind, row.body, head)


def read(path: Path) -> tuple[Content, list[tuple[Any, ...]]]:
    """The content and the schema of a file, past every class of the ledger.

    Raises:
        sqlite3.Error: the file is no database.
    """
    closed = not Path(f"{path}-wal").exists()
    connection = sqlite3.connect(f"file:{path}?mode=ro" + "&immutable=1" * closed, uri=True)
    try:
        schema = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
        rows = [Row(*row) for row in connection.execute("SELECT * FROM entries ORDER BY seq")]
        return Content(rows, dict(connection.execute("SELECT operation, reply FROM replies"))), schema
    finally:
        connection.close()


@contextmanager
def altering(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection as whoever holds the file can have one: without triggers, which are back afterwards."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous=OFF")
        for statement in SCHEMA[2:]:
            connection.execute(f"DROP TRIGGER {statement.split()[2]}")
        yield connection
        for statement in SCHEMA[2:]:
            connection.execute(statement)
    finally:
        connection.close()


def write(content: Content, path: Path) -> None:
    """Put this content into a file."""
    with altering(path) as connection:
        connection.execute("BEGIN")
        connection.execute("DELETE FROM entries")
        connection.execute("DELETE FROM replies")
        rows = [(row.seq, row.kind, row.body, row.digest) for row in content.rows]
        connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?)", rows)
        connection.executemany("INSERT INTO replies VALUES (?, ?)", content.replies.items())
        connection.execute("COMMIT")


@dataclass(frozen=True)
class Original:
    """A ledger of some hundred entries, other copies of its file, and a ledger of another dataset.

    Args:
        path: of the closed file.
        content: all that can be read in it.
        schema: likewise.
        signer: its owner's.
        snapshots: older copies.
        dead: the same state as a process that died leaves it: most of it in the write-ahead log.
        other: a ledger of another dataset.
    """

    path: Path
    content: Content
    schema: list[tuple[Any, ...]]
    signer: Signer
    snapshots: tuple[Path, ...]
    dead: Path
    other: Path

    @property
    def head(self) -> str:
        return self.content.rows[-1].digest

    @classmethod
    def make(cls, folder: Path) -> "Original":
        path, dead, other, snapshots = folder / "ward", folder / "dead", folder / "clinic", []
        for index in range(12):
            cap = PrivacyBudget(epsilon=CAP.epsilon + (index in (3, 4)), delta=CAP.delta)
            with PrivacyLedger.open(path, dataset="ward", cap=cap) as ledger:
                ledger.open_plan(f"run {index % 2}", PLAN)
                for number in range(6):
                    asked = operation(number + 10 * index, run=f"run {index % 2}")
                    charges = [{"search": 2, "alphas": 1}, {"fitness": 1}, {"final": 1}][number % 3]
                    ledger.release(asked, charges=charges, mechanism=noise)
                with suppress(AssertionError):
                    asked = operation(7 + 10 * index, run="run 0")
                    ledger.release(asked, charges={"search": 1}, mechanism=forbidden)
                with suppress(BudgetExhaustedError):
                    ledger.open_plan(f"run {index + 2}", GREEDY)
                signer = Signer(ledger.stream_key)
                for suffix in ("", "-wal"):
                    shutil.copyfile(f"{path}{suffix}", f"{dead}{suffix}")
            if index < 11:
                snapshots.append(Path(shutil.copyfile(path, folder / f"snapshot {index}")))
        with PrivacyLedger.open(other, dataset="clinic", cap=CAP) as ledger:
            ledger.open_plan("run 0", PLAN)
            for number in range(20):
                asked = operation(number, run="run 0")
                ledger.release(asked, charges={"search": 1}, mechanism=noise)
        return cls(path, *read(path), signer, tuple(snapshots), dead, other)

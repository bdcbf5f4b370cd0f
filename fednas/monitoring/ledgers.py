"""What a site's ledger has spent and has left, computed again only when its file changed."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, final

from fednas.config import SiteConfig
from fednas.errors import FednasError
from fednas.privacy.allowance import STREAMS
from fednas.privacy.ledger import SpendStatement, read_statement
from fednas.privacy.store import key_file

# What a file that anybody may have damaged can make its readers raise.
_DAMAGED: Final = (
    FednasError,
    sqlite3.Error,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)


@dataclass(frozen=True, kw_only=True)
class LedgerReading:
    """A ledger as it was when it was read.

    Args:
        dataset: its public name.
        cap: epsilon that its owner allows per stream, infinite without privacy.
        entries: how many the ledger has; None where it cannot be believed.
        spent: by stream, the epsilon to state; infinite where noise was reproducible or absent.
        left: by stream, the cap less what counts against it: the claims of all plans, or, under a cap with an
            order, the charges. Epsilons of plans do not add up exactly: `fednas plan` says what still fits.
        healthy: whether the file could be read, and its chain and its signature hold.
    """

    dataset: str
    cap: float
    entries: int | None = None
    spent: Mapping[str, float] = field(default_factory=dict)
    left: Mapping[str, float] = field(default_factory=dict)
    healthy: bool


@final
class LedgerWatch:
    """Reads one site's ledger again and again.

    Args:
        site: whose ledger it is.
    """

    def __init__(self, site: SiteConfig) -> None:
        self._site = site
        self._known: tuple[object, LedgerReading] | None = None

    @property
    def dataset(self) -> str:
        """The public name of the dataset."""
        return self._site.dataset

    def read(self) -> LedgerReading:
        """The ledger as it is now; a damaged one is a reading that is not healthy, never an error."""
        try:
            version = self._version()
            if self._known is not None and self._known[0] == version:
                return self._known[1]
            reading = self._reading()
        except _DAMAGED:
            return LedgerReading(dataset=self._site.dataset, cap=self._site.cap.epsilon, healthy=False)
        self._known = (version, reading)
        return reading

    def _version(self) -> object:
        """What changes with the file: every commit writes to it or to its log."""
        found: list[tuple[int, int, int] | None] = []
        ledger = self._site.ledger
        for path in (ledger, ledger.with_name(ledger.name + "-wal"), key_file(ledger)):
            if not path.exists():
                found.append(None)
                continue
            status = path.stat()
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return found

    def _reading(self) -> LedgerReading:
        site = self._site
        begun = self._known is not None and self._known[1].entries != 0
        if not site.ledger.exists() and not key_file(site.ledger).exists() and not begun:
            zero = dict.fromkeys(STREAMS, 0.0)
            return LedgerReading(
                dataset=site.dataset,
                cap=site.cap.epsilon,
                entries=0,
                spent=zero,
                left=dict.fromkeys(STREAMS, site.cap.epsilon),
                healthy=True,
            )
        statement = read_statement(site.ledger)
        if statement.dataset != site.dataset:
            raise ValueError("the ledger of another dataset")
        return LedgerReading(
            dataset=site.dataset,
            cap=statement.cap.epsilon,
            entries=statement.entries,
            spent={spend.stream: spend.claimed_epsilon for spend in statement.streams},
            left=_left(statement),
            healthy=True,
        )


def _left(statement: SpendStatement) -> dict[str, float]:
    cap = statement.cap
    left = {}
    for spend in statement.streams:
        counted = spend.claimed_epsilon if cap.order is None else spend.charged_epsilon
        left[spend.stream] = cap.epsilon if not cap.is_private else max(cap.epsilon - counted, 0.0)
    return left

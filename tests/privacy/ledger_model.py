"""What a ledger should hold, in a few lines of its own: a model foretells, an auditor recounts."""

import json
import math
import sqlite3
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fednas.errors import PrivacyError, ReplayMismatchError
from fednas.privacy.accounting import epsilon_pld
from fednas.privacy.budget import NON_PRIVATE, PrivacyBudget
from fednas.privacy.events import Event, NonPrivate, decode
from fednas.privacy.ledger import Arrays, BudgetExhaustedError, Operation, StreamsFixedError
from fednas.privacy.plan import READS, STREAMS, PrivacyPlan


@lru_cache(maxsize=256)
def renyi(event: Event, order: int) -> float:
    """Rényi divergence of one release of an event at one integer order: the textbook sum, term by term."""
    if isinstance(event, NonPrivate):
        return math.inf
    q, precision = event.sampling_probability, 0.5 / event.noise_multiplier**2
    if q == 1.0:
        return order * precision
    logs = [
        math.log(math.comb(order, i))
        + (order - i) * math.log1p(-q)
        + i * math.log(q)
        + i * (i - 1) * precision
        for i in range(order + 1)
    ]
    return (max(logs) + math.log(math.fsum(math.exp(x - max(logs)) for x in logs))) / (order - 1)


REFUSALS: dict[type[Exception], str] = {
    BudgetExhaustedError: "BUDGET_EXHAUSTED",
    ReplayMismatchError: "REPLAY_MISMATCH",
    StreamsFixedError: "STREAMS_FIXED",
}


class Model:
    """What a ledger should hold: plans, charges and replies of one dataset, and nothing about files."""

    def __init__(self, cap: PrivacyBudget) -> None:
        self.cap = cap
        self.plans: dict[str, PrivacyPlan] = {}
        self.spent: Counter[tuple[str, str]] = Counter()
        self.operations: dict[str, str] = {}  # id -> digest
        self.replies: dict[str, Arrays] = {}
        self.refusals: set[tuple[str, str]] = set()
        self.reservations = 0

    def recap(self, cap: PrivacyBudget) -> bool:
        """Whether the owner may set this cap; sets it."""
        allowed = cap.order == self.cap.order and cap.delta >= self.cap.delta
        if self.cap.order is not None:
            allowed &= cap.epsilon <= self.cap.epsilon and cap.delta == self.cap.delta
        if allowed:
            self.cap = cap
        return allowed

    def fits(self, plans: Sequence[PrivacyPlan] = (), charges: Sequence[tuple[str, str, int]] = ()) -> bool:
        """Whether more plans, or charges of (run, allowance, amount), stay within the cap."""
        order = self.cap.order
        if order is None:
            opened = (*self.plans.values(), *plans)
            return all(
                epsilon_pld([e for plan in opened for e in plan.events(stream)], self.cap.delta)
                <= self.cap.epsilon
                for stream in STREAMS
            )
        bound = self.cap.epsilon - math.log1p(-1.0 / order) + math.log(self.cap.delta * order) / (order - 1.0)
        costs = [
            (name, amount * renyi(self.plans[run].allowance(name).event, order))
            for run, name, amount in [*((*key, n) for key, n in self.spent.items()), *charges]
        ]
        costs += [(a.name, a.amount * renyi(a.event, order)) for plan in plans for a in plan.allowances]
        totals = [math.fsum(cost for name, cost in costs if stream in READS[name]) for stream in STREAMS]
        assert all(total == math.inf or abs(total - bound) > 1e-9 for total in totals)  # no tie to break
        return max(totals) <= bound

    def opening(self, run: str, plan: PrivacyPlan) -> type[PrivacyError] | None:
        """What opening a plan should raise."""
        if run in self.plans:
            return None if self.plans[run].id == plan.id else ReplayMismatchError
        if plan.proportions != next(iter(self.plans.values()), plan).proportions:
            return StreamsFixedError
        return None if self.fits([plan]) else BudgetExhaustedError

    def asking(self, asked: Operation, charges: dict[str, Any]) -> type[PrivacyError] | None:
        """What a request should raise before its mechanism runs."""
        run = asked.run
        if self.operations.get(asked.id, asked.digest) != asked.digest:
            return ReplayMismatchError
        if asked.id in self.replies:
            return None
        if run not in self.plans or not charges:
            return PrivacyError
        room = {a.name: a.amount - self.spent[run, a.name] for a in self.plans[run].allowances}
        if not set(charges) <= set(room) or any(type(n) is not int or n < 1 for n in charges.values()):
            return PrivacyError
        fits = all(amount <= room[name] for name, amount in charges.items())
        fits = fits and self.fits(charges=[(run, name, amount) for name, amount in charges.items()])
        return None if fits else BudgetExhaustedError

    def reserve(self, asked: Operation, charges: dict[str, int]) -> None:
        """A charge that nothing gives back."""
        self.operations[asked.id] = asked.digest
        self.reservations += 1
        self.spent.update({(asked.run, name): amount for name, amount in charges.items()})

    def claim(self, stream: str, first: PrivacyBudget) -> float:
        """What a stream's records may have lost, given the first cap."""
        if self.cap.order is None:
            return epsilon_pld([e for p in self.plans.values() for e in p.events(stream)], self.cap.delta)
        touched = any(stream in READS[name] for _, name in self.spent)
        return first.epsilon if touched else 0.0


class Auditor:
    """What a stranger sees in the entries alone; it counts with nobody's help, and refuses an overspend."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, str, str]] = []
        self.limits: dict[tuple[str, str], int] = {}
        self.books = Model(NON_PRIVATE)

    def read(self, path: Path, start: int) -> list[tuple[int, str, str, str]]:
        """The entries of a file from a position on, past every class of the ledger."""
        uri = f"file:{path}?mode=ro" + ("" if Path(f"{path}-wal").exists() else "&immutable=1")
        connection = sqlite3.connect(uri, uri=True)
        rows = connection.execute("SELECT seq, kind, body, digest FROM entries WHERE seq >= ?", (start,))
        try:
            return sorted(rows.fetchall())
        finally:
            connection.close()

    def follow(self, path: Path) -> list[str]:
        """Take in what is new, and return its kinds without the signatures."""
        start = max(len(self.rows) - 1, 0)
        found = self.read(path, start)
        assert found[: len(self.rows) - start] == self.rows[start:]  # entries only grow
        new = found[len(self.rows) - start :]
        for row in new:
            self.take(row[1], json.loads(row[2]))
        self.rows += new
        assert self.rows[-1][1] == "CHECKPOINT"  # signed to the end
        return [row[1] for row in new if row[1] != "CHECKPOINT"]

    def take(self, kind: str, body: dict[str, Any]) -> None:
        books = self.books
        if kind in ("OPEN", "CAP"):
            books.cap = PrivacyBudget.decode(body["cap"])
        elif kind == "PLAN":
            for allowance in body["plan"]["allowances"]:
                amount = decode(allowance["event"]).amount
                self.limits[body["run"], allowance["name"]] = amount
            books.plans[body["run"]] = PrivacyPlan.from_json(
                json.dumps(body["plan"], sort_keys=True, separators=(",", ":"))
            )
            assert books.fits()
        elif kind == "RESERVE":
            for name, amount in body["charges"].items():
                books.spent[body["run"], name] += amount
                assert 0 < books.spent[body["run"], name] <= self.limits[body["run"], name]
            assert books.fits()

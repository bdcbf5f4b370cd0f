"""A stranger's check of a ledger file: Python's standard library and nothing of the program that wrote it.

Run `python verify.py FILE [--head DIGEST]`. It recomputes the chain of digests, holds every charge against
its plan and every reply against its release, and recomputes epsilon per stream from the events. A chain by
itself does not bind whoever holds the file: without a head that somebody else kept, a file that was cut back
to an older state, or written anew as a whole, looks right.
"""

import argparse
import hashlib
import json
import math
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

ORDERS = range(2, 257)
READS = {
    "search": ["weights"],
    "alphas": ["architecture"],
    "fitness": ["fitness"],
    "final": ["weights", "architecture", "fitness"],
}
FIELDS = {
    "OPEN": {"cap", "dataset", "format", "key", "noise"},
    "CAP": {"cap"},
    "PLAN": {"id", "plan", "run"},
    "REFUSE": {"code", "run", "subject"},
    "RESERVE": {"charges", "digest", "kind", "noise", "operation", "round", "run"},
    "RELEASE": {"operation", "reply"},
}
_GROWS = "BEGIN SELECT RAISE(ABORT, '{0} only grow'); END"
SCHEMA = {
    "CREATE TABLE entries"
    " (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, digest TEXT NOT NULL)",
    "CREATE TABLE replies (operation TEXT PRIMARY KEY, reply BLOB NOT NULL)",
    "CREATE TRIGGER entries_append BEFORE INSERT ON entries"
    " WHEN NEW.seq <> (SELECT coalesce(max(seq) + 1, 0) FROM entries) " + _GROWS.format("entries"),
    "CREATE TRIGGER replies_append BEFORE INSERT ON replies"
    " WHEN EXISTS (SELECT 1 FROM replies WHERE operation = NEW.operation) " + _GROWS.format("replies"),
} | {
    f"CREATE TRIGGER {table}_{verb.lower()} BEFORE {verb} ON {table} " + _GROWS.format(table)
    for table in ("entries", "replies")
    for verb in ("UPDATE", "DELETE")
}

# (sampling probability, noise multiplier), or None for a release without protection
Mechanism = tuple[float, float] | None


class LedgerTampered(ValueError):  # noqa: N818 (a finding, not a failure)
    """The file is not what a ledger would have written."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a ledger file proves about its dataset, add or remove one record.

    Args:
        dataset: its public name.
        entries: how many, all of them in the chain.
        head: digest of the last one.
        cap_epsilon: what the owner allows a stream now.
        delta: of the cap, and of every epsilon here.
        seeded: whether any noise was reproducible; then it protects nothing.
        streams: for each stream `claimed_rdp` (all plans at T_max) and `charged_rdp` (events really charged):
            the proved bounds by integer-order Rényi divergences, infinite when noise was seeded; and both
            again as `nominal_claimed_rdp` and `nominal_charged_rdp`, as if it had not been.
        plans: how many were opened.
        reservations: how many charges.
        open_reservations: charges without a release: crashes, failures, or work under way.
        refusals: how many requests were refused.
    """

    dataset: str
    entries: int
    head: str
    cap_epsilon: float
    delta: float
    seeded: bool
    streams: dict[str, dict[str, float]]
    plans: int
    reservations: int
    open_reservations: int
    refusals: int


def verify(path: Path, *, expected_head: str | None = None) -> Verification:
    """Recompute everything a ledger file claims.

    Args:
        path: of the file; it is only read.
        expected_head: a head that was seen earlier; the file must still contain it.

    Returns:
        What it proves.

    Raises:
        LedgerTampered: any entry, reply, charge or rule is not as a ledger writes it.
    """
    try:
        rows, replies = _read(Path(path))
    except (sqlite3.Error, OSError, UnicodeError) as error:
        raise LedgerTampered(f"{path} cannot be read as a ledger: {error}") from error
    digests = _check_chain(rows)
    if expected_head is not None and expected_head not in digests:
        raise LedgerTampered(f"{path} does not contain the head {expected_head}: it was cut back or replaced")
    account = _Account()
    for seq, kind, text, _ in rows:
        try:
            account.add(seq, kind, json.loads(text))
        except LedgerTampered as error:
            raise LedgerTampered(f"entry {seq} {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise LedgerTampered(f"entry {seq} is malformed: {error!r}") from error
    if account.releases != replies:
        raise LedgerTampered("the stored replies are not those that were released")
    return account.verification(head=rows[-1][3])


def _read(path: Path) -> tuple[list[tuple[int, str, str, str]], dict[str, str]]:
    """Entries in order, and the digest of each stored reply, from one consistent state of the file."""
    if not path.is_file():
        raise LedgerTampered(f"{path} is not a file")
    uri = path.resolve().as_uri() + "?mode=ro"
    if not Path(f"{path}-wal").exists():  # closed properly: readable on a read-only disk, and left as it is
        uri += "&immutable=1"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30.0)
    try:
        connection.execute("BEGIN")
        schema = {row[0] for row in connection.execute("SELECT sql FROM sqlite_master") if row[0] is not None}
        if schema != SCHEMA:
            raise LedgerTampered(f"{path} has other tables or triggers than a ledger")
        if connection.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
            raise LedgerTampered(f"{path} is damaged")
        rows = connection.execute("SELECT seq, kind, body, digest FROM entries ORDER BY seq").fetchall()
        replies = {}
        for operation, reply in connection.execute("SELECT operation, reply FROM replies"):
            if not isinstance(reply, bytes):
                raise LedgerTampered("a stored reply is not bytes")
            replies[operation] = hashlib.sha256(reply).hexdigest()
        return rows, replies
    finally:
        connection.close()


def _check_chain(rows: list[tuple[int, str, str, str]]) -> set[str]:
    if not rows:
        raise LedgerTampered("the ledger has no entries")
    head, digests = "0" * 64, set()
    for position, (seq, kind, body, digest) in enumerate(rows):
        text = f"{head}\n{position}\n{kind}\n{body}"
        if seq != position or type(body) is not str or hashlib.sha256(text.encode()).hexdigest() != digest:
            raise LedgerTampered(f"the chain of digests is broken at entry {position}")
        head = digest
        digests.add(digest)
    return digests


class _Account:
    """What the entries add up to."""

    def __init__(self) -> None:
        self.identity: dict[str, Any] = {}
        self.cap = (0.0, 0.0)
        self.seeded = False
        self.plans: dict[str, dict[str, tuple[Mechanism, int]]] = {}
        self.proportions: Any = None
        self.spent: Counter[tuple[str, str]] = Counter()
        self.operations: dict[str, tuple[str, str, str]] = {}
        self.releases: dict[str, str] = {}
        self.entries = self.reservations = self.refusals = 0

    def add(self, seq: int, kind: str, body: dict[str, Any]) -> None:
        _require((kind == "OPEN") == (seq == 0), "is out of place: OPEN comes first, once")
        _require(set(body) == FIELDS[kind], f"has other fields than a {kind}")
        self.entries += 1
        if kind == "OPEN":
            _require(body["format"] == 1, "has an unknown format")
            self.identity, self.cap = body, _cap(body["cap"])
            self.seeded = body["noise"] != "secure"
        elif kind == "CAP":
            self.cap = _cap(body["cap"])
        elif kind == "PLAN":
            canonical = json.dumps(body["plan"], sort_keys=True, separators=(",", ":"))
            _require(hashlib.sha256(canonical.encode()).hexdigest() == body["id"], "is not the plan it names")
            _require(body["run"] not in self.plans, "opens a second plan for its run")
            self.plans[body["run"]] = _allowances(body["plan"])
            self.proportions = self.proportions or body["plan"]["proportions"]
            moved = self.proportions != body["plan"]["proportions"]
            _require(not moved, "divides the dataset otherwise than its first plan: streams are not disjoint")
        elif kind == "RESERVE":
            self._reserve(body)
        elif kind == "RELEASE":
            operation = body["operation"]
            _require(operation in self.operations, "releases what was not charged")
            _require(operation not in self.releases, "releases an operation twice")
            self.releases[operation] = body["reply"]
        else:
            self.refusals += 1

    def _reserve(self, body: dict[str, Any]) -> None:
        run, charges, operation = body["run"], body["charges"], body["operation"]
        _require(bool(charges), "charges nothing")
        for name, amount in charges.items():
            _require(type(amount) is int and amount > 0, "charges no positive count")
            self.spent[run, name] += amount
            _require(self.spent[run, name] <= self.plans[run][name][1], "charges more than its plan allows")
        content = (run, body["kind"], body["digest"])
        _require(self.operations.setdefault(operation, content) == content, "renames an operation")
        _require(operation not in self.releases, "charges an operation that was answered")
        self.seeded |= body["noise"] != "secure"
        self.reservations += 1

    def verification(self, *, head: str) -> Verification:
        epsilon_cap, delta = self.cap
        streams: dict[str, dict[str, float]] = {}
        for stream in READS["final"]:
            names = [name for name, reads in READS.items() if stream in reads]
            claimed = [plan[name] for plan in self.plans.values() for name in names if name in plan]
            charged = [
                (self.plans[run][name][0], amount)
                for (run, name), amount in self.spent.items()
                if name in names
            ]
            streams[stream] = {}
            for label, events in (("claimed_rdp", claimed), ("charged_rdp", charged)):
                nominal = epsilon(events, delta)
                streams[stream][label] = math.inf if self.seeded and events else nominal
                streams[stream]["nominal_" + label] = nominal
        return Verification(
            dataset=self.identity["dataset"],
            entries=self.entries,
            head=head,
            cap_epsilon=epsilon_cap,
            delta=delta,
            seeded=self.seeded,
            streams=streams,
            plans=len(self.plans),
            reservations=self.reservations,
            open_reservations=self.reservations - len(self.releases),
            refusals=self.refusals,
        )


def _require(condition: bool, finding: str) -> None:
    if not condition:
        raise LedgerTampered(finding)


def _number(text: object, low: float, high: float) -> float:
    _require(type(text) is str, "holds a number that is not written as text")
    number = float(str(text))
    _require(low < number <= high and repr(number) == text, f"holds a number out of its bounds: {text!r:.40}")
    return number


def _cap(cap: Mapping[str, object]) -> tuple[float, float]:
    delta = _number(cap["delta"], 0.0, 1.0)
    _require(delta < 1.0 and set(cap) == {"delta", "epsilon"}, "holds a malformed cap")
    return _number(cap["epsilon"], 0.0, math.inf), delta


def _allowances(plan: Mapping[str, Any]) -> dict[str, tuple[Mechanism, int]]:
    allowances: dict[str, tuple[Mechanism, int]] = {}
    for allowance in plan["allowances"]:
        name, event = allowance["name"], allowance["event"]
        _require(allowance["streams"] == READS[name] and name not in allowances, "has a malformed allowance")
        kind = event["kind"]
        _require(
            kind in ("poisson_gaussian", "gaussian", "non_private"), "has an event that nobody can bound"
        )
        amount = event["steps" if kind == "poisson_gaussian" else "releases"]
        _require(type(amount) is int and 0 < amount <= 10**7, "has an event with a count out of its bounds")
        mechanism: Mechanism = None
        if kind != "non_private":
            q = 1.0 if kind == "gaussian" else _number(event["sampling_probability"], 0.0, 1.0)
            mechanism = (q, _number(event["noise_multiplier"], 0.0, 1e6))
        allowances[name] = (mechanism, amount)
    return allowances


def epsilon(events: Iterable[tuple[Mechanism, int]], delta: float) -> float:
    """Epsilon of Gaussian mechanisms together, by Rényi divergences of the integer orders 2 to 256.

    Args:
        events: ((sampling probability, noise multiplier) or None for no protection, how often).
        delta: 0 < delta < 1.

    Returns:
        The proved bound for adding or removing one record; 0.0 for no events.

    Source: Mironov et al. (2019), arXiv 1908.10530; Canonne et al. (2020), arXiv 2004.00010, proposition 12.
    """
    amounts: Counter[Mechanism] = Counter()
    for mechanism, amount in events:
        amounts[mechanism] += amount
    if None in amounts:
        return math.inf
    curves = [(amount, renyi(*mechanism)) for mechanism, amount in amounts.items() if mechanism is not None]
    best = math.inf
    for index, order in enumerate(ORDERS):
        divergence = math.fsum(amount * curve[index] for amount, curve in curves)
        if delta**2 + math.expm1(-divergence) > 0.0:  # by KL divergence, delta <= sqrt(1 - exp(-KL))
            return 0.0
        best = min(best, divergence + math.log1p(-1.0 / order) - math.log(delta * order) / (order - 1))
    return max(0.0, best)


@cache
def renyi(sampling_probability: float, noise_multiplier: float) -> tuple[float, ...]:
    """Rényi divergences of one Poisson-sampled Gaussian release at the orders 2 to 256.

    With x(i) = (i^2 - i) / (2 sigma^2), the divergence of order a is log A / (a - 1) where
    A = sum over i of C(a, i) (1-q)^(a-i) q^i exp(x(i)) = 1 + the same sum over i >= 2 with exp(x(i)) - 1: the
    binomial weights add up to one; the second form keeps the digits of small divergences.

    Args:
        sampling_probability: q, 0 < q <= 1.
        noise_multiplier: sigma > 0.
    """
    q, precision = sampling_probability, 0.5 / noise_multiplier / noise_multiplier
    if math.isinf(precision) or q == 1.0:
        return tuple(order * precision for order in ORDERS)
    factorial = [math.lgamma(i + 1.0) for i in range(ORDERS.stop)]
    log_q, log_rest = math.log(q), math.log1p(-q)
    growth = [0.0, 0.0]
    for i in range(2, ORDERS.stop):
        x = (i * i - i) * precision
        growth.append(i * log_q - factorial[i] + x + math.log(-math.expm1(-x)))
    curve = []
    for a in ORDERS:
        terms = [growth[i] - factorial[a - i] + (a - i) * log_rest for i in range(2, a + 1)]
        top = max(terms)
        excess = factorial[a] + top + math.log(math.fsum(math.exp(term - top) for term in terms))
        log_a = excess + math.log1p(math.exp(-excess)) if excess > 0.0 else math.log1p(math.exp(excess))
        curve.append(log_a / (a - 1))
    return tuple(curve)


def main(arguments: list[str] | None = None) -> int:
    """Verify one file and print what it proves as JSON; 1 when it was tampered with."""
    parser = argparse.ArgumentParser(description="Check a privacy ledger and recompute its epsilons.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--head", help="a head that was seen earlier and must still be in the chain")
    options = parser.parse_args(arguments)
    try:
        result = verify(options.file, expected_head=options.head)
    except LedgerTampered as error:
        sys.stderr.write(f"TAMPERED: {error}\n")
        return 1
    figures = asdict(result)
    streams = figures.pop("streams")
    for key, value in [
        *figures.items(),
        *((f"{s}.{k}", v) for s, part in streams.items() for k, v in part.items()),
    ]:
        sys.stdout.write(f"{key:40} {value}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A stranger's check of a ledger file: Python's standard library and nothing of the program that wrote it.

Run `python verify.py FILE [--head DIGEST] [--signer KEY]`. It recomputes the chain of digests, checks the
signature that it ends in, holds every charge against its plan and every reply against its release, and
recomputes epsilon per stream from the events. Neither chain nor signature binds the site's operator, who has
the key: without a head that somebody else kept, a file that he cut back to an older state looks right, and
without the public key that somebody else kept, so does one that anybody wrote anew as a whole.
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
GRAINS = 2**1074  # every float is a whole number of 1 / GRAINS, so sums of any length can be exact
READS = {
    "search": ["weights"],
    "alphas": ["architecture"],
    "fitness": ["fitness"],
    "final": ["weights", "architecture", "fitness"],
}
FIELDS: dict[str, dict[str, type]] = {
    "OPEN": {"cap": dict, "dataset": str, "format": int, "key": str, "noise": str, "signer": str},
    "CAP": {"cap": dict},
    "CHECKPOINT": {"signature": str},
    "DECLARE": {"code": str, "controller": str, "declared_size": int, "packages": dict, "purpose": str},
    "PLAN": {"id": str, "plan": dict, "run": str},
    "REFUSE": {"code": str, "run": str, "subject": str},
    "RESERVE": {
        "charges": dict,
        "digest": str,
        "kind": str,
        "noise": str,
        "operation": str,
        "round": int,
        "run": str,
    },
    "RELEASE": {"operation": str, "reply": str},
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
        signer: public key under which the last state is signed.
        cap_epsilon: what the owner allows a stream now.
        delta: of the cap, and of every epsilon here.
        order: of the filter under which charges were made; 0 where plans are claimed at their T_max.
        seeded: whether any noise was reproducible; then it protects nothing.
        streams: for each stream `claimed_rdp` (all plans at T_max) and `charged_rdp` (events really charged):
            the proved bounds by integer-order Rényi divergences, infinite when noise was seeded; and both
            again as `nominal_claimed_rdp` and `nominal_charged_rdp`, as if it had not been. Under a filter
            the claim is the first cap's epsilon, proved, once anything was charged.
        plans: how many were opened.
        reservations: how many charges.
        open_reservations: charges without a release: crashes, failures, or work under way.
        refusals: how many requests were refused.
    """

    dataset: str
    entries: int
    head: str
    signer: str
    cap_epsilon: float
    delta: float
    order: int
    seeded: bool
    streams: dict[str, dict[str, float]]
    plans: int
    reservations: int
    open_reservations: int
    refusals: int


def verify(
    path: Path, *, expected_head: str | None = None, expected_signer: str | None = None
) -> Verification:
    """Recompute everything a ledger file claims.

    Args:
        path: of the file; it is only read.
        expected_head: a head that was seen earlier; the file must still contain it.
        expected_signer: the public key that was seen earlier; the file must be signed under it.

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
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            raise LedgerTampered(f"entry {seq} is malformed: {error!r}") from error
    if account.releases != replies:
        raise LedgerTampered("the stored replies are not those that were released")
    _check_signature(rows, account.identity, expected_signer)
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


def _check_signature(
    rows: list[tuple[int, str, str, str]], identity: dict[str, Any], expected_signer: str | None
) -> None:
    """Check the one signature that the file ends in: the chain makes it cover every entry before it."""
    signer = identity["signer"]
    if expected_signer is not None and signer != expected_signer:
        raise LedgerTampered(f"the ledger is signed under the key {signer}, not {expected_signer}")
    kind, body = rows[-1][1:3]
    if kind != "CHECKPOINT":
        raise LedgerTampered("the last entry is no signature: what follows the last one is not the site's")
    text = f"fednas ledger\n{identity['dataset']}\n{len(rows) - 1}\n{rows[-2][3]}".encode()
    if not is_signed(signer, json.loads(body)["signature"], text):
        raise LedgerTampered("the last signature is not the site's: somebody without its key wrote the file")


class _Account:
    """What the entries add up to."""

    def __init__(self) -> None:
        self.identity: dict[str, Any] = {}
        self.cap = (0.0, 0.0)
        self.first_epsilon, self.order = 0.0, 0
        self.filtered = dict.fromkeys(READS["final"], 0)  # divergences at the order, in GRAINS
        self.last = ""
        self.seeded = False
        self.plans: dict[str, dict[str, tuple[Mechanism, int]]] = {}
        self.proportions: Any = None
        self.spent: Counter[tuple[str, str]] = Counter()
        self.operations: dict[str, tuple[str, str, str]] = {}
        self.releases: dict[str, str] = {}
        self.entries = self.reservations = self.refusals = 0

    def add(self, seq: int, kind: str, body: dict[str, Any]) -> None:
        _require((kind == "OPEN") == (seq == 0), "is out of place: OPEN comes first, once")
        _require({k: type(v) for k, v in body.items()} == FIELDS[kind], f"has other fields than a {kind}")
        _require(body.get("noise", "secure") in ("secure", "seeded"), "has noise of an unknown kind")
        _require((kind, self.last) != ("CHECKPOINT", "CHECKPOINT"), "signs nothing new")
        self.entries, self.last = self.entries + 1, kind
        if kind == "OPEN":
            _require(body["format"] == 2, "has an unknown format")
            self.identity, self.cap = body, _cap(body["cap"])
            self.first_epsilon, self.order = self.cap[0], body["cap"].get("order", 0)
            self.seeded = body["noise"] != "secure"
        elif kind == "CAP":
            before, self.cap = self.cap, _cap(body["cap"])
            _require(body["cap"].get("order", 0) == self.order, "changes the order of the filter")
            loosened = self.cap[0] > before[0] or self.cap[1] != before[1]
            _require(not (self.order and loosened), "loosens a filter, whose bound is fixed beforehand")
            _require(self.cap[1] >= before[1], "promises a smaller delta than before")
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
        elif kind == "REFUSE":
            self.refusals += 1

    def _reserve(self, body: dict[str, Any]) -> None:
        run, charges, operation = body["run"], body["charges"], body["operation"]
        _require(bool(charges) and body["round"] >= 0, "charges nothing, or before the first round")
        for name, amount in charges.items():
            _require(type(amount) is int and amount > 0, "charges no positive count")
            self.spent[run, name] += amount
            mechanism, room = self.plans[run][name]
            _require(self.spent[run, name] <= room, "charges more than its plan allows")
            if self.order:
                _require(mechanism is not None, "charges what no filter bounds")
                self._filter(READS[name], mechanism or (1.0, 1.0), amount)
        content = (run, body["kind"], body["digest"])
        _require(self.operations.setdefault(operation, content) == content, "renames an operation")
        _require(operation not in self.releases, "charges an operation that was answered")
        self.seeded |= body["noise"] != "secure"
        self.reservations += 1

    def _filter(self, streams: list[str], mechanism: tuple[float, float], amount: int) -> None:
        divergence = renyi(*mechanism)[self.order - ORDERS.start]
        _require(math.isfinite(divergence), "charges what no filter bounds")
        bound = self.cap[0] - conversion(self.order, self.cap[1])
        numerator, denominator = divergence.as_integer_ratio()
        for stream in streams:
            self.filtered[stream] += amount * numerator * (GRAINS // denominator)
            # Another formula than the ledger's: the last digits may differ.
            within = self.filtered[stream] / GRAINS <= bound * (1 + 1e-9)
            _require(within, "charges more than its filter allows")

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
                if self.order and label == "claimed_rdp":
                    nominal = self.first_epsilon if charged else 0.0
                streams[stream][label] = math.inf if self.seeded and nominal > 0.0 else nominal
                streams[stream]["nominal_" + label] = nominal
        return Verification(
            dataset=self.identity["dataset"],
            entries=self.entries,
            head=head,
            signer=self.identity["signer"],
            cap_epsilon=epsilon_cap,
            delta=delta,
            order=self.order,
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
    order = cap.get("order", 2)
    _require(type(order) is int and order in ORDERS, "holds an order out of its bounds")
    _require(delta < 1.0 and set(cap) - {"order"} == {"delta", "epsilon"}, "holds a malformed cap")
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
        best = min(best, divergence + conversion(order, delta))
    return max(0.0, best)


def conversion(order: int, delta: float) -> float:
    """What turns a Rényi divergence of an order into epsilon at delta, when added to it."""
    return math.log1p(-1.0 / order) - math.log(delta * order) / (order - 1)


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


# Ed25519 by the formulas of RFC 8032 (Josefsson and Liusvaara 2017): slow and plain, for one signature. A
# point is (X, Y, Z, T) with x = X/Z, y = Y/Z, xy = T/Z. Nothing here is secret: time may depend on values.
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int, int, int]


def is_signed(public_key: str, signature: str, text: bytes) -> bool:
    """Whether an Ed25519 signature stands under a text.

    Args:
        public_key: 64 hexadecimal digits.
        signature: 128 hexadecimal digits.
        text: what was signed.
    """
    try:
        key, mark = bytes.fromhex(public_key), bytes.fromhex(signature)
    except ValueError:
        return False
    if len(key) != 32 or len(mark) != 64:
        return False
    point, r, s = _point(key), _point(mark[:32]), int.from_bytes(mark[32:], "little")
    if point is None or r is None or s >= L:
        return False
    h = int.from_bytes(hashlib.sha512(mark[:32] + key + text).digest(), "little") % L
    base = _point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
    assert base is not None
    left, right = _times(s, base), _add(r, _times(h, point))
    same_x = (left[0] * right[2] - right[0] * left[2]) % P == 0
    return same_x and (left[1] * right[2] - right[1] * left[2]) % P == 0


def _point(data: bytes) -> Point | None:
    """The curve point that 32 bytes encode, or None."""
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


def _add(p: Point, q: Point) -> Point:
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def _times(factor: int, p: Point) -> Point:
    total = (0, 1, 1, 0)
    while factor:
        total = _add(total, p) if factor & 1 else total
        p, factor = _add(p, p), factor >> 1
    return total


def main(arguments: list[str] | None = None) -> int:
    """Verify one file and print what it proves as JSON; 1 when it was tampered with."""
    parser = argparse.ArgumentParser(description="Check a privacy ledger and recompute its epsilons.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--head", help="a head that was seen earlier and must still be in the chain")
    parser.add_argument("--signer", help="the public key that was seen earlier and must have signed the file")
    options = parser.parse_args(arguments)
    try:
        result = verify(options.file, expected_head=options.head, expected_signer=options.signer)
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

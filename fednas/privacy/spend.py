"""What a ledger's entries add up to: plans, charges, refusals, and the events to account for; a pure fold."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

from fednas.errors import BudgetExceededError, ConfigurationError, LedgerError, PrivacyError
from fednas.privacy.accounting import epsilon_pld
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.events import Event
from fednas.privacy.numbers import canonical_json
from fednas.privacy.plan import STREAMS, PrivacyPlan
from fednas.privacy.store import Entry

FORMAT: Final = 1


@final
class BudgetExhaustedError(BudgetExceededError):
    """A charge does not fit; `code` is all that may leave the site about it."""

    code: Final = "BUDGET_EXHAUSTED"


@final
class StreamsFixedError(PrivacyError):
    """A plan divides the dataset otherwise than its first one did; `code` is all that may leave about it."""

    code: Final = "STREAMS_FIXED"


@dataclass(frozen=True, kw_only=True)
class StreamSpend:
    """What one stream's records have lost, add or remove one record, at the cap's delta.

    Args:
        stream: `weights`, `architecture` or `fitness`.
        claimed_epsilon: PLD epsilon of every opened plan at its T_max: the number to state. Stopping early
            does not lower it. Infinite when noise was reproducible or absent.
        charged_epsilon: PLD epsilon of the events that were really charged, for information only.
        nominal_claimed_epsilon: the claim as if no noise had been seeded.
        nominal_charged_epsilon: the charge as if no noise had been seeded.
    """

    stream: str
    claimed_epsilon: float
    charged_epsilon: float
    nominal_claimed_epsilon: float
    nominal_charged_epsilon: float


@dataclass(frozen=True, kw_only=True)
class SpendStatement:
    """Everything a ledger can say about the privacy of its dataset; all of it may be printed anywhere.

    Args:
        dataset: the dataset's public name.
        cap: what its owner allows, per stream.
        streams: the spend of each stream; they are disjoint, so the dataset's epsilon is their maximum.
        entries: how many entries the ledger holds.
        head: digest of the last one; keep it elsewhere, it is what a restored old copy cannot show.
        non_private: whether any noise was reproducible or absent; then epsilons are infinite.
        open_reservations: charges without a release: crashes, failures and computations under way.
        refusals: requests that were refused, each counted once.
    """

    dataset: str
    cap: PrivacyBudget
    streams: tuple[StreamSpend, ...]
    entries: int
    head: str
    non_private: bool
    open_reservations: int
    refusals: int

    @property
    def delta(self) -> float:
        """The delta of every epsilon here: the cap's."""
        return self.cap.delta

    @property
    def claimed_epsilon(self) -> float:
        """The dataset's epsilon: the maximum over its disjoint streams."""
        return max(spend.claimed_epsilon for spend in self.streams)

    @property
    def nominal_claimed_epsilon(self) -> float:
        """The dataset's epsilon as if no noise had been seeded."""
        return max(spend.nominal_claimed_epsilon for spend in self.streams)

    def stream(self, name: str) -> StreamSpend:
        """The spend of one stream.

        Args:
            name: `weights`, `architecture` or `fitness`.

        Raises:
            ConfigurationError: there is no such stream.
        """
        for spend in self.streams:
            if spend.stream == name:
                return spend
        raise ConfigurationError(f"unknown stream {name!r}; choose one of {[s.stream for s in self.streams]}")


@final
@dataclass(kw_only=True)
class Spend:
    """The running sum over a ledger's entries; only `add` changes it."""

    dataset: str = ""
    key_digest: str = ""
    seeded: bool = False
    cap: PrivacyBudget | None = None
    cap_was_lowered: bool = False
    entries: int = 0
    head: str = ""
    plans: dict[str, PrivacyPlan] = field(default_factory=dict)
    spent: Counter[tuple[str, str]] = field(default_factory=Counter)  # (run, allowance) -> amount
    operations: dict[str, tuple[str, str]] = field(default_factory=dict)  # id -> (kind, digest)
    releases: dict[str, tuple[str, str, int]] = field(default_factory=dict)  # id -> (reply, head, entries)
    refusals: set[str] = field(default_factory=set)
    num_reservations: int = 0

    def add(self, entry: Entry) -> None:
        """Take the next entry in.

        Args:
            entry: whose place in the chain was checked.

        Raises:
            LedgerError: it is no entry that a ledger writes.
        """
        try:
            self._add(entry.kind, entry.body)
        except (KeyError, TypeError, ValueError, AttributeError, PrivacyError, ConfigurationError) as error:
            raise LedgerError(
                f"entry {entry.seq} of the ledger is malformed ({error}); restore an intact copy"
            ) from error
        self.entries, self.head = entry.seq + 1, entry.digest
        if entry.kind == "RELEASE":
            self.releases[entry.body["operation"]] = (entry.body["reply"], self.head, self.entries)

    def _add(self, kind: str, body: Mapping[str, Any]) -> None:
        if (kind == "OPEN") != (self.entries == 0):
            raise LedgerError("OPEN is the first entry and no other")
        if kind == "OPEN":
            if body["format"] != FORMAT:
                raise LedgerError(f"format {body['format']!r} is not {FORMAT}; use the version that wrote it")
            self.dataset, self.key_digest = body["dataset"], body["key"]
            self.seeded = body["noise"] != "secure"
            self.cap = PrivacyBudget.decode(body["cap"])
        elif kind == "CAP":
            cap = PrivacyBudget.decode(body["cap"])
            self.cap_was_lowered |= self.cap is None or cap.epsilon < self.cap.epsilon
            self.cap = cap
        elif kind == "PLAN":
            plan = PrivacyPlan.from_json(canonical_json(body["plan"]))
            if plan.id != body["id"] or body["run"] in self.plans:
                raise LedgerError("a plan does not match its id, or its run has one already")
            moved = self.moved(plan)
            if moved is not None:
                raise moved
            self.plans[body["run"]] = plan
        elif kind == "RESERVE":
            for name, amount in body["charges"].items():
                self.plans[body["run"]].allowance(name)
                self.spent[body["run"], name] += amount
            self.operations[body["operation"]] = (body["kind"], body["digest"])
            self.seeded |= body["noise"] != "secure"
            self.num_reservations += 1
        elif kind == "RELEASE":
            if body["operation"] not in self.operations or body["operation"] in self.releases:
                raise LedgerError("a release without its reservation, or a second one")
        elif kind == "REFUSE":
            self.refusals.add(refusal_key(body["code"], body["subject"]))
        else:
            raise LedgerError(f"unknown kind {kind!r}")

    def check_identity(self, *, dataset: str, key: bytes, delta: float) -> None:
        """Refuse to go on with a file that belongs to something else.

        Args:
            dataset: the name its owner expects.
            key: the stream key at hand.
            delta: of the cap its owner sets now.

        Raises:
            LedgerError: any of them contradicts the file.
        """
        assert self.cap is not None
        if dataset != self.dataset:
            raise LedgerError(
                f"the ledger belongs to dataset {self.dataset!r}, not {dataset!r}; open the right file"
            )
        if hashlib.sha256(key).hexdigest() != self.key_digest:
            raise LedgerError(
                "the ledger was made with another stream key or test seed: restore its key file; "
                "a test ledger never becomes a private one, nor the other way round"
            )
        if delta < self.cap.delta:
            raise LedgerError(
                f"expected delta >= {self.cap.delta:g}, which was promised before, got {delta:g}"
            )

    def room(self, run: str, name: str) -> int:
        """What is left of a plan's allowance, in steps or releases."""
        return self.plans[run].allowance(name).event.amount - self.spent[run, name]

    def claimed(self, stream: str, *more: PrivacyPlan) -> tuple[Event, ...]:
        """Events of every opened plan at T_max that read a stream, and of plans that may be opened next."""
        plans = (*self.plans.values(), *more)
        return tuple(a.event for plan in plans for a in plan.allowances if stream in a.streams)

    def charged(self, stream: str) -> tuple[Event, ...]:
        """Events that were really charged to a stream, whether or not they were released."""
        return tuple(
            allowance.event.scaled(amount)
            for (run, name), amount in tuple(self.spent.items())
            for allowance in [self.plans[run].allowance(name)]
            if stream in allowance.streams
        )

    def moved(self, plan: PrivacyPlan) -> StreamsFixedError | None:
        """Why a plan may not be opened, or None: other proportions would move records between streams.

        Streams compose in parallel only while every record stays in its own for ever.
        """
        first = next(iter(self.plans.values()), plan)
        if plan.proportions == first.proportions:
            return None
        shares = ", ".join(f"{stream} {share:g}" for stream, share in first.proportions)
        return StreamsFixedError(
            f"the first plan divided this dataset for ever ({shares}); ask for the same shares"
        )

    def excess(self, *plans: PrivacyPlan) -> BudgetExhaustedError | None:
        """Why plans may not be opened, or None: the claim of some stream would exceed the cap."""
        assert self.cap is not None
        for stream in STREAMS:
            epsilon = epsilon_pld(self.claimed(stream, *plans), self.cap.delta)
            if not epsilon <= self.cap.epsilon:
                return BudgetExhaustedError(
                    f"epsilon {epsilon:.4g} of stream {stream!r} would exceed the cap {self.cap.epsilon:.4g} "
                    f"at delta {self.cap.delta:g}; ask for a smaller plan"
                )
        return None

    def shortage(self, run: str, charges: Mapping[str, int]) -> BudgetExhaustedError | None:
        """Why a run may not be charged, or None: an allowance has no room, or the cap was lowered.

        Args:
            run: with an open plan.
            charges: steps or releases for each allowance.

        Raises:
            PrivacyError: the run has no plan, or a charge is malformed.
        """
        if run not in self.plans:
            raise PrivacyError(f"run {run!r} has no plan in this ledger; open its plan first")
        names = {allowance.name for allowance in self.plans[run].allowances}
        if not charges or not set(charges) <= names:
            raise PrivacyError(f"expected charges to some of {sorted(names)}, got {sorted(charges)}")
        for name, amount in charges.items():
            if isinstance(amount, bool) or not isinstance(amount, int) or amount < 1:
                raise PrivacyError(f"expected a charge to {name!r} of at least 1, got {amount!r}")
            room = self.room(run, name)
            if amount > room:
                return BudgetExhaustedError(
                    f"a charge of {amount} to {name!r} exceeds the {room} that run {run!r} has left"
                )
        return self.excess() if self.cap_was_lowered else None

    def statement(self) -> SpendStatement:
        """What all of this adds up to."""
        assert self.cap is not None
        cap = self.cap
        streams = []
        for stream in STREAMS:
            claimed, charged = self.claimed(stream), self.charged(stream)
            nominal = epsilon_pld(claimed, cap.delta), epsilon_pld(charged, cap.delta)
            streams.append(
                StreamSpend(
                    stream=stream,
                    claimed_epsilon=math.inf if self.seeded and claimed else nominal[0],
                    charged_epsilon=math.inf if self.seeded and charged else nominal[1],
                    nominal_claimed_epsilon=nominal[0],
                    nominal_charged_epsilon=nominal[1],
                )
            )
        return SpendStatement(
            dataset=self.dataset,
            cap=cap,
            streams=tuple(streams),
            entries=self.entries,
            head=self.head,
            non_private=self.seeded or any(math.isinf(s.claimed_epsilon) for s in streams),
            open_reservations=self.num_reservations - len(self.releases),
            refusals=len(self.refusals),
        )


def refusal_key(code: str, subject: str) -> str:
    """What makes two refusals the same, so that a repeated request cannot fill the disk."""
    return f"{code} {subject}"

"""What a ledger's entries add up to: plans, charges, refusals, and the events to account for; a pure fold."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, final

from fednas.errors import ConfigurationError, LedgerError, PrivacyError
from fednas.privacy.accounting import epsilon_at_order, epsilon_pld
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.declaration import Declaration
from fednas.privacy.events import Event
from fednas.privacy.numbers import canonical_json
from fednas.privacy.plan import STREAMS, PrivacyPlan
from fednas.privacy.renyi_filter import BudgetExhaustedError, RenyiFilter, StreamsFixedError
from fednas.privacy.signing import Signer, is_signed
from fednas.privacy.spend_statement import SpendStatement, StreamSpend
from fednas.privacy.store import Entry

FORMAT: Final = 2


@final
@dataclass(frozen=True, kw_only=True)
class Release:
    """A RELEASE entry: what was sent, and where in the chain it stands.

    Args:
        reply: sha256 of the bytes that were sent.
        previous: digest of the entry before it.
        head: digest of this entry.
        entries: number of entries with it.
        signature: of the ledger under its dataset, these entries and this head; "" until it is written.
    """

    reply: str
    previous: str
    head: str
    entries: int
    signature: str = ""


@final
@dataclass(kw_only=True)
class Spend:
    """The running sum over a ledger's entries; only `add` changes it."""

    dataset: str = ""
    key_digest: str = ""
    signer: str = ""
    seeded: bool = False
    cap: PrivacyBudget | None = None
    first_cap: PrivacyBudget | None = None
    cap_was_lowered: bool = False
    declared: Mapping[str, Any] | None = None  # body of the last DECLARE
    declaration: Declaration = field(default_factory=Declaration)
    entries: int = 0
    head: str = ""
    plans: dict[str, PrivacyPlan] = field(default_factory=dict)
    spent: Counter[tuple[str, str]] = field(default_factory=Counter)  # (run, allowance) -> amount
    filter: RenyiFilter | None = None  # of a cap with an order
    operations: dict[str, tuple[str, str]] = field(default_factory=dict)  # id -> (kind, digest)
    releases: dict[str, Release] = field(default_factory=dict)  # by the operation's id
    refusals: set[str] = field(default_factory=set)
    num_reservations: int = 0
    _latest: str = ""  # the operation of a RELEASE whose signature is still to come
    _signature: tuple[str, int, str] | None = None  # the last one, and the entries and head that it signs
    _checked: bool = False
    _standing: tuple[tuple[int, PrivacyBudget], str] | None = None  # what `standing` found, and for what

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
        if entry.kind == "CHECKPOINT":
            self._take_signature(str(entry.body["signature"]))
        previous, self.entries, self.head = self.head, entry.seq + 1, entry.digest
        if entry.kind == "RELEASE":
            self._latest = entry.body["operation"]
            self.releases[self._latest] = Release(
                reply=entry.body["reply"], previous=previous, head=self.head, entries=self.entries
            )

    def _take_signature(self, signature: str) -> None:
        """Remember what a CHECKPOINT says of the entry before it."""
        self._signature, self._checked = (signature, self.entries, self.head), False
        if self._latest:
            self.releases[self._latest] = replace(self.releases[self._latest], signature=signature)
            self._latest = ""

    def check_signature(self) -> None:
        """Refuse a ledger that does not end in the signature of its own key.

        The chain makes one signature cover every entry before it.

        Raises:
            LedgerError: the last commit is not signed: somebody without the key wrote or cut the file.
        """
        if self._checked or self.entries == 0:
            return
        signature, entries, head = self._signature or ("", 0, "")
        if entries + 1 != self.entries or not is_signed(
            self.signer, signature, dataset=self.dataset, entries=entries, head=head
        ):
            raise LedgerError(
                f"the ledger's last entry, {self.entries - 1}, is not a signature of its own key; restore an "
                "intact copy"
            )
        self._checked = True

    def _add(self, kind: str, body: Mapping[str, Any]) -> None:
        if (kind == "OPEN") != (self.entries == 0):
            raise LedgerError("OPEN is the first entry and no other")
        if kind == "OPEN":
            if body["format"] != FORMAT:
                raise LedgerError(f"format {body['format']!r} is not {FORMAT}; use the version that wrote it")
            self.dataset, self.key_digest, self.signer = body["dataset"], body["key"], body["signer"]
            self.seeded = body["noise"] != "secure"
            self.cap = self.first_cap = PrivacyBudget.decode(body["cap"])
            self.filter = RenyiFilter(self.cap.order) if self.cap.order is not None else None
        elif kind == "CAP":
            cap = PrivacyBudget.decode(body["cap"])
            self._check_cap(cap)
            self.cap_was_lowered |= self.cap is None or cap.epsilon < self.cap.epsilon
            self.cap = cap
        elif kind == "DECLARE":
            self.declaration, self.declared = Declaration.decode(body), body
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
                allowance = self.plans[body["run"]].allowance(name)
                if type(amount) is not int or not 1 <= amount <= self.room(body["run"], name):
                    raise LedgerError(f"a charge to {name!r} that its plan does not allow")
                self.spent[body["run"], name] += amount
                if self.filter is not None:
                    self.filter.add(allowance, amount)
            self.operations[body["operation"]] = (body["kind"], body["digest"])
            self.seeded |= body["noise"] != "secure"
            self.num_reservations += 1
        elif kind == "RELEASE":
            if body["operation"] not in self.operations or body["operation"] in self.releases:
                raise LedgerError("a release without its reservation, or a second one")
        elif kind == "REFUSE":
            self.refusals.add(refusal_key(body["code"], body["subject"]))
        elif kind == "CHECKPOINT":
            if self.entries == 0 or (self._signature and self._signature[1] + 1 == self.entries):
                raise LedgerError("a signature that signs nothing new")
        else:
            raise LedgerError(f"unknown kind {kind!r}")

    def check_identity(self, *, dataset: str, key: bytes, cap: PrivacyBudget) -> None:
        """Refuse to go on with a file that belongs to something else.

        Args:
            dataset: the name its owner expects.
            key: the stream key at hand.
            cap: what its owner sets now.

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
        if self.signer != Signer(key).public_key:
            raise LedgerError(
                "the ledger names another key than its own to sign with: somebody without its key file wrote "
                "it; restore an intact copy"
            )
        if cap.delta < self.cap.delta:
            raise LedgerError(
                f"expected delta >= {self.cap.delta:g}, which was promised before, got {cap.delta:g}"
            )
        self._check_cap(cap)

    def _check_cap(self, cap: PrivacyBudget) -> None:
        """Refuse a cap under which the claim would mean something else than at the first opening."""
        assert self.cap is not None
        if cap.order != self.cap.order:
            raise LedgerError(
                f"expected a cap of order {self.cap.order}, as at the first opening, got {cap.order}; "
                "how a dataset is accounted for never changes"
            )
        if cap.order is not None and (cap.epsilon > self.cap.epsilon or cap.delta != self.cap.delta):
            raise LedgerError(
                f"expected a cap of at most epsilon {self.cap.epsilon:g} at delta {self.cap.delta:g}: a "
                "filter's bound is fixed beforehand and may only be lowered"
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
        """Why plans may not be opened, or None: some stream would exceed the cap if all of them were used."""
        assert self.cap is not None
        if self.filter is not None:
            return self.filter.refusal(self.cap, [(a, a.amount) for plan in plans for a in plan.allowances])
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
        assert self.cap is not None
        if self.filter is not None:
            plan = self.plans[run]
            return self.filter.refusal(
                self.cap, [(plan.allowance(n), amount) for n, amount in charges.items()]
            )
        return self.standing()

    def standing(self) -> BudgetExhaustedError | None:
        """Why nothing at all may be charged, or None: a cap was lowered, and the claim is above it now.

        Worked out once for each cap and number of plans: what takes the accountants seconds cannot be asked
        at every charge.
        """
        assert self.cap is not None
        if self.filter is not None or not self.cap_was_lowered:
            return None
        key = len(self.plans), self.cap  # before anything is added up: another thread may be adding entries
        known = self._standing
        if known is None or known[0] != key:
            refusal = self.excess()
            known = self._standing = key, "" if refusal is None else str(refusal)
        return BudgetExhaustedError(known[1]) if known[1] else None

    def statement(self) -> SpendStatement:
        """What all of this adds up to."""
        assert self.cap is not None
        cap = self.cap
        streams = []
        for stream in STREAMS:
            nominal = self._nominal(stream)
            seeded = tuple(math.inf if self.seeded and epsilon > 0.0 else epsilon for epsilon in nominal)
            streams.append(
                StreamSpend(
                    stream=stream,
                    claimed_epsilon=seeded[0],
                    charged_epsilon=seeded[1],
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
            signer=self.signer,
            declaration=self.declaration,
            non_private=self.seeded or any(math.isinf(s.claimed_epsilon) for s in streams),
            open_reservations=self.num_reservations - len(self.releases),
            refusals=len(self.refusals),
        )

    def _nominal(self, stream: str) -> tuple[float, float]:
        """The claim and the charge of a stream, as if no noise had been seeded."""
        assert self.cap is not None
        assert self.first_cap is not None
        charged = self.charged(stream)
        if self.cap.order is None:
            return epsilon_pld(self.claimed(stream), self.cap.delta), epsilon_pld(charged, self.cap.delta)
        claim = self.first_cap.epsilon if charged else 0.0
        return claim, min(claim, epsilon_at_order(charged, self.cap.delta, self.cap.order))


def refusal_key(code: str, subject: str) -> str:
    """What makes two refusals the same, so that a repeated request cannot fill the disk."""
    return f"{code} {subject}"

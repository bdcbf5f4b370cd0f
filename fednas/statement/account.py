"""What a ledger file says, read once: its sums, its plans, its counts, and how its spend grew."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fednas.errors import LedgerError
from fednas.privacy.accounting import epsilon_at_order, epsilon_pld
from fednas.privacy.plan import STREAMS, PrivacyPlan
from fednas.privacy.spend import Spend
from fednas.privacy.store import Entry, read_entries
from fednas.privacy.verify import LedgerTampered, Verification, verify

_POINTS: Final = 24  # of the curve of the spend
_COARSE: Final = 1e-3  # grid of the privacy loss for that curve, in nats


@dataclass(frozen=True, kw_only=True)
class PlanUse:
    """One distinct plan, the runs that opened it, and what they charged to it.

    Args:
        plan: the plan.
        runs: their names in the order of the file.
        charged: allowance name -> steps or releases over all of these runs.
    """

    plan: PrivacyPlan
    runs: tuple[str, ...]
    charged: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Account:
    """A verified ledger, taken apart for a statement.

    Args:
        spend: the fold over all entries.
        proof: what the independent verifier found in the same file.
        plans: in the order in which they were first opened.
        refusals: how many requests were refused, by code.
        retries: charges of an operation that had been charged before, as after a crash.
        software: (code digest, packages) of each DECLARE entry, without repeats.
        history: (entries so far, epsilon charged by stream) at a few entries.
        digests: of every entry: whoever kept one as a head can find it again.
    """

    spend: Spend
    proof: Verification
    plans: tuple[PlanUse, ...]
    refusals: Mapping[str, int]
    retries: int
    software: tuple[tuple[str, Mapping[str, str]], ...]
    history: tuple[tuple[int, Mapping[str, float]], ...]
    digests: tuple[str, ...]

    @property
    def order(self) -> int | None:
        """The one order of adaptive mode; None in plan mode."""
        assert self.spend.cap is not None
        return self.spend.cap.order


def read_account(path: Path) -> Account:
    """Verify a ledger file and take it apart; the file is only read.

    Args:
        path: of the file.

    Raises:
        LedgerError: it is missing, foreign, tampered with, or grew while it was read.
    """
    try:
        proof = verify(path)
    except LedgerTampered as error:
        raise LedgerError(f"no statement without an intact ledger: {error}") from error
    entries = read_entries(path)
    if not entries or entries[-1].digest != proof.head:
        raise LedgerError(f"{path} grew while it was read; try again, or state a copy of it")
    spend, history = Spend(), []
    marks = _marks([entry.seq for entry in entries if entry.kind == "RESERVE"], entries)
    for entry in entries:
        spend.add(entry)
        if entry.seq in marks:
            history.append((entry.seq + 1, _charged(spend)))
    spend.check_signature()
    return Account(
        spend=spend,
        proof=proof,
        plans=_plans(spend),
        refusals=Counter(str(entry.body["code"]) for entry in entries if entry.kind == "REFUSE"),
        retries=spend.num_reservations - len(spend.operations),
        software=_software(entries),
        history=tuple(history),
        digests=tuple(entry.digest for entry in entries),
    )


def _marks(charges: Sequence[int], entries: Sequence[Entry]) -> set[int]:
    """The entries after which the spend is looked at: fewer where many mechanisms make it slow."""
    mechanisms = {
        (allowance["event"].get("sampling_probability"), allowance["event"].get("noise_multiplier"))
        for entry in entries
        if entry.kind == "PLAN"
        for allowance in entry.body["plan"]["allowances"]
    }
    points = max(6, min(_POINTS, 10 * _POINTS // max(1, len(mechanisms))))
    step = max(1, -(-len(charges) // points))
    return set(charges[::-step])  # the last one is always among them


def _charged(spend: Spend) -> dict[str, float]:
    assert spend.cap is not None
    cap = spend.cap
    found = {}
    for stream in STREAMS:
        events = spend.charged(stream)
        if cap.order is None:
            found[stream] = epsilon_pld(events, cap.delta, value_discretization_interval=_COARSE)
        else:
            found[stream] = epsilon_at_order(events, cap.delta, cap.order) if events else 0.0
    return found


def _plans(spend: Spend) -> tuple[PlanUse, ...]:
    runs: dict[str, list[str]] = {}
    for run, plan in spend.plans.items():
        runs.setdefault(plan.id, []).append(run)
    return tuple(
        PlanUse(
            plan=spend.plans[names[0]],
            runs=tuple(names),
            charged={
                allowance.name: sum(spend.spent[run, allowance.name] for run in names)
                for allowance in spend.plans[names[0]].allowances
            },
        )
        for names in runs.values()
    )


def _software(entries: Sequence[Entry]) -> tuple[tuple[str, Mapping[str, str]], ...]:
    """What DECLARE entries name, as words: the verifier does not look at them, so they may be anything."""
    found: list[tuple[str, Mapping[str, str]]] = []
    for entry in entries:
        if entry.kind == "DECLARE":
            packages = entry.body["packages"]
            if not isinstance(packages, dict):
                raise LedgerError(f"entry {entry.seq} of the ledger declares no packages by name")
            software = (str(entry.body["code"]), {name: str(version) for name, version in packages.items()})
            if software not in found:
                found.append(software)
    return tuple(found)

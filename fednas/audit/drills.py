"""Drills of a ledger: requests that repeat, fail, race or ask too much, and numbers that are none.

Each drill holds scripted conversations with a real `PrivacyLedger` whose mechanisms release noise only, and
reads the file through connections of its own: what it says of itself is compared with what is on the disk.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from fednas.audit.estimators.gaussian import epsilon_of
from fednas.audit.findings import Check
from fednas.audit.ledger_files import durability, read_entries, write_lock_is_held
from fednas.errors import FednasError, PrivacyError
from fednas.privacy.allowance import READS, Allowance
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.events import Event, Gaussian, PoissonGaussian
from fednas.privacy.ledger import Arrays, Operation, Permit, PrivacyLedger, Released
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.streams import StreamedRecords

CAP: Final = PrivacyBudget(epsilon=3.0, delta=1e-5)
SHARES: Final = (("weights", 0.8), ("architecture", 0.1), ("fitness", 0.1))


def check(name: str, holds: bool, detail: str = "") -> Check:
    """A check of this layer."""
    return Check(layer="L0", name=name, holds=holds, detail=detail)


def refusal(action: Callable[..., object], *arguments: Any, **names: Any) -> FednasError | None:
    """With which error something was refused; None if it was done."""
    try:
        action(*arguments, **names)
    except FednasError as error:
        return error
    return None


def plan_of(budget: PrivacyBudget = CAP, *, shares: Any = SHARES, **events: Event) -> PrivacyPlan:
    """A plan of given events, as a server could send it."""
    return PrivacyPlan(
        budget=budget,
        proportions=shares,
        allowances=tuple(
            Allowance(name=name, streams=READS[name], event=events[name], clip_norm=1.0)
            for name in READS
            if name in events
        ),
    )


def operation(number: int, *, run: str = "run", message: str = "0") -> Operation:
    """The name of a request."""
    return Operation(run=run, round=number, kind="evaluate", nonce="audit", digest=message * 64)


@final
class Probe:
    """A mechanism that reads nothing, releases noise that nobody draws twice, and counts how often it ran."""

    def __init__(self, before: Callable[[Permit], None] | None = None) -> None:
        self.runs = 0
        self._before = before

    def __call__(self, permit: Permit) -> Arrays:
        self.runs += 1
        if self._before is not None:
            self._before(permit)
        return {"correct": permit.entropy.noise(1e6, 8)}


class _Killed(BaseException):
    """Ends a mechanism as a signal would."""


def open_ledger(path: Path, cap: PrivacyBudget = CAP, *, test_seed: int | None = None) -> PrivacyLedger:
    """The ledger of a made-up dataset."""
    return PrivacyLedger.open(path, dataset="audit", cap=cap, test_seed=test_seed)


def ask(
    ledger: PrivacyLedger,
    number: int,
    mechanism: Callable[[Permit], Arrays],
    charges: Mapping[str, int] | None = None,
    **names: str,
) -> Released[Arrays]:
    """Ask a ledger for a release, of one count by default."""
    paid = {"fitness": 1} if charges is None else charges
    return ledger.release(operation(number, **names), charges=paid, mechanism=mechanism)


def _same(left: Released[Arrays], right: Released[Arrays]) -> bool:
    """Whether two answers would be the same bytes."""
    facts = [(r.operation_id, r.head, r.entries, r.signature) for r in (left, right)]
    arrays = left.value.keys() == right.value.keys() and all(
        np.array_equal(left.value[name], right.value[name]) for name in left.value
    )
    return facts[0] == facts[1] and arrays


def _charges(path: Path) -> list[dict[str, int]]:
    return [body["charges"] for _, body in read_entries(path, "RESERVE")]


COUNTS: Final = plan_of(fitness=Gaussian(noise_multiplier=20.0, releases=6))


def finals(sigma: float, releases: int) -> PrivacyPlan:
    """Releases that every stream is charged for, of exactly known epsilon."""
    event = PoissonGaussian(sampling_probability=1.0, noise_multiplier=sigma, steps=releases)
    return plan_of(PrivacyBudget(epsilon=50.0, delta=CAP.delta), final=event)


def charges_come_first(folder: Path) -> Iterator[Check]:
    """The charge, the mechanism, the reply: in this order, and once."""
    path, seen = folder / "ledger", list[dict[str, int]]()
    with open_ledger(path) as ledger:
        ledger.open_plan("run", COUNTS)
        first = ask(ledger, 1, Probe(lambda _: seen.extend(_charges(path))), {"fitness": 2})
        yield check(
            "a charge is on the disk before its mechanism runs",
            seen == [{"fitness": 2}],
            f"the mechanism found {len(seen)} charges in the file",
        )
        before, probe = ledger.position(), Probe()
        again = ask(ledger, 1, probe, {"fitness": 2})
        yield check(
            "a repeated request gets the stored bytes",
            _same(first, again) and probe.runs == 0,
            f"the mechanism ran {probe.runs} more times",
        )
        yield check(
            "a repeated request is not charged again",
            ledger.position() == before and _charges(path) == [{"fitness": 2}],
            f"{len(_charges(path))} charges for 1 request",
        )
        refused = refusal(ask, ledger, 1, probe, message="1")
        yield check(
            "a request under an old name with another message is refused",
            refused is not None and probe.runs == 0 and len(_charges(path)) == 1,
        )
    with open_ledger(path) as ledger:
        later = ask(ledger, 1, probe, {"fitness": 2})
        yield check(
            "a later process gives the stored bytes too",
            _same(first, later) and probe.runs == 0 and len(_charges(path)) == 1,
        )


def failures_keep_their_charge(folder: Path) -> Iterator[Check]:
    """A mechanism that raises, and one that is killed."""
    path = folder / "ledger"

    def fail(_: Permit) -> None:
        raise RuntimeError("made up")

    def die(_: Permit) -> None:
        raise _Killed

    with open_ledger(path) as ledger:
        ledger.open_plan("run", COUNTS)
        for number, before in enumerate((fail, die)):
            with suppress(RuntimeError, _Killed):
                ask(ledger, number, Probe(before), {"fitness": 2})
        yield check(
            "a mechanism that fails or is killed keeps its charge",
            _charges(path) == [{"fitness": 2}] * 2 and not read_entries(path, "RELEASE"),
            f"{len(_charges(path))} charges after 2 failures",
        )
        ask(ledger, 0, Probe(), {"fitness": 1})
        yield check(
            "a retry after a failure is charged again",
            _charges(path)[2:] == [{"fitness": 1}],
            f"{len(_charges(path))} charges after 2 failures and 1 retry",
        )
        probe = Probe()
        refused = refusal(ask, ledger, 2, probe, {"fitness": 2})
        yield check(
            "what failures were charged is not there to be spent",
            refused is not None and probe.runs == 0,
            "5 of 6 releases were charged, 2 more were asked",
        )
    with open_ledger(path) as ledger:
        refused = refusal(ask, ledger, 2, probe, {"fitness": 2})
        yield check(
            "nor for a process that begins later",
            refused is not None and probe.runs == 0,
        )


def runs_add_up(folder: Path) -> Iterator[Check]:
    """The ledger belongs to the dataset: new runs and processes see the old spend."""
    path = folder / "ledger"
    plan = finals(1.8, 1)
    with open_ledger(path) as ledger:
        ledger.open_plan("first", plan)
    with open_ledger(path) as ledger:
        refused = refusal(ledger.open_plan, "second", plan)
        probe = Probe()
        unpaid = refusal(ask, ledger, 1, probe, {"final": 1}, run="second")
        yield check(
            "a new run or process sees what earlier ones spent",
            refused is not None and unpaid is not None and probe.runs == 0,
            f"two runs of epsilon {epsilon_of(1.0 / 1.8, CAP.delta):.2f} each under a cap of 3",
        )


def bounds_hold(folder: Path) -> Iterator[Check]:
    """Allowances, caps and promised deltas."""
    path, probe = folder / "ledger", Probe()
    with open_ledger(path) as ledger:
        greedy = finals(1.0, 1)
        refused = refusal(ledger.open_plan, "greedy", greedy)
        yield check(
            "a plan beyond the owner's cap is refused, whatever the plan says of itself",
            refused is not None and not read_entries(path, "PLAN"),
            f"a plan of epsilon {epsilon_of(1.0, CAP.delta):.2f} under a cap of 3",
        )
        ledger.open_plan("run", COUNTS)
        ask(ledger, 1, Probe(), {"fitness": 5})
        refused = refusal(ask, ledger, 2, probe, {"fitness": 2})
        yield check(
            "a charge beyond its allowance is refused and no record is touched",
            refused is not None and probe.runs == 0 and len(_charges(path)) == 1,
        )
        other = plan_of(shares=(("weights", 0.1), ("architecture", 0.8), ("fitness", 0.1)), final=_cheap(1))
        refused = refusal(ledger.open_plan, "moved", other)
        yield check(
            "no plan moves records from one stream to another",
            refused is not None and len(read_entries(path, "PLAN")) == 1,
        )
        wrong: list[object] = [0, -1, True, 0.5, math.nan, 10**9, "1"]
        charges = [*({"fitness": amount} for amount in wrong), {}, {"search": 1}, {"unknown": 1}]
        accepted = [c for c in charges if refusal(ask, ledger, 3, probe, c) is None]
        yield check(
            "a charge of no positive count, or to what the plan does not have, is refused",
            not accepted and probe.runs == 0 and len(_charges(path)) == 1,
            f"accepted: {accepted}" if accepted else f"{len(charges)} were tried",
        )
    looser = refusal(open_ledger, path, PrivacyBudget(epsilon=3.0, delta=1e-6))
    yield check("a delta that was promised is never lowered", looser is not None)
    with open_ledger(path) as ledger:
        ledger.open_plan("kept", finals(4.0, 1))
    with open_ledger(path, PrivacyBudget(epsilon=0.5, delta=1e-5)) as ledger:
        refused = refusal(ask, ledger, 4, probe, {"final": 1}, run="kept")
        yield check(
            "a site whose owner lowered the cap below its claim refuses for ever",
            refused is not None and probe.runs == 0,
        )


def handles_share(folder: Path) -> Iterator[Check]:
    """Two handles on one file, as two processes have them."""
    path = folder / "ledger"
    with open_ledger(path) as left, open_ledger(path) as right:
        for ledger in (left, right):
            ledger.open_plan("run", COUNTS)
        spent, probe = 0, Probe()
        for number in range(10):
            ledger = right if number % 2 else left
            spent += refusal(ask, ledger, number, probe) is None
        yield check(
            "two processes never spend the same allowance",
            spent == probe.runs == len(_charges(path)) == 6,
            f"{probe.runs} releases and {len(_charges(path))} charges of an allowance of 6",
        )
    with open_ledger(folder / "lock") as left, open_ledger(folder / "lock") as right:
        left.open_plan("run", COUNTS)
        witness = _Witness(folder / "lock")
        left.release(operation(1), charges=witness, mechanism=Probe())
        yield check(
            "nobody else can write while a ledger decides on a charge",
            any(witness.held),
            f"the write lock was held at {sum(witness.held)} of {len(witness.held)} looks",
        )
        inner: list[Released[Arrays]] = []
        asked = Probe(lambda _: inner.append(ask(right, 2, Probe())))
        outer: list[Released[Arrays]] = []
        refused = refusal(lambda: outer.append(ask(left, 2, asked)))
        yield check(
            "of two answers to one request only the first ever leaves, and both are charged",
            refused is None and _same(outer[0], inner[0]) and len(_charges(folder / "lock")) == 3,
            "" if refused is None else str(refused),
        )


@final
class _Witness(dict[str, int]):
    """A charge that looks at the file's write lock whenever a ledger reads it."""

    def __init__(self, path: Path) -> None:
        super().__init__(fitness=1)
        self._path = path
        self.held: list[bool] = []

    def items(self) -> Any:
        self.held.append(write_lock_is_held(self._path))
        return super().items()


def commits_are_durable(folder: Path) -> Iterator[Check]:
    """What SQLite promises of a commit."""
    with open_ledger(folder / "ledger") as ledger:
        journal, synchronous = durability(ledger)
    yield check(
        "a power cut after a charge cannot undo it",
        journal == "wal" and synchronous >= 2,
        f"journal_mode = {journal}, synchronous = {synchronous} (2 is FULL)",
    )


def numbers_are_refused(folder: Path) -> Iterator[Check]:
    """Numbers that would blind an accountant."""
    bad: list[Any] = [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e300, -5e-324, True, "1", None, 2j]
    good, accepted = {"sampling_probability": 0.5, "noise_multiplier": 1.0, "steps": 1}, []
    for number in bad:
        for name in good:
            if refusal(PoissonGaussian, **(good | {name: number})) is None:
                accepted.append(f"{name} = {number!r}")
    yield check(
        "no event holds NaN, infinity, a negative or a huge number",
        not accepted,
        f"accepted: {', '.join(accepted)}" if accepted else f"{len(good) * len(bad)} were tried",
    )


def permits_are_narrow(folder: Path) -> Iterator[Check]:
    """A permit opens what it was charged for, while its mechanism runs."""
    path, kept, found = folder / "ledger", list[Permit](), dict[str, bool]()
    streams = np.array([0, 1, 2, 0], dtype=np.uint8)
    records = StreamedRecords(np.zeros((4, 1), np.float32), np.zeros(4, np.int64), streams)

    def pry(permit: Permit) -> None:
        kept.append(permit)
        found["terms"] = refusal(permit.allowance, "final") is not None
        wanted = np.array([0], dtype=np.int64)
        found["records"] = refusal(records.read, permit, "fitness", wanted) is not None
        found["own"] = refusal(records.read, permit, "fitness", wanted + 2) is None

    with open_ledger(path) as ledger:
        plan = plan_of(fitness=Gaussian(noise_multiplier=20.0, releases=6), final=_cheap(2))
        ledger.open_plan("run", plan)
        ask(ledger, 1, Probe(pry))
        yield check("a permit gives no terms that were not charged", found["terms"])
        yield check("a permit opens no record of another stream", found["records"] and found["own"])
        over = isinstance(refusal(lambda: kept[0].entropy), PrivacyError)
        late = refusal(records.indices, kept[0], "fitness") is not None
        yield check("a permit is worth nothing after its release", over and late)


def _cheap(steps: int) -> PoissonGaussian:
    return PoissonGaussian(sampling_probability=0.2, noise_multiplier=8.0, steps=steps)


DRILLS: Final[tuple[Callable[[Path], Iterator[Check]], ...]] = (
    charges_come_first,
    failures_keep_their_charge,
    commits_are_durable,
    numbers_are_refused,
    bounds_hold,
    handles_share,
    permits_are_narrow,
    runs_add_up,
)
"""Cheap and decisive ones first."""

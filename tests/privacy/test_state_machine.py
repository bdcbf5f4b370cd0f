"""Whatever order requests, crashes and openings come in: a short model predicts what a ledger spends."""

import math
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, get_state_machine_test, initialize, invariant, rule

from fednas.errors import LedgerError, PrivacyError
from fednas.privacy.budget import NON_PRIVATE, PrivacyBudget
from fednas.privacy.events import Gaussian, NonPrivate
from fednas.privacy.ledger import Arrays, Operation, Permit, PrivacyLedger
from fednas.privacy.plan import STREAMS, PrivacyPlan
from fednas.privacy.verify import LedgerTampered, verify
from tests.privacy.ledger_model import REFUSALS, Auditor, Model
from tests.privacy.ledgers import noise, operation, plan_of, same, search_event

FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # in memory where there is such a folder
DELTA = 1e-5
ORDERS = (None, None, 12, 14)  # plan mode, and a filter at an order
EPSILONS = (1.5, 2.5, 4.0)
RUNS = ("a", "b", "c")
MILD = search_event(4, sigma=2.0, q=0.2)
FIRST = plan_of(search=MILD, fitness=Gaussian(noise_multiplier=6.0, releases=3))
PLANS = (
    FIRST,
    plan_of(search=search_event(6), final=MILD.scaled(2)),
    plan_of(alphas=MILD.scaled(3), final=MILD),
    plan_of(search=search_event(6, sigma=0.6, q=0.5)),  # beyond every cap by itself
    PrivacyPlan(
        budget=FIRST.budget,
        proportions=(("weights", 0.8), ("architecture", 0.1), ("fitness", 0.1)),
        allowances=FIRST.allowances,
    ),
    plan_of(NON_PRIVATE, search=NonPrivate(reason="a baseline", releases=5)),
)
AMOUNTS: tuple[tuple[Any, ...], ...] = (  # to the first, second and third allowance of a plan
    *((1,), (2,), (1, 1), (1, 2), (4,), (None, 1)) * 3,
    (0,),
    (),
    (1, 1, 1),
    (7,),
    (10**30,),
    (-3,),
    (True,),
    (math.nan,),
    (math.inf,),
    (0.5,),
    ("1",),
    (np.int64(1),),
)
SLOTS = st.integers(0, 1)
OPERATIONS = st.builds(
    lambda run, number, message: operation(number, run=run, message=message),
    st.sampled_from((*[RUNS[0]] * 4, *RUNS[1:])),
    st.integers(0, 3),
    st.sampled_from("0001"),
)


class LedgerMachine(RuleBasedStateMachine):
    """Two handles on one ledger file, whose process may die at any time, against model and auditor."""

    ran: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ledger", dir=FOLDER))
        self.path, self.auditor = self.folder / "0", Auditor()
        self.handles: dict[int, PrivacyLedger] = {}
        self.left: list[PrivacyLedger] = []  # handles of processes that died
        self.heads: list[str] = []
        self.expected: list[str] = []  # kinds of the entries that the last rule should have added
        self.snapshot: Path | None = None

    @initialize(
        order=st.sampled_from(ORDERS),
        epsilon=st.sampled_from(EPSILONS),
        seeded=st.sampled_from((None, 7)),
        plan=st.sampled_from((*PLANS[:3] * 2, *PLANS)),
    )
    def create(self, order: int | None, epsilon: float, seeded: int | None, plan: PrivacyPlan) -> None:
        self.seed, self.first = seeded, PrivacyBudget(epsilon=epsilon, delta=DELTA, order=order)
        self.model = Model(self.first)
        self.open(0, self.first, seeded)
        self.open_plan(0, RUNS[0], plan)
        self.expected = ["OPEN", "DECLARE", *self.expected]

    def open(self, slot: int, cap: PrivacyBudget, seeded: int | None, dataset: str = "ward") -> PrivacyLedger:
        ledger = PrivacyLedger.open(self.path, dataset=dataset, cap=cap, test_seed=seeded)
        if slot in self.handles:
            self.handles[slot].close()
        self.handles[slot] = ledger
        return ledger

    def handle(self, slot: int) -> PrivacyLedger:
        return self.handles[slot] if slot in self.handles else self.open(slot, self.model.cap, self.seed)

    def attempt(
        self, action: Callable[[], Any], error: type[Exception] | None, subject: str
    ) -> tuple[Any, list[str]]:
        """Do what should raise exactly this; return its result, and the refusal that it should write down."""
        if error is None:
            return action(), []
        with pytest.raises(error) as caught:
            action()
        assert caught.type is error
        self.ran[error.__name__] += 1
        code = REFUSALS.get(error)
        if code is None or (code, subject) in self.model.refusals:
            return None, []
        self.model.refusals.add((code, subject))
        return None, ["REFUSE"]

    @rule(
        slot=SLOTS,
        order=st.sampled_from((*["same"] * 8, None, 20)),
        epsilon=st.sampled_from((1.0, *EPSILONS, math.inf)),
        delta=st.sampled_from((*[DELTA] * 6, 2 * DELTA, DELTA / 2)),
        foreign=st.sampled_from((*[None] * 8, "seed", "dataset")),
    )
    def reopen(self, slot: int, order: Any, epsilon: float, delta: float, foreign: str | None) -> None:
        """With the cap that its owner has in mind today, or as somebody else's ledger."""
        order = self.first.order if order == "same" else order
        cap = NON_PRIVATE
        if epsilon < math.inf:
            cap = PrivacyBudget(epsilon=epsilon, delta=delta, order=order)
        seeded = {None: 7, 7: None}[self.seed] if foreign == "seed" else self.seed
        before = self.model.cap
        if foreign is None and self.model.recap(cap):
            self.open(slot, cap, seeded)
            self.expected = ["CAP"] if cap != before else []
        else:
            self.ran["refused openings"] += 1
            with pytest.raises(LedgerError):
                self.open(slot, cap, seeded, "clinic" if foreign == "dataset" else "ward")

    @rule(slot=SLOTS, how=st.sampled_from(("close", "drop", "die", "die", "copy")))
    def interrupt(self, slot: int, how: str) -> None:
        """A handle is closed or forgotten, the process dies, or somebody keeps a copy of the file."""
        if how == "copy":
            self.snapshot = self.copy(self.folder / "snapshot")
        elif how == "die":  # nothing is closed; the next process goes on with what the disk has
            self.left += self.handles.values()
            self.handles, self.path = {}, self.copy(self.folder / f"{int(self.path.name) + 1}")
        else:
            ledger = self.handles.pop(slot, None)
            if ledger is not None and how == "close":
                ledger.close()

    def copy(self, target: Path) -> Path:
        """What the disk has now, as another file."""
        for suffix in ("", "-wal", ".key"):
            Path(f"{target}{suffix}").unlink(missing_ok=True)
            if (source := Path(f"{self.path}{suffix}")).exists():
                shutil.copyfile(source, f"{target}{suffix}")
        return target

    @rule(slot=SLOTS, run=st.sampled_from(RUNS), plan=st.sampled_from((*PLANS[:3] * 2, *PLANS)))
    def open_plan(self, slot: int, run: str, plan: PrivacyPlan) -> None:
        error, known = self.model.opening(run, plan), run in self.model.plans
        ledger = self.handle(slot)
        _, self.expected = self.attempt(
            lambda: ledger.open_plan(run, plan), error, f"plan {plan.id} of {run}"
        )
        if error is None and not known:
            self.model.plans[run] = plan
            self.expected = ["PLAN"]

    def charges(self, run: str, amounts: tuple[Any, ...]) -> dict[str, Any]:
        """Amounts for a plan's allowances, None for none of it, and beyond them for one that no plan has."""
        plan = self.model.plans.get(run, FIRST)
        names = [*(allowance.name for allowance in plan.allowances), "unknown"]
        return {name: amount for name, amount in zip(names, amounts) if amount is not None}

    @rule(slot=SLOTS, asked=OPERATIONS, amounts=st.sampled_from(AMOUNTS))
    def request(self, slot: int, asked: Operation, amounts: tuple[Any, ...]) -> None:
        self.release(slot, asked, self.charges(asked.run, amounts), "noise")

    @rule(slot=SLOTS, asked=OPERATIONS, amounts=st.sampled_from(AMOUNTS[:6]))
    def race(self, slot: int, asked: Operation, amounts: tuple[Any, ...]) -> None:
        self.release(slot, asked, self.charges(asked.run, amounts), "race")

    @rule(
        slot=SLOTS,
        asked=OPERATIONS,
        amounts=st.sampled_from(AMOUNTS[:6]),
        how=st.sampled_from(("failure", "garbage")),
    )
    def fail(self, slot: int, asked: Operation, amounts: tuple[Any, ...], how: str) -> None:
        self.release(slot, asked, self.charges(asked.run, amounts), how)

    def release(self, slot: int, asked: Operation, charges: dict[str, Any], how: str) -> None:
        """A request, or the same one again; its mechanism may fail, or another process may overtake it."""
        model, kinds = self.model, list[str]()
        subject = f"operation {asked.id} {asked.digest}"
        ledger = self.handle(slot)
        rival = self.handle(1 - slot) if how == "race" else None

        def mechanism(permit: Permit) -> Arrays:
            model.reserve(asked, charges)
            kinds.append("RESERVE")
            assert {name: permit.amount(name) for name in charges} == charges
            if rival is not None:
                error = model.asking(asked, charges)
                released, refused = self.attempt(
                    lambda: rival.release(asked, charges=charges, mechanism=noise), error, subject
                )
                kinds.extend(refused)
                if error is None:
                    self.ran["races"] += 1
                    model.reserve(asked, charges)
                    model.replies[asked.id] = released.value
                    kinds.extend(("RESERVE", "RELEASE"))
            if how == "failure":
                raise ZeroDivisionError
            return noise(permit) if how != "garbage" else {"update": "text"}  # type: ignore[dict-item]

        error: type[Exception] | None = model.asking(asked, charges)
        replied = asked.id in model.replies
        pays = error is None and not replied
        if pays:
            error = {"failure": ZeroDivisionError, "garbage": PrivacyError}.get(how)
        result, refused = self.attempt(
            lambda: ledger.release(asked, charges=charges, mechanism=mechanism), error, subject
        )
        assert bool(kinds) == pays  # the mechanism runs once it is paid for, and only then
        if error is None:
            self.ran["repeats"] += replied
            if asked.id not in model.replies:
                kinds.append("RELEASE")
            assert same(model.replies.setdefault(asked.id, result.value), result.value)  # the same for ever
            assert ledger.contains(result.head)
            self.heads.append(result.head)
        self.expected = kinds + refused

    @invariant()
    def the_entries_are_those_foretold(self) -> None:
        if not hasattr(self, "model"):
            return
        assert self.auditor.follow(self.path) == self.expected
        assert self.auditor.books.spent == self.model.spent
        assert self.auditor.books.cap == self.model.cap
        self.ran.update(("steps", *self.expected))
        self.expected = []

    def teardown(self) -> None:
        try:
            if hasattr(self, "model"):
                self.settle()
                self.ran["sequences"] += 1
        finally:
            for ledger in (*self.handles.values(), *self.left):
                ledger.close()
            shutil.rmtree(self.folder)

    def settle(self) -> None:
        """At the end everybody agrees, and whoever kept a head finds it in this file and in no older one."""
        rows, model = self.auditor.rows, self.model
        with self.open(0, model.cap, self.seed) as ledger:
            assert all(ledger.contains(head) for head in self.heads)
            if len(rows) % 4 == 0:  # what was charged takes the accountants long: a quarter is enough
                statement = ledger.statement()
                for stream in STREAMS:
                    claimed = statement.stream(stream).nominal_claimed_epsilon
                    assert claimed == model.claim(stream, self.first)
        if self.handles.get(1) is not None:
            self.handles[1].close()
        result = verify(self.path, expected_head=self.heads[len(self.heads) // 2] if self.heads else None)
        assert self.auditor.read(self.path, 0) == rows
        assert (result.entries, result.head) == (len(rows), rows[-1][3])
        assert (result.plans, result.reservations) == (len(model.plans), model.reservations)
        assert result.open_reservations == model.reservations - len(model.replies)
        assert result.refusals == len(model.refusals)
        assert result.seeded == (self.seed is not None)
        if self.snapshot is not None and self.auditor.read(self.snapshot, 0) != rows:
            with pytest.raises(LedgerTampered, match="cut back or replaced"):
                verify(self.snapshot, expected_head=rows[-1][3])


def run(sequences: int, *, number: int) -> None:
    """Run random sequences of operations from one seed."""
    machine = get_state_machine_test(
        LedgerMachine,
        settings=settings(
            max_examples=sequences,
            stateful_step_count=15,
            deadline=None,
            database=None,
            print_blob=True,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
    seed(number)(machine)()


def test_no_sequence_of_operations_overspends() -> None:
    run(150, number=1)


@pytest.mark.slow
def test_no_sequence_of_100_000_overspends() -> None:
    """By thousands; several processes can share them: FEDNAS_PROOF_PART=first:last:step."""
    first, last, step = map(int, os.environ.get("FEDNAS_PROOF_PART", "0:100:1").split(":"))
    for number in range(first, last, step):
        start = time.monotonic()
        run(1000, number=1000 + number)
        print(  # noqa: T201 (a proof of an hour says how far it is)
            f"{number}: {LedgerMachine.ran['sequences']} sequences, {LedgerMachine.ran['steps']} steps, "
            f"0 overspends, {time.monotonic() - start:.0f} s",
            flush=True,
        )

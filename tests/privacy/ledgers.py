"""Small plans and operations that the ledger's tests share."""

import json
import sqlite3
from contextlib import suppress
from pathlib import Path

import numpy as np

from fednas.privacy.allowance import READS, Allowance
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.events import Event, Gaussian, NonPrivate, PoissonGaussian
from fednas.privacy.ledger import Arrays, Operation, Permit, PrivacyLedger
from fednas.privacy.plan import PrivacyPlan

CAP = PrivacyBudget(epsilon=3.0, delta=1e-5)
SHARES = (("weights", 0.9), ("architecture", 0.05), ("fitness", 0.05))


def search_event(steps: int, *, sigma: float = 1.5, q: float = 0.1) -> PoissonGaussian:
    return PoissonGaussian(sampling_probability=q, noise_multiplier=sigma, steps=steps)


def plan_of(budget: PrivacyBudget = CAP, **events: Event) -> PrivacyPlan:
    """A plan with the given events as its allowances, without any calibration."""
    return PrivacyPlan(
        budget=budget,
        proportions=SHARES,
        allowances=tuple(
            Allowance(name=name, streams=READS[name], event=events[name], clip_norm=1.0)
            for name in READS
            if name in events
        ),
    )


SMALL = plan_of(
    search=search_event(20),
    alphas=search_event(10, sigma=3.0),
    fitness=Gaussian(noise_multiplier=20.0, releases=4),
    final=search_event(5),
)
UNPROTECTED = plan_of(PrivacyBudget.non_private(), search=NonPrivate(reason="a baseline", releases=20))


def operation(number: int, *, run: str = "run", kind: str = "train", message: str = "0") -> Operation:
    return Operation(run=run, round=number, kind=kind, nonce="nonce", digest=message * 64)


def noise(permit: Permit) -> Arrays:
    """A mechanism that touches no data: only what a repeat would draw anew."""
    return {"update": permit.entropy.noise(1e6, 8)}


def open_ledger(path: Path, *, cap: PrivacyBudget = CAP, test_seed: int | None = None) -> PrivacyLedger:
    return PrivacyLedger.open(path, dataset="ward", cap=cap, test_seed=test_seed)


def forbidden(permit: Permit) -> Arrays:
    """A mechanism that must never run."""
    raise AssertionError("private data were touched")


def same(left: Arrays, right: Arrays) -> bool:
    return left.keys() == right.keys() and all(
        np.array_equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left
    )


def entries(path: Path, kind: str) -> list[dict[str, object]]:
    """The bodies of one kind of entry, read past the ledger."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT body FROM entries WHERE kind = ? ORDER BY seq", (kind,)).fetchall()
    connection.close()
    return [json.loads(row[0]) for row in rows]


def fill(path: Path) -> None:
    """Make a ledger of eleven entries: five charges, one of them for a mechanism that failed."""
    with open_ledger(path) as ledger:
        ledger.open_plan("run", SMALL)
        for number in range(3):
            ledger.release(operation(number), charges={"search": 2, "alphas": 1}, mechanism=noise)
        with suppress(AssertionError):
            ledger.release(operation(3), charges={"final": 1}, mechanism=forbidden)
        ledger.release(operation(4), charges={"fitness": 2}, mechanism=noise)

"""Ledgers that the statement's tests share: private, seeded, unprotected, adaptive, untouched."""

from contextlib import suppress
from pathlib import Path

from fednas.errors import PrivacyError
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.events import Gaussian
from fednas.privacy.ledger import Declaration, PrivacyLedger
from fednas.privacy.plan import PrivacyPlan
from tests.privacy.ledgers import CAP, SMALL, UNPROTECTED, forbidden, noise, operation, plan_of, search_event

OWNER = Declaration(
    controller="St. Vincent's <Hospital> & Co", purpose='a "network"; for <script>bedsides', declared_size=440
)
ADAPTIVE = PrivacyBudget(epsilon=3.0, delta=1e-5, order=8)
MODEST = plan_of(
    ADAPTIVE, search=search_event(20, sigma=4.0), fitness=Gaussian(noise_multiplier=20.0, releases=4)
)


def untouched(path: Path) -> Path:
    with PrivacyLedger.open(path, dataset="hospitals/clinic", cap=CAP):
        pass
    return path


def made(
    path: Path,
    *,
    plan: PrivacyPlan = SMALL,
    cap: PrivacyBudget = CAP,
    test_seed: int | None = None,
    dataset: str = "hospitals/clinic",
) -> Path:
    """A ledger with two runs, charges, refusals, crashes and a retry."""
    with PrivacyLedger.open(path, dataset=dataset, cap=cap, test_seed=test_seed, declaration=OWNER) as ledger:
        ledger.open_plan("run", plan)
        for number in range(4):
            ledger.release(operation(number), charges={"search": 2}, mechanism=noise)
        with suppress(AssertionError):
            ledger.release(operation(4), charges={"fitness": 1}, mechanism=forbidden)
        ledger.release(operation(4), charges={"fitness": 1}, mechanism=noise)
        with suppress(AssertionError):
            ledger.release(operation(5), charges={"search": 3}, mechanism=forbidden)
        with suppress(PrivacyError):
            ledger.release(operation(0, message="f"), charges={"search": 1}, mechanism=noise)
        for _ in range(2):
            with suppress(PrivacyError):
                ledger.release(operation(6), charges={"search": 1000}, mechanism=noise)
        for run in ("again", "thrice"):  # the third is more than the cap allows
            with suppress(PrivacyError):
                ledger.open_plan(run, plan)
    return path


def unprotected(path: Path) -> Path:
    cap = PrivacyBudget.non_private()
    with PrivacyLedger.open(path, dataset="hospitals/clinic", cap=cap, declaration=OWNER) as ledger:
        ledger.open_plan("run", UNPROTECTED)
        ledger.release(operation(0), charges={"search": 1}, mechanism=noise)
    return path

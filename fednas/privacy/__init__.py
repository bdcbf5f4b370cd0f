"""The privacy layer: budgets, plans, the ledger that charges them, and the only randomness of mechanisms."""

from fednas.privacy.allowance import STREAMS, Allowance, ReleaseSchedule
from fednas.privacy.budget import NON_PRIVATE, PrivacyBudget
from fednas.privacy.entropy import Entropy, SecureEntropy, SeededEntropy
from fednas.privacy.events import Event, Gaussian, NonPrivate, PoissonGaussian
from fednas.privacy.ledger import (
    Arrays,
    BudgetExhaustedError,
    Operation,
    Permit,
    PrivacyLedger,
    Released,
    SpendStatement,
    StreamSpend,
)
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.streams import StreamedRecords, assign

__all__ = [
    "NON_PRIVATE",
    "STREAMS",
    "Allowance",
    "Arrays",
    "BudgetExhaustedError",
    "Entropy",
    "Event",
    "Gaussian",
    "NonPrivate",
    "Operation",
    "Permit",
    "PoissonGaussian",
    "PrivacyBudget",
    "PrivacyLedger",
    "PrivacyPlan",
    "ReleaseSchedule",
    "Released",
    "SecureEntropy",
    "SeededEntropy",
    "SpendStatement",
    "StreamSpend",
    "StreamedRecords",
    "assign",
]

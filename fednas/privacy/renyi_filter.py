"""When to refuse the next charge: codes for it, and the filter that lets noise depend on earlier releases."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Final, final

from fednas.errors import BudgetExceededError, PrivacyError
from fednas.privacy.accounting import renyi_budget, renyi_divergence
from fednas.privacy.allowance import STREAMS, Allowance
from fednas.privacy.budget import PrivacyBudget


@final
class BudgetExhaustedError(BudgetExceededError):
    """A charge does not fit; `code` is all that may leave the site about it."""

    code: Final = "BUDGET_EXHAUSTED"


@final
class StreamsFixedError(PrivacyError):
    """A plan divides the dataset otherwise than its first one did; `code` is all that may leave about it."""

    code: Final = "STREAMS_FIXED"


@final
class RenyiFilter:
    """Adds up what each stream's charges cost at one order that was fixed beforehand.

    Guarantees:
        - The sums are exact, so they depend neither on the order of charges nor on how they were split.
        - While `refusal` answers None for a charge before it is taken in, everything together is private to
          the cap's epsilon and delta, even if each mechanism was chosen after seeing all earlier releases.

    Source: Feldman and Zrnic (2021), arXiv 2008.11193, theorem 4.3; Lécuyer (2021), arXiv 2103.01379.

    Args:
        order: of the divergence, 2 to 256.
    """

    def __init__(self, order: int) -> None:
        self._order = order
        self._totals = dict.fromkeys(STREAMS, Fraction(0))

    def add(self, allowance: Allowance, amount: int) -> None:
        """Take a charge in.

        Raises:
            BudgetExhaustedError: no filter bounds it.
        """
        cost = self._cost(allowance, amount)
        for stream in allowance.streams:
            self._totals[stream] += cost

    def refusal(
        self, cap: PrivacyBudget, charges: Sequence[tuple[Allowance, int]]
    ) -> BudgetExhaustedError | None:
        """Why charges may not be made under a cap of this order, or None.

        Args:
            cap: epsilon, delta and the order.
            charges: (allowance, amount) of all that would be charged together.
        """
        assert cap.order == self._order
        bound = renyi_budget(cap.epsilon, cap.delta, self._order)
        try:
            costs = [(allowance, self._cost(allowance, amount)) for allowance, amount in charges]
        except BudgetExhaustedError as refusal:
            return refusal
        for stream, spent in self._totals.items():
            total = sum((cost for allowance, cost in costs if stream in allowance.streams), spent)
            if total > bound:  # exact: a fraction against a float
                return BudgetExhaustedError(
                    f"the divergence of stream {stream!r} at order {self._order} would exceed {bound:.4g}, "
                    f"all that a cap of {cap.epsilon:.4g} at delta {cap.delta:g} allows; ask for less"
                )
        return None

    def _cost(self, allowance: Allowance, amount: int) -> Fraction:
        divergence = renyi_divergence((allowance.event.scaled(1),), self._order)
        if not math.isfinite(divergence):
            raise BudgetExhaustedError(f"{allowance.name} has too little noise for any cap; plan more of it")
        return amount * Fraction(divergence)

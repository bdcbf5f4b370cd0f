"""The f-DP bound over Gaussian trade-offs: many canaries at once, sharper where the noise is Gaussian.

Source: Mahloujifar, Melis & Chaudhuri (2024), "Auditing f-differential privacy in one run", arXiv 2410.22235.
"""

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fednas.audit.estimators.gaussian import epsilon_of, mu_of
from fednas.audit.estimators.guesses import SIGNIFICANCE, best_guesses, num_correct

NAME: Final = "f-DP"
ASSUMPTION: Final = (
    "a fair coin made each canary a member; one record is told apart as by Gaussian noise (mu-GDP); scores "
    "may depend on one another"
)

_STEPS = 22  # bisections: mu to within 4e-6
_LARGEST_MU = 16.0
_normal = NormalDist()


def lower_bound(
    scores: NDArray[np.float64],
    members: NDArray[np.bool_],
    *,
    claim: float,
    delta: float,
    confidence: float,
) -> float:
    """A bound on epsilon from below.

    Args:
        scores: shape (m,), larger for members.
        members: shape (m,).
        claim: epsilon that was claimed; it fixes the number of guesses and no more.
        delta: at which epsilon is wanted, 0 < delta < 1.
        confidence: 0 < confidence < 1.
    """
    m, guesses = len(scores), num_guesses(len(scores), claim, delta)
    return epsilon_of_counts(m, guesses, num_correct(scores, members, guesses), delta, 1.0 - confidence)


def accuses(scores: NDArray[np.float64], members: NDArray[np.bool_], *, claim: float, delta: float) -> bool:
    """Whether so many right guesses refute the claim; of a true claim with a chance below `SIGNIFICANCE`."""
    m, guesses = len(scores), num_guesses(len(scores), claim, delta)
    return exceeds(mu_of(claim, delta), m, guesses, num_correct(scores, members, guesses), SIGNIFICANCE)


@lru_cache(maxsize=256)
def num_guesses(m: int, claim: float, delta: float) -> int:
    """How many of m canaries are guessed: see `best_guesses`."""
    return best_guesses(
        m,
        claim,
        delta,
        epsilon=lambda guesses, right: epsilon_of_counts(m, guesses, right, delta, 0.05),
        accuses=lambda guesses, right, claimed: exceeds(
            mu_of(claimed, delta), m, guesses, right, SIGNIFICANCE
        ),
    )


def exceeds(mu: float, m: int, guesses: int, correct: int, significance: float) -> bool:
    """Whether so many right guesses have a chance below `significance` under mu-GDP.

    The source's algorithm `audit_rh`: if the chance were as large, the masses of being right and wrong that
    its theorem derives from the trade-off, for ever fewer right guesses, would add up to more than all.

    Args:
        mu: of the Gaussian trade-off, >= 0.
        m: canaries.
        guesses: 0 <= guesses <= m, fixed before scores were seen.
        correct: 0 <= correct <= guesses.
        significance: 0 < significance < 1.
    """
    right, wrong = significance * correct / m, significance * (guesses - correct) / m
    for i in range(correct - 1, -1, -1):
        if right + wrong > guesses / m:  # neither ever shrinks
            return True
        least = _least_mass(right, mu)
        if least <= wrong:  # and then neither grows again
            return False
        right, wrong = min(1.0, right + i / (guesses - i) * (least - wrong)), least
    return right + wrong > guesses / m


def _least_mass(mass: float, mu: float) -> float:
    """What an event of a given chance has at least under a neighbour: Phi(Phi^-1(mass) - mu)."""
    if not 0.0 < mass < 1.0:
        return mass
    return 0.5 * math.erfc((mu - _normal.inv_cdf(mass)) / math.sqrt(2.0))


@lru_cache(maxsize=65536)
def mu_of_counts(m: int, guesses: int, correct: int, significance: float) -> float:
    """A lower bound on mu from numbers of guesses; see `epsilon_of_counts`."""
    if not exceeds(0.0, m, guesses, correct, significance):
        return 0.0
    low, high = 0.0, 1.0
    while high < _LARGEST_MU and exceeds(high, m, guesses, correct, significance):
        low, high = high, 2.0 * high
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if exceeds(middle, m, guesses, correct, significance) else (low, middle)
    return low


def epsilon_of_counts(m: int, guesses: int, correct: int, delta: float, significance: float) -> float:
    """A lower bound on epsilon from numbers of guesses.

    Args:
        m: canaries.
        guesses: 0 <= guesses <= m, fixed before scores were seen.
        correct: 0 <= correct <= guesses.
        delta: at which epsilon is wanted, 0 < delta < 1.
        significance: chance that the bound is above the true epsilon, 0 < significance < 1.

    Returns:
        epsilon >= 0.
    """
    return epsilon_of(mu_of_counts(m, guesses, correct, significance), delta)

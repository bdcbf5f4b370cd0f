"""The GDP bound: mu from how often a threshold that was fixed beforehand is right.

Source: Nasr et al. (2023), "Tight auditing of differentially private machine learning", arXiv 2302.07956.
"""

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

from fednas.audit.estimators.gaussian import epsilon_of, mu_of
from fednas.audit.estimators.guesses import SIGNIFICANCE

NAME: Final = "GDP"
ASSUMPTION: Final = (
    "a fair coin made each canary a member; one record is told apart as by Gaussian noise (mu-GDP); each "
    "score depends on its own canary's coin and on no other score"
)

_ALL_GUESSES = 0.8  # share of the error for the rate of all right guesses; the other two rates share the rest


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
        scores: shape (m,), larger for members, in standard deviations of noise above those of non-members.
        members: shape (m,).
        claim: epsilon that was claimed; it fixes the threshold and no more.
        delta: at which epsilon is wanted, 0 < delta < 1.
        confidence: 0 < confidence < 1.
    """
    guessed = scores > threshold(claim, delta)
    num_members = int(np.count_nonzero(members))
    found = int(np.count_nonzero(guessed & members))
    cleared = int(np.count_nonzero(~guessed & ~members))
    return epsilon_of_counts(num_members, found, len(scores) - num_members, cleared, delta, 1.0 - confidence)


def accuses(scores: NDArray[np.float64], members: NDArray[np.bool_], *, claim: float, delta: float) -> bool:
    """Whether the rates refute the claim; of a true claim with a chance below `SIGNIFICANCE`."""
    return lower_bound(scores, members, claim=claim, delta=delta, confidence=1.0 - SIGNIFICANCE) > claim


def threshold(claim: float, delta: float) -> float:
    """Above it a canary is called a member: the middle of members and others under the claim, mu / 2.

    There the best attacker is wrong on both sides alike, and the bound is sharpest.
    """
    return 0.5 * mu_of(claim, delta)


@lru_cache(maxsize=65536)
def epsilon_of_counts(
    num_members: int, found: int, num_others: int, cleared: int, delta: float, significance: float
) -> float:
    """A lower bound on epsilon from the rates of right guesses.

    Under mu-GDP the true positive rate is at most Phi(mu + Phi^-1(false positive rate)), and a guess about a
    fair coin is right with a chance of at most Phi(mu / 2). So mu is at least what the lower ends of two
    Clopper-Pearson intervals say, one for each rate (Nasr et al.), and what that of a third says, for all
    guesses. The error is split between the three: the third is sharper where the noise is Gaussian, the
    others where an attacker is rarely wrong on one side.

    Args:
        num_members: >= 0.
        found: members that were called so.
        num_others: >= 0.
        cleared: others that were not called members.
        delta: at which epsilon is wanted, 0 < delta < 1.
        significance: chance that the bound is above the true epsilon, 0 < significance < 1.

    Returns:
        epsilon >= 0.
    """
    one = 0.5 * (1.0 - _ALL_GUESSES) * significance
    rates = ndtri(least_rate(found, num_members, one)) + ndtri(least_rate(cleared, num_others, one))
    whole = least_rate(found + cleared, num_members + num_others, _ALL_GUESSES * significance)
    return epsilon_of(max(0.0, float(rates), 2.0 * float(ndtri(whole))), delta)


def least_rate(successes: int, trials: int, significance: float) -> float:
    """The lower end of a one-sided interval, Clopper & Pearson (1934)."""
    return float(betaincinv(successes, trials - successes + 1, significance)) if successes else 0.0

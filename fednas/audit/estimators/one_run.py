"""The one-run bound: many canaries at once, whatever the mechanism is.

Source: Steinke, Nasr & Jagielski (2023), "Privacy auditing with one (1) training run", arXiv 2305.08846.
"""

import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, expit

from fednas.audit.estimators.guesses import SIGNIFICANCE, SLACK, best_guesses, num_correct

NAME: Final = "one-run"
ASSUMPTION: Final = "a fair coin made each canary a member; nothing about the mechanism or its scores"

_FAILURES = 1e-2  # of a game: chance of an accusation that the claim's own delta may explain


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
    """Whether so many right guesses refute the claim; of a true claim with a chance of at most 1e-2.

    A system may keep (epsilon, delta) and fail wholly for each canary with a chance of delta, so that no
    p-value is below 2 delta. Therefore two conditions: guesses that epsilon alone leaves a chance of
    `SIGNIFICANCE`, and with delta one of 1e-2. A Gaussian mechanism, whose delta is no failure but a tail, is
    accused with a chance of at most `SIGNIFICANCE`.
    """
    m, guesses = len(scores), num_guesses(len(scores), claim, delta)
    return refutes(m, guesses, num_correct(scores, members, guesses), claim, delta)


@lru_cache(maxsize=256)
def num_guesses(m: int, claim: float, delta: float) -> int:
    """How many of m canaries are guessed: see `best_guesses`."""
    return best_guesses(
        m,
        claim,
        delta,
        epsilon=lambda guesses, right: epsilon_of_counts(m, guesses, right, delta, 0.05),
        accuses=lambda guesses, right, claimed: refutes(m, guesses, right, claimed, delta),
    )


def least_guesses(claim: float) -> int:
    """How many guesses, all right, it takes to accuse a claim with a few to spare; about 16 exp(claim)."""
    return math.ceil(math.log(SIGNIFICANCE) / math.log(expit(claim + SLACK)))


def refutes(m: int, guesses: int, correct: int, claim: float, delta: float) -> bool:
    """Whether such numbers accuse: see `accuses`."""
    by_epsilon = p_value(m, guesses, correct, claim, 0.0)
    return by_epsilon <= SIGNIFICANCE and p_value(m, guesses, correct, claim, delta) <= _FAILURES


def p_value(m: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """A bound on the chance of so many right guesses under (epsilon, delta), theorem 5.2 of the source.

    Under epsilon alone each guess is right with a chance of at most 1 / (1 + exp(-epsilon)), whatever was
    seen of the others; delta adds at most 2 m delta times the greatest mean mass just below `correct`.

    Args:
        m: canaries.
        guesses: 0 <= guesses <= m, fixed before scores were seen.
        correct: 0 <= correct <= guesses.
        epsilon: >= 0.
        delta: 0 <= delta < 1.
    """
    if correct == 0:
        return 1.0
    right = float(expit(epsilon))
    beta = float(bdtrc(correct - 1, guesses, right))
    if delta == 0.0:
        return beta
    below = np.arange(1, correct + 1)
    reached = np.where(below < correct, bdtrc(np.maximum(correct - below - 1, 0), guesses, right), 1.0)
    return min(1.0, beta + 2.0 * m * delta * float(np.max((reached - beta) / below)))


@lru_cache(maxsize=65536)
def epsilon_of_counts(m: int, guesses: int, correct: int, delta: float, significance: float) -> float:
    """A lower bound on epsilon from numbers of guesses.

    Args:
        m: canaries.
        guesses: 0 <= guesses <= m, fixed before scores were seen.
        correct: 0 <= correct <= guesses.
        delta: 0 <= delta < 1.
        significance: chance that the bound is above the true epsilon, 0 < significance < 1.

    Returns:
        epsilon >= 0, at most about ln(guesses / ln(1 / significance)).
    """
    if p_value(m, guesses, correct, 0.0, delta) > significance:
        return 0.0
    low, high = 0.0, 1.0
    while p_value(m, guesses, correct, high, delta) <= significance:
        low, high = high, 2.0 * high
    while high - low > 1e-9:
        middle = 0.5 * (low + high)
        refuted = p_value(m, guesses, correct, middle, delta) <= significance
        low, high = (middle, high) if refuted else (low, middle)
    return low

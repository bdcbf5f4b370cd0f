"""How many canaries an attacker guesses: fixed by their number and the claim, before a score is seen."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fednas.audit.estimators.gaussian import guesses_beyond, mu_of

FALSE_ALARM = 1e-6
"""The chance that a game accuses a system that keeps its claim, shared by the estimators."""
SIGNIFICANCE = FALSE_ALARM / 3
"""Of each of the three estimators."""

_DISTANCES = tuple(0.25 * step for step in range(11))  # in deviations of noise: from all canaries to 1 in 50
SLACK = 0.1  # in nats, by which a system without noise shall exceed its claim: a tenth of guesses to spare


def num_correct(scores: NDArray[np.float64], members: NDArray[np.bool_], guesses: int) -> int:
    """How many guesses are right when the upper half is called members and the lower half not.

    Args:
        scores: shape (m,); of equal ones the later canary is the higher, which no coin knows.
        members: shape (m,).
        guesses: at most m; of an odd number one more is called a member.
    """
    order = np.argsort(scores, kind="stable")
    upper = order[len(order) - (guesses + 1) // 2 :]
    lower = order[: guesses // 2]
    return int(np.count_nonzero(members[upper])) + int(np.count_nonzero(~members[lower]))


def best_guesses(
    m: int,
    claim: float,
    delta: float,
    *,
    epsilon: Callable[[int, int], float],
    accuses: Callable[[int, int, float], bool],
) -> int:
    """The number of guesses that an estimator shall make of m canaries.

    Of those that let it accuse a system without noise, the one with the highest bound on a Gaussian mechanism
    that spends its claim wholly, as the mean of a game of ordinary luck and of one where a standard deviation
    fewer guesses are right. Where accusing would take more than half of the canaries, a system without noise
    need only get a bound above its claim; and where no number does that, as many as may be. These are four
    standard deviations less than all, so that there are enough members and others for both halves.

    Args:
        m: canaries.
        claim: epsilon at delta.
        delta: of the claim.
        epsilon: the estimator's bound for a number of guesses and of right ones, at 95 % confidence.
        accuses: whether such numbers accuse a claim, the third argument.
    """
    mu = mu_of(claim, delta)
    options = [guesses_beyond(mu, distance) for distance in _DISTANCES]
    most = max(m // 2, math.floor(m - 4.0 * math.sqrt(m)))
    numbers = {min(most, round(share * m)): right for share, right in options}
    fit = [guesses for guesses in numbers if accuses(guesses, guesses, claim + SLACK)]
    if min(fit, default=m) > m / 2:
        fit = [guesses for guesses in numbers if epsilon(guesses, guesses) > claim + SLACK]
    best, highest = most, -1.0
    for guesses in fit:
        right = numbers[guesses] * guesses
        unlucky = right - math.sqrt(right * (1.0 - numbers[guesses]))
        bound = epsilon(guesses, round(right)) + epsilon(guesses, max(0, round(unlucky)))
        if bound > highest + 1e-6:  # so that rounding on another machine chooses alike
            best, highest = guesses, bound
    return best

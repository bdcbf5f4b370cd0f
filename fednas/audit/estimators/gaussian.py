"""The Gaussian trade-off: how mu-GDP and (epsilon, delta) say one thing, and what its best attacker sees."""

import math
from functools import lru_cache

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from fednas.errors import ConfigurationError

_LARGEST_MU = 1e4  # an epsilon of 5e7
_TOLERANCE = 1e-12


def delta_of(mu: float, epsilon: float) -> float:
    """The least delta of a mu-GDP mechanism at an epsilon.

    Args:
        mu: how many standard deviations of noise a record moves what is seen, >= 0.
        epsilon: >= 0.

    Source: Balle & Wang (2018), arXiv 1805.06530, theorem 8; Dong et al. (2019), arXiv 1905.02383, cor. 2.13.
    """
    ratio = epsilon / mu if mu > 0.0 else math.inf
    near, far = float(log_ndtr(mu / 2 - ratio)), float(log_ndtr(-mu / 2 - ratio)) + epsilon
    if near == -math.inf or mu == 0.0:
        return 0.0
    return math.exp(near) * -math.expm1(min(0.0, far - near))  # both terms may be tiny: in logarithms


@lru_cache(maxsize=4096)
def epsilon_of(mu: float, delta: float) -> float:
    """The least epsilon >= 0 of a mu-GDP mechanism at a delta.

    Args:
        mu: 0 <= mu, or infinity.
        delta: 0 < delta < 1.

    Raises:
        ConfigurationError: a number is out of its bounds.
    """
    if not mu >= 0.0:
        raise ConfigurationError(f"expected mu >= 0, got {mu}")
    _check_delta(delta)
    if mu > _LARGEST_MU:
        return math.inf
    if delta_of(mu, 0.0) <= delta:
        return 0.0
    high = mu * (mu / 2 + 40.0)  # where delta is below the mass of a normal variable beyond 40
    return float(brentq(lambda epsilon: delta_of(mu, epsilon) - delta, 0.0, high, xtol=_TOLERANCE))


@lru_cache(maxsize=256)
def mu_of(epsilon: float, delta: float) -> float:
    """The mu of the Gaussian mechanism that spends exactly (epsilon, delta).

    Args:
        epsilon: 0 < epsilon, finite.
        delta: 0 < delta < 1.

    Raises:
        ConfigurationError: a number is out of its bounds.
    """
    if not 0.0 < epsilon < 1e6:
        raise ConfigurationError(f"expected 0 < epsilon < 1e6, got {epsilon}")
    _check_delta(delta)
    high = 1.0
    while delta_of(high, epsilon) <= delta:
        high *= 2.0
    return float(brentq(lambda mu: delta_of(mu, epsilon) - delta, 0.0, high, xtol=_TOLERANCE))


def guesses_beyond(mu: float, distance: float) -> tuple[float, float]:
    """What the best attacker sees who guesses only where a score is far from the middle, mu / 2.

    Scores are normal with mean 0, of members mu, and deviation 1; a coin makes members.

    Args:
        mu: of the mechanism.
        distance: from the middle, in standard deviations, >= 0.

    Returns:
        The share of canaries that are guessed, and the share of those that is guessed right.
    """
    right, wrong = float(ndtr(mu / 2 - distance)), float(ndtr(-mu / 2 - distance))
    return right + wrong, right / (right + wrong)


def _check_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise ConfigurationError(f"expected 0 < delta < 1, got {delta}")

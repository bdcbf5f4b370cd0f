"""What an attacker can gain at most: the trade-off curve that several (epsilon, delta) pairs imply."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LARGEST_EPSILON = 700.0  # beyond it exp overflows, and nothing is protected


@dataclass(frozen=True, kw_only=True)
class Risk:
    """Bounds on every test that tells two neighbouring datasets apart, whoever performs it.

    Args:
        advantage: true positive rate less false positive rate at best, 0 (a guess) to 1 (certainty).
        tpr_at_1_percent: true positive rate at a false positive rate of 1 %.
        tpr_at_01_percent: the same at 0.1 %.
    """

    advantage: float
    tpr_at_1_percent: float
    tpr_at_01_percent: float


def risk(pairs: Sequence[tuple[float, float]]) -> Risk:
    """Translate guarantees that hold together into what a membership test can achieve at most.

    At a false positive rate a, an (epsilon, delta) guarantee keeps the true positive rate of any test below

        min(1, delta + exp(epsilon) a, 1 - exp(-epsilon) (1 - delta - a))

    and where several guarantees hold at once, of at most the least of these.

    Args:
        pairs: (epsilon, delta), each of them valid; an infinite epsilon protects nothing.

    Source: Kairouz et al. (2015), arXiv 1311.0776, theorem 2.1; Dong et al. (2019), arXiv 1905.02383,
    proposition 2.5.
    """
    lines = [(0.0, 1.0)]  # slope, intercept: the true positive rate is below each line
    for epsilon, delta in pairs:
        if epsilon < _LARGEST_EPSILON:
            lines.append((math.exp(epsilon), delta))
            lines.append((math.exp(-epsilon), 1.0 - math.exp(-epsilon) * (1.0 - delta)))

    def highest(rate: float) -> float:
        return min(slope * rate + intercept for slope, intercept in lines)

    # The bound is concave and made of lines, so the advantage is largest where two of them meet.
    corners = [0.0, 1.0] + [
        (b - d) / (c - a) for a, b in lines for c, d in lines if a != c and 0.0 <= (b - d) / (c - a) <= 1.0
    ]
    return Risk(
        advantage=max(highest(rate) - rate for rate in corners),
        tpr_at_1_percent=highest(0.01),
        tpr_at_01_percent=highest(0.001),
    )

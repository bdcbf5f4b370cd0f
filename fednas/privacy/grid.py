"""The Gaussian mechanism on an integer grid: a clipped sum in, a noised sum out.

Let every record contribute a vector of L2 norm at most C. The sum is held in floating point, rounded to a
grid of step ``gamma = C * GRID_STEP`` and noised in integers. Removing one record moves the rounded sum by at
most

    C / gamma * (1 + ARITHMETIC_SLACK) + sqrt(d)

grid units: C / gamma is the record itself, ``sqrt(d)`` the two roundings (each coordinate moves by at most
1/2 on both neighbours), and the slack covers float32 arithmetic. Clipping overshoots C by at most a few units
in the last place (1.2e-6 relative, measured), and a float32 sum of B clipped vectors is off by at most ``B *
2**-24 * B * C`` in the worst case and about ``sqrt(B) * 2**-24 * C`` in practice; 1e-3 covers batches of a
hundred in the worst case and batches of any size a device can hold in practice. The noise is calibrated to
this whole bound, not to C alone.
"""

import numpy as np
from numpy.typing import NDArray

from fednas.privacy.entropy import Entropy

GRID_STEP = 1e-6
"""Grid step as a fraction of the clip norm."""

ARITHMETIC_SLACK = 1e-3
"""Relative share of the sensitivity set aside for floating-point error."""


def sensitivity(size: int) -> float:
    """The L2 sensitivity in grid units of a rounded sum of ``size`` coordinates."""
    return (1.0 + ARITHMETIC_SLACK) / GRID_STEP + float(np.sqrt(size))


def noised_sum(
    total: NDArray[np.float64], *, clip_norm: float, noise_multiplier: float, entropy: Entropy
) -> NDArray[np.float64]:
    """Round a clipped sum to the grid and add Gaussian noise there.

    Args:
        total: shape (d,), the sum over records of vectors clipped to ``clip_norm``.
        clip_norm: the L2 bound C of one record's contribution.
        noise_multiplier: standard deviation over sensitivity; 0 adds no noise (a non-private plan).
        entropy: the permit's source of randomness; never chosen by the caller of a mechanism.

    Returns:
        Shape (d,), on the grid.

    Guarantees:
        - For a total that is a sum of vectors of norm at most ``clip_norm`` the release is a Gaussian
          mechanism with this noise multiplier, rounded afterwards.
        - The result is finite and of the same shape, whatever the records were, also when there were none.
    """
    if not np.all(np.isfinite(total)):
        raise AssertionError("a clipped sum is finite by construction")
    gamma = clip_norm * GRID_STEP
    units = np.rint(total / gamma).astype(np.int64)
    noise = entropy.noise(noise_multiplier * sensitivity(total.size), total.size)
    noised: NDArray[np.float64] = (units + noise).astype(np.float64) * gamma
    return noised

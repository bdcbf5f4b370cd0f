"""The Gaussian mechanism on an integer grid: records clipped and rounded one by one, summed exactly, noised.

A record's vector g of d coordinates becomes integers in units of ``C * GRID_STEP``, C being the clip norm:

    units = round(g * f),  f = (1 / GRID_STEP) / max(|g|, C),

or zeros when |g| is not finite. Integers add up exactly in any order, so adding or removing a record moves
the sum by that record's integers and by nothing else. Their L2 norm is at most

    sensitivity(d) = (1 + ARITHMETIC_SLACK) / GRID_STEP + sqrt(d).

Why: with unit roundoff v = 2^-53 the float64 sum of d squares is off by at most d v of itself in any order,
its root by half of that and one v, the quotient f and each product by one v more. So |g * f| is at most
(1 + (d / 2 + 4) v) / GRID_STEP; as d is at most 2^28 the excess is below 2^-25, a thirtieth of the slack.
Squares that vanish are those of numbers below 2^-537, nothing beside C, which is at least 1e-100. Rounding
moves each coordinate by at most 1/2, the vector by sqrt(d) / 2. Twice that is charged, so that one bound
holds also for an engine that rounds only its sum, where both neighbours are rounded: sqrt(d) between them.
"""

from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from fednas.errors import PrivacyError
from fednas.privacy.allowance import MIN_CLIP_NORM
from fednas.privacy.entropy import Entropy

GRID_STEP: Final = 1e-6
"""Grid step as a fraction of the clip norm."""

ARITHMETIC_SLACK: Final = 1e-6
"""Relative share of the sensitivity set aside for floating-point error."""

_UNITS: Final = 1e6  # 1 / GRID_STEP, exactly
_MAX_SIZE: Final = 1 << 28
_BLOCK: Final = 1 << 16  # numbers at once: the scratch memory stays in a cache


def sensitivity(size: int) -> float:
    """The L2 norm in grid units that a record of ``size`` coordinates may have in a sum."""
    return (1.0 + ARITHMETIC_SLACK) * _UNITS + float(np.sqrt(size))


@final
class GridSum:
    """A sum over records of vectors, each clipped and rounded to the grid by itself.

    Args:
        size: coordinates of a record's vector, at most 2^28.
        clip_norm: the L2 bound C of one record's contribution, at least 1e-100.

    Raises:
        PrivacyError: the bound or the size does not allow the error analysis of this module.

    Guarantees:
        - What a record adds depends on its own vector alone: not on its position, nor on other records.
        - What a record adds has an L2 norm of at most ``sensitivity(size)``, whatever its vector holds.
        - A record whose vector, or its norm, is not finite adds zeros.
        - The sum is exact and does not depend on the order of the records.
    """

    def __init__(self, size: int, *, clip_norm: float) -> None:
        if not 0 <= size <= _MAX_SIZE:
            raise PrivacyError(f"expected 0 <= size <= 2^28 coordinates, got {size}")
        if not MIN_CLIP_NORM <= clip_norm < np.inf:
            raise PrivacyError(f"expected a clip norm of at least {MIN_CLIP_NORM:g}, got {clip_norm!r}")
        self._clip_norm = float(clip_norm)
        # Whole numbers in float64: exact up to 2^53, which is nine thousand million records.
        self._total = np.zeros(size, dtype=np.float64)
        self._scratch = np.empty((2, max(1, _BLOCK // max(1, size)), size), dtype=np.float64)

    @property
    def units(self) -> NDArray[np.int64]:
        """The sum so far: shape (size,), int64, in units of ``clip_norm * GRID_STEP``."""
        return self._total.astype(np.int64)

    def add(self, rows: NDArray[np.float32] | NDArray[np.float64]) -> None:
        """Add the vectors of some records.

        Args:
            rows: shape (n, size).
        """
        assert rows.ndim == 2
        assert rows.shape[1] == len(self._total)
        for start in range(0, len(rows), len(self._scratch[0])):
            part, squares = (scratch[: len(rows) - start] for scratch in self._scratch)
            np.copyto(part, rows[start : start + len(part)])
            with np.errstate(over="ignore", invalid="ignore"):
                norms = np.sqrt(np.sum(np.square(part, out=squares), axis=1))
            finite = np.isfinite(norms)
            if not finite.all():
                part, norms = part[finite], norms[finite]
            part *= (_UNITS / np.maximum(norms, self._clip_norm))[:, None]
            self._total += np.rint(part, out=part).sum(axis=0)


def noised_sum(
    units: NDArray[np.int64], *, clip_norm: float, noise_multiplier: float, entropy: Entropy
) -> NDArray[np.float64]:
    """Add Gaussian noise to a sum on the grid.

    Args:
        units: shape (d,), int64, what a `GridSum` of this clip norm holds.
        clip_norm: the L2 bound C of one record's contribution.
        noise_multiplier: standard deviation over sensitivity; 0 adds no noise (a non-private plan).
        entropy: the permit's source of randomness; never chosen by the caller of a mechanism.

    Returns:
        Shape (d,), float64, on the grid.

    Guarantees:
        - The release is a discrete Gaussian mechanism with this noise multiplier.
        - The result is finite and of the same shape, whatever the records were, also when there were none.
    """
    assert units.dtype == np.int64, "a sum of clipped records is integers by construction"
    noise = entropy.noise(noise_multiplier * sensitivity(units.size), units.size)
    noised: NDArray[np.float64] = (units + noise).astype(np.float64) * (clip_norm * GRID_STEP)
    return noised

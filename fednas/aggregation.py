"""How released values of several sites are combined: weights are public, functions of the plan alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def update_weight(*, declared_size: int, noise_multiplier: float) -> float:
    """The public weight of what a site releases: its inverse noise variance, up to what all sites share.

    A training step releases ``(sum + noise) / (q n)``: the clipped sum of a sample, noise of standard
    deviation ``sigma S``, the sampling probability q and the declared size n of the streams that are read. So
    the noise of a site's update has the standard deviation ``sigma S / (q n)`` a step. q, the sensitivity S,
    the number of steps, their rate and the streams' shares of n are the same at every site, so up to a
    constant ``(n / sigma)**2`` is the inverse variance, and no other weights give the average less noise
    (Aitken 1936, "On least squares and linear combination of observations"). Architecture gradients are
    released in the same form. Without noise the weight is the declared size.

    Args:
        declared_size: the size a site's owner declares, not the number of its records.
        noise_multiplier: of the site's own plan, for what was released; 0 for a non-private one.

    Guarantees:
        - Nothing private is an argument, so a weight tells nothing that the plan does not.
    """
    if noise_multiplier == 0.0:
        return float(declared_size)
    return (declared_size / noise_multiplier) ** 2


@dataclass(frozen=True, kw_only=True)
class NoisyCount:
    """A released number of correct predictions, the public size of its stream, and its noise."""

    correct: float
    size: float
    noise_std: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A released fitness in [0, 1] up to noise, and its public standard deviation."""

    fitness: float
    std: float


def combine_counts(counts: Sequence[NoisyCount]) -> Estimate:
    """Average the accuracies of several sites, each weighted by its public inverse variance.

    The variance of one site's accuracy is ``noise_std**2 / size**2`` plus the sampling error, bounded by
    ``1 / (4 size)``.

    Args:
        counts: at least one.
    """
    variances = np.array([(c.noise_std / c.size) ** 2 + 0.25 / c.size for c in counts])
    weights = 1.0 / variances
    accuracies = np.array([c.correct / c.size for c in counts])
    fitness = float(np.sum(weights * accuracies) / np.sum(weights))
    return Estimate(fitness=fitness, std=float(np.sqrt(1.0 / np.sum(weights))))


def average_gradients(
    gradients: Sequence[NDArray[np.float64]], weights: Sequence[float]
) -> NDArray[np.float64]:
    """Average architecture gradients over the sites, coordinate by coordinate.

    Args:
        gradients: shape (p,) each; NaN marks a coordinate whose choice was not on the site's path.
        weights: public, one a site.

    Returns:
        Shape (p,); 0 where no site had the choice on its path.
    """
    stacked = np.stack(gradients)
    shares = np.where(np.isnan(stacked), 0.0, np.asarray(weights, dtype=np.float64)[:, None])
    total = np.sum(shares, axis=0)
    summed = np.sum(shares * np.nan_to_num(stacked), axis=0)
    average: NDArray[np.float64] = np.divide(summed, total, out=np.zeros_like(summed), where=total > 0)
    return average

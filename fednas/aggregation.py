"""How released values of several sites are combined: weights are public, functions of the plan alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, final

import numpy as np
from numpy.typing import NDArray

_DRAWS: Final = 4096  # of a public simulation: a standard deviation comes out within about 1 %


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


@final
@dataclass(frozen=True, kw_only=True)
class RobustRule:
    """A combination in which each site has one vote and b hostile sites, whatever they send, bear little.

    Sites train different sub-networks, so each coordinate has its own voters: the sites that trained it. Who
    trains what is drawn by the server, but from paths that fit the device which a site declares, so a liar
    can arrange to be the only voter of a coordinate. Therefore a vote that is missing is one for no change.

    - `trimmed_mean`: per coordinate, drop the b smallest and the b largest votes and average the others (Yin
      et al. 2018, "Byzantine-robust distributed learning", arXiv 1803.01498; they drop a share of the sites,
      here it is a count). Where fewer than 2b + 1 sites voted, votes of 0 make up the number.
    - `median`: the middle vote, or the mean of the middle two (same source), made up in the same way.
    - `krum`: the update whose squared distances to its m - b - 2 nearest ones add up to the least (Blanchard
      et al. 2017, "Byzantine tolerant gradient descent", arXiv 1703.02757). Updates of different sub-networks
      have no distance, so it is applied to each group of coordinates that the same m sites trained: there
      every update has the same coordinates, and the paper's setting holds as it stands. Two sites without a
      shared coordinate never meet. One distance over all that two sites share would let a liar agree with
      the others on the many shared coordinates and own the few that only it trained. A group with fewer than
      2b + 3 voters, the least that the proof bears, stays as it is. Among equal scores the update that comes
      first in the order of its values is taken.

    Why votes and no weights: the weights of the mean are public, but they follow from the size that a site
    declares, which nobody can check. A liar would buy influence with it: weights would give it the median,
    and in Krum distances in units of the noise that a site claims would bring it near to everybody. The
    price is noise: see `noise_std`.

    Args:
        name: which rule.
        max_hostile: b >= 1, the sites that may be hostile and collude.

    Guarantees:
        - The order of the sites has no influence.
        - `trimmed_mean` and `median`: with at most b hostile sites each coordinate of the result lies between
          the smallest and the largest honest vote; where fewer than 2b + 1 sites voted, 0 counts as an honest
          vote. A coordinate with at most b voters does not change.
        - `krum`: each coordinate of the result is 0 or one site's vote. With at most b hostile sites, where
          all honest updates of a group lie within a distance D of each other and every hostile one is further
          than sqrt((m - b - 2) / (m - 2b - 1)) D from each of them, that site is honest.

    What noise leaves: the votes are noised, so the honest ones spread by their noise, and what is guaranteed
    is a place within that spread. At a deviation s of the noise, one liar out of n at the end of every
    coordinate moves their median by about 1.25 s / n, and a private update says less than s of most
    coordinates. Krum takes what lies nearest to the others: noise separates honest sites, so a liar that adds
    none is nearest, and it is chosen whenever its lie is shorter than their noise.
    """

    name: Literal["trimmed_mean", "median", "krum"]
    max_hostile: int

    def __post_init__(self) -> None:
        assert self.max_hostile >= 1, "the federation's configuration bounds it"

    @property
    def least_sites(self) -> int:
        """The number of sites below which the rule cannot bear its hostile ones: 2b + 1, Krum 2b + 3."""
        return 2 * self.max_hostile + (3 if self.name == "krum" else 1)

    def __call__(self, votes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Combine the votes of n sites on p coordinates.

        Args:
            votes: shape (n, p); NaN marks a coordinate that a site did not train.

        Returns:
            Shape (p,); exactly 0 where too few sites voted.
        """
        return _krum(votes, self.max_hostile) if self.name == "krum" else self._middle(votes)

    def _middle(self, votes: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean of the votes between two ranks, all coordinates at once."""
        hostile, least = self.max_hostile, 2 * self.max_hostile + 1
        cast = np.sum(~np.isnan(votes), axis=0)
        missing = np.where(np.arange(least)[:, None] < least - cast, 0.0, np.nan)
        ordered = np.sort(np.concatenate([votes, missing]), axis=0)  # NaN comes last
        count = np.maximum(cast, least)
        if self.name == "median":
            first, last = (count - 1) // 2, count // 2
        else:
            first, last = np.full_like(count, hostile), count - 1 - hostile
        ranks = np.arange(len(ordered))[:, None]
        kept = (first <= ranks) & (ranks <= last)
        average = np.sum(ordered, axis=0, where=kept) / (last - first + 1)
        # A mean can leave its own hull by a rounding.
        low, high = (np.take_along_axis(ordered, rank[None], axis=0)[0] for rank in (first, last))
        middle: NDArray[np.float64] = np.clip(average, low, high)
        return middle

    def noise_std(self, stds: Sequence[float]) -> float:
        """The standard deviation of the combination of unbiased Gaussian votes on one number.

        There is no closed form for unequal deviations, so it is simulated, with a public seed.

        Args:
            stds: of each site's vote, at least one.
        """
        return _noise_std(self, tuple(sorted(stds)))


def robust_rule(
    name: Literal["mean", "trimmed_mean", "median", "krum"], max_hostile: int
) -> RobustRule | None:
    """Return the rule of a study's `federation`; None for the weighted mean."""
    return None if name == "mean" else RobustRule(name=name, max_hostile=max_hostile)


@lru_cache(maxsize=1024)
def _noise_std(rule: RobustRule, stds: tuple[float, ...]) -> float:
    draws = np.random.default_rng(0).normal(size=(len(stds), _DRAWS)) * np.array(stds)[:, None]
    return float(np.sqrt(np.mean(np.square(rule(draws)))))


def _krum(votes: NDArray[np.float64], hostile: int) -> NDArray[np.float64]:
    result = np.zeros(votes.shape[1])
    if votes.size == 0:
        return result
    present = ~np.isnan(votes)
    _, examples, group = np.unique(
        np.packbits(present, axis=0), axis=1, return_index=True, return_inverse=True
    )
    for number, example in enumerate(examples):
        voters = present[:, example]
        if np.sum(voters) >= 2 * hostile + 3:
            coordinates = np.ravel(group) == number
            result[coordinates] = _nearest(votes[np.ix_(voters, coordinates)], hostile)
    return result


def _nearest(updates: NDArray[np.float64], hostile: int) -> NDArray[np.float64]:
    """The row of (m, g), m >= 2b + 3, with the least sum of squared distances to its m - b - 2 nearest."""
    count = len(updates)
    distances = np.full((count, count), np.inf)
    for one in range(count):
        for other in range(one):
            distance = np.sum(np.square(updates[one] - updates[other]))
            distances[one, other] = distances[other, one] = distance
    scores = np.sum(np.sort(distances, axis=1)[:, : count - hostile - 2], axis=1)
    winners = updates[scores == np.min(scores)]
    return winners[0] if len(winners) == 1 else np.array(min(winners.tolist()))


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


def combine_counts(counts: Sequence[NoisyCount], rule: RobustRule | None = None) -> Estimate:
    """Average the accuracies of several sites, each weighted by its public inverse variance, or by a rule.

    The variance of one site's accuracy is ``noise_std**2 / size**2`` plus the sampling error, bounded by
    ``1 / (4 size)``. An accuracy is one number, for which Krum is no better than a median: it takes that.

    Args:
        counts: at least one; at least the rule's `least_sites`, for no missing vote can be made up: it would
            say that the architecture is bad.
        rule: None for the weighted mean.
    """
    variances = np.array([(c.noise_std / c.size) ** 2 + 0.25 / c.size for c in counts])
    weights = 1.0 / variances
    accuracies = np.array([c.correct / c.size for c in counts])
    if rule is not None:
        assert len(counts) >= rule.least_sites, "who asks has made sure of enough sites"
        if rule.name == "krum":
            rule = RobustRule(name="median", max_hostile=rule.max_hostile)
        middle = float(rule(accuracies[:, None])[0])
        return Estimate(fitness=middle, std=rule.noise_std(np.sqrt(variances).tolist()))
    fitness = float(np.sum(weights * accuracies) / np.sum(weights))
    return Estimate(fitness=fitness, std=float(np.sqrt(1.0 / np.sum(weights))))


def average_gradients(
    gradients: Sequence[NDArray[np.float64]], weights: Sequence[float], rule: RobustRule | None = None
) -> NDArray[np.float64]:
    """Average architecture gradients over the sites, coordinate by coordinate.

    Args:
        gradients: shape (p,) each; NaN marks a coordinate whose choice was not on the site's path.
        weights: public, one a site.
        rule: None for the weighted mean; a rule gives each site one vote.

    Returns:
        Shape (p,); 0 where no site had the choice on its path, or too few for the rule.
    """
    stacked = np.stack(gradients)
    if rule is not None:
        return rule(stacked)
    shares = np.where(np.isnan(stacked), 0.0, np.asarray(weights, dtype=np.float64)[:, None])
    total = np.sum(shares, axis=0)
    summed = np.sum(shares * np.nan_to_num(stacked), axis=0)
    average: NDArray[np.float64] = np.divide(summed, total, out=np.zeros_like(summed), where=total > 0)
    return average

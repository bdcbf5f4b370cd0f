"""How often a correct system shows what was seen: a p-value for each property of noise and of samples.

Noise is given in units of the standard deviation that was promised, so that under the null it is standard
normal; counts are integers times `lattice`, then the null is the discrete Gaussian on that lattice. Samples
are masks, shape (steps, records): under the null every entry is an independent coin of probability q.

Every p-value is two-sided. Except for `shape`, whose chi-square is the usual limit with at least `_EXPECTED`
draws in a bin, each is exact or an upper bound: it is never smaller than the chance of the null to be at
least as far off.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import fft, stats
from scipy.optimize import brentq, minimize_scalar
from scipy.special import kl_div, logsumexp, ndtri

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

ALARM: Final = 1e-8
"""Below this a system is accused: a correct one is, once in so many checks."""

_EXPECTED: Final = 40  # draws in a bin
_MOST_BINS: Final = 64
_FAR: Final = 4.0  # where a tail begins, in standard deviations
_LAGS: Final = 64  # between steps, and between records
_LOOKED_AT: Final = 8  # pairs whose overlap is tested exactly: those that look worst


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a test says.

    Args:
        p: the chance that a correct system is at least as far from what is expected, or a bound on it.
        figures: what was seen, for people.
    """

    p: float
    figures: str

    @property
    def accuses(self) -> bool:
        """Whether a correct system would hardly ever show this; also where nothing could be computed."""
        return not self.p >= ALARM

    def __str__(self) -> str:
        return f"{self.figures}, p = {self.p:.2g}"


def worst(found: Sequence[Evidence]) -> Evidence:
    """The most telling of several tests, at a price: its p-value is multiplied by their number."""
    least = min(found, key=lambda evidence: evidence.p)
    return replace(least, p=min(1.0, len(found) * least.p))


def scale(noise: Floats) -> Evidence:
    """Whether the squares add up to what the promised variance gives: a chi-square test.

    Exact for the normal distribution. The discrete Gaussian's variance differs by a share of at most
    4 pi^2 s^2 exp(-2 pi^2 s^2), s being its parameter: nothing from s = 1 up.

    Args:
        noise: any shape.
    """
    total, n = float(np.sum(np.square(noise))), noise.size
    p = 2.0 * min(float(stats.chi2.cdf(total, n)), float(stats.chi2.sf(total, n)))
    z = (total - n) / np.sqrt(2.0 * n)
    return Evidence(p=min(1.0, p), figures=f"scale x{np.sqrt(total / n):.4f}, n = {n}, z = {z:+.1f}")


def centre(noise: Floats) -> Evidence:
    """Whether the mean is zero: a z-test.

    Args:
        noise: any shape.
    """
    z = float(np.sum(noise)) / np.sqrt(noise.size)
    return Evidence(p=2.0 * float(stats.norm.sf(abs(z))), figures=f"mean {np.mean(noise):+.4f}, z = {z:+.1f}")


def shape(noise: Floats, *, lattice: float = 0.0) -> Evidence:
    """Whether the draws have the promised distribution: a G-test in bins of equal mass.

    Args:
        noise: any shape.
        lattice: distance between values that can occur; 0 for noise that is practically continuous.
    """
    number = min(_MOST_BINS, noise.size // _EXPECTED)
    if number < 2:
        return Evidence(p=1.0, figures=f"n = {noise.size}, too few for a G-test")
    edges = ndtri(np.arange(1, number) / number)
    if lattice:
        edges = np.unique(np.floor(edges / lattice) + 0.5) * lattice
    masses = np.diff(_below(edges, lattice), prepend=0.0, append=1.0)
    counts = np.bincount(np.searchsorted(edges, noise.ravel()), minlength=len(masses))
    seen = counts > 0
    statistic = 2.0 * float(np.sum(counts[seen] * np.log(counts[seen] / (noise.size * masses[seen]))))
    return Evidence(
        p=float(stats.chi2.sf(statistic, len(masses) - 1)),
        figures=f"G = {statistic:.0f} over {len(masses)} bins, n = {noise.size}",
    )


def tails(noise: Floats, *, lattice: float = 0.0) -> Evidence:
    """Whether as many draws as promised lie beyond four standard deviations: an exact binomial test.

    Args:
        noise: any shape.
        lattice: see `shape`.
    """
    edge = (np.floor(_FAR / lattice) + 0.5) * lattice if lattice else _FAR
    probability = 2.0 * float(_below(np.array([-edge]), lattice)[0])
    count = int(np.count_nonzero(np.abs(noise) > edge))
    return Evidence(
        p=float(stats.binomtest(count, noise.size, probability).pvalue),
        figures=f"{count} of {noise.size} beyond {edge:.2f} sigma, expected {noise.size * probability:.1f}",
    )


def _below(edges: Floats, lattice: float) -> Floats:
    """The null's distribution function, at values that do not occur if there is a lattice."""
    if not lattice:
        return np.asarray(stats.norm.cdf(edges), dtype=np.float64)
    limit = int(np.ceil(12.0 / lattice))
    values = np.arange(-limit, limit + 1) * lattice
    masses = np.exp(-0.5 * np.square(values))
    sums = np.concatenate([[0.0], np.cumsum(masses)]) / masses.sum()
    return np.asarray(sums[np.searchsorted(values, edges)], dtype=np.float64)


def echo(left: Floats, right: Floats | None = None, *, magnitudes: bool = True) -> Evidence:
    """Whether noise repeats, in a series or of another series, at any distance and with any sign.

    The sum of n products of independent standard normals that are a distance apart, S, has
    E exp(t S) <= r(t)^(-n / 2), r(t) = (1 + sqrt(1 - 4 t^2)) / 2: a chain of m of them has a tridiagonal
    determinant D_m = D_(m-1) - t^2 D_(m-2), whose ratios fall to r(t). So Chernoff bounds the chance of any
    S, and the number of distances multiplies it.

    Args:
        left: shape (n,).
        right: shape (m,); None looks for repetitions inside of ``left``.
        magnitudes: whether noise that repeats but for its signs is looked for too; for continuous noise.
    """
    pairs = [(left, right)]
    if magnitudes:
        pairs.append((_magnitudes(left), None if right is None else _magnitudes(right)))
    return worst([_echo(*pair) for pair in pairs])


def _echo(left: Floats, right: Floats | None) -> Evidence:
    size = fft.next_fast_len(len(left) + len(left if right is None else right), real=True)
    spectrum = fft.rfft(left, size)
    other = spectrum if right is None else fft.rfft(right, size)
    sums = fft.irfft(np.conj(spectrum) * other, size)
    if right is None:
        lags = np.arange(1, len(left))
        overlaps = len(left) - lags
    else:
        lags = np.arange(1 - len(left), len(right))
        overlaps = np.minimum(len(left), len(right) - lags) - np.maximum(0, -lags)
    kept = overlaps >= max(1, min(len(left), size - len(left)) // 8)
    lags, overlaps = lags[kept], overlaps[kept]
    if not len(lags):
        return Evidence(p=1.0, figures="too short to repeat")
    scores = np.abs(sums[lags]) / np.sqrt(overlaps)
    place = int(np.argmax(scores))
    n = int(overlaps[place])
    chance = 2.0 * len(lags) * np.exp(n * _rate_of_products(float(scores[place]) / np.sqrt(n)))
    return Evidence(
        p=min(1.0, float(chance)),
        figures=f"largest of {len(lags)} correlations at a distance of {lags[place]}, "
        f"z = {scores[place]:.1f}, n = {n}",
    )


def _rate_of_products(mean: float) -> float:
    """The least of -log(r(t)) / 2 - t mean over t: with t = sin(a) / 2, r(t) = (1 + cos(a)) / 2."""
    if mean <= 0.0:
        return 0.0

    def slope(cosine: float) -> float:
        return float(np.sqrt(1.0 - cosine**2)) - mean * cosine * (1.0 + cosine)

    cosine = float(brentq(slope, 1e-12, 1.0 - 1e-16)) if slope(1.0 - 1e-16) < 0.0 else 1.0
    return float(-0.5 * np.log((1.0 + cosine) / 2.0) - 0.5 * np.sqrt(1.0 - cosine**2) * mean)


def _magnitudes(noise: Floats) -> Floats:
    """Standard normals that tell the size of each draw and not its sign."""
    return np.asarray(-ndtri(np.clip(2.0 * stats.norm.sf(np.abs(noise)), 1e-300, 1.0 - 1e-15)))


def resemblance(left: Floats, right: Floats) -> Evidence:
    """Whether two draws of equally many numbers are alike in their places, but for their scale: a t-test.

    Args:
        left: shape (n,), n at least 3.
        right: shape (n,).
    """
    if np.ptp(left) == 0.0 or np.ptp(right) == 0.0:
        return Evidence(p=0.0, figures=f"all {len(left)} draws are equal")
    found = stats.pearsonr(left, right)
    return Evidence(
        p=float(found.pvalue), figures=f"correlation {float(found.statistic):+.4f}, n = {len(left)}"
    )


def alignment(short: Floats, long: Floats) -> Evidence:
    """Whether what was drawn beside a long draw is a part of it, the same part in each release.

    The null is exact: a standard normal vector times another one, over the other's length.

    Args:
        short: shape (releases, m).
        long: shape (releases, n), n at least m.
    """
    length = float(np.sqrt(np.sum(np.square(short))))
    if length == 0.0:
        return Evidence(p=0.0, figures=f"all {short.size} draws are 0")
    parts = [np.correlate(row, part, "valid") for row, part in zip(long, short, strict=True)]
    scores: Floats = np.sum(parts, axis=0) / length
    place = int(np.argmax(np.abs(scores)))
    p = 2.0 * len(scores) * float(stats.norm.sf(abs(scores[place])))
    return Evidence(
        p=min(1.0, p),
        figures=f"largest of {len(scores)} correlations from coordinate {place}, z = {scores[place]:+.1f}, "
        f"n = {short.size}",
    )


def rate(mask: Mask, q: float) -> Evidence:
    """Whether records are in samples as often as promised: an exact binomial test.

    Args:
        mask: any shape.
        q: probability of inclusion.
    """
    count = int(np.count_nonzero(mask))
    return Evidence(
        p=float(stats.binomtest(count, mask.size, q).pvalue),
        figures=f"rate {count / mask.size:.4f} instead of {q:g}, n = {mask.size}",
    )


def dispersion(mask: Mask, q: float, *, axis: int) -> Evidence:
    """Whether sums of a mask vary as those of independent coins do: Chernoff's bound on their chi-square.

    Args:
        mask: shape (steps, records).
        q: probability of inclusion, below 1.
        axis: 0 adds up the steps of each record, 1 the records of each step, a sample's size.
    """
    sums, coins = np.count_nonzero(mask, axis=axis), mask.shape[axis]
    expected, variance = coins * q, coins * q * (1.0 - q)
    ratio = float(np.mean(np.square(sums - expected))) / variance
    values = np.arange(coins + 1)
    log_masses = stats.binom.logpmf(values, coins, q)
    squares = np.square(values - expected) / variance

    def exponent(t: float) -> float:
        signed = t if ratio > 1.0 else -t
        return float(logsumexp(log_masses + signed * squares) - signed * ratio)

    # A bound at any t: how well it is minimised decides how sharp it is, never whether it holds.
    best = minimize_scalar(exponent, bounds=(0.0, 20.0), method="bounded")
    chance = 2.0 * np.exp(len(sums) * min(0.0, float(best.fun)))
    return Evidence(
        p=min(1.0, float(chance)),
        figures=f"variance x{ratio:.3f} of a binomial's, n = {len(sums)}",
    )


def overlap(mask: Mask) -> Evidence:
    """Whether two steps share as many records as independent samples of their sizes do: hypergeometric.

    Args:
        mask: shape (steps, records): all pairs of steps are looked at.
    """
    steps, records = mask.shape
    shared = (mask.astype(np.float64) @ mask.T.astype(np.float64)).round()
    sizes = np.diag(shared)
    expected = np.outer(sizes, sizes) / records
    spread = expected * np.outer(1.0 - sizes / records, records - sizes) / max(1, records - 1)
    scores = np.triu(np.abs(shared - expected) / np.sqrt(np.maximum(spread, 1e-9)), 1)
    pairs = max(1, steps * (steps - 1) // 2)
    found = [Evidence(p=1.0, figures="no pair of steps")]
    for place in np.argsort(scores, axis=None)[::-1][: min(pairs, _LOOKED_AT)].tolist():
        i, j = divmod(place, steps)
        law = stats.hypergeom(records, int(sizes[i]), int(sizes[j]))
        count = int(shared[i, j])
        p = 2.0 * pairs * min(float(law.cdf(count)), float(law.sf(count - 1)))
        words = f"steps {i} and {j} share {count} records, expected {expected[i, j]:.1f}; {pairs} pairs"
        found.append(Evidence(p=min(1.0, p), figures=words))
    return min(found, key=lambda evidence: evidence.p)


def succession(mask: Mask) -> Evidence:
    """Whether samples some steps apart share as many records as independent ones do, over all steps.

    Given their sizes, the overlaps of independent samples are independent hypergeometric numbers. Their
    exponential moments are below those of binomial numbers of the same mean (Hoeffding 1963), and these below
    those of one binomial number of all draws: Chernoff bounds its tails.

    Args:
        mask: shape (steps, records); transposed, it is records next to each other that are looked at.
    """
    steps, records = mask.shape
    rows = mask.astype(np.float64)
    sizes = rows.sum(axis=1)
    found = []
    for lag in range(1, min(steps - 1, _LAGS) + 1):
        shared = float(np.sum(rows[:-lag] * rows[lag:]))
        mean = float(np.sum(sizes[:-lag] * sizes[lag:])) / records
        draws = float(np.sum(sizes[:-lag]))
        words = f"{shared:.0f} records again after {lag}, expected {mean:.1f}"
        chance = 2.0 * np.exp(-draws * _divergence(shared / draws, mean / draws)) if mean else 1.0
        found.append(Evidence(p=min(1.0, float(chance)), figures=words))
    return worst(found) if found else Evidence(p=1.0, figures="a single step")


def _divergence(seen: float, expected: float) -> float:
    """Of one coin from another, in nats; an expected rate of 1 bounds nothing."""
    if expected >= 1.0:
        return 0.0
    return float(kl_div(seen, expected) + kl_div(1.0 - seen, 1.0 - expected))


def association(left: Mask, right: Mask) -> Evidence:
    """Whether two samples decide of each other, place by place: Fisher's exact test.

    Args:
        left: any shape.
        right: the same shape.
    """
    table = [[int(np.sum((left == a) & (right == b))) for b in (False, True)] for a in (False, True)]
    return Evidence(
        p=float(stats.fisher_exact(table).pvalue),
        figures=f"{table[1][1]} of {left.size} in both, {table[1][0]} and {table[0][1]} in one",
    )

"""The discrete Gaussian on the integers, sampled exactly: floats propose, and integers decide what is near.

The integers within ``CUT`` standard deviations are divided into blocks of ``M = 2^m``, M about sigma / 16
or 1. A draw takes block k with probability c_k / 2^63 (one word against integer boundaries), an x in it
uniformly (the low m bits of another word) and keeps x with probability

    a(x) = S exp(-x^2 / (2 sigma^2)) / c_k  <=  1,

or begins anew. Whatever the integers c_k and the float64 S are, x is kept with a probability proportional
to exp(-x^2 / (2 sigma^2)): sigma, S and c_k are exact rationals, and a rounded table only keeps a little
less. So arithmetic could bend the distribution in one place only: the comparison of a uniform u with a(x).

It cannot. In float64, with unit roundoff v = 2^-53, x is exact (|x| < 2^53); the exponent -(x / sigma)^2 / 2
is off by at most 3.01 v times its size of at most 72, which is 217 v; numpy's exp is off by less than 8 v (a
test looks); c_k, S / c_k and the product by 3 v; the uniform by 1 v and the 2^-63 below its last bit. As
a(x) <= 1, all of that is below 230 v < 2^-45. Where the two floats are farther apart than `BAND` = 2^-36 the
comparison is therefore right; where they are nearer, once in 3e10 draws, it is made again with decimals whose
error is bounded, and with as many more random bits and digits as it takes.
"""

import decimal
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

CUT: Final = 12.0
"""Where the distribution ends, in standard deviations: what lies beyond has a probability below 2^-100."""

MAX_SIGMA: Final = 2.0**49
"""So that |x| <= 12 sigma is below 2^53, and exact in a float64."""

BAND: Final = 2.0**-36
"""How near a float comparison may be before it is made again exactly."""

Words: TypeAlias = Callable[[int], NDArray[np.uint64]]
"""Gives so many uniform 64-bit words, each time new ones."""

_TOTAL: Final = 1 << 63
_STEPS: Final = 16  # blocks per sigma: of the draws, 1 in 40 is thrown away
_GUIDE_BITS: Final = 16
_UNSURE: Final = 0xFFFF
_DIGITS: Final = 40
_BLOCK: Final = 1 << 16  # draws a step: the scratch memory stays in a cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Proposal:
    """What a sigma needs to be drawn from; all of it public.

    Args:
        sigma: standard deviation of the distribution before it is cut.
        limit: the largest |x|.
        shift: m, the logarithm of a block's length.
        first: number k of the first block; block k holds the integers k 2^m to (k + 1) 2^m - 1.
        weights: c_k, uint64, with a sum of 2^63.
        ends: their running sums, uint64.
        guide: uint16, the place of a block by the upper 16 of its 63 bits; 0xFFFF where several share these.
        scale: S.
        rates: S / c_k.
    """

    sigma: float
    limit: int
    shift: int
    first: int
    weights: NDArray[np.uint64]
    ends: NDArray[np.uint64]
    guide: NDArray[np.uint16]
    scale: float
    rates: NDArray[np.float64]


@lru_cache(maxsize=32)  # 150 kB each, for each size of update; made in less time than a release takes
def proposal(sigma: float) -> Proposal:
    """Prepare the blocks of a standard deviation.

    Args:
        sigma: 0 < sigma <= 2^49.
    """
    assert 0.0 < sigma <= MAX_SIGMA
    limit = math.floor(CUT * sigma)
    shift = max(0, math.floor(math.log2(sigma / _STEPS))) if sigma > _STEPS else 0
    size = 1 << shift
    first, last = -(limit // size) - (size > 1), limit // size
    starts = np.arange(first, last + 1, dtype=np.int64) << shift
    nearest = np.where(starts >= 0, starts, starts + (size - 1)).astype(np.float64)
    peaks = np.exp(-0.5 * np.square(np.maximum(nearest, -float(limit)) / sigma))
    # A little less than the whole is dealt out, rounded up; the middle takes the rest: every c_k is positive.
    share = float(_TOTAL - (1 << 40)) / float(peaks.sum())
    counts = [math.ceil(share * peak) for peak in peaks.tolist()]
    counts[-first] += _TOTAL - sum(counts)
    assert min(counts) >= 1
    weights = np.array(counts, dtype=np.uint64)
    ends = np.cumsum(weights, dtype=np.uint64)
    rates = weights.astype(np.float64) / peaks
    scale = float(rates.min()) * (1.0 - 2.0**-30)  # far more than the float error: a(x) stays below 1
    return Proposal(
        sigma=sigma,
        limit=limit,
        shift=shift,
        first=first,
        weights=weights,
        ends=ends,
        guide=_guide(ends),
        scale=scale,
        rates=scale / weights.astype(np.float64),
    )


def _guide(ends: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """The block in which all words of an upper part lie, if it is one."""
    width = np.uint64(63 - _GUIDE_BITS)
    lowest = np.arange(1 << _GUIDE_BITS, dtype=np.uint64) << width
    below = np.searchsorted(ends, lowest, side="right")
    above = np.searchsorted(ends, lowest | ((np.uint64(1) << width) - np.uint64(1)), side="right")
    return np.where(below == above, below, _UNSURE).astype(np.uint16)


def sample(sigma: float, size: int, words: Words, *, band: float = BAND) -> NDArray[np.int64]:
    """Draw from the discrete Gaussian, cut at 12 sigma.

    Args:
        sigma: 0 < sigma <= 2^49; the mass of x is proportional to exp(-x^2 / (2 sigma^2)).
        size: how many independent draws.
        words: uniform random words.
        band: comparisons nearer than this are made exactly; any value from `BAND` up gives the same draws.

    Returns:
        int64, shape (size,).

    Guarantees:
        - Given uniform words each draw has exactly the mass of the discrete Gaussian under the condition
          |x| <= 12 sigma; no table, float or logarithm changes it.
        - What the condition leaves out has a probability below 2^-100 a draw: d draws add at most d 2^-100 to
          a delta.

    Source: Canonne, Kamath and Steinke (2020), arXiv 2004.00010, for the distribution; von Neumann (1951),
    "Various techniques used in connection with random digits", for the comparison that is settled lazily.
    """
    table = proposal(sigma)
    result = np.empty(size, dtype=np.int64)
    done = 0
    while done < size:
        drawn = _accepted(table, min(size - done, _BLOCK), words, band)
        result[done : done + len(drawn)] = drawn
        done += len(drawn)
    return result


def _accepted(table: Proposal, number: int, words: Words, band: float) -> NDArray[np.int64]:
    """Propose some integers and return those that are kept, in their order."""
    choices = words(number) >> np.uint64(1)
    places = table.guide[choices >> np.uint64(63 - _GUIDE_BITS)]
    unsure = np.flatnonzero(places == _UNSURE)
    places[unsure] = np.searchsorted(table.ends, choices[unsure], side="right")
    x = places.astype(np.int64) + table.first
    if table.shift:
        x <<= table.shift
        x += (words(number) & np.uint64((1 << table.shift) - 1)).astype(np.int64)
    uniforms = words(number) >> np.uint64(1)
    margins = _chances(table, x, places)
    margins -= uniforms * 2.0**-63
    kept = margins > 0.0
    for i in np.flatnonzero(np.abs(margins) < band).tolist():
        weight = int(table.weights[places[i]])
        kept[i] = _below(int(uniforms[i]), 63, table, int(x[i]), weight, words)
    kept &= np.abs(x) <= table.limit
    result: NDArray[np.int64] = x[kept]
    return result


def _chances(table: Proposal, x: NDArray[np.int64], places: NDArray[np.uint16]) -> NDArray[np.float64]:
    """a(x) in float64, off by less than 2^-45."""
    chances: NDArray[np.float64] = np.square(x / table.sigma)
    chances *= -0.5
    np.exp(chances, out=chances)
    chances *= table.rates[places]
    return chances


def _below(uniform: int, bits: int, table: Proposal, x: int, weight: int, words: Words) -> bool:
    """Whether a uniform real, of which some bits are known, lies below a(x): exactly, with more bits."""
    digits = _DIGITS
    while True:
        context = decimal.Context(prec=digits, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)
        sigma, scale = decimal.Decimal(table.sigma), decimal.Decimal(table.scale)
        ratio = context.divide(decimal.Decimal(x), sigma)
        exponent = context.divide(context.multiply(ratio, ratio), decimal.Decimal(-2))
        value = context.divide(context.multiply(scale, context.exp(exponent)), decimal.Decimal(weight))
        # Six roundings of half a unit each; those before exp count up to 72 times: far below 10^5 units.
        slack = context.scaleb(value, 5 - digits)
        unit = decimal.Decimal(2**bits)
        exact = decimal.Context(prec=4 * digits + bits, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)
        if exact.multiply(exact.subtract(value, slack), unit) >= uniform + 1:
            return True
        if exact.multiply(exact.add(value, slack), unit) <= uniform:
            return False
        uniform, bits = (uniform << 64) | int(words(1)[0]), bits + 64
        digits *= 2

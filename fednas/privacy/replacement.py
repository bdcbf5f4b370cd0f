"""What one record exchanged for another costs: a proved bound on Rényi divergences of integer order."""

import math
from functools import lru_cache

import numpy as np

LEAST_DIVERGENCE = 5e-324  # a release that costs less than any float costs the least float, and is not free

_WIDTH = 12.0  # standard deviations of noise that the grid reaches beyond what it must cover
_REACH = 20.0  # standard deviations of noise up to which the mass of high orders is followed
_CELLS = 48  # of the grid to a standard deviation of noise: chords cost less than 0.1 % of the divergence
_LEAST_SIGMA = 0.05  # below it part 3 of the proof has to do: nobody would call such a release private


@lru_cache(maxsize=256)
def replaced_curve(q: float, sigma: float, orders: tuple[int, ...]) -> np.ndarray:
    """Return a bound on the Rényi divergence of one release when one record is replaced by another.

    Args:
        q: the chance of a record to be in the sample, 0 < q <= 1.
        sigma: standard deviation of the noise over what adding one record can change, > 0.
        orders: integers of at least 2.

    Returns:
        float64 array of shape (len(orders),) in nats.

    Guarantees:
        - Never below the divergence of any two datasets that differ in one record.

    Proof. Both datasets are seen through the same sample of the records that they share, which shifts both
    outputs alike, and through the same coin of chance q for the one that differs. So, by convexity, it is
    enough to compare P(v) = (1-q) N(0) + q N(v) with Q(w) = (1-q) N(0) + q N(w), where |v|, |w| <= 1 and
    N(m) is the normal distribution of mean m and variance sigma^2 in every direction.

    1. The worst case is v = -w, |v| = 1. For c >= 1 let H be the integral of max(0, P(v) - c Q(w)), that is
    of max(0, q N(v) - c q N(w) - (c-1) (1-q) N(0)), and S the set where it is positive. Over N(v), the other
    two densities are exponentials with the directions w - v and -v; so along any direction u with
    <v-w, u> >= 0 and <v, u> >= 0 what is in S stays in S. Hence H grows when v moves along u: its slope there
    is q / sigma^2 times the integral over S of <x-v, u> under N(v), and on every line along u that is the
    integral of a centred normal variable over an upper ray. Likewise H grows when w moves along -u. Turning v
    away from w at its own length is such a move (one more dimension of pure noise makes room for it and
    changes no H), and so is lengthening v and w once they point in opposite directions. For c < 1 exchange P
    and Q. Rényi divergences are increasing functions of the H of all c, and pairs that are worst for all c
    stay so in composition (Zhu et al. 2022, arXiv 2106.08567).

    2. Let P = P(1), Q = Q(-1) on the line, y = P/Q - 1, which grows with x, and g(y) = (1+y)^a - 1 - a y,
    which is convex. As y has mean 0 under Q, exp((a-1) D) = 1 + E[g(y)]. In each cell of a grid g lies below
    its chord, and the mean of a chord needs Q and E[y] = P - Q of the cell only, both in closed form. Left of
    the grid g <= a - 1. Right of it g <= (1+y)^a, and Q >= (1-q) N(0) as well as, by Jensen's inequality,
    Q >= N(0) exp(-q (2x+1) / (2 sigma^2)); with either, the expansion of P^a into normal densities gives
    normal tails in closed form.

    3. By joint convexity exp((a-1) D) <= 1 - q + q exp(2 a (a-1) / sigma^2). The smaller of 2 and 3 is taken;
    for q = 1 both are 2 a / sigma^2.
    """
    a = np.array(orders, dtype=np.float64)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore", under="ignore"):
        whole = 2.0 * a / np.float64(sigma) ** 2
        if q == 1.0:
            curve = whole
        else:
            convex = np.logaddexp(np.log1p(-q), np.log(q) + (a - 1.0) * whole)
            chords = np.log1p(_excess(q, sigma, a)) if sigma >= _LEAST_SIGMA else convex
            curve = np.where(chords < convex, chords, convex) / (a - 1.0)
    curve = np.where(np.isnan(curve), np.inf, np.maximum(curve, LEAST_DIVERGENCE))
    curve.flags.writeable = False
    return curve


def _excess(q: float, sigma: float, a: np.ndarray) -> np.ndarray:
    """Return a bound on E[g(y)] at each order, of part 2 of the proof; NaN or infinity where it has none."""
    from scipy.special import ndtr  # slow to import: only where a number is asked for

    reach = min(2.0 * float(a.max()), _REACH * sigma)  # at q = 1 the mass of order a lies around 2 a - 1
    left, right = -_WIDTH * sigma - 1.0, reach + _WIDTH * sigma
    x = np.linspace(left, right, 2 + math.ceil((right - left) / sigma * _CELLS))
    # P - Q = q (N(1) - N(-1)), over Q: a hyperbolic sine keeps all digits where y is small.
    mixture = (1.0 - q) + q * np.exp((-2.0 * x - 1.0) / (2.0 * sigma**2))
    y = np.maximum(2.0 * q * np.exp(-0.5 / sigma**2) * np.sinh(x / sigma**2) / mixture, -1.0)
    difference = q * (_cells(x - 1.0, sigma) - _cells(x + 1.0, sigma))
    mass = (1.0 - q) * _cells(x, sigma) + q * _cells(x + 1.0, sigma)
    rise = np.diff(y)
    # How far along its chord the mean of y lies; at the dearer end where rounding leaves no answer.
    along = np.clip((difference / mass - y[:-1]) / rise, 0.0, 1.0)
    along = np.where(np.isfinite(along), along, 1.0 * (x[:-1] >= 0.0))
    g = _convex(a[:, None], y[None, :])
    total = np.sum(mass * (g[:, :-1] + along * np.diff(g, axis=1)), axis=1)
    total += (a - 1.0) * float(ndtr(left / sigma) + ndtr((left + 1.0) / sigma))
    return np.asarray(total + np.exp(_log_tail(q, sigma, a, right)))


def _convex(a: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return (1+y)^a - 1 - a y, or where it has no digits left a bound by its second derivative."""
    taylor = 0.5 * a * (a - 1.0) * y**2 * (1.0 + np.maximum(y, 0.0)) ** (a - 2.0)
    return np.asarray(np.where(np.abs(a * y) < 1e-4, taylor, np.expm1(a * np.log1p(y)) - a * y))


def _cells(x: np.ndarray, sigma: float) -> np.ndarray:
    """Return the mass of N(0) between neighbours of x, without cancellation on either side."""
    from scipy.special import ndtr

    z = x / sigma
    return np.asarray(np.where(z[:-1] > 0.0, -np.diff(ndtr(-z)), np.diff(ndtr(z))))


def _log_tail(q: float, sigma: float, a: np.ndarray, right: float) -> np.ndarray:
    """Return the log of a bound on the integral of P^a Q^(1-a) right of the grid."""
    from scipy.special import gammaln, log_ndtr

    order, i = a[:, None], np.arange(a.max() + 1.0)[None, :]
    rest = np.maximum(order - i, 0.0)
    log_binomials = gammaln(order + 1.0) - gammaln(i + 1.0) - gammaln(rest + 1.0)
    weights = np.where(i <= order, log_binomials + i * np.log(q) + rest * np.log1p(-q), -np.inf)

    def tail(share: np.ndarray) -> np.ndarray:
        """Where Q is at least N(0) exp(-share / (a-1) (2x+1) / (2 sigma^2))."""
        mean = i + share
        exponents = (mean * mean - i + share) / (2.0 * sigma**2)
        return np.asarray(np.logaddexp.reduce(weights + exponents + log_ndtr((mean - right) / sigma), axis=1))

    flat = (1.0 - a) * np.log1p(-q) + tail(np.zeros_like(order))
    return np.asarray(np.fmin(flat, tail((order - 1.0) * q)))

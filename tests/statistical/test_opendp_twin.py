"""Our noise against OpenDP's exact sampler, which shares no code with it: two samples, one distribution."""

import math

import numpy as np
import opendp.prelude as dp
import pytest
from numpy.typing import NDArray
from scipy import stats

from fednas.privacy.entropy import SecureEntropy
from tests.statistical.test_entropy import masses, rounded

SIGMAS = (0.3, 1.0, 5.0, 25.0, 1e3, 1e6, 1e7)
LIMIT = 5.0  # standard deviations: equal distributions differ so once in 3.5 million tests
NUM_BINS = 40
Draws = NDArray[np.int64]
each_sigma = pytest.mark.parametrize("sigma", SIGMAS)

dp.enable_features("contrib")


def opendp_noise(sigma: float, size: int) -> Draws:
    """Noise of OpenDP's discrete Gaussian mechanism on a vector of zeros."""
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="i64")
    return np.array(dp.m.make_gaussian(*space, sigma)([0] * size), dtype=np.int64)


def edges(sigma: float) -> NDArray[np.float64]:
    """Ends of bins of nearly equal mass, between integers, known before any draw."""
    quantiles = np.rint(sigma * stats.norm.ppf(np.arange(1, NUM_BINS) / NUM_BINS))
    far = np.rint(sigma * np.array([2.5, 3.0, 3.5]))
    return np.unique(np.concatenate([-far, quantiles, far])) + 0.5


def counted(draws: Draws, sigma: float) -> NDArray[np.int64]:
    return np.bincount(np.searchsorted(edges(sigma), draws), minlength=len(edges(sigma)) + 1)


def two_samples_z(left: Draws, right: Draws, sigma: float) -> float:
    """Standard score of the chi-square test of homogeneity."""
    table = np.array([counted(left, sigma), counted(right, sigma)], dtype=np.float64)
    table = table[:, table.sum(axis=0) > 0]
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    statistic = float(np.sum((table - expected) ** 2 / expected))
    return float(stats.norm.isf(stats.chi2.sf(statistic, table.shape[1] - 1)))


def distance_z(left: Draws, right: Draws) -> float:
    """Standard score of the Kolmogorov-Smirnov distance; ties only make it smaller."""
    values = np.unique(np.concatenate([left, right]))
    gaps = [np.searchsorted(np.sort(x), values, side="right") / len(x) for x in (left, right)]
    distance = float(np.abs(gaps[0] - gaps[1]).max())
    size = math.sqrt(len(left) * len(right) / (len(left) + len(right)))
    return float(stats.norm.isf(stats.kstwobign.sf(distance * size)))


def compare(sigma: float, size: int, factors: tuple[float, ...]) -> None:
    """Accept our noise beside OpenDP's, and reject noise of other scales and shapes beside it."""
    theirs = opendp_noise(sigma, size)
    source = SecureEntropy()
    ours = source.noise(sigma, 4 * size)
    assert two_samples_z(ours, theirs, sigma) < LIMIT
    assert distance_z(ours, theirs) < LIMIT
    for factor in factors:
        assert two_samples_z(source.noise(sigma * factor, 4 * size), theirs, sigma) > LIMIT
    if sigma <= 1.0:
        assert two_samples_z(rounded(sigma, 4 * size), theirs, sigma) > LIMIT
    else:
        assert two_samples_z(ours[np.abs(ours) <= 2.5 * sigma], theirs, sigma) > LIMIT
        shifted = ours + max(1, round(0.15 * sigma))
        assert distance_z(shifted, theirs) > LIMIT


@each_sigma
def test_noise_is_that_of_opendp(sigma: float) -> None:
    # At 1 a rounded Gaussian is near the discrete one: fewer draws would miss the difference at times.
    compare(sigma, 100_000 if sigma == 1.0 else 20_000, (2 / 3, 0.9, 1.2))


@pytest.mark.slow
@each_sigma
def test_a_million_draws_are_those_of_opendp(sigma: float) -> None:
    compare(sigma, 1_000_000, (0.9, 0.99, 1.01))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0])
def test_opendps_noise_has_the_masses_that_ours_is_held_to(sigma: float) -> None:
    draws = opendp_noise(sigma, 20_000)
    values = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    expected = 20_000 * masses(sigma, values)
    found = np.array([np.sum(draws == value) for value in values])
    likely = expected > 5
    statistic = np.sum((found - expected)[likely] ** 2 / expected[likely])
    assert stats.norm.isf(stats.chi2.sf(statistic, int(likely.sum()))) < LIMIT

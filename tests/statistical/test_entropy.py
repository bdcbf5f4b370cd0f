"""What the noise looks like: each test accepts the real source and rejects one that is slightly wrong."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from fednas.privacy.entropy import Entropy, SecureEntropy, SeededEntropy

NUM_DRAWS = 1_000_000
LIMIT = 5.0  # standard deviations: a correct source fails once in 1.7 million tests


def scale_z(draws: np.ndarray, sigma: float) -> float:
    """Standard score of the chi-square statistic on the scale; 1/12 is the variance that rounding adds."""
    variance = sigma**2 + 1.0 / 12.0
    size = len(draws)
    return float((np.sum(draws.astype(np.float64) ** 2) / variance - size) / math.sqrt(2.0 * size))


def shape_z(draws: np.ndarray, sigma: float) -> float:
    """Standard score of a G-test against the exact masses of the rounded Gaussian, tails pooled."""
    edge = math.ceil(3.5 * sigma)
    values = np.arange(-edge, edge + 1)
    masses = stats.norm.cdf((values + 0.5) / sigma) - stats.norm.cdf((values - 0.5) / sigma)
    masses[0] = stats.norm.cdf((-edge + 0.5) / sigma)
    masses[-1] = masses[0]
    counts = np.bincount(np.clip(draws, -edge, edge) + edge, minlength=len(values))
    seen = counts > 0
    statistic = 2.0 * np.sum(counts[seen] * np.log(counts[seen] / (len(draws) * masses[seen])))
    return float(stats.norm.isf(stats.chi2.sf(statistic, len(values) - 1)))


def rate_z(mask: np.ndarray, probability: float) -> float:
    size = len(mask)
    return float((np.sum(mask) - size * probability) / math.sqrt(size * probability * (1.0 - probability)))


def correlation_z(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.corrcoef(left, right)[0, 1] * math.sqrt(len(left)))


SOURCES: list[Callable[[], Entropy]] = [SecureEntropy, lambda: SeededEntropy(11, "statistics")]
each_source = pytest.mark.parametrize("make", SOURCES, ids=["secure", "seeded"])


@each_source
@pytest.mark.parametrize("sigma", [0.8, 1.5, 30.0, 1e6, 1e12])
def test_the_scale_of_the_noise_is_sigma(make: Callable[[], Entropy], sigma: float) -> None:
    draws = make().noise(sigma, NUM_DRAWS)
    assert abs(scale_z(draws, sigma)) < LIMIT
    assert abs(np.mean(draws) / sigma * math.sqrt(NUM_DRAWS)) < LIMIT


@each_source
@pytest.mark.parametrize("factor", [2 / 3, 0.9, 0.98, 0.99, 1.01, 1.02, 3 / 2])
def test_another_scale_is_rejected(make: Callable[[], Entropy], factor: float) -> None:
    draws = make().noise(1e6 * factor, NUM_DRAWS)
    assert abs(scale_z(draws, 1e6)) > 2 * LIMIT


@each_source
@pytest.mark.parametrize("sigma", [0.8, 3.0, 12.0])
def test_the_shape_of_the_noise_is_a_rounded_gaussian(make: Callable[[], Entropy], sigma: float) -> None:
    assert shape_z(make().noise(sigma, NUM_DRAWS), sigma) < LIMIT


@pytest.mark.parametrize("factor", [2 / 3, 0.98, 1.02, 3 / 2])
def test_another_scale_has_another_shape(factor: float) -> None:
    assert shape_z(SecureEntropy().noise(3.0 * factor, NUM_DRAWS), 3.0) > 2 * LIMIT


def test_another_family_of_the_same_scale_is_rejected() -> None:
    generator = np.random.default_rng(0)
    laplace = np.rint(generator.laplace(scale=3.0 / math.sqrt(2.0), size=NUM_DRAWS)).astype(np.int64)
    truncated = np.floor(SecureEntropy().noise(3e6, NUM_DRAWS) / 1e6).astype(np.int64)  # rounds down
    assert shape_z(laplace, 3.0) > 2 * LIMIT
    assert shape_z(truncated, 3.0) > 2 * LIMIT


def test_the_tail_goes_beyond_five_sigma() -> None:
    draws = np.abs(SecureEntropy().noise(1e6, 4 * NUM_DRAWS))
    expected = 4 * NUM_DRAWS * 2.0 * stats.norm.sf(4.5)
    assert abs(np.sum(draws > 4.5e6) - expected) < LIMIT * math.sqrt(expected)


@each_source
@pytest.mark.parametrize("lag", [1, 2, 3, NUM_DRAWS // 2, 1 << 17])
def test_draws_do_not_follow_from_earlier_ones(make: Callable[[], Entropy], lag: int) -> None:
    draws = make().noise(1e6, NUM_DRAWS).astype(np.float64)
    assert abs(correlation_z(draws[:-lag], draws[lag:])) < LIMIT
    assert abs(correlation_z(draws[:-lag] ** 2, draws[lag:] ** 2)) < LIMIT


def test_sources_are_independent_and_a_shared_key_is_seen() -> None:
    draws = [SecureEntropy().noise(1e6, NUM_DRAWS) for _ in range(2)]
    assert abs(correlation_z(*draws)) < LIMIT
    labelled = [SeededEntropy(1, f"round/{i}").noise(1e6, NUM_DRAWS) for i in range(2)]
    assert abs(correlation_z(*labelled)) < LIMIT
    shared = [SeededEntropy(1, "round/0").noise(1e6, NUM_DRAWS) for _ in range(2)]
    assert abs(correlation_z(*shared)) > 2 * LIMIT


@each_source
@pytest.mark.parametrize("probability", [1e-3, 0.01, 0.1, 0.5, 0.9])
def test_records_are_sampled_at_the_rate_that_is_charged(
    make: Callable[[], Entropy], probability: float
) -> None:
    mask = make().poisson(probability, NUM_DRAWS)
    assert abs(rate_z(mask, probability)) < LIMIT
    centred = mask - probability
    assert abs(correlation_z(centred[:-1], centred[1:])) < LIMIT


@pytest.mark.parametrize("factor", [0.9, 0.98, 1.02, 4.0])
def test_another_rate_is_rejected(factor: float) -> None:
    assert abs(rate_z(SecureEntropy().poisson(0.2 * factor, NUM_DRAWS), 0.2)) > LIMIT


def test_the_size_of_a_sample_varies_as_a_binomial_does() -> None:
    source = SecureEntropy()
    sizes = np.array([np.sum(source.poisson(0.1, 500)) for _ in range(4000)], dtype=np.float64)
    ratio = np.var(sizes, ddof=1) / (500 * 0.1 * 0.9)
    assert abs(ratio - 1.0) < LIMIT * math.sqrt(2.0 / 4000)
    fixed = np.full(4000, 50.0)  # a fixed batch size would be no Poisson sample
    assert abs(np.var(fixed) / 45.0 - 1.0) > LIMIT * math.sqrt(2.0 / 4000)

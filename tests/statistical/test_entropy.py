"""What the noise looks like: each test accepts the real source and rejects one that is slightly wrong."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from fednas.privacy.discrete_gaussian import proposal
from fednas.privacy.entropy import Entropy, SecureEntropy, SeededEntropy

NUM_DRAWS = 1_000_000
LIMIT = 5.0  # standard deviations: a correct source fails once in 1.7 million tests


def masses(sigma: float, values: np.ndarray) -> np.ndarray:
    """The exact masses of the discrete Gaussian, without any cut."""
    edge = math.ceil(40.0 * sigma)
    whole = np.exp(-0.5 * (np.arange(-edge, edge + 1) / sigma) ** 2).sum() if sigma < 1e4 else 0.0
    total = whole or sigma * math.sqrt(2.0 * math.pi)  # equal up to exp(-19 sigma^2)
    result: np.ndarray = np.exp(-0.5 * (values / sigma) ** 2) / total
    return result


def variance(sigma: float) -> float:
    """sigma squared but for the smallest sigmas."""
    if sigma > 3.0:
        return sigma**2
    values = np.arange(-200, 201)
    return float(np.sum(masses(sigma, values) * values**2))


def scale_z(draws: np.ndarray, sigma: float) -> float:
    """Standard score of the sum of squares; its own variance is taken from the draws."""
    squares = draws.astype(np.float64) ** 2
    return float((squares.mean() - variance(sigma)) / (squares.std() / math.sqrt(len(draws))))


def shape_z(draws: np.ndarray, sigma: float) -> float:
    """Standard score of a G-test against the exact masses of the discrete Gaussian, tails pooled."""
    edge = math.ceil(3.5 * sigma)
    values = np.arange(-edge, edge + 1)
    expected = masses(sigma, values)
    beyond = np.arange(edge + 1, edge + math.ceil(36.0 * sigma))
    expected[[0, -1]] += masses(sigma, beyond).sum()
    counts = np.bincount(np.clip(draws, -edge, edge) + edge, minlength=len(values))
    seen = counts > 0
    statistic = 2.0 * np.sum(counts[seen] * np.log(counts[seen] / (len(draws) * expected[seen])))
    return float(stats.norm.isf(stats.chi2.sf(statistic, len(values) - 1)))


def tail_z(draws: np.ndarray, sigma: float, edge: float) -> float:
    """Standard score of the number of draws beyond so many sigmas, of a large sigma."""
    expected = len(draws) * 2.0 * float(stats.norm.sf(edge))
    return float((np.sum(np.abs(draws) > edge * sigma) - expected) / math.sqrt(expected))


def block_z(draws: np.ndarray, sigma: float) -> float:
    """Standard score of how often a draw lies in the outer half of its block of the sampler."""
    size = 2 ** proposal(sigma).shift
    assert size > 1
    edge = math.ceil(12.0 * sigma)
    values = np.arange(-edge, edge + 1)
    outer = np.where(values >= 0, values % size >= size // 2, values % size < size // 2)
    share = float(masses(sigma, values)[outer].sum())
    return rate_z(outer[draws + edge], share)


def rate_z(mask: np.ndarray, probability: float) -> float:
    size = len(mask)
    return float((np.sum(mask) - size * probability) / math.sqrt(size * probability * (1.0 - probability)))


def rounded(sigma: float, size: int = NUM_DRAWS) -> np.ndarray:
    """Another distribution of nearly the same scale: a rounded continuous Gaussian."""
    return np.rint(np.random.default_rng(1).normal(scale=sigma, size=size)).astype(np.int64)


def correlation_z(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.corrcoef(left, right)[0, 1] * math.sqrt(len(left)))


SOURCES: list[Callable[[], Entropy]] = [SecureEntropy, lambda: SeededEntropy(11, "statistics")]
each_source = pytest.mark.parametrize("make", SOURCES, ids=["secure", "seeded"])


@each_source
@pytest.mark.parametrize("sigma", [0.3, 0.8, 1.5, 30.0, 1e6, 1e12])
def test_the_scale_of_the_noise_is_sigma(make: Callable[[], Entropy], sigma: float) -> None:
    draws = make().noise(sigma, NUM_DRAWS)
    assert abs(scale_z(draws, sigma)) < LIMIT
    assert abs(np.mean(draws) / math.sqrt(variance(sigma)) * math.sqrt(NUM_DRAWS)) < LIMIT


@each_source
@pytest.mark.parametrize("factor", [2 / 3, 0.9, 0.98, 0.99, 1.01, 1.02, 3 / 2])
def test_another_scale_is_rejected(make: Callable[[], Entropy], factor: float) -> None:
    draws = make().noise(1e6 * factor, NUM_DRAWS)
    assert abs(scale_z(draws, 1e6)) > 2 * LIMIT


@each_source
@pytest.mark.parametrize("sigma", [0.3, 0.8, 1.0, 3.0, 12.0, 31.0, 40.0, 100.0])
def test_the_shape_of_the_noise_is_the_discrete_gaussian(make: Callable[[], Entropy], sigma: float) -> None:
    assert shape_z(make().noise(sigma, NUM_DRAWS), sigma) < LIMIT


@pytest.mark.parametrize("factor", [2 / 3, 0.9, 0.98, 1.02, 3 / 2])
@pytest.mark.parametrize("sigma", [0.8, 3.0])
def test_another_scale_has_another_shape(sigma: float, factor: float) -> None:
    assert shape_z(SecureEntropy().noise(sigma * factor, NUM_DRAWS), sigma) > 2 * LIMIT


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0])
def test_a_rounded_gaussian_is_another_distribution_where_the_grid_is_coarse(sigma: float) -> None:
    assert shape_z(rounded(sigma), sigma) > 2 * LIMIT


def test_another_family_of_the_same_scale_is_rejected() -> None:
    generator = np.random.default_rng(0)
    laplace = np.rint(generator.laplace(scale=3.0 / math.sqrt(2.0), size=NUM_DRAWS)).astype(np.int64)
    truncated = np.floor(SecureEntropy().noise(3e6, NUM_DRAWS) / 1e6).astype(np.int64)  # rounds down
    twice_zero = SecureEntropy().noise(3.0, NUM_DRAWS)
    twice_zero[twice_zero == 1] = np.where(np.arange(np.sum(twice_zero == 1)) % 20 == 0, 0, 1)
    for draws in (laplace, truncated, twice_zero):
        assert shape_z(draws, 3.0) > 2 * LIMIT


@each_source
@pytest.mark.parametrize("sigma", [33.0, 200.0, 5000.0])
def test_blocks_leave_no_trace(make: Callable[[], Entropy], sigma: float) -> None:
    assert abs(block_z(make().noise(sigma, NUM_DRAWS), sigma)) < LIMIT


@pytest.mark.parametrize("sigma", [200.0, 5000.0])
def test_a_sampler_that_never_says_no_leaves_the_trace_of_its_blocks(sigma: float) -> None:
    table = proposal(sigma)
    words = SeededEntropy(2, "blocks")._stream.words
    places = np.searchsorted(table.ends, words(NUM_DRAWS) >> np.uint64(1), side="right")
    inner = (words(NUM_DRAWS) & np.uint64(2**table.shift - 1)).astype(np.int64)
    draws = ((places + table.first) << table.shift) + inner
    kept = draws[np.abs(draws) <= table.limit]
    assert block_z(kept, sigma) > LIMIT


def test_the_tail_goes_beyond_five_sigma_and_a_tail_that_ends_is_seen() -> None:
    draws = SecureEntropy().noise(1e6, 4 * NUM_DRAWS)
    assert abs(tail_z(draws, 1e6, 4.5)) < LIMIT
    assert abs(tail_z(draws, 1e6, 3.0)) < LIMIT
    shorter = draws[np.abs(draws) < 4.5e6]
    assert tail_z(shorter, 1e6, 4.5) < -LIMIT
    assert tail_z(np.clip(draws, -2_999_999, 2_999_999), 1e6, 3.0) < -2 * LIMIT


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

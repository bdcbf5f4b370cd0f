"""Combining released values, against loops; the weights are functions of public numbers alone."""

import inspect
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fednas.aggregation import NoisyCount, average_gradients, combine_counts, update_weight

counts = st.builds(
    NoisyCount,
    correct=st.floats(-1e4, 1e4),
    size=st.floats(1.0, 1e5),
    noise_std=st.floats(0.0, 1e4),
)


@given(st.lists(counts, min_size=1, max_size=8))
def test_counts_combine_as_a_loop_over_sites_does(sites: list[NoisyCount]) -> None:
    total = weighted = 0.0
    for site in sites:
        variance = site.noise_std**2 / site.size**2 + 1.0 / (4.0 * site.size)
        total += 1.0 / variance
        weighted += site.correct / site.size / variance
    estimate = combine_counts(sites)
    assert estimate.fitness == pytest.approx(weighted / total, rel=1e-9, abs=1e-9)
    assert estimate.std == pytest.approx(math.sqrt(1.0 / total), rel=1e-9)


@given(counts)
def test_one_sites_count_is_its_accuracy(site: NoisyCount) -> None:
    estimate = combine_counts([site])
    assert estimate.fitness == pytest.approx(site.correct / site.size, rel=1e-12, abs=1e-12)
    assert estimate.std >= site.noise_std / site.size


@given(st.lists(counts, min_size=2, max_size=8), st.randoms())
def test_the_order_of_the_sites_does_not_matter_and_each_one_helps(
    sites: list[NoisyCount], shuffler: random.Random
) -> None:
    estimate = combine_counts(sites)
    shuffled = list(sites)
    shuffler.shuffle(shuffled)
    assert combine_counts(shuffled).fitness == pytest.approx(estimate.fitness, rel=1e-9, abs=1e-9)
    assert estimate.std <= min(combine_counts([site]).std for site in sites) * (1 + 1e-12)


@given(st.lists(counts, min_size=1, max_size=8), st.floats(-1e4, 1e4))
def test_the_released_counts_have_no_say_in_the_weights(sites: list[NoisyCount], value: float) -> None:
    others = [NoisyCount(correct=value, size=s.size, noise_std=s.noise_std) for s in sites]
    assert combine_counts(others).std == combine_counts(sites).std


def test_the_stated_deviation_covers_the_errors_that_are_made() -> None:
    generator = np.random.default_rng(0)
    sizes, sigmas = [50.0, 400.0, 120.0], [3.0, 10.0, 1.0]
    errors = []
    for _ in range(4000):
        drawn = [
            NoisyCount(
                correct=float(generator.binomial(int(size), 0.5) + generator.normal(0.0, sigma)),
                size=size,
                noise_std=sigma,
            )
            for size, sigma in zip(sizes, sigmas, strict=True)
        ]
        estimate = combine_counts(drawn)
        errors.append((estimate.fitness - 0.5) / estimate.std)
    ratio = float(np.mean(np.square(errors)))
    limit = 5.0 * math.sqrt(2.0 / 4000)
    assert abs(ratio - 1.0) < limit
    assert abs(ratio * 2.25 - 1.0) > limit  # two thirds of the deviation would be too small
    assert abs(ratio / 2.25 - 1.0) > limit


@given(st.integers(1, 10**7), st.floats(1e-3, 1e3))
def test_an_updates_weight_is_its_inverse_noise_variance(size: int, sigma: float) -> None:
    weight = update_weight(declared_size=size, noise_multiplier=sigma)
    std = sigma / size  # of a step's mean gradient, up to constants that all sites share
    assert weight == pytest.approx(1.0 / std**2, rel=1e-12)
    assert update_weight(declared_size=size, noise_multiplier=0.0) == size


Weighting = Callable[[int, float], float]
SITES = ((2000, 2.4), (500, 0.8), (120, 0.7), (900, 6.0), (350, 1.1))
"""(declared size, noise multiplier) of sites with different budgets."""
ALTERNATIVES: dict[str, Weighting] = {
    "all the same": lambda n, sigma: 1.0,
    "by size": lambda n, sigma: float(n),
    "by size squared": lambda n, sigma: float(n) ** 2,
    "by noise alone": lambda n, sigma: sigma**-2,
    "by inverse deviation": lambda n, sigma: n / sigma,
    "by size over variance": lambda n, sigma: n / sigma**2,
    "by inverse variance squared": lambda n, sigma: (n / sigma) ** 4,
}


def by_inverse_variance(n: int, sigma: float) -> float:
    return update_weight(declared_size=n, noise_multiplier=sigma)


def variance_of(weighting: Weighting, *, draws: int = 20_000) -> float:
    """The measured noise of an average over sites: every coordinate is an independent draw of a step's noise.

    What a site releases is made as its mechanism makes it: noise of deviation sigma on the clipped sum, over
    the expected size of the sample. The same draws for every weighting.
    """
    generator, q = np.random.default_rng(3), 0.1
    released = [generator.normal(0.0, sigma, size=draws) / (q * n) for n, sigma in SITES]
    return float(np.var(average_gradients(released, [weighting(n, sigma) for n, sigma in SITES])))


def gives_the_least_noise(weighting: Weighting) -> bool:
    """Whether no other weighting beats it by more than chance: 20 000 draws tell variances to 1 % apart."""
    others = (w for w in (by_inverse_variance, *ALTERNATIVES.values()) if w is not weighting)
    return variance_of(weighting) < 1.02 * min(variance_of(other) for other in others)


def test_inverse_variance_gives_the_least_noise_and_it_is_the_least_possible() -> None:
    assert gives_the_least_noise(by_inverse_variance)
    least = 1.0 / sum((0.1 * n / sigma) ** 2 for n, sigma in SITES)
    assert variance_of(by_inverse_variance) == pytest.approx(least, rel=0.04)


@pytest.mark.parametrize("weighting", ALTERNATIVES.values(), ids=ALTERNATIVES.keys())
def test_any_other_weighting_gives_more_noise(weighting: Weighting) -> None:
    """So the test above can fail: weighting by size, as federated averaging does, is among them."""
    assert not gives_the_least_noise(weighting)


@given(st.lists(st.tuples(st.integers(50, 10**6), st.floats(0.3, 1e3)), min_size=2, max_size=6), st.data())
@settings(deadline=None)
def test_no_weights_whatever_give_less_noise(sites: list[tuple[int, float]], data: st.DataObject) -> None:
    def variance(weights: list[float]) -> float:
        total = sum(weights)
        return sum((w / total * sigma / n) ** 2 for w, (n, sigma) in zip(weights, sites, strict=True))

    count = len(sites)
    others = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=count, max_size=count))
    ours = [by_inverse_variance(n, sigma) for n, sigma in sites]
    assert variance(ours) <= variance(others) * (1 + 1e-9)
    assert variance(ours) == pytest.approx(1.0 / sum(ours), rel=1e-9)


def test_an_updates_weight_sees_public_numbers_alone() -> None:
    assert set(inspect.signature(update_weight).parameters) == {"declared_size", "noise_multiplier"}


def loop(gradients: list[NDArray[np.float64]], weights: list[float]) -> NDArray[np.float64]:
    result = np.zeros_like(gradients[0])
    for j in range(len(result)):
        total = summed = 0.0
        for gradient, weight in zip(gradients, weights, strict=True):
            if not math.isnan(gradient[j]):
                total += weight
                summed += weight * gradient[j]
        result[j] = summed / total if total > 0 else 0.0
    return result


@given(st.data(), st.integers(1, 6), st.integers(0, 10))
@settings(deadline=None)
def test_gradients_average_coordinate_by_coordinate(data: st.DataObject, sites: int, size: int) -> None:
    values = st.one_of(st.just(math.nan), st.floats(-1e6, 1e6))
    gradients = [
        np.array(data.draw(st.lists(values, min_size=size, max_size=size)), dtype=np.float64)
        for _ in range(sites)
    ]
    weights = data.draw(st.lists(st.floats(1e-3, 1e6), min_size=sites, max_size=sites))
    average = average_gradients(gradients, weights)
    assert average.shape == (size,)
    assert np.isfinite(average).all()
    assert np.allclose(average, loop(gradients, weights), rtol=1e-9, atol=1e-6)


def test_a_choice_that_no_site_had_stays_where_it_is() -> None:
    gradients = [np.array([1.0, np.nan, np.nan]), np.array([3.0, 5.0, np.nan])]
    assert average_gradients(gradients, [1.0, 3.0]).tolist() == [2.5, 5.0, 0.0]

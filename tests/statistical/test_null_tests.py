"""Tests of the audit's own tests: they accept what was promised, and reject all that is nearly that."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from fednas.audit import null_tests as tests
from fednas.audit.null_tests import ALARM, Evidence, Floats, Mask
from fednas.privacy.entropy import SecureEntropy

NUM_DRAWS = 1_450_000  # of the weights, in one audit
FEW_DRAWS = 2400  # of the architecture gradients
COUNTS, SIGMA = 600, 30.0  # of the fitness
STEPS, RECORDS = 64, 480
SIMULATIONS = 2000
LEVEL = 1e-2  # at which the false alarms are counted
MOST_ALARMS = 46  # of 2000 at 1e-2: 20 are expected, more than 46 come once in a million

RANDOM = np.random.default_rng(20)


def gaussian(size: int, factor: float = 1.0) -> Floats:
    """Real noise in units of the scale that was promised."""
    return SecureEntropy().noise(1e6 * factor, size) / 1e6


def counts(factor: float = 1.0, size: int = COUNTS) -> Floats:
    return SecureEntropy().noise(SIGMA * factor, size) / SIGMA


def sample(q: float, steps: int = STEPS, records: int = RECORDS) -> Mask:
    return SecureEntropy().poisson(q, steps * records).reshape(steps, records)


def alarms(draw: Callable[[], Evidence], simulations: int = SIMULATIONS) -> NDArray[np.float64]:
    """The p-values of many audits of a correct system."""
    return np.array([draw().p for _ in range(simulations)])


# The scale, the mean and the shape of noise.


def test_the_promised_noise_is_accepted() -> None:
    noise = gaussian(NUM_DRAWS)
    for test in (tests.scale, tests.centre, tests.shape, tests.tails, tests.echo):
        assert not test(noise).accuses, test.__name__
    fitness = counts()
    assert not tests.scale(fitness).accuses
    assert not tests.shape(fitness, lattice=1.0 / SIGMA).accuses
    assert not tests.tails(fitness, lattice=1.0 / SIGMA).accuses
    assert not tests.echo(fitness, magnitudes=False).accuses


@pytest.mark.parametrize("factor", [2 / 3, 0.9, 0.99, 1.01, 1.1, 3 / 2])
def test_another_scale_is_rejected_in_the_weights(factor: float) -> None:
    noise = gaussian(NUM_DRAWS, factor)
    assert tests.scale(noise).accuses
    assert tests.scale(noise).p < 1e-20
    if abs(factor - 1.0) > 0.05:
        assert tests.shape(noise).accuses


@pytest.mark.parametrize("factor", [2 / 3, 3 / 2])
def test_another_scale_is_rejected_where_draws_are_few(factor: float) -> None:
    assert tests.scale(gaussian(FEW_DRAWS, factor)).accuses
    assert tests.scale(counts(factor)).accuses
    assert tests.scale(gaussian(400, factor)).accuses  # of 200, one sample in thirty would pass


def test_no_noise_is_rejected_however_few_the_coordinates_are() -> None:
    for size in (1, 3, 100):
        assert tests.scale(np.zeros(size)).accuses
    assert tests.shape(np.zeros(1000)).accuses
    assert tests.resemblance(np.zeros(10), np.zeros(10)).accuses


def test_a_mean_is_rejected() -> None:
    assert tests.centre(gaussian(NUM_DRAWS) + 0.01).accuses
    assert tests.centre(np.abs(gaussian(FEW_DRAWS))).accuses


@pytest.mark.parametrize("size", [FEW_DRAWS, 100_000])
def test_another_family_of_the_same_variance_is_rejected(size: int) -> None:
    uniform = RANDOM.uniform(-math.sqrt(3.0), math.sqrt(3.0), size)
    laplace = RANDOM.laplace(scale=1.0 / math.sqrt(2.0), size=size)
    logistic = RANDOM.logistic(scale=math.sqrt(3.0) / math.pi, size=size)
    for noise in (uniform, laplace, np.abs(gaussian(size))):
        assert tests.shape(noise).accuses
    if size > FEW_DRAWS:  # it is nearer to a Gaussian
        assert tests.shape(logistic).accuses
        assert tests.tails(logistic).accuses


def test_tails_that_end_are_rejected() -> None:
    noise = gaussian(NUM_DRAWS)
    assert tests.tails(np.clip(noise, -4.0, 4.0)).accuses
    assert not tests.shape(np.clip(noise, -4.0, 4.0)).accuses, "which is why tails have a test of their own"


@pytest.mark.parametrize("sigma", [0.8, 1.5, 5.0])
def test_the_shape_of_counts_is_that_of_integers(sigma: float) -> None:
    noise = SecureEntropy().noise(sigma, 20_000) / sigma
    assert not tests.shape(noise, lattice=1.0 / sigma).accuses
    assert not tests.tails(noise, lattice=1.0 / sigma).accuses
    cut = np.trunc(gaussian(20_000) * sigma) / sigma  # a cast to integers: zero comes twice as often
    assert tests.shape(cut, lattice=1.0 / sigma).accuses
    assert tests.shape(noise).accuses, "no bins of a continuous law fit integers"


# Noise that comes again.


@pytest.mark.parametrize("distance", [1, 15_112, 100_000, 700_000])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_release_that_comes_again_is_found_at_any_distance(distance: int, sign: float) -> None:
    noise = gaussian(NUM_DRAWS)
    again = min(distance, 15_112)
    noise[distance + 5000 : distance + 5000 + again] = sign * noise[5000 : 5000 + again]
    assert tests.echo(noise).accuses == (again > 10_000), "a release is found, a coordinate is not"


def test_magnitudes_that_come_again_are_found() -> None:
    noise = gaussian(NUM_DRAWS // 4)
    signs = np.where(RANDOM.random(15_112) < 0.5, 1.0, -1.0)
    noise[100_000:115_112] = signs * noise[:15_112]
    assert tests.echo(noise).accuses
    assert not tests.echo(noise, magnitudes=False).accuses


def test_noise_of_another_site_is_found_shifted_or_with_errors() -> None:
    left = gaussian(15_112)
    shifted = np.concatenate([gaussian(300), left[:-300]])
    assert tests.echo(left, shifted).accuses
    assert tests.echo(shifted, left).accuses
    assert tests.echo(left, 0.1 * left + math.sqrt(0.99) * gaussian(15_112)).accuses
    assert not tests.echo(left, gaussian(15_112)).accuses
    for few in (gaussian(25), counts(size=64)):
        assert tests.resemblance(few, 3.0 * few + 0.01 * gaussian(len(few))).accuses
        assert not tests.resemblance(few, gaussian(len(few))).accuses


def test_one_noise_for_all_counts_and_noise_that_follows_from_the_last_are_found() -> None:
    one = np.full(COUNTS, counts(size=1)[0] + 0.1)
    assert tests.shape(one, lattice=1.0 / SIGMA).accuses
    walk = gaussian(FEW_DRAWS)
    assert tests.echo((walk[1:] + walk[:-1]) / math.sqrt(2.0)).accuses


def test_noise_that_is_a_part_of_other_noise_is_found() -> None:
    short, long = gaussian(96 * 25).reshape(96, 25), gaussian(96 * 2000).reshape(96, 2000)
    assert not tests.alignment(short, long).accuses
    for place in (0, 77, 1975):
        beside = long.copy()
        beside[:, place : place + 25] = -short
        assert tests.alignment(short, beside).accuses
    assert tests.alignment(np.zeros((96, 25)), long).accuses


def test_the_bound_on_products_is_above_their_chance_and_near_to_it() -> None:
    """Sums of 400 products, of pairs and of a chain: how many are beyond, and what is said of it."""
    left, right = RANDOM.normal(size=(2, 20_000, 401))
    for sums in (np.sum(left[:, 1:] * right[:, 1:], axis=1), np.sum(left[:, 1:] * left[:, :-1], axis=1)):
        for z in (1.0, 2.0, 3.0, 3.7):
            seen = float(np.mean(sums > z * 20.0))
            bound = math.exp(400 * tests._rate_of_products(z / 20.0))
            assert seen <= bound + 4.0 * math.sqrt(bound / 20_000)
            assert math.log(bound) > -0.5 * z**2 - 1e-9, "nothing is below the Gaussian's own bound"
            assert math.log(bound) < -0.45 * z**2


# Samples.


@pytest.mark.parametrize("q", [0.01, 0.1, 0.25, 0.9])
def test_independent_coins_are_accepted(q: float) -> None:
    mask = sample(q)
    found = [tests.rate(mask, q), tests.overlap(mask), tests.succession(mask), tests.succession(mask.T)]
    found += [tests.dispersion(mask, q, axis=axis) for axis in (0, 1)]
    found += [tests.association(mask[:8, :12], mask[8:16, :12])]
    assert not any(evidence.accuses for evidence in found)


@pytest.mark.parametrize("factor", [0.5, 2 / 3, 0.9, 1.1, 3 / 2, 4.0])
def test_another_rate_is_rejected(factor: float) -> None:
    assert tests.rate(sample(0.2 * factor), 0.2).accuses


def shuffled(q: float) -> Mask:
    """Batches of shuffled epochs: every record once in each."""
    size = round(q * RECORDS)
    order = np.concatenate([RANDOM.permutation(RECORDS) for _ in range(math.ceil(STEPS * q) + 1)])
    mask = np.zeros((STEPS, RECORDS), np.bool_)
    for step in range(STEPS):
        mask[step, order[step * size : (step + 1) * size]] = True
    return mask


@pytest.mark.parametrize("q", [0.05, 0.1, 0.25])
def test_a_shuffle_is_rejected_by_sizes_and_by_records_and_by_what_follows(q: float) -> None:
    mask = shuffled(q)
    assert not tests.rate(mask, q).accuses, "the rate is right"
    assert tests.dispersion(mask, q, axis=1).accuses
    assert tests.dispersion(mask, q, axis=0).accuses
    assert tests.succession(mask).accuses


def test_batches_of_one_size_are_rejected_by_their_sizes_alone() -> None:
    order = np.argsort(RANDOM.random((STEPS, RECORDS)), axis=1)
    mask = order < 120
    assert tests.dispersion(mask, 0.25, axis=1).accuses
    others = (tests.rate(mask, 0.25), tests.overlap(mask), tests.succession(mask))
    assert not any(evidence.accuses for evidence in others)


def test_a_sample_that_comes_again_is_rejected() -> None:
    mask = sample(0.1)
    mask[50] = mask[3]
    assert tests.overlap(mask).accuses
    assert not tests.overlap(sample(0.1)).accuses
    pairs = np.repeat(sample(0.1)[: STEPS // 2], 2, axis=0)
    assert tests.overlap(pairs).accuses
    assert tests.succession(pairs).accuses


def test_records_with_rates_of_their_own_are_rejected() -> None:
    rates = np.where(np.arange(RECORDS) < RECORDS // 2, 0.3, 0.2)
    mask = RANDOM.random((STEPS, RECORDS)) < rates
    assert not tests.rate(mask, 0.25).accuses
    assert tests.dispersion(mask, 0.25, axis=0).accuses
    assert tests.rate(mask[:, : RECORDS // 2], 0.25).accuses


def test_runs_of_neighbours_are_rejected() -> None:
    mask = np.array([np.roll(np.arange(RECORDS) < 120, shift) for shift in RANDOM.integers(RECORDS, size=64)])
    assert tests.succession(mask.T).accuses


def test_one_draw_of_coins_for_two_samples_is_rejected() -> None:
    coins = sample(0.25, 8, 12)
    assert tests.association(coins, coins).accuses
    assert not tests.association(coins, sample(0.25, 8, 12)).accuses


# How often a correct system is accused.

NULLS: dict[str, Callable[[], Evidence]] = {
    "scale": lambda: tests.scale(gaussian(1000)),
    "scale of counts": lambda: tests.scale(counts()),
    "centre": lambda: tests.centre(gaussian(1000)),
    "shape": lambda: tests.shape(gaussian(FEW_DRAWS)),
    "shape of counts": lambda: tests.shape(counts(), lattice=1.0 / SIGMA),
    "resemblance": lambda: tests.resemblance(gaussian(64), gaussian(64)),
}
BOUNDED: dict[str, Callable[[], Evidence]] = {
    "tails": lambda: tests.tails(gaussian(50_000)),
    "echo": lambda: tests.echo(gaussian(1000)),
    "echo of another": lambda: tests.echo(gaussian(500), gaussian(500)),
    "alignment": lambda: tests.alignment(gaussian(200).reshape(8, 25), gaussian(800).reshape(8, 100)),
    "rate": lambda: tests.rate(sample(0.1, 16, 100), 0.1),
    "sizes": lambda: tests.dispersion(sample(0.1, 16, 100), 0.1, axis=1),
    "records": lambda: tests.dispersion(sample(0.1, 16, 100), 0.1, axis=0),
    "overlap": lambda: tests.overlap(sample(0.1, 16, 100)),
    "succession": lambda: tests.succession(sample(0.1, 16, 100)),
    "association": lambda: tests.association(sample(0.25, 8, 12), sample(0.25, 8, 12)),
}


@pytest.mark.parametrize("name", NULLS)
def test_p_values_of_correct_noise_are_uniform(name: str) -> None:
    found = alarms(NULLS[name])
    assert np.sum(found <= LEVEL) <= MOST_ALARMS
    assert np.sum(found <= 10.0 * LEVEL) <= 270  # 200 are expected, 5 standard deviations are 67
    assert np.sum(found <= 0.5) >= 880, "and they are no bounds: half are below a half"


@pytest.mark.parametrize("name", BOUNDED)
def test_p_values_that_are_bounds_are_not_too_small(name: str) -> None:
    found = alarms(BOUNDED[name], SIMULATIONS // 4)
    assert np.sum(found <= LEVEL) <= 20  # of 500: 5 are expected, more than 20 come once in ten million
    assert np.sum(found <= 10.0 * LEVEL) <= 88


def test_far_out_the_shape_of_few_counts_is_still_no_worse_than_chi_square_says() -> None:
    """Of 300,000 audits, by the multinomial law of their bins."""
    bins = 15
    drawn = np.random.default_rng(5).multinomial(COUNTS, np.full(bins, 1.0 / bins), size=300_000)
    seen = np.maximum(drawn, 1)
    statistics = 2.0 * np.sum(drawn * np.log(seen * bins / COUNTS), axis=1)
    for p in (1e-3, 1e-4):
        assert np.mean(statistics > stats.chi2.isf(p, bins - 1)) < 1.25 * p + 5.0 * math.sqrt(p / 300_000)


def test_several_tests_pay_for_their_number_and_what_is_no_number_accuses() -> None:
    found = [Evidence(p=p, figures=str(p)) for p in (0.5, 1e-3, 0.9)]
    assert tests.worst(found) == Evidence(p=3e-3, figures="0.001")
    assert tests.worst([Evidence(p=0.9, figures="")] * 5).p == 1.0
    assert Evidence(p=math.nan, figures="").accuses
    assert Evidence(p=ALARM / 2.0, figures="").accuses
    assert not Evidence(p=ALARM, figures="").accuses

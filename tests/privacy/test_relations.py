"""What replacing a record costs: never below the truth, and never below what adding or removing one costs."""

import math
import random
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_ndtr, ndtr

from fednas.errors import ConfigurationError
from fednas.privacy.accounting import (
    ORDERS,
    RELATIONS,
    epsilon_at_order,
    epsilon_of_site,
    epsilon_pld,
    epsilon_rdp,
    rdp_curve,
    renyi_budget,
    renyi_epsilon,
    replaced_epsilon,
    three_deltas,
)
from fednas.privacy.events import Event, Gaussian, NonPrivate, PoissonGaussian
from fednas.privacy.replacement import replaced_curve
from tests.privacy.cross_check import gaussian_epsilon


def sampled(q: float, sigma: float, steps: int = 1) -> PoissonGaussian:
    return PoissonGaussian(sampling_probability=q, noise_multiplier=sigma, steps=steps)


def true_excess(q: float, sigma: float, order: int) -> float:
    """exp((a-1) D) - 1 by the trapezoid rule in the variable x, centred so that small values keep digits."""
    x = np.linspace(-14 * sigma - 2, 14 * sigma + 2 + 2 * order, 100_001)
    log_q = np.logaddexp(math.log1p(-q), math.log(q) + (-2 * x - 1) / (2 * sigma**2))
    log_p = np.logaddexp(math.log1p(-q), math.log(q) + (2 * x - 1) / (2 * sigma**2))
    density = np.exp(-(x**2) / (2 * sigma**2) + log_q) / (sigma * math.sqrt(2 * math.pi))
    y = np.expm1(log_p - log_q)
    g = np.expm1(order * (log_p - log_q)) - order * y
    small = np.abs(order * y) < 1e-5
    g = np.where(small, order * (order - 1) / 2 * y**2, g)
    return float(np.sum(density * g) * (x[1] - x[0]))


@pytest.mark.parametrize(
    ("q", "sigma"), [(0.001, 0.8), (0.01, 1.0), (0.1, 1.5), (0.3, 0.6), (0.5, 3.0), (0.97, 5.0), (0.2, 20.0)]
)
def test_the_proved_bound_is_above_the_truth_and_within_a_thousandth_of_it(q: float, sigma: float) -> None:
    orders = [order for order in (2, 3, 4, 8, 16, 64) if order <= 8 * sigma]
    for order in orders:
        true = math.log1p(true_excess(q, sigma, order)) / (order - 1)
        bound = rdp_curve([sampled(q, sigma)], relation="replace_one")[order - 2]
        assert true * (1 - 1e-9) <= bound <= true * 1.001


@given(
    q=st.floats(min_value=1e-4, max_value=0.999),
    sigma=st.floats(min_value=0.3, max_value=30.0),
    order=st.integers(min_value=2, max_value=256),
)
@settings(max_examples=60, deadline=None)
def test_the_proved_bound_is_never_below_the_truth(q: float, sigma: float, order: int) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        true = true_excess(q, sigma, order)
    bound = float(replaced_curve(q, sigma, ORDERS)[order - 2])
    if math.isfinite(true) and bound * (order - 1) < 700:
        assert math.expm1((order - 1) * bound) >= true * (1 - 1e-6)


@given(st.integers(min_value=0, max_value=10**9), st.integers(min_value=1, max_value=3))
@settings(max_examples=60, deadline=None)
def test_no_pair_of_records_is_worse_than_opposite_ones(seed: int, dimensions: int) -> None:
    """Part 1 of the proof, by importance sampling of the divergence between two random pairs."""
    source = np.random.default_rng(seed)
    q, sigma = source.uniform(0.05, 0.95), source.uniform(0.8, 3.0)
    order = int(source.integers(2, 6))
    v, w = (_in_ball(source, dimensions) for _ in range(2))
    side = 81 if dimensions < 3 else 41
    axes = np.linspace(-1 - 7 * sigma - order, 1 + 7 * sigma + order, side if dimensions > 1 else 4001)
    x = np.stack(np.meshgrid(*[axes] * dimensions, indexing="ij"), axis=-1).reshape(-1, dimensions)
    cell = (axes[1] - axes[0]) ** dimensions
    base = np.exp(-np.sum(x * x, axis=1) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi)) ** dimensions
    p, r = (1 - q + q * np.exp((x @ m - m @ m / 2) / sigma**2) for m in (v, w))
    divergence = math.log(np.sum(base * p**order * r ** (1 - order)) * cell) / (order - 1)
    assert divergence <= rdp_curve([sampled(q, sigma)], relation="replace_one")[order - 2] + 1e-9


def _in_ball(source: np.random.Generator, dimensions: int) -> np.ndarray:
    vector = source.normal(size=dimensions)
    return np.asarray(vector / np.linalg.norm(vector) * source.uniform(0, 1) ** (1 / dimensions))


@pytest.mark.parametrize(("sigma", "releases"), [(4.0, 1), (4.0, 50), (60.0, 1000), (0.7, 1)])
def test_replacing_in_gaussians_equals_half_the_noise(sigma: float, releases: int) -> None:
    event = Gaussian(noise_multiplier=sigma, releases=releases)
    exact = gaussian_epsilon(sigma / 2 / math.sqrt(releases))
    epsilon = epsilon_pld([event], 1e-5, relation="replace_one")
    assert exact - 1e-9 <= epsilon <= exact * 1.001 + 1e-3
    np.testing.assert_allclose(rdp_curve([event], relation="replace_one"), 4 * rdp_curve([event]), rtol=1e-12)


def replaced_delta(q: float, sigma: float, epsilon: float) -> float:
    """The exact delta of one release when a record is replaced: P - e^epsilon Q where it is positive."""

    def loss(x: float) -> float:
        p = np.logaddexp(math.log1p(-q), math.log(q) + (2 * x - 1) / (2 * sigma**2))
        r = np.logaddexp(math.log1p(-q), math.log(q) + (-2 * x - 1) / (2 * sigma**2))
        return float(p - r)

    low, high = -60.0 * sigma, 60.0 * sigma + 60.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) < epsilon else (low, middle)
    p = (1 - q) * ndtr(-high / sigma) + q * ndtr((1 - high) / sigma)
    r = (1 - q) * math.exp(epsilon + log_ndtr(-high / sigma)) + q * math.exp(
        epsilon + log_ndtr((-1 - high) / sigma)
    )
    return float(p - r)


@pytest.mark.parametrize(("q", "sigma"), [(0.01, 0.6), (0.1, 1.0), (0.5, 0.8), (0.9, 3.0)])
def test_replacing_once_equals_the_hockey_stick_divergence(q: float, sigma: float) -> None:
    epsilon = epsilon_pld([sampled(q, sigma)], 1e-5, relation="replace_one")
    assert replaced_delta(q, sigma, epsilon) <= 1e-5 * (1 + 1e-9)
    assert replaced_delta(q, sigma, epsilon * 0.999 - 2e-4) > 1e-5


def test_two_different_releases_compose_like_their_convolution() -> None:
    """The distribution of the sum of two losses, by brute force on a fine grid of both outputs."""
    pairs, epsilon = ((0.3, 1.5), (0.1, 1.0)), 2.0
    axes, losses, masses = [], [], []
    for q, sigma in pairs:
        x = np.linspace(-9 * sigma, 9 * sigma + 2, 3001)
        base = np.exp(-(x**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi)) * (x[1] - x[0])
        p, r = (1 - q + q * np.exp((sign * 2 * x - 1) / (2 * sigma**2)) for sign in (1, -1))
        axes.append(x)
        losses.append(np.log(p / r))
        masses.append(base * p)
    total = losses[0][:, None] + losses[1][None, :]
    mass = masses[0][:, None] * masses[1][None, :]
    delta = float(np.sum(mass * np.maximum(0.0, -np.expm1(epsilon - total))))
    events = [sampled(q, sigma) for q, sigma in pairs]
    assert epsilon_pld(events, delta, relation="replace_one") == pytest.approx(epsilon, rel=1e-3)


@pytest.mark.parametrize(
    ("q", "sigma", "steps"), [(0.01, 1.0, 1000), (0.1, 1.5, 200), (1.0, 4.0, 50), (0.02, 0.7, 500)]
)
def test_replacing_costs_1_25_to_2_5_times_as_much(q: float, sigma: float, steps: int) -> None:
    events = [sampled(q, sigma, steps)]
    tight, proved = (
        epsilon(events, 1e-5, relation="replace_one") / epsilon(events, 1e-5)
        for epsilon in (epsilon_pld, epsilon_rdp)
    )
    assert 1.2 <= proved <= 2.5
    assert 1.25 <= tight <= 2.5
    assert epsilon_pld(events, 1e-5, relation="replace_one") < epsilon_rdp(
        events, 1e-5, relation="replace_one"
    )


@pytest.mark.parametrize("relation", RELATIONS)
def test_twenty_one_round_events_equal_one_twenty_round_event(relation: Any) -> None:
    once: list[Event] = [sampled(0.1, 1.5, 200), Gaussian(noise_multiplier=30.0, releases=20)]
    rounds: list[Event] = [sampled(0.1, 1.5, 10), Gaussian(noise_multiplier=30.0, releases=1)] * 20
    random.Random(1).shuffle(rounds)
    for epsilon in (epsilon_pld, epsilon_rdp):
        assert abs(epsilon(rounds, 1e-5, relation=relation) - epsilon(once, 1e-5, relation=relation)) <= 1e-12
    assert abs(epsilon_at_order(rounds, 1e-5, 7) - epsilon_at_order(once, 1e-5, 7)) <= 1e-12


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("epsilon", [epsilon_pld, epsilon_rdp])
def test_nothing_costs_nothing_and_no_privacy_everything_under_both_relations(
    relation: Any, epsilon: Any
) -> None:
    assert epsilon([], 1e-5, relation=relation) == 0.0
    assert epsilon([NonPrivate(reason="test"), sampled(0.1, 1.0)], 1e-5, relation=relation) == math.inf
    for proved in (False, True):
        assert epsilon_of_site([], 1e-5, relation=relation, proved=proved) == 0.0
        lost: list[tuple[Event, tuple[str, ...]]] = [
            (NonPrivate(reason="test"), ("fitness",)),
            (sampled(0.1, 1.0), ("weights",)),
        ]
        assert epsilon_of_site(lost, 1e-5, relation=relation, proved=proved) == math.inf


@pytest.mark.parametrize("relation", ["replace", "", None, 1, "ADD_REMOVE"])
def test_an_unknown_relation_is_refused(relation: Any) -> None:
    for epsilon in (epsilon_pld, epsilon_rdp):
        with pytest.raises(ConfigurationError, match="replace_one"):
            epsilon([], 1e-5, relation=relation)
    with pytest.raises(ConfigurationError, match="replace_one"):
        epsilon_of_site([], 1e-5, relation=relation)


@pytest.mark.parametrize(
    "event",
    [
        sampled(5e-324, 1.0, 10**7),
        sampled(0.5, 5e-324, 1),
        sampled(1e-9, 0.05, 1),
        sampled(1e-4, 0.3, 1),
        sampled(0.5, 1e6, 1000),
        sampled(1 - 1e-16, 1.0, 10),
        Gaussian(noise_multiplier=1e6, releases=1),
    ],
)
def test_the_ends_of_every_range_give_a_number_when_a_record_is_replaced(event: Event) -> None:
    tight = epsilon_pld([event], 1e-5, relation="replace_one")
    proved = epsilon_rdp([event], 1e-5, relation="replace_one")
    assert 0.0 <= tight <= proved
    assert not math.isnan(proved)
    assert proved >= epsilon_rdp([event], 1e-5)


SEARCH, ALPHAS, FITNESS, FINAL = (
    (sampled(0.1, 1.3, 100), ("weights",)),
    (sampled(0.1, 0.9, 20), ("architecture",)),
    (Gaussian(noise_multiplier=9.0, releases=32), ("fitness",)),
    (sampled(0.1, 1.3, 40), ("weights", "architecture", "fitness")),
)


@pytest.mark.parametrize("proved", [False, True])
def test_a_site_loses_the_maximum_over_its_streams_when_a_record_is_added(proved: bool) -> None:
    epsilon = epsilon_rdp if proved else epsilon_pld
    expected = max(epsilon([own[0], FINAL[0]], 1e-5) for own in (SEARCH, ALPHAS, FITNESS))
    assert epsilon_of_site([SEARCH, ALPHAS, FITNESS, FINAL], 1e-5, proved=proved) == expected


@pytest.mark.parametrize("proved", [False, True])
def test_a_replaced_record_may_leave_one_stream_and_its_successor_enter_another(proved: bool) -> None:
    epsilon = epsilon_rdp if proved else epsilon_pld
    one = (Gaussian(noise_multiplier=3.0, releases=1), ("weights",))
    other = (Gaussian(noise_multiplier=3.0, releases=1), ("fitness",))
    both = epsilon_of_site([one, other], 1e-5, relation="replace_one", proved=proved)
    within = epsilon([one[0]], 1e-5, relation="replace_one")
    across = epsilon([Gaussian(noise_multiplier=3.0, releases=2)], 1e-5)
    assert both == max(within, across) == within
    low, high = (sampled(0.05, 1.2, 100), ("weights",)), (sampled(0.03, 1.0, 100), ("fitness",))
    site = epsilon_of_site([low, high], 1e-5, relation="replace_one", proved=proved)
    assert site >= max(epsilon([event], 1e-5, relation="replace_one") for event, _ in (low, high))
    assert site <= epsilon([low[0], high[0]], 1e-5, relation="replace_one")


def test_a_site_of_one_stream_replaces_inside_it() -> None:
    site = epsilon_of_site([SEARCH], 1e-5, relation="replace_one")
    assert site == epsilon_pld([SEARCH[0]], 1e-5, relation="replace_one")
    everything = epsilon_of_site([SEARCH, ALPHAS, FITNESS, FINAL], 1e-5, relation="replace_one")
    within = max(
        epsilon_pld([own[0], FINAL[0]], 1e-5, relation="replace_one") for own in (SEARCH, ALPHAS, FITNESS)
    )
    assert everything >= within
    assert epsilon_of_site([SEARCH, ALPHAS, FITNESS, FINAL], 1e-5, relation="replace_one", proved=True) > (
        everything
    )


def test_what_moves_between_streams_is_added_in_one_while_it_is_removed_in_the_other() -> None:
    """Brute force: the loss of a removal in one mechanism plus that of an addition in another."""
    (q, sigma), (r, tau), epsilon = (0.3, 1.0), (0.2, 0.9), 1.0
    deltas = []
    for direction in (1, -1):
        losses, masses = [], []
        for chance, noise, sign in ((q, sigma, direction), (r, tau, -direction)):
            x = np.linspace(-9 * noise, 9 * noise + 2, 3001)
            base = np.exp(-(x**2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi)) * (x[1] - x[0])
            mixture = 1 - chance + chance * np.exp((2 * x - 1) / (2 * noise**2))
            losses.append(sign * np.log(mixture))
            masses.append(base * mixture if sign == 1 else base)
        total = losses[0][:, None] + losses[1][None, :]
        mass = masses[0][:, None] * masses[1][None, :]
        deltas.append(float(np.sum(mass * np.maximum(0.0, -np.expm1(epsilon - total)))))
    from fednas.privacy import accounting

    delta = max(deltas)
    moved = accounting._epsilon_pld((), ((q, sigma, 1),), ((r, tau, 1),), delta, 1e-4)
    assert moved == pytest.approx(epsilon, rel=1e-3)


@pytest.mark.parametrize("order", [3, 8, 64])
def test_a_filter_bounds_other_deltas_and_replacing_too(order: int) -> None:
    epsilon = 12.0
    divergence = renyi_budget(epsilon, 1e-5, order)
    assert renyi_epsilon(divergence, 1e-5, order) == pytest.approx(epsilon, rel=1e-12)
    assert renyi_epsilon(divergence, 1e-7, order) > epsilon
    replaced = replaced_epsilon(divergence, 1e-5, order)
    half = replaced / 2
    with localcontext() as context:
        context.prec = 50
        inner = Decimal("1e-5") / (1 + Decimal(half).exp())
        assert half == pytest.approx(renyi_epsilon(divergence, float(inner), order), rel=1e-9)
    assert replaced > 2 * epsilon
    releases = [Gaussian(noise_multiplier=math.sqrt(order / 2 / divergence), releases=1)]
    assert epsilon_rdp(releases, 1e-5, relation="replace_one") <= replaced


def test_a_filter_of_order_2_or_without_a_bound_bounds_no_replacement() -> None:
    assert replaced_epsilon(1.0, 1e-5, 2) == math.inf
    assert replaced_epsilon(math.inf, 1e-5, 8) == math.inf
    assert renyi_epsilon(math.inf, 1e-5, 8) == math.inf
    for wrong in (-1e-300, math.nan, "1", True, None):
        with pytest.raises(ConfigurationError, match="divergence"):
            renyi_epsilon(wrong, 1e-5, 8)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="divergence"):
            replaced_epsilon(wrong, 1e-5, 8)  # type: ignore[arg-type]


def test_a_statement_gives_epsilon_at_three_deltas() -> None:
    assert three_deltas(1e-5) == (1e-5, 1e-5 / 10, 1e-5 / 100)
    for wrong in (0.0, 1.0, math.nan, "1e-5", 5e-324):
        with pytest.raises(ConfigurationError, match="delta"):
            three_deltas(wrong)  # type: ignore[arg-type]

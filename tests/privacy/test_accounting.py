"""Two accountants that share no code, each against a slow twin and against each other."""

import math
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from fednas.errors import ConfigurationError, UnsupportedEventError
from fednas.privacy.accounting import ORDERS, epsilon_pld, epsilon_rdp, rdp_curve
from fednas.privacy.events import Event, Gaussian, NonPrivate, PoissonGaussian


def sampled(q: float, sigma: float, steps: int) -> PoissonGaussian:
    return PoissonGaussian(sampling_probability=q, noise_multiplier=sigma, steps=steps)


def described(event: PoissonGaussian | Gaussian) -> Any:
    gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    return dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(event.sampling_probability, gaussian), event.amount
    )


def slow_rdp(events: list[PoissonGaussian | Gaussian], delta: float) -> float:
    accountant = rdp.RdpAccountant(orders=list(ORDERS))
    for event in events:
        accountant.compose(described(event))
    return float(accountant.get_epsilon(delta))


def slow_curve(q: float, sigma: float) -> np.ndarray:
    """The published sum, term by term, with nothing clever about it."""
    values = []
    for a in ORDERS:
        logs = [
            math.log(math.comb(a, i))
            + i * math.log(q)
            + (a - i) * math.log1p(-q)
            + (i * i - i) / (2 * sigma**2)
            for i in range(a + 1)
        ]
        top = max(logs)
        values.append((top + math.log(math.fsum(math.exp(x - top) for x in logs))) / (a - 1))
    return np.array(values)


def gaussian_delta(sigma: float, epsilon: float) -> float:
    """The exact delta of one Gaussian release (Balle and Wang 2018, 1805.06530)."""
    return float(
        norm.cdf(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * norm.cdf(-0.5 / sigma - epsilon * sigma)
    )


@given(
    q=st.floats(min_value=1e-3, max_value=0.99),
    sigma=st.floats(min_value=0.4, max_value=20.0),
    steps=st.integers(min_value=1, max_value=5000),
    delta=st.sampled_from([1e-3, 1e-5, 1e-8]),
)
@settings(deadline=None, max_examples=8)
def test_integer_order_rdp_equals_the_library(q: float, sigma: float, steps: int, delta: float) -> None:
    event = sampled(q, sigma, steps)
    assert epsilon_rdp([event], delta) == pytest.approx(slow_rdp([event], delta), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("q", "sigma"), [(0.01, 1.0), (0.3, 0.5), (0.9, 8.0)])
def test_the_curve_equals_the_published_sum(q: float, sigma: float) -> None:
    np.testing.assert_allclose(rdp_curve([sampled(q, sigma, 3)]), 3 * slow_curve(q, sigma), rtol=1e-10)


def test_a_composition_of_different_events_equals_the_library() -> None:
    events: list[PoissonGaussian | Gaussian] = [
        sampled(0.1, 3.0, 30),
        sampled(0.05, 2.0, 100),
        Gaussian(noise_multiplier=9.0, releases=4),
    ]
    accountant = pld.PLDAccountant()
    for event in events:
        accountant.compose(described(event))
    assert epsilon_pld(events, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-4)
    assert epsilon_rdp(events, 1e-5) == pytest.approx(slow_rdp(events, 1e-5), rel=1e-9)


@pytest.mark.parametrize(("sigma", "releases"), [(4.0, 1), (4.0, 50), (60.0, 1000), (0.5, 1)])
def test_gaussians_without_sampling_equal_the_closed_form(sigma: float, releases: int) -> None:
    epsilon = epsilon_pld([Gaussian(noise_multiplier=sigma, releases=releases)], 1e-5)
    effective = sigma / math.sqrt(releases)
    assert gaussian_delta(effective, epsilon) <= 1e-5
    assert gaussian_delta(effective, epsilon * 0.999 - 1e-4) > 1e-5


def test_sampling_everybody_equals_no_sampling() -> None:
    with_sampling, without = sampled(1.0, 4.0, 50), Gaussian(noise_multiplier=4.0, releases=50)
    assert epsilon_pld([with_sampling], 1e-5) == epsilon_pld([without], 1e-5)
    assert epsilon_rdp([with_sampling], 1e-5) == epsilon_rdp([without], 1e-5)


@given(
    q=st.floats(min_value=0.005, max_value=0.5),
    sigma=st.floats(min_value=0.8, max_value=4.0),
    steps=st.integers(min_value=1, max_value=300),
)
@settings(deadline=None, max_examples=5)
def test_more_steps_more_sampling_or_less_noise_never_cost_less(q: float, sigma: float, steps: int) -> None:
    def coarse(events: list[Event], delta: float) -> float:
        return epsilon_pld(events, delta, value_discretization_interval=1e-3)

    for epsilon in (coarse, epsilon_rdp):
        here = epsilon([sampled(q, sigma, steps)], 1e-5)
        assert here <= epsilon([sampled(q, sigma, steps + 20)], 1e-5)
        assert here <= epsilon([sampled(q * 1.5, sigma, steps)], 1e-5)
        assert here <= epsilon([sampled(q, sigma * 0.8, steps)], 1e-5)
        assert here >= epsilon([sampled(q, sigma, steps)], 1e-4)
    assert coarse([sampled(q, sigma, steps)], 1e-5) <= epsilon_rdp([sampled(q, sigma, steps)], 1e-5)


@pytest.mark.parametrize("epsilon", [epsilon_pld, epsilon_rdp])
def test_twenty_one_round_runs_equal_one_twenty_round_run_in_any_order(epsilon: Any) -> None:
    once = epsilon([sampled(0.1, 1.5, 200), Gaussian(noise_multiplier=30.0, releases=2)], 1e-5)
    many = [sampled(0.1, 1.5, 10)] * 20 + [Gaussian(noise_multiplier=30.0, releases=1)] * 2
    assert epsilon(many, 1e-5) == once
    assert epsilon(many[::-1], 1e-5) == once


@pytest.mark.parametrize("epsilon", [epsilon_pld, epsilon_rdp])
def test_nothing_costs_nothing_and_no_privacy_costs_infinitely_much(epsilon: Any) -> None:
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([NonPrivate(reason="test")], 1e-5) == math.inf
    assert epsilon([sampled(0.1, 1.0, 1), NonPrivate(reason="test")], 1e-5) == math.inf
    assert np.all(rdp_curve([NonPrivate(reason="test")]) == math.inf)
    assert np.all(rdp_curve([]) == 0.0)


@pytest.mark.parametrize("epsilon", [epsilon_pld, epsilon_rdp])
@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan, math.inf, True, "1e-5"])
def test_a_delta_outside_its_bounds_is_refused(epsilon: Any, delta: Any) -> None:
    with pytest.raises(ConfigurationError, match="delta"):
        epsilon([sampled(0.1, 1.0, 1)], delta)


@pytest.mark.parametrize("interval", [0.0, -1.0, math.nan, math.inf, 1e-9])
def test_a_grid_that_no_memory_holds_is_refused(interval: float) -> None:
    with pytest.raises(ConfigurationError, match="interval"):
        epsilon_pld([sampled(0.1, 1.0, 1)], 1e-5, value_discretization_interval=interval)


@pytest.mark.parametrize("epsilon", [epsilon_pld, epsilon_rdp])
def test_something_else_than_an_event_is_refused_even_beside_no_privacy(epsilon: Any) -> None:
    with pytest.raises(UnsupportedEventError):
        epsilon([NonPrivate(reason="test"), dp_accounting.GaussianDpEvent(1.0)], 1e-5)


@pytest.mark.parametrize(
    "event",
    [
        sampled(5e-324, 1.0, 10**7),
        sampled(0.5, 5e-324, 1),
        sampled(1.0, 1e-5, 10**7),
        sampled(0.5, 0.01, 1),
        sampled(1e-9, 0.05, 1),
        sampled(0.5, 1e6, 1000),
        Gaussian(noise_multiplier=5e-324, releases=10**7),
        Gaussian(noise_multiplier=1e6, releases=1),
    ],
)
def test_the_ends_of_every_range_give_a_number_and_no_warning(event: Event) -> None:
    tight, proved = epsilon_pld([event], 1e-5), epsilon_rdp([event], 1e-5)
    assert 0.0 <= tight <= proved
    assert not math.isnan(proved)


def test_a_coarser_grid_is_pessimistic() -> None:
    fine = epsilon_pld([sampled(0.1, 1.5, 200)], 1e-5)
    coarse = epsilon_pld([sampled(0.1, 1.5, 200)], 1e-5, value_discretization_interval=1e-2)
    assert fine <= coarse <= fine * 1.05

"""One order, fixed beforehand, at which a filter adds up noise that may adapt; it costs some epsilon."""

import json
import math
import time
from fractions import Fraction
from typing import Any

import dp_accounting
import pytest
from dp_accounting import rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas.errors import ConfigurationError, UnsupportedEventError
from fednas.privacy.accounting import (
    ORDERS,
    epsilon_at_order,
    epsilon_pld,
    epsilon_rdp,
    rdp_curve,
    renyi_budget,
    renyi_divergence,
)
from fednas.privacy.allowance import STREAMS, Allowance, ReleaseSchedule
from fednas.privacy.budget import NON_PRIVATE, PrivacyBudget
from fednas.privacy.calibration import best_order
from fednas.privacy.events import Event, Gaussian, NonPrivate, PoissonGaussian
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.renyi import least_order
from fednas.privacy.renyi_filter import RenyiFilter

PROPORTIONS = {"weights": 0.9, "architecture": 0.05, "fitness": 0.05}
SCHEDULE = ReleaseSchedule(
    sampling_probability=0.1, search_steps=210, final_steps=100, architecture_steps=20, fitness_releases=32
)


def sampled(q: float, sigma: float, steps: int) -> PoissonGaussian:
    return PoissonGaussian(sampling_probability=q, noise_multiplier=sigma, steps=steps)


def budget(epsilon: float, order: int | None = None) -> PrivacyBudget:
    return PrivacyBudget(epsilon=epsilon, delta=1e-5, order=order)


def plan(epsilon: float, order: int | None, schedule: ReleaseSchedule = SCHEDULE) -> PrivacyPlan:
    return PrivacyPlan.calibrate(budget=budget(epsilon, order), proportions=PROPORTIONS, schedule=schedule)


@pytest.mark.parametrize("order", [1, 0, -2, 257, 10**9, 2.0, 2.5, True, "7", math.nan, math.inf])
def test_an_order_outside_2_to_256_is_refused(order: Any) -> None:
    with pytest.raises(ConfigurationError, match="order"):
        budget(3.0, order)
    with pytest.raises(ConfigurationError, match="order"):
        renyi_divergence([], order)
    with pytest.raises(ConfigurationError, match="order"):
        renyi_budget(3.0, 1e-5, order)
    with pytest.raises(ConfigurationError, match="order"):
        epsilon_at_order([], 1e-5, order)


@given(st.floats(min_value=1e-3, max_value=50.0), st.sampled_from([1e-3, 1e-5, 1e-9, 0.5]))
def test_the_refusal_of_an_order_names_those_that_would_do(epsilon: float, delta: float) -> None:
    least = least_order(epsilon, delta)
    for order in ORDERS:
        if least is not None and order >= least:
            assert PrivacyBudget(epsilon=epsilon, delta=delta, order=order).renyi > 0.0
        elif order in (2, least and least - 1, ORDERS[-1]):
            wanted = "raise epsilon" if least is None else f"an order of {least} to 256"
            with pytest.raises(ConfigurationError, match=wanted):
                PrivacyBudget(epsilon=epsilon, delta=delta, order=order)


def test_a_budget_without_privacy_has_no_order() -> None:
    with pytest.raises(ConfigurationError, match="order"):
        PrivacyBudget(epsilon=math.inf, delta=1e-5, is_private=False, order=8)
    with pytest.raises(ConfigurationError, match="order"):
        best_order(NON_PRIVATE, SCHEDULE)
    with pytest.raises(ConfigurationError, match="no Rényi budget"):
        assert budget(3.0).renyi


def test_the_text_of_a_budget_holds_its_order_only_where_it_has_one() -> None:
    assert budget(3.0).encode() == {"delta": "1e-05", "epsilon": "3.0"}
    assert budget(3.0, 8).encode() == {"delta": "1e-05", "epsilon": "3.0", "order": 8}
    assert PrivacyBudget.decode(json.loads(json.dumps(budget(3.0, 8).encode()))) == budget(3.0, 8)


@pytest.mark.parametrize("order", [None, "8", 8.0, True, 1, 2, 300])
def test_a_budget_whose_text_has_another_order_is_refused(order: Any) -> None:
    with pytest.raises(ConfigurationError):
        PrivacyBudget.decode({"delta": "1e-05", "epsilon": "3.0", "order": order})
    with pytest.raises(ConfigurationError):
        PrivacyBudget.decode({**NON_PRIVATE.encode(), "order": 8})


def test_a_plan_keeps_its_order_and_has_another_hash() -> None:
    made = plan(3.0, 8)
    assert PrivacyPlan.from_json(made.to_json()) == made
    assert made.budget.order == 8
    assert made.id != plan(3.0, None).id != plan(3.0, 9).id


@pytest.mark.parametrize("order", [2, 7, 32, 256])
@pytest.mark.parametrize("event", [sampled(0.1, 1.5, 200), sampled(0.01, 0.8, 50), sampled(1.0, 4.0, 50)])
def test_epsilon_at_one_order_equals_the_library(order: int, event: PoissonGaussian) -> None:
    accountant = rdp.RdpAccountant(orders=[order])
    gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(event.sampling_probability, gaussian), event.steps)
    expected = accountant.get_epsilon(1e-5)
    assert epsilon_at_order([event], 1e-5, order) == pytest.approx(expected, rel=1e-9)
    assert epsilon_at_order([event], 1e-5, order) >= epsilon_rdp([event], 1e-5)


def test_one_order_is_that_point_of_the_curve() -> None:
    events: list[Event] = [
        sampled(0.1, 1.5, 200),
        sampled(0.02, 0.7, 3),
        Gaussian(noise_multiplier=9.0, releases=4),
    ]
    for order in ORDERS:
        assert renyi_divergence(events, order) == pytest.approx(rdp_curve(events)[order - 2], rel=1e-12)
    assert min(epsilon_at_order(events, 1e-5, order) for order in ORDERS) == pytest.approx(
        epsilon_rdp(events, 1e-5), rel=1e-12
    )


@given(
    epsilon=st.floats(min_value=0.5, max_value=20.0),
    order=st.integers(min_value=40, max_value=256),
    steps=st.integers(min_value=1, max_value=1000),
)
def test_spending_the_whole_renyi_budget_spends_epsilon(epsilon: float, order: int, steps: int) -> None:
    sigma = math.sqrt(order * steps / 2 / renyi_budget(epsilon, 1e-5, order))
    whole = Gaussian(noise_multiplier=sigma, releases=steps)
    assert epsilon_at_order([whole], 1e-5, order) == pytest.approx(epsilon, rel=1e-12)


def test_nothing_costs_nothing_and_no_privacy_costs_infinitely_much_at_any_order() -> None:
    assert renyi_divergence([], 8) == epsilon_at_order([], 1e-5, 8) == 0.0
    assert renyi_divergence([sampled(0.1, 1.0, 1), NonPrivate(reason="test")], 8) == math.inf
    assert epsilon_at_order([NonPrivate(reason="test")], 1e-5, 8) == math.inf
    with pytest.raises(UnsupportedEventError):
        renyi_divergence(["gaussian"], 8)  # type: ignore[list-item]


@given(st.lists(st.integers(min_value=1, max_value=50), min_size=1, max_size=20), st.integers(2, 256))
def test_the_sum_does_not_depend_on_how_steps_were_split(parts: list[int], order: int) -> None:
    once = renyi_divergence([sampled(0.1, 1.5, sum(parts))], order)
    assert renyi_divergence([sampled(0.1, 1.5, part) for part in parts], order) == once
    assert math.fsum(renyi_divergence([sampled(0.1, 1.5, part)], order) for part in parts) == pytest.approx(
        once, rel=1e-12
    )


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 8.0])
def test_a_plan_at_an_order_uses_every_streams_epsilon_and_exceeds_none(epsilon: float) -> None:
    order = best_order(budget(epsilon), SCHEDULE)
    made = plan(epsilon, order)
    for stream in STREAMS:
        assert 0.99 * epsilon <= made.epsilon(stream) <= epsilon
        assert made.epsilon(stream) == epsilon_at_order(made.events(stream), 1e-5, order)
        assert epsilon_pld(made.events(stream), 1e-5) < made.epsilon(stream)
    assert made.claim == max(made.epsilon(stream) for stream in STREAMS)


@pytest.mark.parametrize("order", [8, 20, 200])
def test_the_noise_at_an_order_is_the_least_of_four_decimals(order: int) -> None:
    made = plan(3.0, order)
    assert all(a.noise_multiplier == round(a.noise_multiplier, 4) for a in made.allowances)
    less = [a.event for a in made.allowances if a.name in ("search", "final")]
    less = [sampled(0.1, event.noise_multiplier - 1e-4, event.amount) for event in less]
    assert epsilon_at_order(less, 1e-5, order) > 3.0


@given(
    epsilon=st.floats(min_value=0.5, max_value=10.0),
    order=st.integers(min_value=25, max_value=256),
    steps=st.integers(min_value=1, max_value=500),
)
@settings(max_examples=20, deadline=None)
def test_a_filter_that_adds_up_exactly_never_refuses_a_plans_last_step(
    epsilon: float, order: int, steps: int
) -> None:
    schedule = ReleaseSchedule(
        sampling_probability=0.1, search_steps=steps, final_steps=50, architecture_steps=7, fitness_releases=3
    )
    made = plan(epsilon, order, schedule)
    for stream in STREAMS:
        exact = sum(
            event.amount * Fraction(renyi_divergence([event.scaled(1)], order))
            for event in made.events(stream)
        )
        assert exact <= renyi_budget(epsilon, 1e-5, order)


def test_no_noise_is_enough_for_an_order_that_the_final_leaves_nothing() -> None:
    with pytest.raises(ConfigurationError, match="leaves no epsilon"):
        plan(
            3.0,
            8,
            ReleaseSchedule(sampling_probability=0.1, search_steps=0, final_steps=9, fitness_releases=1),
        )


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0, 12.0])
@pytest.mark.parametrize(
    "schedule",
    [
        SCHEDULE,
        ReleaseSchedule(sampling_probability=1.0, search_steps=20, final_steps=0),
        ReleaseSchedule(sampling_probability=0.1, search_steps=0, final_steps=0, fitness_releases=40),
        ReleaseSchedule(sampling_probability=0.02, search_steps=0, final_steps=0, architecture_steps=300),
    ],
)
def test_no_other_order_needs_less_noise_than_the_best(epsilon: float, schedule: ReleaseSchedule) -> None:
    best = best_order(budget(epsilon), schedule)
    first = plan(epsilon, best, schedule).allowances[0]
    for order in {*range(max(2, best - 3), min(256, best + 3)), best * 2 % 256, best // 2}:
        if order >= (least_order(epsilon, 1e-5) or 2):
            other = plan(epsilon, order, schedule).allowances[0]
            assert first.noise_multiplier <= other.noise_multiplier + 1e-4


def test_the_best_order_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="nothing is scheduled"):
        best_order(budget(1.0), ReleaseSchedule(sampling_probability=0.1, search_steps=0, final_steps=0))


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0, 8.0])
def test_adapting_costs_about_a_tenth_of_epsilon(epsilon: float) -> None:
    """At the best order: 8 to 15 % for the training, measured; what shares its order may pay more."""
    made = plan(epsilon, best_order(budget(epsilon), SCHEDULE))
    assert 1.05 <= epsilon / epsilon_pld(made.events("weights"), 1e-5) <= 1.2
    for stream in STREAMS:
        assert 1.0 < epsilon / epsilon_pld(made.events(stream), 1e-5) <= 1.5


def test_a_charge_after_10_000_others_takes_less_than_2_ms() -> None:
    cap, filter_ = PrivacyBudget(epsilon=1e4, delta=1e-5, order=8), RenyiFilter(8)

    def allowance(index: int) -> Allowance:
        event: Event = sampled(0.1, 1.0 + index / 1000, 1)
        return Allowance(name="final", streams=STREAMS, event=event, clip_norm=1.0)

    for index in range(10_000):
        filter_.add(allowance(index), 1)
    times = []
    for index in range(1000):
        new = allowance(index * 11)  # most were seen before, a tenth is new
        started = time.thread_time()
        assert filter_.refusal(cap, [(new, 1)]) is None
        filter_.add(new, 1)
        times.append(time.thread_time() - started)
    assert sorted(times)[990] < 2e-3

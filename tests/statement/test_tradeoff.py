"""The translated risk is what the pairs imply: at most, and attained by the test that they allow."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas.statement.tradeoff import risk

EPSILONS = st.floats(min_value=0.0, max_value=30.0)
DELTAS = st.floats(min_value=1e-12, max_value=0.1)
PAIRS = st.lists(st.tuples(EPSILONS, DELTAS), min_size=1, max_size=4)


def test_one_pair_has_the_advantage_of_the_textbook() -> None:
    for epsilon, delta in ((0.1, 1e-5), (1.0, 1e-5), (3.0, 1e-3), (8.0, 1e-9)):
        expected = (math.expm1(epsilon) + 2.0 * delta) / (math.exp(epsilon) + 1.0)
        assert risk([(epsilon, delta)]).advantage == pytest.approx(expected, abs=1e-12)


def test_a_perfect_guarantee_leaves_a_guess() -> None:
    nothing = risk([(0.0, 1e-15)])
    assert nothing.advantage == pytest.approx(0.0, abs=1e-12)
    assert nothing.tpr_at_1_percent == pytest.approx(0.01)
    assert nothing.tpr_at_01_percent == pytest.approx(0.001)


def test_no_guarantee_is_certainty() -> None:
    for pairs in ([], [(math.inf, 1e-5)], [(1e4, 1e-5)]):
        assert risk(pairs).advantage == 1.0
        assert risk(pairs).tpr_at_01_percent == 1.0


def test_randomised_response_attains_the_bound() -> None:
    """The mechanism that tells the truth with probability e^eps / (1 + e^eps) has exactly this advantage."""
    epsilon = 1.5
    truth = math.exp(epsilon) / (1.0 + math.exp(epsilon))
    assert risk([(epsilon, 0.0)]).advantage == pytest.approx(2.0 * truth - 1.0)


@given(pairs=PAIRS, more=st.tuples(EPSILONS, DELTAS))
def test_a_further_guarantee_never_raises_the_risk(
    pairs: list[tuple[float, float]], more: tuple[float, float]
) -> None:
    before, after = risk(pairs), risk([*pairs, more])
    assert after.advantage <= before.advantage + 1e-12
    assert after.tpr_at_1_percent <= before.tpr_at_1_percent + 1e-12
    assert after.tpr_at_01_percent <= before.tpr_at_01_percent + 1e-12


@given(pairs=PAIRS)
def test_the_advantage_is_the_largest_on_a_fine_grid_of_rates(pairs: list[tuple[float, float]]) -> None:
    rates = np.concatenate([np.linspace(0.0, 1.0, 4001), np.logspace(-12, 0, 400)])
    highest = np.ones_like(rates)
    for epsilon, delta in pairs:
        highest = np.minimum(highest, delta + math.exp(epsilon) * rates)
        highest = np.minimum(highest, 1.0 - math.exp(-epsilon) * (1.0 - delta - rates))
    found = risk(pairs).advantage
    assert found >= float(np.max(highest - rates)) - 1e-12
    assert found <= float(np.max(highest - rates)) + 2.0 / 4000.0


def test_a_gaussian_mechanism_stays_below_the_curve_of_its_pairs() -> None:
    """Twin: the exact trade-off of a Gaussian mechanism, Phi(Phi^-1(a) + mu), against its own pairs."""
    from scipy.stats import norm

    mu = 1.0

    def delta_at(epsilon: float) -> float:
        first = norm.cdf(mu / 2.0 - epsilon / mu)
        return float(first - math.exp(epsilon) * norm.cdf(-mu / 2.0 - epsilon / mu))

    pairs = [(epsilon, delta_at(epsilon)) for epsilon in (0.5, 1.0, 2.0, 4.0)]
    bound = risk(pairs)
    assert 2.0 * norm.cdf(mu / 2.0) - 1.0 <= bound.advantage
    for rate, found in ((0.01, bound.tpr_at_1_percent), (0.001, bound.tpr_at_01_percent)):
        exact = norm.cdf(norm.ppf(rate) + mu)
        assert exact <= found <= 2.5 * exact

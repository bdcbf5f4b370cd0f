"""The estimators: what they say of known games, against obvious twins, and what no game may make them say."""

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from dp_accounting import get_epsilon_gaussian, get_sigma_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, norm

from fednas.audit.estimators import NAMES, Bound, accusers, f_dp, gdp, lower_bounds, one_run
from fednas.audit.estimators.gaussian import delta_of, epsilon_of, guesses_beyond, mu_of
from fednas.audit.estimators.guesses import SIGNIFICANCE, num_correct
from fednas.audit.findings import Game
from fednas.errors import ConfigurationError
from tests.audit.games import DELTA, game_of, gaussian_game

CLAIMS = st.sampled_from([0.1, 1.0, 2.0, 4.0, 10.0])
SCORES = st.one_of(
    st.floats(-5.0, 5.0),
    st.sampled_from([0.0, -0.0, 1.0, math.inf, -math.inf]),
    st.integers(-3, 3).map(float),
)


@st.composite
def games(draw: st.DrawFn) -> Game:
    seen = draw(st.lists(st.tuples(st.booleans(), SCORES), min_size=1, max_size=60))
    members, scores = zip(*seen, strict=True)
    return game_of(np.array(members), np.array(scores), claim=draw(CLAIMS))


def epsilons(game: Game, confidence: float = 0.95) -> NDArray[np.float64]:
    return np.array([bound.epsilon for bound in lower_bounds(game, confidence)])


@given(game=games())
@settings(max_examples=150, deadline=None)
def test_bounds_of_any_game_are_finite_not_negative_and_fall_with_confidence(game: Game) -> None:
    found = [epsilons(game, confidence) for confidence in (0.5, 0.9, 0.95, 0.999, 1.0 - 1e-6)]
    assert all(np.isfinite(bounds).all() and (bounds >= 0.0).all() for bounds in found)
    assert all((higher <= lower + 1e-9).all() for lower, higher in pairwise(found))


@given(game=games(), confidence=st.floats(0.5, 0.999))
@settings(max_examples=50, deadline=None)
def test_anybody_computes_the_same_numbers_from_printed_scores(game: Game, confidence: float) -> None:
    again = np.array([float(repr(float(score))) for score in game.scores])
    copy = game_of(game.members, again, claim=float(repr(game.claim)))
    assert lower_bounds(copy, confidence) == lower_bounds(game, confidence)


@pytest.mark.parametrize("m", [1, 2, 3, 17, 400])
@pytest.mark.parametrize("claim", [0.1, 2.0, 10.0])
def test_an_attacker_who_is_always_wrong_shows_nothing(m: int, claim: float) -> None:
    members = np.arange(m) % 2 == 0
    for scores in (np.where(members, -1.0, 1.0), np.where(members, -np.inf, np.inf)):
        assert epsilons(game_of(members, scores, claim=claim)).tolist() == [0.0, 0.0, 0.0]
        assert not accusers(game_of(members, scores, claim=claim))


@pytest.mark.parametrize("scores", [0.0, 1e300, np.inf, -np.inf])
def test_equal_scores_show_nothing(scores: float) -> None:
    random = np.random.default_rng(3)
    members = random.random(400) < 0.5
    bounds = epsilons(game_of(members, np.full(400, scores), claim=2.0))
    assert bounds.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("everybody", [False, True])
def test_a_coin_that_fell_alike_for_all_shows_less_than_one_that_did_not(everybody: bool) -> None:
    same = epsilons(game_of(np.full(50, everybody), np.full(50, 9.0 if everybody else -9.0), claim=2.0))
    members = np.arange(50) % 2 == 0
    fair = epsilons(game_of(members, np.where(members, 9.0, -9.0), claim=2.0))
    assert (same <= fair).all()
    assert same[0] < fair[0]


def test_an_attacker_who_is_always_right_gets_the_ceiling_of_the_one_run_bound() -> None:
    for m in (100, 1000, 10_000):
        bound = one_run.epsilon_of_counts(m, m, m, 0.0, 0.05)
        assert bound == pytest.approx(-math.log(0.05 ** (-1 / m) - 1.0), abs=1e-8)
        assert bound == pytest.approx(math.log(m / 3), abs=0.02)


def test_one_canary_is_not_enough_to_show_anything() -> None:
    game = game_of(np.array([True]), np.array([np.inf]), claim=2.0)
    assert epsilons(game).tolist() == [0.0, 0.0, 0.0]


@given(order=st.permutations(range(40)), shift=st.floats(-3.0, 3.0), scale=st.floats(0.1, 10.0))
@settings(max_examples=30, deadline=None)
def test_bounds_do_not_depend_on_the_order_of_canaries_nor_two_of_them_on_the_unit_of_scores(
    order: list[int], shift: float, scale: float
) -> None:
    game = gaussian_game(np.random.default_rng(1), claim=4.0, m=40, mu=2.0)
    assert lower_bounds(game_of(game.members[order], game.scores[order], claim=4.0)) == lower_bounds(game)
    moved = game_of(game.members, game.scores * scale + shift, claim=4.0)
    assert lower_bounds(moved)[:2] == lower_bounds(game)[:2]


def test_every_bound_names_its_estimator_and_what_it_assumes() -> None:
    bounds = lower_bounds(gaussian_game(np.random.default_rng(0), claim=2.0, m=100), 0.9)
    assert tuple(bound.estimator for bound in bounds) == NAMES == ("one-run", "f-DP", "GDP")
    assert all(bound.confidence == 0.9 and "coin" in bound.assumption for bound in bounds)
    assert ["mu-GDP" in bound.assumption for bound in bounds] == [False, True, True]
    assert ["no other score" in bound.assumption for bound in bounds] == [False, False, True]
    assert isinstance(bounds[0], Bound)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, math.nan])
def test_a_confidence_out_of_its_bounds_is_refused(confidence: float) -> None:
    with pytest.raises(ConfigurationError, match="confidence"):
        lower_bounds(gaussian_game(np.random.default_rng(0), claim=2.0, m=100), confidence)


# --- the Gaussian trade-off ---


@pytest.mark.parametrize("mu", [0.01, 0.1, 0.5, 1.0, 3.0, 10.0, 50.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 1e-2])
def test_epsilon_of_mu_is_that_of_google_and_its_own_inverse(mu: float, delta: float) -> None:
    epsilon = epsilon_of(mu, delta)
    assert epsilon == pytest.approx(get_epsilon_gaussian(1 / mu, delta), abs=1e-6)
    if epsilon > 0.0:
        assert delta_of(mu, epsilon) == pytest.approx(delta, rel=1e-6)
        assert mu_of(epsilon, delta) == pytest.approx(mu, rel=1e-6)
        assert 1.0 / mu_of(epsilon, delta) == pytest.approx(get_sigma_gaussian(epsilon, delta), rel=1e-5)


def test_the_ends_of_the_gaussian_trade_off_are_nothing_and_everything() -> None:
    assert epsilon_of(0.0, 1e-5) == epsilon_of(1e-6, 1e-5) == 0.0
    assert epsilon_of(math.inf, 1e-5) == math.inf
    assert delta_of(0.0, 0.0) == delta_of(0.0, 1.0) == 0.0
    assert epsilon_of(1e3, 1e-5) > 5e5


@pytest.mark.parametrize(
    "refused",
    [
        lambda: epsilon_of(-1.0, 1e-5),
        lambda: epsilon_of(math.nan, 1e-5),
        lambda: epsilon_of(1.0, 0.0),
        lambda: mu_of(0.0, 1e-5),
        lambda: mu_of(math.inf, 1e-5),
        lambda: mu_of(math.nan, 1e-5),
        lambda: mu_of(1.0, 1.0),
    ],
)
def test_numbers_out_of_their_bounds_are_refused(refused: Callable[[], float]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        refused()


def test_the_share_of_guesses_and_of_right_ones_is_what_a_simulated_attacker_has() -> None:
    random, mu, distance = np.random.default_rng(5), 0.9, 0.75
    game = gaussian_game(random, claim=1.0, m=200_000, mu=mu)
    guessed = np.abs(game.scores - mu / 2) > distance
    share, right = guesses_beyond(mu, distance)
    assert guessed.mean() == pytest.approx(share, abs=0.005)
    assert ((game.scores > mu / 2) == game.members)[guessed].mean() == pytest.approx(right, abs=0.005)


# --- twins ---


@pytest.mark.parametrize(("m", "guesses", "delta"), [(20, 20, 0.0), (60, 25, 1e-3), (200, 40, 1e-5)])
def test_the_one_run_p_value_is_that_of_the_papers_loop_in_exact_arithmetic(
    m: int, guesses: int, delta: float
) -> None:
    for correct in range(guesses + 1):
        for epsilon in (0.0, 0.5, 2.0):
            right = Fraction(1.0 / (1.0 + math.exp(-epsilon)))

            def mass(successes: int, right: Fraction = right) -> Fraction:
                ways = math.comb(guesses, successes)
                return ways * right**successes * (1 - right) ** (guesses - successes)

            beta = sum((mass(i) for i in range(correct, guesses + 1)), Fraction(0))
            alpha, total = Fraction(0), Fraction(0)
            for i in range(1, correct + 1):
                total += mass(correct - i)
                alpha = max(alpha, total / i)
            p_value = min(1.0, float(beta + alpha * Fraction(delta) * 2 * m))
            assert one_run.p_value(m, guesses, correct, epsilon, delta) == pytest.approx(p_value, abs=1e-12)


def audit_rh(mu: float, m: int, guesses: int, correct: int, significance: float) -> bool:
    """The algorithm of arXiv 2410.22235 with its tables r and h, as it is written there."""
    h, r = [0.0] * (correct + 1), [0.0] * (correct + 1)
    r[correct], h[correct] = significance * correct / m, significance * (guesses - correct) / m
    for i in range(correct - 1, -1, -1):
        h[i] = max(h[i + 1], float(norm.cdf(norm.ppf(r[i + 1]) - mu)))
        r[i] = min(1.0, r[i + 1] + i / (guesses - i) * (h[i] - h[i + 1]))
    return r[0] + h[0] > guesses / m


@given(
    guesses=st.integers(1, 40),
    beside=st.integers(0, 40),
    wrong=st.integers(0, 20),
    mu=st.floats(0.0, 4.0),
    significance=st.sampled_from([0.2, 0.05, 1e-3, SIGNIFICANCE]),
)
@settings(max_examples=100, deadline=None)
def test_the_f_dp_bound_is_that_of_the_papers_algorithm(
    guesses: int, beside: int, wrong: int, mu: float, significance: float
) -> None:
    correct, m = max(0, guesses - wrong), guesses + beside
    bound = f_dp.mu_of_counts(m, guesses, correct, significance)
    if abs(mu - bound) > 1e-4:
        assert audit_rh(mu, m, guesses, correct, significance) == (mu < bound)


def test_the_f_dp_bound_is_no_sharper_than_independent_guesses_allow() -> None:
    # If each score saw its own coin only, right guesses of all canaries would be binomial.
    for correct in (540, 600, 700):
        mu = f_dp.mu_of_counts(1000, 1000, correct, 0.05)
        assert binom.sf(correct - 1, 1000, norm.cdf(mu / 2)) < 0.05


def test_the_rates_of_the_gdp_bound_are_clopper_and_pearsons() -> None:
    assert gdp.epsilon_of_counts(0, 0, 0, 0, 1e-5, 0.05) == 0.0
    # 30 of 500 members above a threshold that no other exceeds: the rates say more than all guesses do.
    found, clear = binom_least(30, 500, 0.005), binom_least(500, 500, 0.005)
    expected = epsilon_of(float(norm.ppf(found) + norm.ppf(clear)), DELTA)
    assert gdp.epsilon_of_counts(500, 30, 500, 500, DELTA, 0.05) == pytest.approx(expected, rel=1e-6)
    # 300 and 300 of 500: all guesses say more.
    expected = epsilon_of(2 * float(norm.ppf(binom_least(600, 1000, 0.04))), DELTA)
    assert gdp.epsilon_of_counts(500, 300, 500, 300, DELTA, 0.05) == pytest.approx(expected, rel=1e-6)


def binom_least(successes: int, trials: int, significance: float) -> float:
    """The rate at which so many successes have exactly the chance `significance`, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if binom.sf(successes - 1, trials, middle) < significance else (low, middle)
        )
    return low


# --- presets ---


def test_the_upper_half_is_called_members_and_the_lower_half_not() -> None:
    scores = np.array([3.0, -1.0, 2.0, 0.0, -2.0, 1.0])
    members = np.array([True, False, False, True, True, True])
    assert [num_correct(scores, members, guesses) for guesses in range(7)] == [0, 1, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("m", [100, 400, 1000, 4000])
@pytest.mark.parametrize("claim", [0.1, 1.0, 2.0, 3.0])
def test_presets_let_each_estimator_accuse_a_system_without_noise_wherever_canaries_suffice(
    m: int, claim: float
) -> None:
    members = np.arange(m) % 2 == 0
    accused = accusers(game_of(members, np.where(members, np.inf, -np.inf), claim=claim))
    assert "GDP" in accused
    if m >= 3 * one_run.least_guesses(claim):
        assert accused == frozenset(NAMES)
    assert 0 < one_run.num_guesses(m, claim, DELTA) <= m
    assert 0 < f_dp.num_guesses(m, claim, DELTA) <= m


@pytest.mark.parametrize(
    ("claim", "m", "least"),
    [
        (2.0, 1000, (0.57, 0.77, 1.11)),
        (2.0, 4000, (0.73, 0.93, 1.60)),
        (4.0, 1000, (1.15, 1.59, 3.00)),
    ],
)
def test_a_gaussian_mechanism_that_spends_its_claim_gets_the_expected_bounds(
    claim: float, m: int, least: tuple[float, float, float]
) -> None:
    random = np.random.default_rng([7, m])
    found = np.array([epsilons(gaussian_game(random, claim=claim, m=m)) for _ in range(100)])
    median = np.median(found, axis=0)
    assert (median >= least).all()
    assert (median < claim).all()

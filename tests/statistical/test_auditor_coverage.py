"""The auditor is audited: its bounds are above a known epsilon in one game of twenty at most.

Each game is one audit. Estimators that break the rules, on the same games, are shown to fail the same test.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri

from fednas.audit.estimators import NAMES, gdp, lower_bounds, one_run
from fednas.audit.estimators.gaussian import epsilon_of, mu_of
from fednas.audit.findings import Game
from fednas.privacy.accounting import epsilon_pld
from fednas.privacy.events import PoissonGaussian
from tests.audit.games import DELTA, game_of, gaussian_game

CLAIMS = (1.0, 2.0, 4.0)
SIZES = (400, 1000)
NUM_GAMES = [pytest.param(200, id="200"), pytest.param(2000, id="2000", marks=pytest.mark.slow)]

Mechanism = Callable[[np.random.Generator, float, int], Game]


def most_above(games: int) -> float:
    """A share of 5 %, and three standard deviations of it."""
    return 0.05 + 3.0 * math.sqrt(0.05 * 0.95 / games)


def share_above(play: Callable[[], Game], games: int, epsilon: float) -> NDArray[np.float64]:
    """Of the games, in how many each estimator's bound is above epsilon."""
    found = np.array([[bound.epsilon for bound in lower_bounds(play())] for _ in range(games)])
    return np.asarray(np.mean(found > epsilon, axis=0))


# --- mechanisms; each takes what it claims and keeps it exactly ---


def tight_gaussian(random: np.random.Generator, epsilon: float, m: int) -> Game:
    """Gaussian noise that spends (epsilon, delta) wholly; each canary in a direction of its own."""
    return gaussian_game(random, claim=epsilon, m=m)


def crowded_gaussian(random: np.random.Generator, epsilon: float, m: int) -> Game:
    """The same noise, but canaries are unit vectors of too few dimensions: their scores hang together."""
    directions = random.normal(size=(m, 50))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    members = random.random(m) < 0.5
    released = mu_of(epsilon, DELTA) * (members @ directions) + random.normal(size=50)
    return game_of(members, directions @ released, claim=epsilon)


def sampled_gaussian(random: np.random.Generator, epsilon: float, m: int) -> Game:
    """Six steps that sample a record with a chance of a quarter, which is no Gaussian trade-off.

    The attacker sees every step and scores canaries by their likelihood, in the unit of a Gaussian mechanism.
    """
    q, sigma, steps = 0.25, sampled_sigma(epsilon), 6
    members = random.random(m) < 0.5
    seen = random.normal(size=(m, steps)) * sigma + members[:, None] * (random.random((m, steps)) < q)
    likelihood = np.log1p(q * np.expm1((seen - 0.5) / sigma**2)).sum(axis=1)
    mu = mu_of(epsilon, DELTA)
    return game_of(members, likelihood / mu + mu / 2.0, claim=epsilon)


@lru_cache
def sampled_sigma(epsilon: float) -> float:
    """Noise of six steps at a sampling probability of a quarter that spends (epsilon, delta)."""

    def excess(sigma: float) -> float:
        event = PoissonGaussian(sampling_probability=0.25, noise_multiplier=sigma, steps=6)
        return epsilon_pld([event], DELTA, value_discretization_interval=1e-3) - epsilon

    return float(brentq(excess, 0.5, 10.0, xtol=1e-2))


def randomised_response(random: np.random.Generator, epsilon: float, m: int) -> Game:
    """Each canary's coin, turned with a chance of 1 / (1 + exp(epsilon)), seen by its sign alone."""
    members = random.random(m) < 0.5
    turned = random.random(m) < 1.0 / (1.0 + math.exp(epsilon))
    return game_of(members, np.where(members ^ turned, 5.0, -5.0), claim=epsilon, delta=1e-9)


def discrete_laplace(random: np.random.Generator, epsilon: float, m: int) -> Game:
    """A count for each canary, of sensitivity 1, with two-sided geometric noise: many scores are equal."""
    members = random.random(m) < 0.5
    noise = random.geometric(-math.expm1(-epsilon), m) - random.geometric(-math.expm1(-epsilon), m)
    return game_of(members, (members + noise).astype(np.float64), claim=epsilon, delta=1e-9)


def leaky_response(random: np.random.Generator, epsilon: float, m: int) -> Game:
    """Randomised response that shows a canary's coin as it is with a chance of delta = 1 %."""
    game = randomised_response(random, epsilon, m)
    leaked = random.random(m) < 0.01
    scores = np.where(leaked, np.where(game.members, 9.0, -9.0), game.scores)
    return game_of(game.members, scores, claim=epsilon, delta=0.01)


def failing_response(random: np.random.Generator, epsilon: float, m: int) -> Game:
    """Randomised response that shows all coins as they are with a chance of delta = 1 %."""
    game = randomised_response(random, epsilon, m)
    scores = np.where(game.members, 9.0, -9.0) if random.random() < 0.01 else game.scores
    return game_of(game.members, scores, claim=epsilon, delta=0.01)


HONEST: list[tuple[Mechanism, tuple[str, ...]]] = [
    (tight_gaussian, NAMES),
    (sampled_gaussian, NAMES),
    (crowded_gaussian, ("one-run", "f-DP")),
    (randomised_response, ("one-run",)),
    (discrete_laplace, ("one-run",)),
    (leaky_response, ("one-run",)),
    (failing_response, ("one-run",)),
]
"""Each with the estimators whose assumptions hold for it. Sampling makes tails heavier than a Gaussian's."""


@pytest.mark.parametrize(
    ("mechanism", "estimators"), HONEST, ids=lambda value: getattr(value, "__name__", "")
)
@pytest.mark.parametrize("epsilon", CLAIMS)
@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("games", NUM_GAMES)
def test_bounds_are_above_the_true_epsilon_in_one_game_of_twenty_at_most(
    mechanism: Mechanism, estimators: tuple[str, ...], epsilon: float, m: int, games: int
) -> None:
    random = np.random.default_rng([1, m, int(epsilon)])
    above = share_above(lambda: mechanism(random, epsilon, m), games, epsilon)
    for name in estimators:
        assert above[NAMES.index(name)] <= most_above(games), name


@pytest.mark.parametrize("claim", [1.0, 10.0])
@pytest.mark.parametrize("games", NUM_GAMES)
def test_bounds_are_as_honest_where_the_claim_was_another(claim: float, games: int) -> None:
    random, epsilon = np.random.default_rng([2, int(claim)]), 2.0
    mu = mu_of(epsilon, DELTA)
    above = share_above(lambda: gaussian_game(random, claim=claim, m=1000, mu=mu), games, epsilon)
    assert (above <= most_above(games)).all()


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("games", NUM_GAMES)
def test_scores_that_do_not_know_the_coins_give_next_to_nothing(claim: float, m: int, games: int) -> None:
    random = np.random.default_rng([3, m, int(claim)])
    above = share_above(lambda: gaussian_game(random, claim=claim, m=m, mu=0.0), games, 0.3)
    assert (above <= 0.05).all()


# --- estimators that break a rule ---


def best_threshold(game: Game) -> float:
    """GDP at whichever threshold of the scores gives most."""
    num_members = int(game.members.sum())
    bounds = []
    for threshold in np.quantile(game.scores, np.linspace(0.02, 0.98, 49)):
        guessed = game.scores > threshold
        found, cleared = int((guessed & game.members).sum()), int((~guessed & ~game.members).sum())
        others = len(game.members) - num_members
        bounds.append(gdp.epsilon_of_counts(num_members, found, others, cleared, game.delta, 0.05))
    return max(bounds)


def best_number(game: Game) -> float:
    """One-run with whichever number of guesses gives most."""
    right = np.where(game.scores > 0.0, game.members, ~game.members)[np.argsort(-np.abs(game.scores))]
    counts = np.cumsum(right)
    m = len(game.members)
    return max(one_run.epsilon_of_counts(m, k, int(counts[k - 1]), game.delta, 0.05) for k in range(5, m, 10))


def one_interval(game: Game) -> float:
    """GDP that takes the false positive rate as it was counted, and an interval for the other rate only."""
    guessed = game.scores > gdp.threshold(game.claim, game.delta)
    found, num_members = int((guessed & game.members).sum()), int(game.members.sum())
    cleared, num_others = int((~guessed & ~game.members).sum()), int((~game.members).sum())
    least = gdp.least_rate(found, num_members, 0.05)
    return epsilon_of(max(0.0, float(ndtri(least) + ndtri(cleared / num_others))), game.delta)


def point_estimate(game: Game) -> float:
    """GDP without any interval."""
    guessed = game.scores > gdp.threshold(game.claim, game.delta)
    return epsilon_of(max(0.0, 2.0 * float(ndtri(np.mean(guessed == game.members)))), game.delta)


@pytest.mark.parametrize("broken", [best_threshold, one_interval, point_estimate])
def test_estimators_that_break_the_rules_fail_the_test_of_coverage(broken: Callable[[Game], float]) -> None:
    random, epsilon, games = np.random.default_rng(4), 2.0, 1000
    above = np.mean([broken(tight_gaussian(random, epsilon, 1000)) > epsilon for _ in range(games)])
    assert above > most_above(games)


def test_guesses_chosen_on_the_scores_fail_the_test_of_coverage() -> None:
    random, epsilon, games = np.random.default_rng(5), 1.0, 200

    def play() -> Game:  # randomised response of many confidences, all of which it keeps
        members = random.random(400) < 0.5
        turned = random.random(400) < 1.0 / (1.0 + math.exp(epsilon))
        scores = np.where(members ^ turned, 1.0, -1.0) * random.random(400)
        return game_of(members, scores, claim=epsilon, delta=1e-9)

    broken = np.mean([best_number(play()) > epsilon for _ in range(games)])
    assert broken > most_above(games)
    assert share_above(play, games, epsilon)[0] <= most_above(games)

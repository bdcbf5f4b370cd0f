"""Verdicts: who is accused, who is not, and what a user is told when an audit could accuse nobody."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import bdtr, expit, ndtr

from fednas.audit import verdict
from fednas.audit.estimators import CONFIDENCE, NAMES, accusers, f_dp, gdp, lower_bounds, one_run
from fednas.audit.estimators.gaussian import mu_of
from fednas.audit.estimators.guesses import SIGNIFICANCE
from fednas.audit.findings import Check, Game
from tests.audit.games import DELTA, game_of, gaussian_game


def without_noise(m: int, claim: float) -> Game:
    """As an attacker sees it who knows the claim's noise: others at 0, members at mu."""
    members = np.random.default_rng(m).random(m) < 0.5
    return game_of(members, np.where(members, mu_of(claim, DELTA), 0.0), claim=claim)


def test_a_check_stands_for_itself() -> None:
    check = Check(layer="L1", name="records are clipped", holds=False)
    assert list(verdict.checks(check)) == [check]


def test_a_game_stands_for_one_check_of_each_estimator_with_its_figures() -> None:
    game = replace(gaussian_game(np.random.default_rng(0), claim=2.0, m=1000), mechanism="fitness", runs=1000)
    found = list(verdict.checks(game))
    assert [check.name for check in found] == [
        f"no attacker extracted more of the fitness than its claim ({name})" for name in NAMES
    ]
    assert all(check.layer == "L3" and check.holds for check in found)
    for check, bound in zip(found, lower_bounds(game, CONFIDENCE), strict=True):
        assert check.detail == (
            f"epsilon >= {bound.epsilon:.2f} at 95% confidence; claimed 2 at delta 1e-05; "
            "m = 1000, runs = 1000"
        )


def test_a_bound_that_is_above_its_claim_by_chance_accuses_nobody_and_says_so() -> None:
    random = np.random.default_rng(1)
    games = [gaussian_game(random, claim=2.0, m=400) for _ in range(200)]
    details = [check.detail for game in games for check in verdict.checks(game) if check.holds]
    lucky = [detail for detail in details if "not beyond doubt" in detail]
    assert len(details) == 600
    assert 0 < len(lucky) <= 0.1 * 200
    assert all(float(detail.split()[2]) >= 2.0 for detail in lucky)


@pytest.mark.parametrize(("m", "claim"), [(400, 2.0), (1000, 3.0), (4000, 4.0), (200, 1.0), (100, 0.1)])
def test_a_system_without_noise_fails_every_check(m: int, claim: float) -> None:
    assert [check.holds for check in verdict.checks(without_noise(m, claim))] == [False, False, False]


@pytest.mark.parametrize("factor", [0.2, 0.5])
def test_a_system_with_a_fraction_of_its_noise_is_accused(factor: float) -> None:
    random = np.random.default_rng(2)
    game = gaussian_game(random, claim=2.0, m=1000, mu=mu_of(2.0, DELTA) / factor)
    assert not all(check.holds for check in verdict.checks(game))


def test_a_few_leaked_canaries_are_enough_to_accuse() -> None:
    # One canary in ten is leaked whole, the others are as private as claimed.
    random = np.random.default_rng(3)
    game = gaussian_game(random, claim=1.0, m=4000)
    leaked = random.random(4000) < 0.1
    scores = np.where(leaked, np.where(game.members, 50.0, -50.0), game.scores)
    assert "one-run" in accusers(game_of(game.members, scores, claim=1.0))


@pytest.mark.parametrize("claim", [0.1, 1.0, 2.0, 3.0, 10.0])
@pytest.mark.parametrize("m", [100, 400, 1000])
def test_correct_systems_are_not_accused_in_a_thousand_games(claim: float, m: int) -> None:
    random = np.random.default_rng([4, m, int(10 * claim)])
    assert not any(accusers(gaussian_game(random, claim=claim, m=m)) for _ in range(1000))


def tail(chances: NDArray[np.float64], least: int) -> float:
    """The chance that at least so many of independent coins fall right."""
    masses = np.zeros(len(chances) + 1)
    masses[0] = 1.0
    for chance in chances:
        masses[1:] = masses[1:] * (1.0 - chance) + masses[:-1] * chance
        masses[0] *= 1.0 - chance
    return float(masses[least:].sum())


def first(accused: Callable[[int], bool], most: int) -> int:
    """The least number that is accused, or one more than any."""
    return next((number for number in range(most + 1) if accused(number)), most + 1)


@pytest.mark.parametrize("claim", [0.1, 1.0, 2.0, 3.0, 10.0])
@pytest.mark.parametrize("m", [100, 400, 1000])
def test_the_chance_that_guesses_accuse_a_gaussian_system_is_what_is_promised(claim: float, m: int) -> None:
    """Computed, as no simulation sees 3e-7: once scores are known, right guesses are independent coins."""
    random, mu = np.random.default_rng([5, m]), mu_of(claim, DELTA)
    guesses = one_run.num_guesses(m, claim, DELTA)
    limits = {guesses: first(lambda correct: one_run.refutes(m, guesses, correct, claim, DELTA), guesses)}
    other = f_dp.num_guesses(m, claim, DELTA)
    least = first(lambda correct: f_dp.exceeds(mu, m, other, correct, SIGNIFICANCE), other)
    limits[other] = min(least, limits.get(other, least))
    for number, limit in limits.items():
        chances = []
        for _ in range(10):
            scores = np.sort(gaussian_game(random, claim=claim, m=m).scores)
            member = expit(mu * (scores - mu / 2))
            right = np.concatenate([1.0 - member[: number // 2], member[m - (number + 1) // 2 :]])
            chances.append(tail(right, limit))
        assert np.mean(chances) < SIGNIFICANCE


@pytest.mark.parametrize("claim", [0.1, 2.0, 10.0])
@pytest.mark.parametrize("m", [100, 400])
def test_the_chance_that_rates_accuse_a_gaussian_system_is_what_is_promised(claim: float, m: int) -> None:
    half, right = m // 2, float(ndtr(mu_of(claim, DELTA) / 2))
    masses = np.diff(bdtr(np.arange(half + 1), half, right), prepend=0.0)

    def accused(found: int, cleared: int) -> bool:
        return gdp.epsilon_of_counts(half, found, half, cleared, DELTA, SIGNIFICANCE) > claim

    chance, cleared = 0.0, half + 1
    for found in range(half + 1):  # the more are found, the fewer need be cleared
        while cleared > 0 and accused(found, cleared - 1):
            cleared -= 1
        chance += float(masses[found] * masses[cleared:].sum())
    assert 0.0 < chance < SIGNIFICANCE


def test_a_system_whose_delta_is_a_failure_is_not_accused_by_the_bound_that_assumes_nothing() -> None:
    # It fails wholly with a chance of delta for all canaries: as bad as (epsilon, delta) allows.
    random, delta, claim = np.random.default_rng(6), 1e-3, 2.0
    accused = 0
    for _ in range(2000):
        game = gaussian_game(random, claim=claim, m=400, mu=0.0)
        fails = random.random() < delta
        scores = np.where(game.members, 9.0, -9.0) if fails else game.scores
        accused += "one-run" in accusers(game_of(game.members, scores, claim=claim, delta=delta))
    assert accused <= 0.01 * 2000


def test_the_power_of_an_audit_is_about_what_a_game_shows_and_its_ceiling_is_above() -> None:
    random = np.random.default_rng(7)
    for claim, m in ((2.0, 400), (2.0, 1000), (4.0, 1000)):
        games = [gaussian_game(random, claim=claim, m=m) for _ in range(60)]
        shown = np.median([[bound.epsilon for bound in lower_bounds(game)] for game in games], axis=0)
        expected = np.array([bound.epsilon for bound in verdict.power(games[0])])
        assert np.abs(shown - expected).max() < 0.2
        assert (np.array([bound.epsilon for bound in verdict.ceiling(games[0])]) > claim).all()


def test_power_ceiling_and_warning_read_no_score() -> None:
    random = np.random.default_rng(8)
    one, two = (gaussian_game(random, claim=4.0, m=400) for _ in range(2))
    assert verdict.power(one) == verdict.power(two)
    assert verdict.ceiling(one) == verdict.ceiling(two)
    assert verdict.too_few(one) == verdict.too_few(two)


@pytest.mark.parametrize("claim", [0.1, 1.0, 2.0, 3.0, 5.0])
def test_a_user_is_told_in_one_line_when_a_system_without_noise_would_pass(claim: float) -> None:
    few = verdict.too_few(gaussian_game(np.random.default_rng(0), claim=claim, m=20))
    assert few is not None
    assert "\n" not in few
    assert "20 canaries are few" in few
    wanted = re.search(r"play (\d+) or", few)
    assert wanted is not None
    enough = gaussian_game(np.random.default_rng(0), claim=claim, m=max(100, int(wanted[1])))
    assert verdict.too_few(enough) is None
    assert [check.holds for check in verdict.checks(without_noise(len(enough.members), claim))] == [False] * 3


def test_where_no_number_of_canaries_is_enough_only_a_smaller_claim_helps() -> None:
    for claim in (7.0, 10.0):  # too many canaries: that one fails wholly is in the claim's delta
        few = verdict.too_few(gaussian_game(np.random.default_rng(0), claim=claim, m=1000))
        assert few is not None
        assert few.endswith("would pass by one-run and f-DP; audit at a smaller claim")
    # As measured with 1000 canaries at a claim of 10: the one-run bound lets a system without noise pass.
    holds = {check.name: check.holds for check in verdict.checks(without_noise(1000, 10.0))}
    assert list(holds.values()) == [True, True, False]

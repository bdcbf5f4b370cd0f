"""Our estimators beside those of jax-privacy 2.0.0, which others published and we did not write."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fednas.audit.estimators import f_dp, lower_bounds, one_run
from tests.audit.games import DELTA, gaussian_game


def theirs(m: int, guesses: int, correct: int) -> tuple[float, float]:
    """Their one-run and f-DP bounds, at 95 %, for numbers of guesses.

    They guess members only, so a canary that we called no member changes its side: right guesses become
    members above the threshold, wrong ones become others above it, and what is not guessed lies below.
    """
    from jax_privacy.auditing import CanaryScoreAuditor, Explicit  # imports jax: a second and a half

    members = np.concatenate([np.ones(correct), np.zeros((m - guesses) // 2)])
    others = np.concatenate([np.ones(guesses - correct), np.zeros(m - guesses - (m - guesses) // 2)])
    auditor = CanaryScoreAuditor(members, others)
    strategy = Explicit(0.5)
    return (
        auditor.epsilon_one_run(0.05, DELTA, threshold_strategy=strategy),
        auditor.epsilon_one_run_fdp(0.05, DELTA, threshold_strategy=strategy),
    )


@pytest.mark.parametrize("m", [100, 1000])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.95])
@pytest.mark.parametrize("right", [0.3, 0.55, 0.65, 0.8, 1.0])
def test_bounds_agree_with_the_published_implementation(m: int, share: float, right: float) -> None:
    guesses = round(share * m)
    correct = round(right * guesses)
    steinke, mahloujifar = theirs(m, guesses, correct)
    assert one_run.epsilon_of_counts(m, guesses, correct, DELTA, 0.05) == pytest.approx(steinke, abs=1e-3)
    assert f_dp.epsilon_of_counts(m, guesses, correct, DELTA, 0.05) == pytest.approx(mahloujifar, abs=1e-3)


@pytest.mark.parametrize("claim", [1.0, 2.0, 4.0])
def test_bounds_of_whole_games_agree_with_the_published_implementation(claim: float) -> None:
    random, m = np.random.default_rng([8, int(claim)]), 1000
    for _ in range(3):
        game = gaussian_game(random, claim=claim, m=m)
        ours = lower_bounds(game)
        for place, guesses in enumerate(
            (one_run.num_guesses(m, claim, DELTA), f_dp.num_guesses(m, claim, DELTA))
        ):
            ranks = np.argsort(game.scores)
            called = np.concatenate(
                [~game.members[ranks[: guesses // 2]], game.members[ranks[m - (guesses + 1) // 2 :]]]
            )
            assert ours[place].epsilon == pytest.approx(
                theirs(m, guesses, int(np.sum(called)))[place], abs=1e-3
            )


def test_their_gdp_bound_accuses_a_perfectly_private_mechanism_and_ours_does_not() -> None:
    # They try every threshold and both signs of mu, and a sum of rates above 1 counts as a leak: an upper end
    # near 1 makes mu very negative, its absolute value large. That is why ours fixes one threshold.
    from jax_privacy.auditing import CanaryScoreAuditor

    random = np.random.default_rng(9)
    published: list[float] = []
    ours: list[NDArray[np.float64]] = []
    for _ in range(20):
        game = gaussian_game(random, claim=2.0, m=1000, mu=0.0)
        auditor = CanaryScoreAuditor(game.scores[game.members], game.scores[~game.members])
        published.append(auditor.epsilon_from_gdp(0.05, DELTA))
        ours.append(np.array([bound.epsilon for bound in lower_bounds(game)]))
    assert np.median(published) > 2.0
    assert (np.median(ours, axis=0) == 0.0).all()
    assert (np.mean(np.array(ours) > 0.3, axis=0) <= 0.05).all()

"""Games against mechanisms whose true epsilon is known."""

import numpy as np
from numpy.typing import NDArray

from fednas.audit.estimators.gaussian import mu_of
from fednas.audit.findings import Game

DELTA = 1e-5


def game_of(
    members: NDArray[np.bool_],
    scores: NDArray[np.float64],
    *,
    claim: float,
    delta: float = DELTA,
    runs: int = 1,
) -> Game:
    """A game with given scores."""
    return Game(
        mechanism="weights",
        claim=claim,
        delta=delta,
        members=np.asarray(members, dtype=np.bool_),
        scores=np.asarray(scores, dtype=np.float64),
        runs=runs,
        adversary="a test",
    )


def gaussian_game(random: np.random.Generator, *, claim: float, m: int, mu: float | None = None) -> Game:
    """One against Gaussian noise: by default such as spends the claim wholly."""
    members = random.random(m) < 0.5
    shift = mu_of(claim, DELTA) if mu is None else mu
    return game_of(members, random.normal(size=m) + shift * members, claim=claim)

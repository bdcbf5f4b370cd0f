"""Lower bounds on epsilon from what an attacker guessed of canaries, each with its source and assumption."""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fednas.audit.estimators import f_dp, gdp, one_run
from fednas.audit.findings import Game
from fednas.errors import ConfigurationError

__all__ = ["CONFIDENCE", "NAMES", "Bound", "accusers", "lower_bounds"]

CONFIDENCE: Final = 0.95
"""Of the bounds that are reported; those that accuse have a far higher one."""


class _Estimator(Protocol):
    NAME: str
    ASSUMPTION: str

    def lower_bound(
        self,
        scores: NDArray[np.float64],
        members: NDArray[np.bool_],
        *,
        claim: float,
        delta: float,
        confidence: float,
    ) -> float: ...

    def accuses(
        self, scores: NDArray[np.float64], members: NDArray[np.bool_], *, claim: float, delta: float
    ) -> bool: ...


_ESTIMATORS: Final[tuple[_Estimator, ...]] = (one_run, f_dp, gdp)
NAMES: Final = tuple(estimator.NAME for estimator in _ESTIMATORS)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What an attacker has shown: epsilon is no less, if the assumption holds.

    Args:
        estimator: its name.
        epsilon: at the game's delta, >= 0.
        confidence: chance that a bound made so is not above the true epsilon.
        assumption: what the estimator takes for granted.
    """

    estimator: str
    epsilon: float
    confidence: float
    assumption: str


def lower_bounds(game: Game, confidence: float = CONFIDENCE) -> tuple[Bound, ...]:
    """Each estimator's bound on epsilon; the same numbers from the same game, for anybody.

    Args:
        game: what an attacker saw.
        confidence: of each bound alone, 0 < confidence < 1.

    Raises:
        ConfigurationError: the confidence is out of its bounds.
    """
    if not 0.0 < confidence < 1.0:
        raise ConfigurationError(f"expected 0 < confidence < 1, got {confidence}")
    return tuple(
        Bound(
            estimator=estimator.NAME,
            epsilon=estimator.lower_bound(
                game.scores, game.members, claim=game.claim, delta=game.delta, confidence=confidence
            ),
            confidence=confidence,
            assumption=estimator.ASSUMPTION,
        )
        for estimator in _ESTIMATORS
    )


def accusers(game: Game) -> frozenset[str]:
    """The estimators by which a game refutes its claim.

    A mechanism that keeps its claim by Gaussian noise is accused with a chance of at most 1e-6.

    Args:
        game: what an attacker saw.
    """
    return frozenset(
        estimator.NAME
        for estimator in _ESTIMATORS
        if estimator.accuses(game.scores, game.members, claim=game.claim, delta=game.delta)
    )

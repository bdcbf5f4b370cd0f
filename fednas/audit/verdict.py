"""What findings amount to: the bounds of a game, and whether a system is accused."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from fednas.audit.estimators import CONFIDENCE, NAMES, Bound, accusers, lower_bounds, one_run
from fednas.audit.estimators.gaussian import mu_of
from fednas.audit.findings import Check, Finding, Game

_CANARIES_PER_GUESS = 3.0  # of some number that is tried, and is at most half of all
_MOST_CANARIES = 100_000  # that a subject allows


def checks(finding: Finding) -> Iterator[Check]:
    """The checks that a finding stands for: itself, or that no bound of a game is above its claim.

    A game's check fails only if the bound at a confidence far above that of the reported ones exceeds the
    claim: a correct system, if its noise is Gaussian, fails any check of a game with a chance of 1e-6 at
    most.

    Args:
        finding: a check or a game.
    """
    if isinstance(finding, Check):
        yield finding
        return
    accused, number = accusers(finding), len(finding.members)
    for bound in lower_bounds(finding):
        chance = bound.epsilon > finding.claim and bound.estimator not in accused
        yield Check(
            layer="L3",
            name=f"no attacker extracted more of the {finding.mechanism} than its claim ({bound.estimator})",
            holds=bound.estimator not in accused,
            detail=f"epsilon >= {bound.epsilon:.2f} at {CONFIDENCE:.0%} confidence; claimed "
            f"{finding.claim:g} at delta {finding.delta:g}; m = {number}, runs = {finding.runs}"
            + ("; not beyond doubt: one correct audit in twenty shows more than its claim" if chance else ""),
        )


def power(game: Game) -> tuple[Bound, ...]:
    """The bounds to expect of a Gaussian mechanism that spends the game's whole claim.

    Args:
        game: its claim, its delta and its number of canaries are read, its scores are not.
    """
    members = _halves(len(game.members))
    scores = np.empty(len(members))
    for group in (members, ~members):
        number = int(np.count_nonzero(group))
        scores[group] = ndtri((np.arange(number) + 0.5) / max(1, number))
    return lower_bounds(
        replace(game, members=members, scores=scores + mu_of(game.claim, game.delta) * members)
    )


def ceiling(game: Game) -> tuple[Bound, ...]:
    """The bounds of an attacker who is always right: with so few canaries nothing larger can be shown.

    Args:
        game: its claim, its delta and its number of canaries are read, its scores are not.
    """
    return lower_bounds(_always_right(game, len(game.members)))


def too_few(game: Game) -> str | None:
    """One line for people if a system without any noise would pass an estimator; else None.

    Args:
        game: its claim, its delta and its number of canaries are read, its scores are not.
    """
    silent = _silent(game, len(game.members))
    if not silent:
        return None
    wanted = math.ceil(_CANARIES_PER_GUESS * one_run.least_guesses(game.claim))
    enough = wanted <= _MOST_CANARIES and not _silent(game, wanted)
    return (
        f"{len(game.members)} canaries are few for a claim of epsilon {game.claim:g}: a system without noise "
        f"would pass by {' and '.join(silent)}; "
        + (f"play {wanted} or audit at a smaller claim" if enough else "audit at a smaller claim")
    )


def _silent(game: Game, canaries: int) -> list[str]:
    """The estimators that would not accuse, with so many canaries, though an attacker were always right."""
    accused = accusers(_always_right(game, canaries))
    return [name for name in NAMES if name not in accused]


def _always_right(game: Game, canaries: int) -> Game:
    members = _halves(canaries)
    return replace(game, members=members, scores=np.where(members, np.inf, -np.inf))


def _halves(number: int) -> NDArray[np.bool_]:
    return np.asarray(np.arange(number) % 2 == 1)

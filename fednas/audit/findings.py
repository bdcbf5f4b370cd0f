"""What an audit finds: checks that hold or do not, and games whose scores bound a leak from below."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fednas.errors import ConfigurationError

Layer = Literal["L0", "L1", "L2", "L3"]
LAYERS: tuple[Layer, ...] = ("L0", "L1", "L2", "L3")
MECHANISMS = ("weights", "architecture", "fitness")
"""Of which games are played: each reads the stream of its name."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that is true of a correct system, and whether it was.

    Args:
        layer: which found it.
        name: a sentence that holds for a correct system.
        holds: whether it did.
        detail: figures and public words, for people.
    """

    layer: Layer
    name: str
    holds: bool
    detail: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Game:
    """What an attacker saw of canaries, each of which was a record of the site or was not, by a fair coin.

    Args:
        mechanism: one of `MECHANISMS`, whose releases were attacked.
        claim: epsilon of the plan that the canaries were under, at `delta`.
        delta: of the claim.
        members: shape (m,), bool: whether each canary was a record.
        scores: shape (m,), float64: what the attacker computed of the releases for each, larger for members;
            in units of its standard deviation under noise alone.
        runs: over how many independent runs of the mechanism: 1, or m when each run had one canary.
        adversary: what the attacker knows and may choose, a sentence.

    Raises:
        ConfigurationError: the arrays do not belong together, or a score is not a number.
    """

    mechanism: str
    claim: float
    delta: float
    members: NDArray[np.bool_] = field(repr=False)
    scores: NDArray[np.float64] = field(repr=False)
    runs: int
    adversary: str

    def __post_init__(self) -> None:
        if self.mechanism not in MECHANISMS:
            raise ConfigurationError(f"unknown mechanism {self.mechanism!r}; expected one of {MECHANISMS}")
        if self.members.ndim != 1 or self.members.shape != self.scores.shape or len(self.members) == 0:
            raise ConfigurationError("expected one score for each canary")
        if self.members.dtype != np.bool_ or self.scores.dtype != np.float64 or np.isnan(self.scores).any():
            raise ConfigurationError("expected memberships as bool and scores as float64 without NaN")


Finding: TypeAlias = Check | Game

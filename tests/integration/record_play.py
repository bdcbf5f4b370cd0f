"""The same computation on neighbouring data, with the noise frozen: what a play sees of a mechanism."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fednas.evaluation import noised_counts
from fednas.privacy.allowance import STREAMS
from fednas.privacy.grid import noised_sum
from fednas.privacy.ledger import Permit
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.released import SEAL
from fednas.privacy.streams import StreamedRecords
from fednas.search.policy import Policy
from fednas.space import Architecture, SearchSpace
from fednas.space.layers import gates
from fednas.training import Optimisation, alphas, architecture_gradient, train_weights, weights
from tests.training.sites import open_plan

MECHANISMS = {"search": "weights", "alphas": "architecture", "fitness": "fitness"}
Features = NDArray[np.float32]
Labels = NDArray[np.int64]
Units = NDArray[np.int64]


class Frozen:
    """No noise, and coins that are the same for common records; it keeps what it was asked for.

    Args:
        extra: (how many records a sample is of, the place of the one more among them), or nothing; that one
            is always in the sample.
        rate: of the coins of the others.
    """

    def __init__(self, extra: tuple[int, int] | None, *, rate: float = 1.0) -> None:
        self.extra, self.rate = extra, rate
        self.asked: list[tuple[object, ...]] = []

    @property
    def private(self) -> bool:
        return True

    def noise(self, sigma: float, size: int) -> NDArray[np.int64]:
        self.asked.append(("noise", sigma, size))
        return np.zeros(size, dtype=np.int64)

    def poisson(self, probability: float, size: int) -> NDArray[np.bool_]:
        coins = np.random.default_rng(len(self.asked)).random(10_000) < self.rate
        self.asked.append(("sample", probability))
        if self.extra is None or self.extra[0] != size:
            return coins[:size]
        return np.insert(coins[: size - 1], self.extra[1], True)


@dataclass
class Spy:
    """Keeps the sums that mechanisms hand to the noise, in grid units."""

    sums: list[Units] = field(default_factory=list)

    def __call__(self, units: Units, **terms: Any) -> NDArray[np.float64]:
        self.sums.append(units.copy())
        return noised_sum(units, **terms)

    def watch(self, patch: pytest.MonkeyPatch) -> "Spy":
        patch.setattr(weights, "noised_sum", self)
        patch.setattr(alphas, "noised_sum", self)
        return self

    def take(self) -> list[Units]:
        taken, self.sums = self.sums, []
        return taken


def in_the_middle(
    x: Features, y: Labels, record: Features, label: int
) -> tuple[Features, Labels, tuple[int, int]]:
    """The records with one more in their midst, and what `Frozen` must know of it."""
    place = len(x) // 2
    return np.insert(x, place, record, axis=0), np.insert(y, place, label), (len(x) + 1, place)


def monster(kind: str, shape: tuple[int, ...], generator: np.random.Generator) -> Features:
    """A record that stands out."""
    usual = generator.standard_normal(shape)
    if kind == "sparse":
        usual *= generator.random(shape) < 0.1
    scale = {"usual": 1.0, "outlier": 1e4, "huge": 1e38, "tiny": 1e-42, "sparse": 1e3, "zero": 0.0}[kind]
    return (np.clip(usual, -3.0, 3.0) * scale).astype(np.float32)


def play(
    what: str,
    space: SearchSpace,
    architecture: Architecture,
    x: Features,
    y: Labels,
    *,
    seed: int,
    spy: Spy,
    extra: tuple[int, int] | None = None,
    micro_batch: int = 16,
    plan: PrivacyPlan | None = None,
    size: float = 40.0,
) -> Units:
    """What a real mechanism sums up before its noise: shape (d,) in grid units, or the count, shape (1,)."""
    streams = np.full(len(x), STREAMS.index(MECHANISMS[what]), dtype=np.uint8)
    records = StreamedRecords(x, y, streams)
    permit = Permit(plan=plan or open_plan(), charges={what: 1}, entropy=Frozen(extra), seal=SEAL)
    torch.manual_seed(seed)
    network = space.build(architecture, gated=what == "alphas")
    if what == "search":
        how = Optimisation(
            steps=1, learning_rate=0.1, momentum=0.0, micro_batch=micro_batch, divisor_size=size
        )
        train_weights(network, records, permit, allowance="search", optimisation=how)
        return spy.take()[0]
    if what == "alphas":
        policy = Policy(space)
        policy.set_flat(np.random.default_rng(seed).standard_normal(policy.size))
        shaped = gates(network)
        rows = {name: row for name, row in policy.jacobian(architecture).items() if name in shaped}
        architecture_gradient(
            network, records, permit, jacobian=rows, divisor_size=size, micro_batch=micro_batch
        )
        return spy.take()[0]
    return noised_counts([network], records, permit)


def length(vector: Units) -> float:
    """The exact norm of integers, rounded once."""
    return math.sqrt(sum(int(value) ** 2 for value in vector[vector != 0]))


def forms(arrays: Mapping[str, NDArray[Any]]) -> dict[str, tuple[object, ...]]:
    """All of some arrays but their values, and where a value is none (a choice that a path does not have)."""
    return {name: (a.shape, a.dtype, np.isfinite(a).tobytes()) for name, a in arrays.items()}

"""A small conditional space with a known fitness and a limit that two thirds of it exceed."""

from collections.abc import Sequence

import numpy as np

from fednas.search import Trial
from fednas.space import Architecture, SearchSpace, choice, node, repeat
from fednas.space.cost import Cost
from fednas.space.layers import Network

LIMIT = 96
NOISE = 0.02


def _unbuilt(architecture: Architecture, gated: bool) -> Network:
    raise AssertionError("a strategy needs no network")


def space() -> SearchSpace:
    """Return a space of 1 010 400 architectures with nested choices and repeats."""
    block = node(
        choice("op", "skip", "point", ("spread", choice("kernel", 3, 5, 7))), choice("width", 8, 16, 24, 32)
    )
    return SearchSpace(
        name="synthetic",
        tree=node(
            choice("activation", "relu", "tanh", "selu"),
            repeat("blocks", (2, 3, 4), block),
            choice("shortcut", "none", "sum"),
        ),
        input_shape=(4,),
        num_classes=2,
        builder=_unbuilt,
    )


def tiny_space() -> SearchSpace:
    """Return a space of 12 architectures."""
    return SearchSpace(
        name="tiny",
        tree=node(choice("op", "a", ("b", choice("size", 1, 2, 3))), choice("width", 8, 16, 32)),
        input_shape=(4,),
        num_classes=2,
        builder=_unbuilt,
    )


def load(architecture: Architecture) -> int:
    """Return a cost: widths, more for operators that spread."""
    factors = {"skip": 1, "point": 2, "spread": 1, "a": 1, "b": 1}
    total = 0
    for name, width in architecture.choices:
        if name.endswith("width"):
            prefix = name.removesuffix("width")
            kernel = architecture.as_dict().get(prefix + "kernel", 1)
            assert isinstance(width, int)
            assert isinstance(kernel, int)
            total += width * factors[str(architecture.as_dict().get(prefix + "op", "skip"))] * kernel
    return total


def violation(architecture: Architecture) -> float:
    """Return the relative excess over the limit."""
    return load(architecture) / LIMIT - 1.0


def cost(architecture: Architecture) -> Cost:
    """Return a cost that carries the load."""
    amount = load(architecture)
    return Cost(parameters=amount, macs=amount, peak_bytes=amount, training_bytes=amount, upload_bytes=amount)


WORTH = {
    "relu": 0.0, "tanh": 0.1, "selu": 0.05, "skip": 0.0, "point": 0.06, "spread": 0.04,
    3: 0.02, 5: 0.08, 7: 0.05, 8: 0.0, 16: 0.05, 24: 0.07, 32: 0.08,
    "none": 0.0, "sum": 0.06, 2: 0.0, 4: 0.04,
}  # fmt: skip
"""What an option is worth wherever it is chosen; three blocks count as a kernel of 3."""


def quality(architecture: Architecture) -> float:
    """Return the true fitness: additive, with an interaction of activation and shortcut."""
    values = architecture.as_dict()
    bonus = 0.05 * (values["activation"] == "tanh" and values["shortcut"] == "sum")
    return 0.3 + sum(WORTH[value] for value in values.values()) + bonus


def evaluate(architectures: Sequence[Architecture], generator: np.random.Generator) -> list[Trial]:
    """Return noised outcomes."""
    return [
        Trial(
            architecture=architecture,
            fitness=quality(architecture) + NOISE * generator.standard_normal(),
            fitness_std=NOISE,
            cost=cost(architecture),
        )
        for architecture in architectures
    ]

"""Finding what fits: enumeration, and the sweep of spaces too large to list."""

import numpy as np
import pytest

from fednas.search import create, feasible
from fednas.search.feasible import enumerate_space
from fednas.space import SearchSpace, choice, node, repeat
from tests.search import synthetic


def _spaces() -> list[SearchSpace]:
    trees = [
        synthetic.tiny_space().tree,
        node(choice("only", 1)),
        node(),
        node(repeat("n", (0, 1, 2), node(choice("a", 1, ("x", choice("b", 1, 2)))))),
        node(choice("p", ("q", choice("c", 1, 2)), ("r", choice("c", 1, 2))), choice("z", 1, 2)),
    ]
    builder = synthetic.tiny_space().builder
    return [SearchSpace(name="s", tree=t, input_shape=(1,), num_classes=2, builder=builder) for t in trees]


@pytest.mark.parametrize("space", _spaces(), ids=range(5))
def test_enumeration_meets_every_architecture_once(space: SearchSpace) -> None:
    found = list(enumerate_space(space))
    assert len(set(found)) == len(found) == space.size
    assert all(map(space.contains, found))
    generator = np.random.default_rng(0)
    assert {space.sample(generator) for _ in range(50)} <= set(found)


def test_a_large_space_is_swept_from_its_smallest_feasible_corner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feasible, "SWEEP", 11)  # the tiny space of 12 counts as large
    space = synthetic.tiny_space()
    strategy = create("random", space=space, violation=lambda a: 1.0 if a["width"] == 32 else 0.0)
    asked = strategy.ask(8, np.random.default_rng(0))
    assert len(set(asked)) == 8
    assert set(strategy.ask(8, np.random.default_rng(1))) <= set(asked)


def test_feasible_ground_away_from_the_smallest_is_reached_downhill() -> None:
    space = synthetic.space()
    wanted = {"activation": "selu", "blocks": 3, "shortcut": "sum"}

    def violation(architecture: object) -> float:
        values = architecture.as_dict()  # type: ignore[attr-defined]
        return float(sum(values[name] != value for name, value in wanted.items()))

    strategy = create("evolution", space=space, violation=violation)
    assert all(violation(a) == 0.0 for a in strategy.ask(5, np.random.default_rng(0)))


def test_each_architecture_is_measured_once() -> None:
    space = synthetic.tiny_space()
    measured = []

    def violation(architecture: object) -> float:
        measured.append(architecture)
        return 0.0

    strategy = create("random", space=space, violation=violation)
    strategy.ask(12, np.random.default_rng(0))
    strategy.ask(12, np.random.default_rng(0))
    assert len(measured) == len(set(measured)) == 12

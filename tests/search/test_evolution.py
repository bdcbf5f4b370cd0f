"""Regularised evolution: the contract, and that the old die."""

import numpy as np

from fednas.search.evolution import Evolution
from fednas.space import Architecture
from tests.contracts.search_strategy import LearningStrategyContract
from tests.search import synthetic


class TestEvolution(LearningStrategyContract):
    name = "evolution"


def _distance(left: Architecture, right: Architecture) -> int:
    a, b = left.as_dict(), right.as_dict()
    return sum(a[name] != b[name] for name in a.keys() & b.keys())


def _told(fitness: dict[Architecture, float], population_size: int) -> Evolution:
    strategy = Evolution(
        synthetic.space(), lambda _: 0.0, population_size=population_size, tournament_size=9, num_initial=1
    )
    for architecture, value in fitness.items():
        (trial,) = synthetic.evaluate([architecture], np.random.default_rng(0))
        strategy.tell(
            [type(trial)(architecture=architecture, fitness=value, fitness_std=0.1, cost=trial.cost)]
        )
    return strategy


def test_children_are_one_mutation_from_the_winner() -> None:
    space = synthetic.space()
    strategy = _told({space.smallest(): 0.1, space.largest(): 0.9}, population_size=2)
    children = strategy.ask(10, np.random.default_rng(1))
    assert all(_distance(child, space.largest()) <= 1 for child in children)


def test_the_oldest_die_however_good() -> None:
    space = synthetic.space()
    strategy = _told({space.largest(): 0.9, space.smallest(): 0.1}, population_size=1)
    children = strategy.ask(10, np.random.default_rng(1))
    assert all(_distance(child, space.smallest()) <= 1 for child in children)


def test_a_lucky_outlier_is_pooled_with_its_repeats() -> None:
    space = synthetic.space()
    strategy = _told({space.largest(): 0.9, space.smallest(): 0.5}, population_size=3)
    (trial,) = synthetic.evaluate([space.largest()], np.random.default_rng(0))
    strategy.tell([type(trial)(architecture=space.largest(), fitness=-0.5, fitness_std=0.1, cost=trial.cost)])
    children = strategy.ask(5, np.random.default_rng(1))
    assert all(_distance(child, space.smallest()) <= 1 for child in children)

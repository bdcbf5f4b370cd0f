"""Trials, pooling and the choice of the best: released values only."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas.errors import ConfigurationError, InfeasibleDeviceError
from fednas.search import Policy, Trial, best, create, pool, successor
from fednas.search.feasible import enumerate_space
from fednas.space import Architecture
from tests.search import synthetic

ARCHITECTURES = list(enumerate_space(synthetic.tiny_space()))


def _trial(index: int, fitness: float, std: float = 0.1) -> Trial:
    architecture = ARCHITECTURES[index]
    return Trial(
        architecture=architecture, fitness=fitness, fitness_std=std, cost=synthetic.cost(architecture)
    )


def _anything(_: Architecture) -> bool:
    return True


@pytest.mark.parametrize(
    ("fitness", "std"), [(float("nan"), 0.1), (float("inf"), 0.1), (0.5, -0.1), (0.5, float("inf"))]
)
def test_a_trial_refuses_what_cannot_be_averaged(fitness: float, std: float) -> None:
    with pytest.raises(ConfigurationError):
        _trial(0, fitness, std)


def test_the_best_is_the_fittest_that_fits() -> None:
    trials = [_trial(0, 0.5), _trial(1, 0.9), _trial(2, 0.7)]
    assert best(trials, _anything).architecture == ARCHITECTURES[1]
    assert best(trials, lambda a: a != ARCHITECTURES[1]).architecture == ARCHITECTURES[2]


def test_the_runner_up_is_second_and_the_last_place_is_the_last() -> None:
    trials = [_trial(0, 0.5), _trial(1, 0.9), _trial(2, 0.7)]
    assert [best(trials, _anything, top).architecture for top in (1, 2, 3, 9)] == [
        ARCHITECTURES[i] for i in (1, 2, 0, 0)
    ]
    with pytest.raises(ConfigurationError):
        best(trials, _anything, 0)


def test_ties_do_not_depend_on_the_order_of_trials() -> None:
    trials = [_trial(index, 0.5) for index in range(5)]
    assert best(trials, _anything) == best(trials[::-1], _anything)


def test_nothing_evaluated_that_fits_is_an_error() -> None:
    with pytest.raises(InfeasibleDeviceError, match="none of the 1"):
        best([_trial(0, 0.5)], lambda _: False)


def test_a_lucky_noisy_score_loses_to_a_precise_one() -> None:
    trials = [_trial(0, 0.9, 0.2), _trial(0, 0.5, 0.02), _trial(1, 0.6, 0.02)]
    assert best(trials, _anything).architecture == ARCHITECTURES[1]


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-1, 1), st.floats(1e-3, 10)), min_size=1, max_size=12))
def test_pooling_equals_the_weighted_mean_of_each_architecture(rows: list[tuple[int, float, float]]) -> None:
    pooled = {trial.architecture: trial for trial in pool([_trial(*row) for row in rows])}
    assert len(pooled) == len({index for index, _, _ in rows})
    for index in {index for index, _, _ in rows}:
        group = [(fitness, std) for i, fitness, std in rows if i == index]
        total = sum(std**-2 for _, std in group)
        trial = pooled[ARCHITECTURES[index]]
        assert trial.fitness == pytest.approx(sum(f * std**-2 for f, std in group) / total)
        assert trial.fitness_std == pytest.approx(total**-0.5)


def test_exact_evaluations_outweigh_noisy_ones() -> None:
    (trial,) = pool([_trial(0, 0.9, 0.1), _trial(0, 0.5, 0.0), _trial(0, 0.7, 0.0)])
    assert trial.fitness == pytest.approx(0.6)
    assert trial.fitness_std == 0.0


def test_pooling_has_the_variance_it_claims() -> None:
    generator = np.random.default_rng(0)
    stds = [0.1, 0.2, 0.4]
    draws = [
        pool([_trial(0, std * generator.standard_normal(), std) for std in stds])[0] for _ in range(3000)
    ]
    empirical = float(np.std([trial.fitness for trial in draws]))
    claimed = draws[0].fitness_std
    assert abs(empirical / claimed - 1.0) < 0.06
    assert not abs(empirical / (claimed * 1.5) - 1.0) < 0.06
    assert not abs(empirical / (claimed * 2 / 3) - 1.0) < 0.06


def test_creating_refuses_unknown_names_and_policies_out_of_place() -> None:
    space = synthetic.tiny_space()
    with pytest.raises(ConfigurationError, match="expected one of random"):
        create("grid", space=space, violation=lambda _: 0.0)
    with pytest.raises(ConfigurationError, match="takes no policy"):
        create("random", space=space, violation=lambda _: 0.0, policy=Policy(space))
    with pytest.raises(ConfigurationError, match="needs a policy"):
        create("differentiable", space=space, violation=lambda _: 0.0)


def test_importing_the_search_loads_neither_torch_nor_optuna() -> None:
    program = "import sys, fednas.search; sys.exit('torch' in sys.modules or 'optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_challenger_must_lead_by_more_than_luck_explains() -> None:
    incumbent, rival = ARCHITECTURES[0], ARCHITECTURES[1]
    others = [_trial(index, 0.1, 0.1) for index in (2, 3)]
    luck = 0.1 * np.sqrt(2.0 * np.log(3))

    def chosen(lead: float) -> Architecture:
        trials = [_trial(0, 0.5, 0.1), _trial(1, 0.5 + lead, 0.1), *others]
        return successor(trials, _anything, incumbent).architecture

    assert chosen(0.9 * luck) == incumbent
    assert chosen(1.1 * luck) == rival


def test_the_best_succeeds_an_incumbent_that_does_not_fit_or_was_not_evaluated() -> None:
    trials = [_trial(0, 0.5, 0.1), _trial(1, 0.51, 0.1), _trial(2, 0.1, 0.1)]
    assert successor(trials, _anything, ARCHITECTURES[3]).architecture == ARCHITECTURES[1]
    smaller = successor(trials, lambda a: a != ARCHITECTURES[0], ARCHITECTURES[0])
    assert smaller.architecture == ARCHITECTURES[1]

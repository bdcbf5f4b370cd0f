"""Differentiable search: the contract, taught through the gates of a synthetic loss."""

from collections.abc import Sequence

import numpy as np

from fednas.search import Policy, SearchStrategy, Trial, create
from fednas.space import SearchSpace
from tests.contracts.search_strategy import LearningStrategyContract, Violation
from tests.search import synthetic


class TestDifferentiable(LearningStrategyContract):
    name = "differentiable"

    def make(self, space: SearchSpace, violation: Violation) -> SearchStrategy:
        self.policy = Policy(space)
        return create(self.name, space=space, violation=violation, policy=self.policy)

    def teach(self, strategy: SearchStrategy, trials: Sequence[Trial]) -> None:
        """The derivative of the loss by a choice's gate is minus what the chosen option is worth there."""
        strategy.tell(trials)
        gradients = []
        for trial in trials:
            rows = self.policy.jacobian(trial.architecture)
            slopes = [-synthetic.WORTH[value] * rows[name] for name, value in trial.architecture.choices]
            gradients.append(np.nan_to_num(self.policy.spread(rows, np.concatenate(slopes))))
        self.policy.learn(np.mean(gradients, axis=0), learning_rate=100.0)


def test_the_policy_is_shared_and_restored_with_the_strategy() -> None:
    space = synthetic.space()
    policy, other = Policy(space), Policy(space)
    policy.set_flat(np.random.default_rng(0).standard_normal(policy.size))
    strategy = create("differentiable", space=space, violation=synthetic.violation, policy=policy)
    create("differentiable", space=space, violation=synthetic.violation, policy=other).restore(
        strategy.state()
    )
    assert np.array_equal(other.flat(), policy.flat())

"""What every search strategy promises; each strategy's tests inherit this suite."""

import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from fednas.errors import ConfigurationError, InfeasibleDeviceError
from fednas.search import SearchStrategy, Trial, best, create
from fednas.space import Architecture, Node, SearchSpace, choice, node
from tests.search import synthetic

Violation = Callable[[Architecture], float]
Score = Callable[[Sequence[Trial]], float]


class SearchStrategyContract:
    """Subclasses name the strategy and, when it learns otherwise than by `tell`, say how."""

    name: str

    def make(self, space: SearchSpace, violation: Violation) -> SearchStrategy:
        """Create the strategy, fresh."""
        return create(self.name, space=space, violation=violation)

    def teach(self, strategy: SearchStrategy, trials: Sequence[Trial]) -> None:
        """Tell the trials and whatever else the strategy learns from."""
        strategy.tell(trials)

    def search(self, strategy: SearchStrategy, seed: int, rounds: int = 6, count: int = 8) -> list[Trial]:
        """Ask, evaluate and teach for some rounds."""
        generator = np.random.default_rng(seed)
        trials: list[Trial] = []
        for _ in range(rounds):
            found = synthetic.evaluate(strategy.ask(count, generator), generator)
            self.teach(strategy, found)
            trials += found
        return trials

    def advantage(self, score: Score, seeds: Sequence[int]) -> float:
        """Return the t-statistic of a score of the trials, against random search on other seeds."""
        differences = []
        for seed in seeds:
            ours = self.search(self.make(synthetic.space(), synthetic.violation), seed)
            random = create("random", space=synthetic.space(), violation=synthetic.violation)
            theirs = SearchStrategyContract.search(self, random, seed + 10_000)
            differences.append(score(ours) - score(theirs))
        return float(np.mean(differences) / (np.std(differences, ddof=1) / len(differences) ** 0.5))

    def test_asks_are_feasible_and_never_repeat(self) -> None:
        strategy = self.make(synthetic.space(), synthetic.violation)
        asked = [trial.architecture for trial in self.search(strategy, seed=1)]
        assert all(synthetic.space().contains(architecture) for architecture in asked)
        assert all(synthetic.violation(architecture) <= 0.0 for architecture in asked)
        assert len(set(asked)) == len(asked) == 48

    def test_asks_before_any_outcome_are_distinct(self) -> None:
        strategy = self.make(synthetic.space(), synthetic.violation)
        generator = np.random.default_rng(2)
        asked = strategy.ask(20, generator) + strategy.ask(20, generator)
        assert len(set(asked)) == 40

    def test_the_whole_feasible_set_comes_before_a_repeat(self) -> None:
        space = synthetic.tiny_space()
        strategy = self.make(space, lambda a: 1.0 if a["width"] == 32 else 0.0)
        generator = np.random.default_rng(3)
        first, second = strategy.ask(5, generator), strategy.ask(3, generator)
        assert len(set(first + second)) == 8
        again = strategy.ask(8, generator)
        assert set(again) == set(first + second)
        assert len(strategy.ask(11, generator)) == 11

    def test_a_repeat_prefers_what_was_never_evaluated(self) -> None:
        strategy = self.make(synthetic.tiny_space(), lambda a: 1.0 if a["width"] == 32 else 0.0)
        generator = np.random.default_rng(4)
        asked = strategy.ask(8, generator)
        strategy.tell([_trial(architecture, 0.5) for architecture in asked[:6]])
        assert set(strategy.ask(2, generator)) == set(asked[6:])

    def test_same_generator_and_history_give_the_same_asks(self) -> None:
        runs = [
            self.search(self.make(synthetic.space(), synthetic.violation), seed=5, rounds=4) for _ in range(2)
        ]
        assert runs[0] == runs[1]
        other = self.search(self.make(synthetic.space(), synthetic.violation), seed=6, rounds=4)
        assert other != runs[0]

    @pytest.mark.parametrize("rounds", [0, 1, 3])
    def test_a_restored_strategy_continues_bit_for_bit(self, rounds: int) -> None:
        strategy = self.make(synthetic.space(), synthetic.violation)
        self.search(strategy, seed=7, rounds=rounds)
        text = json.dumps(strategy.state(), allow_nan=False)
        restored = self.make(synthetic.space(), synthetic.violation)
        restored.restore(json.loads(text))
        assert restored.state() == strategy.state()
        for seed in (8, 9):
            asks = [each.ask(6, np.random.default_rng(seed)) for each in (strategy, restored)]
            assert asks[0] == asks[1]
            for each in (strategy, restored):
                each.tell([_trial(architecture, 0.5) for architecture in asks[0]])

    def test_asking_leaves_no_trace_in_global_randomness(self) -> None:
        before = np.random.get_state()[1].tolist()  # type: ignore[index]
        self.search(self.make(synthetic.space(), synthetic.violation), seed=10, rounds=3)
        assert np.random.get_state()[1].tolist() == before  # type: ignore[index]

    def test_foreign_trials_are_accepted_and_not_asked_again(self) -> None:
        space = synthetic.tiny_space()
        strategy = self.make(space, lambda _: 0.0)
        generator = np.random.default_rng(11)
        foreign = [space.smallest(), space.largest()]
        strategy.tell([_trial(architecture, 0.9) for architecture in foreign])
        asked = strategy.ask(space.size - 2, generator)
        assert len(set(asked)) == space.size - 2
        assert not set(asked) & set(foreign)

    def test_an_infeasible_foreign_trial_misleads_nobody(self) -> None:
        space = synthetic.space()
        strategy = self.make(space, synthetic.violation)
        strategy.tell([_trial(space.largest(), 0.99)])
        asked = [trial.architecture for trial in self.search(strategy, seed=12, rounds=3)]
        assert all(synthetic.violation(architecture) <= 0.0 for architecture in asked)

    def test_a_trial_of_another_space_is_refused_and_nothing_is_kept(self) -> None:
        strategy = self.make(synthetic.space(), synthetic.violation)
        before = strategy.state()
        good, bad = _trial(synthetic.space().smallest(), 0.5), _trial(synthetic.tiny_space().smallest(), 0.5)
        with pytest.raises(ConfigurationError, match="not in this strategy's space"):
            strategy.tell([good, bad])
        assert strategy.state() == before

    def test_a_foreign_or_broken_state_is_refused_and_nothing_changes(self) -> None:
        strategy = self.make(synthetic.space(), synthetic.violation)
        self.search(strategy, seed=13, rounds=1)
        before = strategy.state()
        for broken in (
            {},
            before | {"strategy": "other"},
            before | {"asked": [1]},
            before | {"trials": [{}]},
        ):
            with pytest.raises(ConfigurationError):
                strategy.restore(broken)
            assert strategy.state() == before

    def test_nothing_feasible_is_an_error_that_says_by_how_much(self) -> None:
        for space in (synthetic.tiny_space(), synthetic.space()):
            strategy = self.make(space, lambda _: 0.25)
            with pytest.raises(InfeasibleDeviceError, match="25%"):
                strategy.ask(1, np.random.default_rng(14))

    def test_a_single_feasible_architecture_is_found(self) -> None:
        space = synthetic.space()
        target = space.smallest()
        strategy = self.make(
            space, lambda a: 0.0 if a == target else 0.1 * len(a.choices) + synthetic.load(a)
        )
        assert strategy.ask(1, np.random.default_rng(15)) == [target]

    def test_a_space_without_decisions_has_one_answer(self) -> None:
        tiny = synthetic.tiny_space()
        single = SearchSpace(
            name="one", tree=_single(), input_shape=(4,), num_classes=2, builder=tiny.builder
        )
        strategy = self.make(single, lambda _: 0.0)
        assert strategy.ask(2, np.random.default_rng(16)) == [single.smallest()] * 2


class LearningStrategyContract(SearchStrategyContract):
    """A strategy that learns must earn it: paired runs on fixed seeds, against random search."""

    def test_its_later_asks_are_truly_better_than_random_ones(self) -> None:
        assert self.advantage(quality_of_later_asks, range(6)) > 3.5

    def test_its_choice_beats_that_of_random_search_under_a_constraint(self) -> None:
        assert self.advantage(quality_of_choice, range(40)) > 2.5


def quality_of_choice(trials: Sequence[Trial]) -> float:
    """Return the true quality of the architecture that the released outcomes choose."""
    return synthetic.quality(best(trials, lambda a: synthetic.violation(a) <= 0.0).architecture)


def quality_of_later_asks(trials: Sequence[Trial]) -> float:
    """Return the true mean quality of the last third of the asks."""
    return float(np.mean([synthetic.quality(trial.architecture) for trial in trials[-(len(trials) // 3) :]]))


def _single() -> Node:
    return node(choice("only", "a"))


def _trial(architecture: Architecture, fitness: float) -> Trial:
    return Trial(
        architecture=architecture, fitness=fitness, fitness_std=0.01, cost=synthetic.cost(architecture)
    )

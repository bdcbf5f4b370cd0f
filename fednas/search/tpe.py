"""Tree-structured Parzen estimators, by Optuna: the study is rebuilt from the history at each ask."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from fednas.search.feasible import Feasible
from fednas.search.strategy import History, Trial, pool
from fednas.space.architecture import Architecture, Value
from fednas.space.search_space import SearchSpace

ATTEMPTS = 24
CONSTRAINT = "violation"


@final
class Tpe:
    """Models good and bad architectures choice by choice and asks where their ratio is highest.

    Every choice is a categorical parameter under its full name, conditional ones included; the device's
    limits are a constraint. Nothing of Optuna survives an ask, so its state is the history.

    Args:
        space: where to look.
        violation: relative excess over the device's limits, 0 or less fits.
        num_initial: how many outcomes to see before modelling.

    Source: Bergstra et al. (2011), NeurIPS; the multivariate grouping of Falkner et al. (2018), 1807.01774.
    """

    def __init__(
        self,
        space: SearchSpace,
        violation: Callable[[Architecture], float],
        *,
        num_initial: int = 8,
    ) -> None:
        self._space = space
        self._feasible = Feasible(space, violation)
        self._history = History("tpe")
        self._num_initial = num_initial

    def ask(self, count: int, generator: np.random.Generator) -> list[Architecture]:
        """Suggest unseen feasible architectures."""
        with _quiet():
            study = self._study(int(generator.integers(2**31)))
            return self._feasible.draw(
                count,
                generator,
                propose=lambda: self._suggest(study),
                history=self._history,
                attempts=ATTEMPTS,
            )

    def tell(self, trials: Sequence[Trial]) -> None:
        """Record outcomes for the next study."""
        self._history.tell(trials, self._space.contains)

    def state(self) -> dict[str, Any]:
        """Return what was asked and told."""
        return self._history.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a stored state."""
        self._history.restore(state, self._space.contains)

    def _study(self, seed: int) -> optuna.Study:
        sampler = optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=self._num_initial,
            multivariate=True,
            group=True,
            constant_liar=True,
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        options = self._space.options()
        for trial in pool(self._history.trials):
            choices = trial.architecture.as_dict()
            study.add_trial(
                create_trial(
                    value=trial.fitness,
                    params=choices,
                    distributions={name: CategoricalDistribution(options[name]) for name in choices},
                    constraints={CONSTRAINT: self._feasible.violation(trial.architecture)},
                )
            )
        return study

    def _suggest(self, study: optuna.Study) -> Architecture:
        """Suggest once; what is taken stays a running trial, which repels the next suggestion."""
        trial = study.ask()

        def pick(name: str, options: tuple[Value, ...]) -> Value:
            picked = trial.suggest_categorical(name, options)
            assert picked is not None, "no option of a space is None"
            return picked

        architecture = self._space.complete(pick)
        violation = self._feasible.violation(architecture)
        if violation > 0.0:
            trial.set_constraint(CONSTRAINT, violation)
            study.tell(trial, 0.0)  # the value of an infeasible trial is not looked at
        elif self._history.staleness(architecture):
            study.tell(trial, state=TrialState.FAIL)  # known already: it says nothing new
        return architecture


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's log lines and its notices of experimental features, for this block only."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)

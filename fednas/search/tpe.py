"""Tree-structured Parzen estimators, by Optuna: the study is rebuilt from the history at each ask."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import create_trial

from fednas.search.feasible import Feasible
from fednas.search.strategy import History, Trial, pool
from fednas.space.architecture import Architecture, Value
from fednas.space.search_space import SearchSpace

ATTEMPTS = 128
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

    Source: Bergstra et al. (2011), NeurIPS; Watanabe (2023), 2304.11127.
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
            multivariate=False,  # so that conditional choices learn from the trials that have them
            constant_liar=True,  # suggestions of the same ask repel each other
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
        """Suggest once; the trial stays running and repels the next ones, whether it was seen or did not fit.

        Telling the study of misfits as well would count them as outcomes and widen what passes for good.
        """
        trial = study.ask()

        def pick(name: str, options: tuple[Value, ...]) -> Value:
            picked = trial.suggest_categorical(name, options)
            assert picked is not None, "no option of a space is None"
            return picked

        return self._space.complete(pick)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's log lines, for this block only."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)

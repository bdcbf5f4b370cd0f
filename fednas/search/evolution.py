"""Regularised evolution: tournaments in a population whose oldest members die."""

from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np

from fednas.search.feasible import Feasible
from fednas.search.strategy import History, Trial, pool
from fednas.space.architecture import Architecture
from fednas.space.search_space import SearchSpace

ATTEMPTS = 128


@final
class Evolution:
    """Mutates the winner of a tournament among the most recently told feasible trials.

    Repeated evaluations of an architecture are pooled; what is told without having been asked for joins the
    population as well. Until `num_initial` feasible outcomes are known, asks are random.

    Args:
        space: where to look.
        violation: relative excess over the device's limits, 0 or less fits.
        population_size: how many of the latest trials live.
        tournament_size: how many of them compete to be mutated.
        num_initial: how many outcomes to see before evolving.

    Source: Real et al. (2019), 1802.01548.
    """

    def __init__(
        self,
        space: SearchSpace,
        violation: Callable[[Architecture], float],
        *,
        population_size: int = 24,
        tournament_size: int = 6,
        num_initial: int = 8,
    ) -> None:
        self._space = space
        self._feasible = Feasible(space, violation)
        self._history = History("evolution")
        self._population_size = population_size
        self._tournament_size = tournament_size
        self._num_initial = num_initial

    def ask(self, count: int, generator: np.random.Generator) -> list[Architecture]:
        """Breed unseen feasible architectures."""
        population = self._population()

        def propose() -> Architecture:
            if len(population) < self._num_initial:
                return self._space.sample(generator)
            size = min(self._tournament_size, len(population))
            rivals = [population[i] for i in generator.choice(len(population), size=size, replace=False)]
            winner = max(rivals, key=lambda trial: trial.fitness)
            return self._space.mutate(winner.architecture, generator)

        return self._feasible.draw(
            count, generator, propose=propose, history=self._history, attempts=ATTEMPTS
        )

    def tell(self, trials: Sequence[Trial]) -> None:
        """Add outcomes to the population; the oldest leave it."""
        self._history.tell(trials, self._space.contains)

    def state(self) -> dict[str, Any]:
        """Return what was asked and told."""
        return self._history.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a stored state."""
        self._history.restore(state, self._space.contains)

    def _population(self) -> list[Trial]:
        living = [trial for trial in self._history.trials if self._feasible.fits(trial.architecture)]
        alive = {trial.architecture for trial in living[-self._population_size :]}
        return [trial for trial in pool(living) if trial.architecture in alive]

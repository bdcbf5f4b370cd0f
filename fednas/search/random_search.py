"""Random search: the baseline every other strategy must beat."""

from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np

from fednas.search.feasible import Feasible
from fednas.search.strategy import History, Trial
from fednas.space.architecture import Architecture
from fednas.space.search_space import SearchSpace

ATTEMPTS = 256


@final
class RandomSearch:
    """Draws uniformly at each choice among what fits.

    Args:
        space: where to look.
        violation: relative excess over the device's limits, 0 or less fits.

    Source: Li & Talwalkar (2019), 1902.07638, on why it must be reported.
    """

    def __init__(self, space: SearchSpace, violation: Callable[[Architecture], float]) -> None:
        self._space = space
        self._feasible = Feasible(space, violation)
        self._history = History("random")

    def ask(self, count: int, generator: np.random.Generator) -> list[Architecture]:
        """Draw unseen feasible architectures."""
        return self._feasible.draw(
            count,
            generator,
            propose=lambda: self._space.sample(generator),
            history=self._history,
            attempts=ATTEMPTS,
        )

    def tell(self, trials: Sequence[Trial]) -> None:
        """Record outcomes; they change nothing but what counts as seen."""
        self._history.tell(trials, self._space.contains)

    def state(self) -> dict[str, Any]:
        """Return what was asked and told."""
        return self._history.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a stored state."""
        self._history.restore(state, self._space.contains)

"""Differentiable search: asks are paths drawn from a policy that released gradients have taught."""

from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np

from fednas.search.feasible import Feasible
from fednas.search.policy import Policy
from fednas.search.strategy import History, Trial
from fednas.space.architecture import Architecture
from fednas.space.search_space import SearchSpace

ATTEMPTS = 128


@final
class Differentiable:
    """Draws from a shared policy; learning happens in `Policy.learn`, from averaged released gradients.

    Args:
        space: where to look.
        violation: relative excess over the device's limits, 0 or less fits.
        policy: shared with whoever teaches it; its logits are part of this strategy's state.

    Source: Dong & Yang (2019), GDAS, 1910.04465.
    """

    def __init__(
        self, space: SearchSpace, violation: Callable[[Architecture], float], policy: Policy
    ) -> None:
        self._space = space
        self._feasible = Feasible(space, violation)
        self._history = History("differentiable")
        self._policy = policy

    def ask(self, count: int, generator: np.random.Generator) -> list[Architecture]:
        """Draw unseen feasible paths from the policy."""
        return self._feasible.draw(
            count,
            generator,
            propose=lambda: self._policy.sample(generator, lambda _: True),
            history=self._history,
            attempts=ATTEMPTS,
        )

    def tell(self, trials: Sequence[Trial]) -> None:
        """Record outcomes; the policy learns from gradients alone."""
        self._history.tell(trials, self._space.contains)

    def state(self) -> dict[str, Any]:
        """Return what was asked and told, and the policy's logits."""
        return self._history.state() | {"policy": self._policy.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a stored state; the shared policy is restored with it."""
        history = History("differentiable")
        history.restore(state, self._space.contains)
        self._policy.restore(state.get("policy", {}))
        self._history = history

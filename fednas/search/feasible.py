"""Finding architectures that fit: proposals first, then a walk downhill, then a sweep."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import final

import numpy as np

from fednas.errors import InfeasibleDeviceError
from fednas.search.strategy import History
from fednas.space.architecture import Architecture, Value
from fednas.space.search_space import SearchSpace

WALK = 48
"""Mutations tried downhill from a proposal that does not fit, and then from an architecture that does."""
REPEATS = 16
"""Proposals tried, once everything was asked, before a repeat is drawn uniformly."""
SWEEP = 1024
"""Spaces up to this size are enumerated before repeats are allowed; larger ones are swept this far."""


def enumerate_space(space: SearchSpace) -> Iterator[Architecture]:
    """Yield every architecture of a space once, the cheapest options first."""
    digits: list[int] = []
    while True:
        architecture, sizes = _follow(space, digits)
        yield architecture
        digits += [0] * (len(sizes) - len(digits))
        while digits and digits[-1] + 1 >= sizes[len(digits) - 1]:
            digits.pop()
        if not digits:
            return
        digits[-1] += 1


def _follow(space: SearchSpace, digits: Sequence[int]) -> tuple[Architecture, list[int]]:
    """Take the options at `digits`, then the first ones; also return how many options each choice had."""
    sizes: list[int] = []

    def pick(_: str, options: tuple[Value, ...]) -> Value:
        sizes.append(len(options))
        return options[digits[len(sizes) - 1] if len(sizes) <= len(digits) else 0]

    return space.complete(pick), sizes


@final
class Feasible:
    """The architectures of a space that fit a device.

    What is measured is remembered, which saves time and changes no answer: an answer depends on the history
    and the generator alone.

    Args:
        space: where to look.
        violation: the relative excess over the device's limits, 0 or less fits; a pure function.
    """

    def __init__(self, space: SearchSpace, violation: Callable[[Architecture], float]) -> None:
        self._space = space
        self._measure = violation
        self._known: dict[Architecture, float] = {}

    def violation(self, architecture: Architecture) -> float:
        """Return the relative excess over the device's limits."""
        if architecture not in self._known:
            self._known[architecture] = self._measure(architecture)
        return self._known[architecture]

    def fits(self, architecture: Architecture) -> bool:
        """Return whether an architecture is within every limit."""
        return self.violation(architecture) <= 0.0

    def draw(
        self,
        count: int,
        generator: np.random.Generator,
        *,
        propose: Callable[[], Architecture],
        history: History,
        attempts: int,
    ) -> list[Architecture]:
        """Return feasible architectures, unseen ones as long as there are any, and remember them as asked.

        Args:
            count: how many.
            generator: drives the walks and the sweep.
            propose: the strategy's own draw.
            history: what was asked and told.
            attempts: how many proposals in all may fail before walks replace them; measuring takes time.

        Raises:
            InfeasibleDeviceError: when nothing feasible is found.
        """
        batch: list[Architecture] = []

        def new(architecture: Architecture) -> bool:
            unseen = architecture not in batch and history.staleness(architecture) == 0
            return unseen and self.fits(architecture)

        while len(batch) < count:
            proposal = propose()
            while not new(proposal) and attempts > 0:
                attempts -= 1
                proposal = propose()
            found = self._near(proposal, new, [*history.architectures, *batch], generator)
            if found is None:
                break
            batch.append(found)
        while len(batch) < count:
            batch.append(self._repeat(generator, propose, history, batch))
        history.ask(batch)
        return batch

    def _near(
        self,
        proposal: Architecture,
        new: Callable[[Architecture], bool],
        met: Sequence[Architecture],
        generator: np.random.Generator,
    ) -> Architecture | None:
        """Look for a new architecture: the proposal, downhill from it, around one that fits, everywhere."""
        if new(proposal):
            return proposal
        grounds = [architecture for architecture in met if self.fits(architecture)]
        starts = [proposal]
        if grounds:
            starts.append(grounds[generator.integers(len(grounds))])
        for here in starts if self._space.size > 1 else []:
            for _ in range(WALK):
                there = self._space.mutate(here, generator)
                if new(there):
                    return there
                if self.violation(there) <= max(0.0, self.violation(here)):
                    here = there
        candidates = self._sweep(met)
        order = generator.permutation(len(candidates))
        return next((candidates[i] for i in order if new(candidates[i])), None)

    def _repeat(
        self,
        generator: np.random.Generator,
        propose: Callable[[], Architecture],
        history: History,
        batch: list[Architecture],
    ) -> Architecture:
        def rank(architecture: Architecture) -> int:
            return 3 if architecture in batch else history.staleness(architecture)

        known = [a for a in self._sweep(history.architectures) if self.fits(a)]
        if not known:
            smallest = self.violation(self._space.smallest())
            raise InfeasibleDeviceError(
                f"no architecture of the space {self._space.name!r} fits: the smallest exceeds the device's "
                f"limits by {smallest:.0%}; raise the limits or choose a smaller space"
            )
        least = min(map(rank, known))
        for _ in range(REPEATS):
            proposal = propose()
            if self.fits(proposal) and rank(proposal) <= least:
                return proposal
        freshest = [architecture for architecture in known if rank(architecture) == least]
        return freshest[generator.integers(len(freshest))]

    def _sweep(self, met: Sequence[Architecture]) -> list[Architecture]:
        """List the whole space when small, else what is connected to feasible ground, up to a bound."""
        if self._space.size <= SWEEP:
            return list(enumerate_space(self._space))
        return list(islice(self._connected(met), SWEEP))

    def _connected(self, met: Sequence[Architecture]) -> Iterator[Architecture]:
        starts = dict.fromkeys([*self._descent(), *met])
        queue = list(starts)
        for architecture in queue:  # grows while it is walked
            yield architecture
            if not self.fits(architecture):
                continue
            for neighbour in self._space.neighbours(architecture):
                if neighbour not in starts:
                    starts[neighbour] = None
                    queue.append(neighbour)

    def _descent(self) -> Iterator[Architecture]:
        here = self._space.smallest()
        yield here
        while not self.fits(here):
            there = min(self._space.neighbours(here), key=self.violation)
            if not self.violation(there) < self.violation(here):
                return
            here = there
            yield here

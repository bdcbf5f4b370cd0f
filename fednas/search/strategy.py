"""Ask for architectures, tell their outcomes: the protocol of every search, and what it remembers.

Everything here reads released values only, so every decision is post-processing and costs no epsilon.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np

from fednas.errors import ConfigurationError, InfeasibleDeviceError
from fednas.space.architecture import Architecture

if TYPE_CHECKING:  # the cost model needs torch; a trial only carries its result
    from fednas.space.cost import Cost


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An architecture with its released outcome.

    Args:
        architecture: what was evaluated.
        fitness: the released, noised quality, higher is better.
        fitness_std: standard deviation of the noise in `fitness`, public: it follows from the plan's noise
            and the declared sizes; 0 when the fitness is exact.
        cost: what the architecture needs of a device.
    """

    architecture: Architecture
    fitness: float
    fitness_std: float
    cost: "Cost"

    def __post_init__(self) -> None:
        if not math.isfinite(self.fitness):
            raise ConfigurationError(f"expected a finite fitness, got {self.fitness}")
        if not 0.0 <= self.fitness_std < math.inf:
            raise ConfigurationError(f"expected 0 <= fitness_std < inf, got {self.fitness_std}")


class SearchStrategy(Protocol):
    """A chooser of architectures: no hidden randomness, no memory outside `state`."""

    def ask(self, count: int, generator: np.random.Generator) -> list[Architecture]:
        """Propose architectures to evaluate next.

        Args:
            count: how many, at least 1.
            generator: the only randomness; the same generator state and history give the same answer.

        Returns:
            Feasible architectures, distinct from each other and from everything asked or told before; only
            when the feasible set is exhausted does it repeat some.

        Raises:
            InfeasibleDeviceError: when nothing feasible can be found.
        """
        ...

    def tell(self, trials: Sequence[Trial]) -> None:
        """Record outcomes, also of architectures this strategy never asked for.

        Raises:
            ConfigurationError: when an architecture is not in the space; then nothing is recorded.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return everything the strategy remembers, as JSON values."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`: the next asks are those of the uninterrupted strategy.

        Raises:
            ConfigurationError: when the state is malformed or another strategy's.
        """
        ...


@final
class History:
    """What was asked and what was told, in order."""

    def __init__(self, strategy: str) -> None:
        self._strategy = strategy
        self._asked: dict[Architecture, None] = {}
        self._trials: list[Trial] = []
        self._told: set[Architecture] = set()

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every told trial, oldest first."""
        return tuple(self._trials)

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """Every architecture asked or told, each once, in the order it was met."""
        told = {trial.architecture: None for trial in self._trials}
        return tuple(self._asked | told)

    def staleness(self, architecture: Architecture) -> int:
        """Return 0 for an unseen architecture, 1 when asked but never told, 2 when its outcome is known."""
        if architecture in self._told:
            return 2
        return 1 if architecture in self._asked else 0

    def ask(self, architectures: Sequence[Architecture]) -> None:
        """Remember that these were asked."""
        self._asked.update(dict.fromkeys(architectures))

    def tell(self, trials: Sequence[Trial], contains: Callable[[Architecture], bool]) -> None:
        """Remember outcomes; all or none."""
        for trial in trials:
            if not contains(trial.architecture):
                raise ConfigurationError(
                    f"architecture {trial.architecture.id} is not in this strategy's space; "
                    "tell only trials of the space it searches"
                )
        self._trials.extend(trials)
        self._told.update(trial.architecture for trial in trials)

    def state(self) -> dict[str, Any]:
        """Return the history as JSON values."""
        return {
            "strategy": self._strategy,
            "asked": [architecture.to_json() for architecture in self._asked],
            "trials": [
                {
                    "architecture": trial.architecture.to_json(),
                    "fitness": trial.fitness,
                    "fitness_std": trial.fitness_std,
                    "cost": asdict(trial.cost),
                }
                for trial in self._trials
            ],
        }

    def restore(self, state: Mapping[str, Any], contains: Callable[[Architecture], bool]) -> None:
        """Replace the history by a stored one; on an error nothing changes."""
        from fednas.space.cost import Cost

        if state.get("strategy") != self._strategy:
            raise ConfigurationError(
                f"the search state is of {state.get('strategy')!r}, not of {self._strategy!r}; "
                "resume with the strategy the run began with"
            )
        try:
            asked = [Architecture.from_json(text) for text in state["asked"]]
            trials = [
                Trial(
                    architecture=Architecture.from_json(entry["architecture"]),
                    fitness=float(entry["fitness"]),
                    fitness_std=float(entry["fitness_std"]),
                    cost=Cost(**entry["cost"]),
                )
                for entry in state["trials"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"the search state is malformed: {error!r}; restore an earlier one"
            ) from None
        fresh = History(self._strategy)
        fresh.tell(trials, contains)
        self._asked = dict.fromkeys(asked)
        self._trials, self._told = fresh._trials, fresh._told


def pool(trials: Sequence[Trial]) -> list[Trial]:
    """Average repeated evaluations of one architecture by inverse variance.

    Exact evaluations (`fitness_std` 0), where there are any, outweigh all noisy ones.

    Returns:
        One trial per architecture in the order of first appearance; its `fitness_std` is that of the average.
    """
    groups: dict[Architecture, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.architecture, []).append(trial)
    return [_average(group) for group in groups.values()]


def _average(group: Sequence[Trial]) -> Trial:
    exact = [trial for trial in group if trial.fitness_std == 0.0]
    used = exact or group
    weights = [1.0] * len(exact) if exact else [trial.fitness_std**-2 for trial in group]
    fitness = math.fsum(w * trial.fitness for w, trial in zip(weights, used)) / math.fsum(weights)
    return Trial(
        architecture=group[0].architecture,
        fitness=fitness,
        fitness_std=0.0 if exact else math.fsum(weights) ** -0.5,
        cost=group[-1].cost,
    )


def best(trials: Sequence[Trial], fits: Callable[[Architecture], bool], top: int = 1) -> Trial:
    """Choose by released fitness among the architectures that fit, repeated evaluations pooled.

    Args:
        trials: released outcomes.
        fits: whether an architecture fits the device.
        top: the wanted place: 1 the best, 2 the runner-up. Ties go to the smaller id.

    Returns:
        The pooled trial of that place, or of the last place when fewer architectures fit.

    Raises:
        InfeasibleDeviceError: when no evaluated architecture fits.
    """
    if top < 1:
        raise ConfigurationError(f"expected {top=} >= 1")
    feasible = [trial for trial in pool(trials) if fits(trial.architecture)]
    if not feasible:
        raise InfeasibleDeviceError(
            f"none of the {len(trials)} evaluated architectures fits this device; "
            "evaluate smaller ones or raise the device's limits"
        )
    ranked = sorted(feasible, key=lambda trial: (-trial.fitness, trial.architecture.id))
    return ranked[min(top, len(ranked)) - 1]


def successor(
    trials: Sequence[Trial], fits: Callable[[Architecture], bool], incumbent: Architecture
) -> Trial:
    """Choose the best that fits, unless luck alone explains its lead over the incumbent.

    Among m architectures of equal quality the best by noise stands about sqrt(2 ln m) deviations above the
    rest; a challenger must lead by more than that, or the incumbent stays.

    Args:
        trials: released outcomes of one generation.
        fits: whether an architecture fits the device.
        incumbent: what the device would get without these trials.

    Returns:
        The pooled trial of the incumbent or of its successor; the best when the incumbent was not evaluated.

    Raises:
        InfeasibleDeviceError: when no evaluated architecture fits.
    """
    winner = best(trials, fits)
    feasible = [trial for trial in pool(trials) if fits(trial.architecture)]
    held = next((trial for trial in feasible if trial.architecture == incumbent), None)
    if held is None or winner.architecture == incumbent:
        return winner
    luck = math.sqrt(2.0 * math.log(len(feasible) - 1)) * winner.fitness_std
    return winner if winner.fitness - held.fitness > luck else held

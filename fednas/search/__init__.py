"""Searching a space: strategies that ask for architectures and are told released outcomes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fednas.errors import ConfigurationError
from fednas.search.path_sampling import sandwich_paths
from fednas.search.policy import Policy
from fednas.search.strategy import SearchStrategy, Trial, best, pool, successor
from fednas.space.architecture import Architecture
from fednas.space.search_space import SearchSpace

if TYPE_CHECKING:
    from fednas.search.proxies import shortlist

STRATEGIES = ("random", "evolution", "tpe", "differentiable")


def create(
    name: str,
    *,
    space: SearchSpace,
    violation: Callable[[Architecture], float],
    policy: Policy | None = None,
) -> SearchStrategy:
    """Create a strategy by name; only the one that is used is imported.

    Args:
        name: one of `STRATEGIES`.
        space: where to look.
        violation: relative excess over the device's limits, 0 or less fits.
        policy: the policy of the differentiable strategy, which needs one; the others take none.

    Raises:
        ConfigurationError: for an unknown name, or a policy missing or out of place.
    """
    if (policy is not None) != (name == "differentiable"):
        raise ConfigurationError(
            f"the strategy {name!r} {'takes no' if policy else 'needs a'} policy; "
            "only 'differentiable' has one"
        )
    if name == "random":
        from fednas.search.random_search import RandomSearch

        return RandomSearch(space, violation)
    if name == "evolution":
        from fednas.search.evolution import Evolution

        return Evolution(space, violation)
    if name == "tpe":
        from fednas.search.tpe import Tpe

        return Tpe(space, violation)
    if policy is not None:
        from fednas.search.differentiable import Differentiable

        return Differentiable(space, violation, policy)
    raise ConfigurationError(f"unknown strategy {name!r}; expected one of {', '.join(STRATEGIES)}")


def __getattr__(name: str) -> Any:
    """Import what needs PyTorch on first use."""
    if name == "shortlist":
        from fednas.search.proxies import shortlist

        return shortlist
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "STRATEGIES",
    "Policy",
    "SearchStrategy",
    "Trial",
    "best",
    "create",
    "pool",
    "sandwich_paths",
    "shortlist",
    "successor",
]

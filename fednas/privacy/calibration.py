"""Find the least noise that an epsilon allows, on a grid of four decimals."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

from fednas.errors import ConfigurationError
from fednas.privacy.accounting import (
    DISCRETIZATION,
    ORDERS,
    epsilon_at_order,
    epsilon_pld,
    epsilon_rdp,
    renyi_divergence,
)
from fednas.privacy.allowance import READS, ReleaseSchedule
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.events import MAX_NOISE_MULTIPLIER, Event, Gaussian, NonPrivate, PoissonGaussian

_GRID = 10_000  # noise multipliers are multiples of 1 / _GRID
_LARGEST = int(MAX_NOISE_MULTIPLIER) * _GRID
_COARSEST = 1e-2  # grid of the privacy loss while searching, in nats: fast, pessimistic
_CLOSE = 0.9985  # of the budget: the search ends when so much of it is used
_ROUNDING = 1e-12  # of a Rényi budget: a filter that adds up exactly never refuses a plan's last step


def calibrated(budget: PrivacyBudget, schedule: ReleaseSchedule) -> dict[str, Event]:
    """Return the event of each scheduled allowance: the least noise at which no stream exceeds the budget.

    Args:
        budget: the epsilon and delta of every stream.
        schedule: how often what may be released.

    Returns:
        allowance name -> event, without the names that release nothing.

    Raises:
        ConfigurationError: no noise is enough for what the final leaves.
    """
    q = schedule.sampling_probability
    used = {name: amount for name, amount in ((name, schedule.amount(name)) for name in READS) if amount > 0}
    if not budget.is_private:
        return {
            name: NonPrivate(
                reason="planned without privacy",
                sampling_probability=1.0 if name == "fitness" else q,
                releases=amount,
            )
            for name, amount in used.items()
        }

    def trained(sigma: float, steps: int) -> Event:
        return PoissonGaussian(sampling_probability=q, noise_multiplier=sigma, steps=steps)

    events: dict[str, Event] = {}
    steps = schedule.search_steps + schedule.final_steps
    if steps > 0:
        sigma = least_noise(budget, (), lambda sigma: trained(sigma, steps))
        events |= {name: trained(sigma, used[name]) for name in ("search", "final") if name in used}
    fixed = (events["final"],) if "final" in events else ()
    if fixed and not schedule.search_steps and used.keys() & {"alphas", "fitness"}:
        raise ConfigurationError(
            "a final without search steps leaves no epsilon for alphas and fitness; plan search steps, "
            "or neither alphas nor fitness"
        )
    if "alphas" in used:
        sigma = least_noise(budget, fixed, lambda sigma: trained(sigma, used["alphas"]))
        events["alphas"] = trained(sigma, used["alphas"])
    if "fitness" in used:
        releases = used["fitness"]
        sigma = least_noise(budget, fixed, lambda sigma: Gaussian(noise_multiplier=sigma, releases=releases))
        events["fitness"] = Gaussian(noise_multiplier=sigma, releases=releases)
    return events


def least_noise(budget: PrivacyBudget, fixed: Sequence[Event], event: Callable[[float], Event]) -> float:
    """Return the least noise multiplier at which an event on top of fixed ones stays within a budget.

    Args:
        budget: epsilon and delta, by privacy loss distributions, or by Rényi divergences if it has an order.
        fixed: events that the same records pay for already.
        event: makes the event from a noise multiplier; more noise must not cost more.

    Returns:
        A multiple of 0.0001, at which the budget is never exceeded and at least 99 % of it is used wherever
        the grid of noise multipliers is fine enough.

    Raises:
        ConfigurationError: not even the largest noise multiplier is enough.
    """
    if budget.order is not None:
        return _least_noise_at_order(budget, budget.order, fixed, event)

    def cost(interval: float) -> Callable[[int], float]:
        return lambda step: epsilon_pld(
            [*fixed, event(step / _GRID)], budget.delta, value_discretization_interval=interval
        )

    coarse = min(max(budget.epsilon / 2000.0, DISCRETIZATION), _COARSEST)
    step = _search(budget.epsilon, cost(coarse), _guess(budget, fixed, event, coarse))
    exact = cost(DISCRETIZATION)
    if not _CLOSE * budget.epsilon <= exact(step) <= budget.epsilon:
        step = _search(budget.epsilon, exact, step)
    return step / _GRID


def best_order(budget: PrivacyBudget, schedule: ReleaseSchedule) -> int:
    """Suggest the order at which a Rényi filter needs the least noise for a schedule.

    Training decides where there is any, then the architecture gradients, then the fitness. The suggestion
    depends on public facts only; once a ledger is open, its order never changes.

    Args:
        budget: epsilon and delta; an order that it has already is not looked at.
        schedule: how often what may be released.

    Returns:
        An order, 2 to 256, that a budget of this epsilon and delta can have.

    Raises:
        ConfigurationError: the budget is not private, nothing is scheduled, or no noise is enough.
    """
    if not budget.is_private:
        raise ConfigurationError("a non-private budget has no order; choose a finite epsilon")
    q, epsilon, delta = schedule.sampling_probability, budget.epsilon, budget.delta
    steps = schedule.search_steps + schedule.final_steps or schedule.architecture_steps

    def event(step: int) -> Event:
        if steps > 0:
            return PoissonGaussian(sampling_probability=q, noise_multiplier=step / _GRID, steps=steps)
        return Gaussian(noise_multiplier=step / _GRID, releases=schedule.fitness_releases)

    def best(step: int) -> tuple[float, int]:
        return min((epsilon_at_order([event(step)], delta, order), order) for order in ORDERS)

    if not steps and not schedule.fitness_releases:
        raise ConfigurationError("nothing is scheduled that an order could be best for")
    low, high = 0, _LARGEST
    while high - low > 1:
        middle = math.isqrt(low * high) if low > 0 else high // 1000
        middle = min(max(middle, low + 1), high - 1)
        low, high = (low, middle) if best(middle)[0] <= epsilon else (middle, high)
    cost, order = best(high)
    if cost > epsilon:
        raise _no_noise(epsilon)
    return order


def _least_noise_at_order(
    budget: PrivacyBudget, order: int, fixed: Sequence[Event], event: Callable[[float], Event]
) -> float:
    bound = budget.renyi * (1.0 - _ROUNDING)

    def fits(step: int) -> bool:
        return renyi_divergence([*fixed, event(step / _GRID)], order) <= bound

    if not fits(_LARGEST):
        raise _no_noise(budget.epsilon)
    return (1 + bisect_left(range(1, _LARGEST), True, key=fits)) / _GRID


def _no_noise(epsilon: float) -> ConfigurationError:
    return ConfigurationError(
        f"no noise keeps the releases within epsilon {epsilon:g}; raise epsilon, or plan fewer final "
        "steps beside the search steps"
    )


def _guess(
    budget: PrivacyBudget, fixed: Sequence[Event], event: Callable[[float], Event], interval: float
) -> int:
    """Return a step near the answer, by Rényi divergences: fast, not exact."""
    target = budget.epsilon
    if fixed:
        tight = epsilon_pld(fixed, budget.delta, value_discretization_interval=interval)
        target *= epsilon_rdp(fixed, budget.delta) / tight if tight > 0.0 else 1.0
    low, high = 1, _LARGEST
    while high > low + max(1, low // 100):
        middle = math.isqrt(low * high)
        middle = min(max(middle, low + 1), high - 1)
        if epsilon_rdp([*fixed, event(middle / _GRID)], budget.delta) <= target:
            high = middle
        else:
            low = middle
    return high


def _search(target: float, cost: Callable[[int], float], guess: int) -> int:
    """Return a step whose cost is at most the target and close to it, or one grid step from exceeding it."""
    low, high, reach = 0, min(guess, _LARGEST), 1.02
    at_low, at_high = math.inf, cost(high)
    while at_high > target:
        if high == _LARGEST:
            raise _no_noise(target)
        low, at_low = high, at_high
        high = min(max(high + 1, math.ceil(high * reach)), _LARGEST)
        at_high, reach = cost(high), reach**2
    while low == 0 and high > 1 and at_high < _CLOSE * target:
        step = max(1, math.floor(high / reach))
        at_step = cost(step)
        if at_step > target:
            low, at_low = step, at_step
        else:
            high, at_high, reach = step, at_step, reach**2
    while high - low > 1 and at_high < _CLOSE * target:
        step = _between(low, at_low, high, at_high, target)
        at_step = cost(step)
        if at_step > target:
            low, at_low = step, at_step
        else:
            high, at_high = step, at_step
    return high


def _between(low: int, at_low: float, high: int, at_high: float, target: float) -> int:
    """Return a step inside an interval: where a power law puts just under the target, kept off both ends."""
    middle = (low + high) / 2
    if low > 0 and math.isfinite(at_low) and at_high > 0.0:
        slope = math.log(at_low / at_high) / math.log(high / low)
        if slope > 0.0:
            wanted = (1.0 + _CLOSE) / 2 * target
            middle = high * (at_high / wanted) ** (1.0 / slope)
    margin = (high - low) * 0.02
    return min(max(math.ceil(min(max(middle, low + margin), high - margin)), low + 1), high - 1)

"""Interpret events: what they cost at a delta, by two accountants that share no code."""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from fednas.errors import ConfigurationError
from fednas.privacy.events import Event
from fednas.privacy.numbers import real
from fednas.privacy.renyi import (
    ORDERS,
    Form,
    checked_delta,
    epsilon_at_order,
    epsilon_rdp,
    merged,
    rdp_curve,
    rdp_of,
    renyi_budget,
    renyi_divergence,
)

__all__ = [
    "DISCRETIZATION",
    "ORDERS",
    "epsilon_at_order",
    "epsilon_pld",
    "epsilon_rdp",
    "rdp_curve",
    "renyi_budget",
    "renyi_divergence",
]

DISCRETIZATION = 1e-4  # of the privacy loss, in nats
_FINE_EPSILON = 25.0  # above it the grid of the privacy loss grows in proportion
_PLD_EPSILON = 1000.0  # above it only RDP answers: a tighter number would reassure nobody


def epsilon_pld(
    events: Iterable[Event], delta: float, *, value_discretization_interval: float = DISCRETIZATION
) -> float:
    """Return epsilon of all events together by privacy loss distributions, or by RDP where that is smaller.

    Args:
        events: what happened to the records of one stream, in any order.
        delta: 0 < delta < 1.
        value_discretization_interval: grid of the privacy loss in nats; pessimistic at any value.

    Returns:
        epsilon >= 0, add or remove one record: 0.0 for no events, infinity if any is NonPrivate.

    Raises:
        ConfigurationError: delta or the interval is out of its bounds.
        UnsupportedEventError: something is not an event of `fednas.privacy.events`.

    Source: Koskela et al. (2020), arXiv 1906.03049; Doroshenko et al. (2022), arXiv 2207.04380.
    """
    form = merged(events)
    return _epsilon_pld(form, checked_delta(delta), _interval(value_discretization_interval))


def _interval(interval: float) -> float:
    number = real(interval)
    if number is None or not 1e-6 <= number <= 1.0:
        raise ConfigurationError(f"expected 1e-6 <= value_discretization_interval <= 1, got {interval!r}")
    return number


@lru_cache(maxsize=4096)
def _epsilon_pld(form: Form | None, delta: float, interval: float) -> float:
    if form is None:
        return math.inf
    if not form:
        return 0.0
    bound = rdp_of(form, delta)
    if not bound <= _PLD_EPSILON or bound == 0.0:
        return bound
    while bound > _FINE_EPSILON and interval < bound * DISCRETIZATION / _FINE_EPSILON:
        interval *= 2.0
    precision = sum(amount / sigma**2 for q, sigma, amount in form if q == 1.0)
    parts = [(q, sigma, amount) for q, sigma, amount in form if q < 1.0]
    if precision > 0.0:
        parts.append((1.0, precision**-0.5, 1))  # Gaussians compose to a Gaussian
    total = None
    for q, sigma, amount in parts:
        part = _loss(q, sigma, amount, interval)
        total = part if total is None else total.compose(part)
    assert total is not None
    epsilon = float(total.get_epsilon_for_delta(delta))
    return min(bound, max(0.0, epsilon))


@lru_cache(maxsize=16)
def _loss(q: float, sigma: float, amount: int, interval: float) -> Any:
    """Return the privacy loss distribution of `amount` equal releases."""
    single = _single_loss(q, sigma, interval)
    return single if amount == 1 else single.self_compose(amount)


@lru_cache(maxsize=16)
def _single_loss(q: float, sigma: float, interval: float) -> Any:
    # slow to import: only where a number is asked for
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        sigma, sampling_prob=q, value_discretization_interval=interval
    )

"""Interpret events: what they cost at a delta, by two accountants that share no code."""

import math
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from fednas.errors import ConfigurationError, UnsupportedEventError
from fednas.privacy.events import Event, Gaussian, NonPrivate, PoissonGaussian
from fednas.privacy.numbers import real

ORDERS = tuple(range(2, 257))
DISCRETIZATION = 1e-4  # of the privacy loss, in nats
_FINE_EPSILON = 25.0  # above it the grid of the privacy loss grows in proportion
_PLD_EPSILON = 1000.0  # above it only RDP answers: a tighter number would reassure nobody

_LOG_FACTORIALS = np.array([math.lgamma(n + 1) for n in range(ORDERS[-1] + 1)])

# (sampling probability, noise multiplier) -> number of compositions, sorted: equal spends have equal forms.
_Form: TypeAlias = tuple[tuple[float, float, int], ...]


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
    form = _form(events)
    return _epsilon_pld(form, _delta(delta), _interval(value_discretization_interval))


def epsilon_rdp(events: Iterable[Event], delta: float) -> float:
    """Return epsilon of all events together by Rényi divergences of integer order, the proved bound.

    Args:
        events: what happened to the records of one stream, in any order.
        delta: 0 < delta < 1.

    Returns:
        epsilon >= 0, add or remove one record: 0.0 for no events, infinity if any is NonPrivate.

    Raises:
        ConfigurationError: delta is out of its bounds.
        UnsupportedEventError: something is not an event of `fednas.privacy.events`.

    Source: Mironov et al. (2019), arXiv 1908.10530, equation for integer orders; Canonne et al. (2020),
    arXiv 2004.00010, proposition 12, for the conversion; orders 2 to 256.
    """
    return _epsilon_rdp(_form(events), _delta(delta))


def rdp_curve(events: Iterable[Event]) -> np.ndarray:
    """Return the Rényi divergence of all events together at each of `ORDERS`.

    Args:
        events: what happened to the records of one stream, in any order.

    Returns:
        float64 array of shape (len(ORDERS),): zeros for no events, infinity if any is NonPrivate.

    Raises:
        UnsupportedEventError: something is not an event of `fednas.privacy.events`.
    """
    form = _form(events)
    return np.full(len(ORDERS), math.inf) if form is None else _curve(form)


def _form(events: Iterable[Event]) -> _Form | None:
    """Merge equal mechanisms, so that equal spends are equal values; None when anything is unprotected."""
    amounts: defaultdict[tuple[float, float], int] = defaultdict(int)
    unprotected = False
    for event in events:
        if isinstance(event, NonPrivate):
            unprotected = True
        elif isinstance(event, PoissonGaussian | Gaussian):
            amounts[event.sampling_probability, event.noise_multiplier] += event.amount
        else:
            raise UnsupportedEventError(f"no accountant here bounds a {type(event).__name__}")
    if unprotected:
        return None
    return tuple(sorted((q, sigma, amount) for (q, sigma), amount in amounts.items()))


def _delta(delta: float) -> float:
    number = real(delta)
    if number is None or not 0.0 < number < 1.0:
        raise ConfigurationError(f"expected 0 < delta < 1, got {delta!r}")
    return number


def _interval(interval: float) -> float:
    number = real(interval)
    if number is None or not 1e-6 <= number <= 1.0:
        raise ConfigurationError(f"expected 1e-6 <= value_discretization_interval <= 1, got {interval!r}")
    return number


@lru_cache(maxsize=4096)
def _epsilon_rdp(form: _Form | None, delta: float) -> float:
    if form is None:
        return math.inf
    if not form:
        return 0.0
    orders = np.array(ORDERS, dtype=np.float64)
    curve = _curve(form)
    epsilons = curve + np.log1p(-1.0 / orders) - np.log(delta * orders) / (orders - 1.0)
    # By KL divergence, delta <= sqrt(1 - exp(-KL)): nothing is left to pay.
    epsilons[delta**2 + np.expm1(-curve) > 0.0] = 0.0
    return max(0.0, float(np.min(epsilons)))


def _curve(form: _Form) -> np.ndarray:
    total = np.zeros(len(ORDERS))
    for q, sigma, amount in form:
        total += amount * _unit_curve(q, sigma)
    return total


@lru_cache(maxsize=4096)
def _unit_curve(q: float, sigma: float) -> np.ndarray:
    """Return the Rényi divergence of one release at each order."""
    orders = np.array(ORDERS, dtype=np.float64)
    with np.errstate(over="ignore", divide="ignore"):
        half_precision = 0.5 / np.float64(sigma) ** 2
        if q == 1.0:
            curve = orders * half_precision
        else:
            # The sum over i of C(a, i) (1-q)^(a-i) q^i exp((i^2 - i) / (2 sigma^2)), less the sum of the same
            # terms without the exponent, which is 1: small divergences keep all their digits in log1p.
            a, i = np.array(ORDERS)[:, None], np.arange(2, ORDERS[-1] + 1)[None, :]
            rest = np.maximum(a - i, 0)
            log_binomials = _LOG_FACTORIALS[a] - _LOG_FACTORIALS[i] - _LOG_FACTORIALS[rest]
            exponents = (i * i - i) * half_precision
            terms = (
                log_binomials
                + i * np.log(q)
                + rest * np.log1p(-q)
                + exponents
                + np.log(-np.expm1(-exponents))
            )
            terms = np.where(i <= a, terms, -np.inf)
            curve = np.logaddexp(0.0, np.logaddexp.reduce(terms, axis=1)) / (orders - 1.0)
    curve = np.where(np.isnan(curve), np.inf, curve)
    curve.flags.writeable = False
    return curve


@lru_cache(maxsize=4096)
def _epsilon_pld(form: _Form | None, delta: float, interval: float) -> float:
    if form is None:
        return math.inf
    if not form:
        return 0.0
    bound = _epsilon_rdp(form, delta)
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
    from dp_accounting.pld import (
        privacy_loss_distribution,
    )  # slow to import: only where a number is asked for

    single = privacy_loss_distribution.from_gaussian_mechanism(
        sigma, sampling_prob=q, value_discretization_interval=interval
    )
    return single if amount == 1 else single.self_compose(amount)

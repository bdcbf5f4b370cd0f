"""Rényi divergences of integer orders: the proved bound on what events cost, and the filter at one order."""

import math
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, TypeAlias, get_args

import numpy as np

from fednas.errors import ConfigurationError, UnsupportedEventError
from fednas.privacy.events import Event, Gaussian, NonPrivate, PoissonGaussian
from fednas.privacy.numbers import count, real
from fednas.privacy.replacement import LEAST_DIVERGENCE, replaced_curve

ORDERS = tuple(range(2, 257))
Relation: TypeAlias = Literal["add_remove", "replace_one"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)

_LOG_FACTORIALS = np.array([math.lgamma(n + 1) for n in range(ORDERS[-1] + 1)])

# (sampling probability, noise multiplier) -> number of compositions, sorted: equal spends have equal forms.
Form: TypeAlias = tuple[tuple[float, float, int], ...]


def epsilon_rdp(events: Iterable[Event], delta: float, *, relation: Relation = "add_remove") -> float:
    """Return epsilon of all events together by Rényi divergences of integer order, the proved bound.

    Args:
        events: what happened to the records of one stream, in any order.
        delta: 0 < delta < 1.
        relation: add or remove one record, or replace one by another of the same stream.

    Returns:
        epsilon >= 0: 0.0 for no events, infinity if any is NonPrivate.

    Raises:
        ConfigurationError: delta is out of its bounds, or the relation is unknown.
        UnsupportedEventError: something is not an event of `fednas.privacy.events`.

    Source: Mironov et al. (2019), arXiv 1908.10530, equation for integer orders; `replacement` for replacing;
    Canonne et al. (2020), arXiv 2004.00010, proposition 12, for the conversion; orders 2 to 256.
    """
    delta, relation, form = checked_delta(delta), checked_relation(relation), merged(events)
    if form is None:
        return math.inf
    return epsilon_of(curve_of(form, relation), delta) if form else 0.0


def rdp_curve(events: Iterable[Event], *, relation: Relation = "add_remove") -> np.ndarray:
    """Return a bound on the Rényi divergence of all events together at each of `ORDERS`.

    Args:
        events: what happened to the records of one stream, in any order.
        relation: add or remove one record, or replace one by another of the same stream.

    Returns:
        float64 array of shape (len(ORDERS),): zeros for no events, infinity if any is NonPrivate.

    Raises:
        ConfigurationError: the relation is unknown.
        UnsupportedEventError: something is not an event of `fednas.privacy.events`.
    """
    relation, form = checked_relation(relation), merged(events)
    return np.full(len(ORDERS), math.inf) if form is None else curve_of(form, relation)


def renyi_divergence(events: Iterable[Event], order: int) -> float:
    """Return the Rényi divergence of all events together at one order: what a filter adds up.

    One event costs a cached lookup after the first time that its mechanism is seen.

    Args:
        events: what happened to the records of one stream, in any order.
        order: an integer, 2 to 256.

    Returns:
        nats >= 0, add or remove one record: 0.0 for no events, infinity if any is NonPrivate.

    Raises:
        ConfigurationError: the order is none of `ORDERS`.
        UnsupportedEventError: something is not an event of `fednas.privacy.events`.

    Source: Mironov et al. (2019), arXiv 1908.10530.
    """
    order, form = checked_order(order), merged(events)
    if form is None:
        return math.inf
    return math.fsum(amount * _unit_divergence(q, sigma, order) for q, sigma, amount in form)


def renyi_budget(epsilon: float, delta: float, order: int) -> float:
    """Return the most Rényi divergence at one order that is still (epsilon, delta)-differentially private.

    Releases whose noise may depend on everything released before cost no more than epsilon together as long
    as the sum of their divergences at an order that was fixed beforehand stays within this.

    Args:
        epsilon: positive and finite.
        delta: 0 < delta < 1.
        order: an integer, 2 to 256.

    Returns:
        nats; not positive where no divergence at all is small enough at this order.

    Raises:
        ConfigurationError: a number is out of its bounds.

    Source: Feldman and Zrnic (2021), arXiv 2008.11193, and Lécuyer (2021), arXiv 2103.01379, for the filter;
    Canonne et al. (2020), arXiv 2004.00010, proposition 12, for the conversion.
    """
    number = real(epsilon)
    if number is None or not 0.0 < number < math.inf:
        raise ConfigurationError(f"expected a positive and finite epsilon, got {epsilon!r}")
    return number - _conversion(checked_delta(delta), checked_order(order))


def renyi_epsilon(divergence: float, delta: float, order: int) -> float:
    """Return epsilon at any delta of what a Rényi filter at one order lets through: `renyi_budget`'s inverse.

    Args:
        divergence: nats >= 0, at the order, add or remove one record.
        delta: 0 < delta < 1.
        order: an integer, 2 to 256.

    Returns:
        epsilon >= 0.

    Raises:
        ConfigurationError: a number is out of its bounds.

    Source: as `renyi_budget`.
    """
    return max(0.0, _divergence(divergence) + _conversion(checked_delta(delta), checked_order(order)))


def replaced_epsilon(divergence: float, delta: float, order: int) -> float:
    """Return epsilon when one record is replaced, of what a Rényi filter at one order lets through.

    The filter adds up what adding or removing one record costs; replacing is one after the other, so that
    (epsilon, delta) becomes (2 epsilon, (1 + exp(epsilon)) delta). This is the bound at the given delta.

    Args:
        divergence: nats >= 0, at the order, add or remove one record.
        delta: 0 < delta < 1.
        order: an integer, 2 to 256.

    Returns:
        epsilon >= 0; infinity at order 2, which bounds no group.

    Raises:
        ConfigurationError: a number is out of its bounds.

    Source: Vadhan (2017), The complexity of differential privacy, lemma 2.2; as `renyi_budget`.
    """
    divergence, delta, order = _divergence(divergence), checked_delta(delta), checked_order(order)
    if order == 2 or math.isinf(divergence):
        return math.inf

    def needed(epsilon: float) -> float:
        # log(delta / (1 + exp(epsilon))), for any epsilon and delta, in the conversion
        log_delta = math.log(delta) - epsilon - math.log1p(math.exp(-epsilon))
        return divergence + math.log1p(-1.0 / order) - (log_delta + math.log(order)) / (order - 1)

    # What is needed grows by at most 1 / (order - 1) of what is given, so this bisection has one answer.
    low, high = 0.0, 1.0
    while needed(high) > high:
        low, high = high, 2.0 * high
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if needed(middle) > middle else (low, middle)
    return 2.0 * high


def epsilon_at_order(events: Iterable[Event], delta: float, order: int) -> float:
    """Return epsilon of all events together by the Rényi divergence at one order.

    Args:
        events: what happened to the records of one stream, in any order; noise may have adapted to releases.
        delta: 0 < delta < 1.
        order: an integer, 2 to 256, fixed before the first event.

    Returns:
        epsilon >= 0, add or remove one record: 0.0 for no events, infinity if any is NonPrivate.

    Raises:
        ConfigurationError: delta or the order is out of its bounds.
        UnsupportedEventError: something is not an event of `fednas.privacy.events`.

    Source: as `renyi_budget`.
    """
    delta, order, events = checked_delta(delta), checked_order(order), tuple(events)
    divergence = renyi_divergence(events, order)
    return renyi_epsilon(divergence, delta, order) if events else 0.0


def least_order(epsilon: float, delta: float) -> int | None:
    """Return the lowest order whose Rényi budget is positive, or None; every order above it has one too.

    Args:
        epsilon: positive and finite.
        delta: 0 < delta < 1.

    Raises:
        ConfigurationError: a number is out of its bounds.
    """
    # (a - 1) times the budget at a grows with a: a epsilon, log a and (a - 1) log(a / (a - 1)) all do.
    return next((order for order in ORDERS if renyi_budget(epsilon, delta, order) > 0.0), None)


def merged(events: Iterable[Event]) -> Form | None:
    """Merge equal mechanisms, so that equal spends are equal values; None when anything is unprotected.

    Raises:
        UnsupportedEventError: something is not an event of `fednas.privacy.events`.
    """
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


def checked_delta(delta: float) -> float:
    """Return delta as a plain float.

    Raises:
        ConfigurationError: it is not strictly between 0 and 1.
    """
    number = real(delta)
    if number is None or not 0.0 < number < 1.0:
        raise ConfigurationError(f"expected 0 < delta < 1, got {delta!r}")
    return number


def checked_order(order: int) -> int:
    """Return an order as a plain int.

    Raises:
        ConfigurationError: it is none of `ORDERS`.
    """
    number = count(order)
    if number is None or not ORDERS[0] <= number <= ORDERS[-1]:
        raise ConfigurationError(f"expected an integer order, {ORDERS[0]} to {ORDERS[-1]}, got {order!r}")
    return number


def checked_relation(relation: Relation) -> Relation:
    """Return a neighbouring relation.

    Raises:
        ConfigurationError: it is none of `RELATIONS`.
    """
    if relation not in RELATIONS:
        raise ConfigurationError(f"expected the relation {' or '.join(RELATIONS)}, got {relation!r}")
    return relation


def curve_of(form: Form, relation: Relation) -> np.ndarray:
    """Return what `rdp_curve` does, of merged events."""
    total = np.zeros(len(ORDERS))
    for q, sigma, amount in form:
        unit = _unit_curve(q, sigma) if relation == "add_remove" else replaced_curve(q, sigma, ORDERS)
        total += amount * unit
    return total


def epsilon_of(curve: np.ndarray, delta: float) -> float:
    """Return the least epsilon of a curve of divergences, of shape (len(ORDERS),).

    Source: Canonne et al. (2020), arXiv 2004.00010, proposition 12.
    """
    orders = np.array(ORDERS, dtype=np.float64)
    epsilons = curve + np.log1p(-1.0 / orders) - np.log(delta * orders) / (orders - 1.0)
    # By KL divergence, delta <= sqrt(1 - exp(-KL)): nothing is left to pay.
    epsilons[delta**2 + np.expm1(-curve) > 0.0] = 0.0
    return max(0.0, float(np.min(epsilons)))


def _divergence(divergence: float) -> float:
    number = real(divergence)
    if number is None or number < 0.0:
        raise ConfigurationError(f"expected a divergence of at least 0 nats, got {divergence!r}")
    return number


def _conversion(delta: float, order: int) -> float:
    """Return what epsilon exceeds the divergence by; negative where it is below it."""
    return math.log1p(-1.0 / order) - (math.log(delta) + math.log(order)) / (order - 1)


@lru_cache(maxsize=4096)
def _unit_curve(q: float, sigma: float) -> np.ndarray:
    curve = _divergences(q, sigma, ORDERS)
    curve.flags.writeable = False
    return curve


@lru_cache(maxsize=65_536)
def _unit_divergence(q: float, sigma: float, order: int) -> float:
    return float(_divergences(q, sigma, (order,))[0])


def _divergences(q: float, sigma: float, at: tuple[int, ...]) -> np.ndarray:
    """Return the Rényi divergence of one release at each order."""
    orders = np.array(at, dtype=np.float64)
    with np.errstate(over="ignore", divide="ignore"):
        half_precision = 0.5 / np.float64(sigma) ** 2
        if q == 1.0:
            curve = orders * half_precision
        else:
            # The sum over i of C(a, i) (1-q)^(a-i) q^i exp((i^2 - i) / (2 sigma^2)), less the sum of the same
            # terms without the exponent, which is 1: small divergences keep all their digits in log1p.
            a, i = np.array(at)[:, None], np.arange(2, at[-1] + 1)[None, :]
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
    return np.where(np.isnan(curve), np.inf, np.maximum(curve, LEAST_DIVERGENCE))

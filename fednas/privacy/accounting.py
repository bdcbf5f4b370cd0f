"""Interpret events: what they cost at a delta, by two accountants that share no code."""

import math
from collections.abc import Iterable
from functools import lru_cache
from itertools import combinations_with_replacement
from typing import Any

from fednas.errors import ConfigurationError
from fednas.privacy.events import Event
from fednas.privacy.numbers import real
from fednas.privacy.renyi import (
    ORDERS,
    RELATIONS,
    Form,
    Relation,
    checked_delta,
    checked_relation,
    curve_of,
    epsilon_at_order,
    epsilon_of,
    epsilon_rdp,
    merged,
    rdp_curve,
    renyi_budget,
    renyi_divergence,
    renyi_epsilon,
    replaced_epsilon,
)

__all__ = [
    "DISCRETIZATION",
    "ORDERS",
    "RELATIONS",
    "Relation",
    "epsilon_at_order",
    "epsilon_of_site",
    "epsilon_pld",
    "epsilon_rdp",
    "rdp_curve",
    "renyi_budget",
    "renyi_divergence",
    "renyi_epsilon",
    "replaced_epsilon",
    "three_deltas",
]

DISCRETIZATION = 1e-4  # of the privacy loss, in nats
_FINE_EPSILON = 25.0  # above it the grid of the privacy loss grows in proportion
_PLD_EPSILON = 1000.0  # above it only RDP answers: a tighter number would reassure nobody


def epsilon_pld(
    events: Iterable[Event],
    delta: float,
    *,
    relation: Relation = "add_remove",
    value_discretization_interval: float = DISCRETIZATION,
) -> float:
    """Return epsilon of all events together by privacy loss distributions, or by RDP where that is smaller.

    Args:
        events: what happened to the records of one stream, in any order.
        delta: 0 < delta < 1.
        relation: add or remove one record, or replace one by another of the same stream.
        value_discretization_interval: grid of the privacy loss in nats; pessimistic at any value.

    Returns:
        epsilon >= 0: 0.0 for no events, infinity if any is NonPrivate.

    Raises:
        ConfigurationError: delta or the interval is out of its bounds, or the relation is unknown.
        UnsupportedEventError: something is not an event of `fednas.privacy.events`.

    Source: Koskela et al. (2020), arXiv 1906.03049; Doroshenko et al. (2022), arXiv 2207.04380; the proof in
    `replacement` for the pair of distributions that is worst when a record is replaced.
    """
    delta, relation, form = checked_delta(delta), checked_relation(relation), merged(events)
    interval = _interval(value_discretization_interval)
    if form is None:
        return math.inf
    return _epsilon_pld(*(((), form, ()) if relation == "add_remove" else (form, (), ())), delta, interval)


def epsilon_of_site(
    releases: Iterable[tuple[Event, tuple[str, ...]]],
    delta: float,
    *,
    relation: Relation = "add_remove",
    proved: bool = False,
) -> float:
    """Return epsilon of a site whose records are split into disjoint streams.

    A record that is added or removed belongs to one stream: the answer is the maximum over streams. A record
    that is replaced may leave one stream and its successor enter another, as the split follows the record
    itself: then what reads only the one loses a record, what reads only the other gains one, and what reads
    both sees a record replaced. The answer is the maximum over all pairs of streams.

    Args:
        releases: events with the streams that each of them reads.
        delta: 0 < delta < 1.
        relation: add or remove one record, or replace one by another of any stream.
        proved: by Rényi divergences of integer order alone, instead of by privacy loss distributions.

    Returns:
        epsilon >= 0: 0.0 for no events, infinity if any is NonPrivate.

    Raises:
        ConfigurationError: delta is out of its bounds, or the relation is unknown.
        UnsupportedEventError: something is not an event of `fednas.privacy.events`.
    """
    delta, relation, releases = checked_delta(delta), checked_relation(relation), tuple(releases)
    streams = sorted({stream for _, read in releases for stream in read})
    worst = 0.0
    for left, entered in combinations_with_replacement(streams, 2):
        if relation == "add_remove" and left != entered:
            continue
        forms = [
            merged(event for event, read in releases if (left in read, entered in read) == reads)
            for reads in ((True, True), (True, False), (False, True))
        ]
        replaced, removed, added = forms
        if replaced is None or removed is None or added is None:
            return math.inf
        if relation == "add_remove":
            replaced, removed = (), replaced
        bound = _rdp_bound(replaced, removed, added, delta)
        cost = bound if proved else _epsilon_pld(replaced, removed, added, delta, DISCRETIZATION)
        worst = max(worst, cost)
    return worst


def three_deltas(delta: float) -> tuple[float, float, float]:
    """Return the deltas at which a statement gives epsilon: the budget's, a tenth and a hundredth of it.

    Raises:
        ConfigurationError: delta is out of its bounds.
    """
    delta = checked_delta(delta)
    return delta, checked_delta(delta / 10.0), checked_delta(delta / 100.0)


def _interval(interval: float) -> float:
    number = real(interval)
    if number is None or not 1e-6 <= number <= 1.0:
        raise ConfigurationError(f"expected 1e-6 <= value_discretization_interval <= 1, got {interval!r}")
    return number


@lru_cache(maxsize=4096)
def _rdp_bound(replaced: Form, removed: Form, added: Form, delta: float) -> float:
    if not replaced and not removed and not added:
        return 0.0
    curve = curve_of(replaced, "replace_one") + curve_of(removed, "add_remove")
    return epsilon_of(curve + curve_of(added, "add_remove"), delta)


@lru_cache(maxsize=4096)
def _epsilon_pld(replaced: Form, removed: Form, added: Form, delta: float, interval: float) -> float:
    """Return epsilon when one record is replaced, removed or added, each in the mechanisms of its form."""
    bound = _rdp_bound(replaced, removed, added, delta)
    if not bound <= _PLD_EPSILON or bound == 0.0:
        return bound
    while bound > _FINE_EPSILON and interval < bound * DISCRETIZATION / _FINE_EPSILON:
        interval *= 2.0
    precision, parts = 0.0, []
    for form, change in ((replaced, "replace"), (removed, "remove"), (added, "add")):
        for q, sigma, amount in form:
            if q < 1.0:
                parts.append(_loss(q, sigma, amount, interval, change))
            else:  # Gaussians compose to a Gaussian; a replaced record changes twice as much
                precision += amount / (sigma / 2.0 if change == "replace" else sigma) ** 2
    if precision > 0.0:
        parts.append(_loss(1.0, precision**-0.5, 1, interval, "remove"))
    total = parts[0]
    for part in parts[1:]:
        total = total.compose(part)
    return min(bound, max(0.0, float(total.get_epsilon_for_delta(delta))))


@lru_cache(maxsize=16)
def _loss(q: float, sigma: float, amount: int, interval: float, change: str) -> Any:
    """Return the privacy loss distributions of `amount` equal releases, of a change and of its reverse."""
    single = _single_loss(q, sigma, interval, change == "replace")
    composed = single if amount == 1 else single.self_compose(amount)
    # Both directions count: what is removed in one stream while another is added is the reverse there.
    return type(composed)(composed._pmf_add, composed._pmf_remove) if change == "add" else composed


@lru_cache(maxsize=16)
def _single_loss(q: float, sigma: float, interval: float, replace: bool) -> Any:
    # slow to import: only where a number is asked for
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        sigma,
        sampling_prob=q,
        value_discretization_interval=interval,
        neighboring_relation=(
            NeighboringRelation.REPLACE_ONE if replace else NeighboringRelation.ADD_OR_REMOVE_ONE
        ),
    )

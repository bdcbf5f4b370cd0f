"""Epsilon at three deltas, under both neighbouring relations, by both accountants."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fednas.privacy.accounting import (
    RELATIONS,
    Relation,
    epsilon_of_site,
    epsilon_pld,
    epsilon_rdp,
    renyi_epsilon,
    replaced_epsilon,
    three_deltas,
)
from fednas.privacy.events import Event

__all__ = ["RELATIONS", "Bound", "event_bounds", "filter_bounds", "site_bounds"]


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What a record has lost at most.

    Args:
        relation: `add_remove` or `replace_one`.
        delta: 0 < delta < 1.
        pld: epsilon by privacy loss distributions; None in adaptive mode, where they prove nothing.
        proved: epsilon by Rényi divergences of integer order; infinite where the order proves nothing.
    """

    relation: Relation
    delta: float
    pld: float | None
    proved: float

    @property
    def best(self) -> float:
        """What is claimed: by privacy loss distributions where there are some."""
        return self.proved if self.pld is None else self.pld


def event_bounds(events: Sequence[Event], delta: float) -> tuple[Bound, ...]:
    """The bounds of one stream's events, fixed beforehand: both relations at three deltas.

    Args:
        events: everything that may ever happen to the records of the stream. Under replace-one the other
            record is in the same stream.
        delta: the largest of the three.
    """
    return _each(
        delta,
        lambda relation, at: epsilon_pld(events, at, relation=relation),
        lambda relation, at: epsilon_rdp(events, at, relation=relation),
    )


def site_bounds(releases: Iterable[tuple[Event, tuple[str, ...]]], delta: float) -> tuple[Bound, ...]:
    """The bounds of any record of a dataset: under replace-one the other record may be in another stream.

    Args:
        releases: events that were fixed beforehand, with the streams that each reads.
        delta: the largest of the three.
    """
    known = tuple(releases)
    return _each(
        delta,
        lambda relation, at: epsilon_of_site(known, at, relation=relation),
        lambda relation, at: epsilon_of_site(known, at, relation=relation, proved=True),
    )


def filter_bounds(divergence: float, order: int, delta: float) -> tuple[Bound, ...]:
    """The bounds that follow from what a filter lets add up in any stream: both relations at three deltas.

    Args:
        divergence: nats, at least 0; 0 where nothing was charged.
        order: of the filter, 2 to 256.
        delta: the largest of the three.
    """
    convert = {"add_remove": renyi_epsilon, "replace_one": replaced_epsilon}
    return _each(
        delta,
        None,
        lambda relation, at: convert[relation](divergence, at, order) if divergence > 0.0 else 0.0,
    )


def _each(
    delta: float, pld: Callable[[Relation, float], float] | None, proved: Callable[[Relation, float], float]
) -> tuple[Bound, ...]:
    return tuple(
        Bound(relation=r, delta=at, pld=None if pld is None else pld(r, at), proved=proved(r, at))
        for r in RELATIONS
        for at in three_deltas(delta)
    )

"""Everything a study may ever release, fixed beforehand: its hash opens a ledger, its claim never moves."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Self

from fednas.errors import BudgetExceededError, ConfigurationError, PrivacyError, UnsupportedEventError
from fednas.privacy.accounting import epsilon_at_order, epsilon_pld
from fednas.privacy.allowance import READS, STREAMS, Allowance, ReleaseSchedule, stream_shares
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.calibration import calibrated
from fednas.privacy.events import Event, decode, encode
from fednas.privacy.numbers import canonical_json, decode_real, encode_real

__all__ = ["READS", "STREAMS", "Allowance", "PrivacyPlan", "ReleaseSchedule"]

_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """A fixed noise schedule and what it can cost: public, data-independent, the same at every site.

    Args:
        budget: what the plan was calibrated to.
        proportions: (stream, share of a site's records) in the order of `STREAMS`, adding up to 1.
        allowances: at most one of each name, in the order search, alphas, fitness, final.

    Raises:
        ConfigurationError: a part is missing, twice there, or out of order.

    Guarantees:
        - The streams of a site are disjoint, so a record loses at most `claim`: the maximum over streams.
        - Stopping early does not lower the claim; nothing that is released can raise it.
    """

    budget: PrivacyBudget
    proportions: tuple[tuple[str, float], ...]
    allowances: tuple[Allowance, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "proportions", stream_shares(self.proportions))
        names = [allowance.name for allowance in self.allowances]
        if names != [name for name in READS if name in names]:
            raise ConfigurationError(f"expected each allowance once and in the order {', '.join(READS)}")

    @classmethod
    def calibrate(
        cls, *, budget: PrivacyBudget, proportions: Mapping[str, float], schedule: ReleaseSchedule
    ) -> "PrivacyPlan":
        """Return the plan of least noise whose every stream costs at most the budget.

        Training steps of the search and of the final share one noise multiplier. The final reads all streams
        and is charged to each: what it leaves of the other streams' epsilon buys alphas and fitness.

        Args:
            budget: the epsilon and delta that no stream may exceed, by privacy loss distributions, or by the
                Rényi divergence at its order if it has one.
            proportions: share of a site's records in each of `STREAMS`, adding up to 1.
            schedule: how often what may be released.

        Returns:
            A plan with noise multipliers rounded up to 4 decimals, without allowances of zero releases.

        Raises:
            ConfigurationError: a stream that is read holds no records, or no noise is enough.
        """
        return _calibrate(budget, stream_shares(proportions), schedule)

    def check_covers(self, charges: Mapping[str, int]) -> None:
        """Refuse charges that not even a run that has spent nothing could pay: opening a plan is spending.

        Args:
            charges: steps or releases for each allowance.

        Raises:
            PrivacyError: the plan has no such allowance.
            BudgetExceededError: it has fewer steps or releases of it.
        """
        amounts = {allowance.name: allowance.event.amount for allowance in self.allowances}
        for name, amount in charges.items():
            if name not in amounts:
                raise PrivacyError(f"this plan has no allowance {name!r} to pay with; plan one")
            if amount > (has := amounts[name]):
                raise BudgetExceededError(
                    f"{amount} of {name} are asked at once, and the whole plan has {has}; plan more of it"
                )

    def allowance(self, name: str) -> Allowance:
        """Return the allowance of a name.

        Raises:
            ConfigurationError: the plan has none.
        """
        for allowance in self.allowances:
            if allowance.name == name:
                return allowance
        raise ConfigurationError(
            f"this plan has no allowance {name!r}; it has {', '.join(self._names) or 'none'}"
        )

    def share(self, name: str) -> float:
        """The share of a site's records that an allowance reads: that of its streams together.

        Raises:
            ConfigurationError: the plan has none.
        """
        shares = dict(self.proportions)
        return sum(shares[stream] for stream in self.allowance(name).streams)

    def noise_multiplier(self, name: str) -> float:
        """Return the public noise multiplier of an allowance, by which an aggregation may weight."""
        return self.allowance(name).noise_multiplier

    def events(self, stream: str) -> tuple[Event, ...]:
        """Return everything the plan may ever do to the records of a stream.

        Raises:
            ConfigurationError: there is no such stream.
        """
        if stream not in STREAMS:
            raise ConfigurationError(f"unknown stream {stream!r}; expected one of {', '.join(STREAMS)}")
        return tuple(allowance.event for allowance in self.allowances if stream in allowance.streams)

    def epsilon(self, stream: str) -> float:
        """Return what the plan costs a record of a stream at its delta.

        By privacy loss distributions, or by the Rényi divergence at the order of a budget that has one: only
        that bounds noise which adapts to releases.

        Raises:
            ConfigurationError: there is no such stream.
        """
        if self.budget.order is not None:
            return epsilon_at_order(self.events(stream), self.budget.delta, self.budget.order)
        return epsilon_pld(self.events(stream), self.budget.delta)

    @property
    def claim(self) -> float:
        """What the plan costs any record of a site: the maximum over its disjoint streams."""
        return max(self.epsilon(stream) for stream in STREAMS)

    @cached_property
    def id(self) -> str:
        """The sha256 of the plan's canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the plan as canonical JSON: equal plans have equal text on every machine."""
        return canonical_json(
            {
                "allowances": [
                    {
                        "clip_norm": encode_real(allowance.clip_norm),
                        "event": encode(allowance.event),
                        "name": allowance.name,
                        "streams": list(allowance.streams),
                    }
                    for allowance in self.allowances
                ],
                "budget": self.budget.encode(),
                "proportions": [[stream, encode_real(share)] for stream, share in self.proportions],
                "version": _VERSION,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the plan that `to_json` wrote.

        Args:
            text: canonical JSON; any other spelling of the same plan would have another hash.

        Raises:
            ConfigurationError: the text is malformed, not canonical, or a part is unknown or out of bounds.
        """
        try:
            value = json.loads(text)
        except (ValueError, TypeError, RecursionError):
            raise ConfigurationError("expected a privacy plan as JSON") from None
        table = _table(value, "plan", "allowances", "budget", "proportions", "version")
        if table["version"] != _VERSION:
            raise ConfigurationError(f"expected a privacy plan of version {_VERSION}")
        plan = cls(
            budget=PrivacyBudget.decode(table["budget"]),
            proportions=tuple(_share(item) for item in _list(table["proportions"], "proportions")),
            allowances=tuple(_allowance(item) for item in _list(table["allowances"], "allowances")),
        )
        if plan.to_json() != text:
            raise ConfigurationError("expected a privacy plan in its canonical spelling")
        return plan

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(allowance.name for allowance in self.allowances)


@lru_cache(maxsize=64)
def _calibrate(
    budget: PrivacyBudget, proportions: tuple[tuple[str, float], ...], schedule: ReleaseSchedule
) -> PrivacyPlan:
    shares = dict(proportions)
    for name in ("search", "alphas", "fitness"):
        if schedule.amount(name) > 0 and shares[READS[name][0]] == 0.0:
            raise ConfigurationError(f"{name} reads the {READS[name][0]} stream, whose share of records is 0")
    events = calibrated(budget, schedule)
    clips = {"alphas": schedule.architecture_clip_norm, "fitness": 1.0}
    return PrivacyPlan(
        budget=budget,
        proportions=proportions,
        allowances=tuple(
            Allowance(
                name=name,
                streams=READS[name],
                event=events[name],
                clip_norm=clips.get(name, schedule.clip_norm),
            )
            for name in READS
            if name in events
        ),
    )


def _table(value: object, what: str, *keys: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or set(value) != set(keys):
        raise ConfigurationError(f"expected the {what} with exactly the keys {', '.join(keys)}")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigurationError(f"expected {what} as a list")
    return value


def _share(item: object) -> tuple[str, float]:
    pair = _list(item, "a stream and its share")
    if len(pair) != 2 or pair[0] not in STREAMS:
        raise ConfigurationError("expected a stream and its share")
    return str(pair[0]), _number(pair[1])


def _allowance(item: object) -> Allowance:
    table = _table(item, "allowance", "clip_norm", "event", "name", "streams")
    if not isinstance(table["name"], str):
        raise ConfigurationError("expected the name of an allowance as text")
    try:
        event = decode(table["event"])
    except UnsupportedEventError as error:
        raise ConfigurationError(str(error)) from None
    return Allowance(
        name=table["name"],
        streams=tuple(_list(table["streams"], "streams")),
        event=event,
        clip_norm=_number(table["clip_norm"]),
    )


def _number(text: object) -> float:
    number = decode_real(text)
    if number is None:
        raise ConfigurationError("expected a number as the exact decimal string that repr writes")
    return number

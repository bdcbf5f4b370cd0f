"""Who takes part, the device tiers, and who trains what: public facts and public randomness only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from fednas.aggregation import robust_rule
from fednas.config import StudyConfig
from fednas.devices import DeviceProfile
from fednas.errors import ConfigurationError, InfeasibleDeviceError
from fednas.search import Policy, sandwich_paths
from fednas.space import Architecture, SearchSpace
from fednas.space.cost import Cost, cost_of
from fednas.wire import SiteFacts

AWAY = "AWAY"
"""Why a member that did not answer the greeting is not asked, until it answers another one."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A site of the study and the Flower node it answers from in this session.

    Args:
        node: Flower's number; negative, and of no use, while the site is away.
        facts: what the site says of itself.
        away: the constant code that says why the site is not asked now; "" for all others.
    """

    node: int
    facts: SiteFacts
    away: str = ""


@final
class Costs:
    """What an architecture needs of a device, at the study's micro-batch.

    Args:
        space: the space of the study.
        micro_batch: records whose gradients a site holds in memory at once.
    """

    def __init__(self, space: SearchSpace, *, micro_batch: int) -> None:
        self._space = space
        self._micro_batch = micro_batch

    def __call__(self, architecture: Architecture) -> Cost:
        """The cost of an architecture of the space."""
        return cost_of(self._space, architecture, micro_batch=self._micro_batch)

    def fits(self, devices: Sequence[DeviceProfile]) -> Callable[[Architecture], bool]:
        """Whether an architecture fits every one of these devices."""
        return lambda architecture: self.violation(devices)(architecture) <= 0.0

    def violation(self, devices: Sequence[DeviceProfile]) -> Callable[[Architecture], float]:
        """The largest relative excess over any limit of these devices; at most 0 when all fit."""
        return lambda architecture: max(device.violation(self(architecture)) for device in devices)


@final
class Cohort:
    """The members of a study in the order of their names, and their device tiers.

    Args:
        members: one a site; those that are away keep their places, so that the others keep their paths.
        space: the space of the study.
        study: the configuration.

    Raises:
        ConfigurationError: a site's delta or name contradicts the study, or too few are there, also for the
            rule that combines what they send.
        InfeasibleDeviceError: no architecture of the space fits a device.
    """

    def __init__(self, members: Sequence[Member], space: SearchSpace, study: StudyConfig) -> None:
        self.members = tuple(sorted(members, key=lambda member: member.facts.site))
        self.costs = Costs(space, micro_batch=study.training.micro_batch)
        self._space = space
        self._check(study)
        tiers: dict[str, list[DeviceProfile]] = {}
        for member in self.members:
            tiers.setdefault(member.facts.device.tier, []).append(member.facts.device)
        cheapest = {tier: min(d.memory_bytes for d in devices) for tier, devices in tiers.items()}
        self.tiers: Mapping[str, tuple[DeviceProfile, ...]] = {
            tier: tuple(tiers[tier]) for tier in sorted(tiers, key=lambda tier: (cheapest[tier], tier))
        }

    def _check(self, study: StudyConfig) -> None:
        names = [member.facts.site for member in self.members]
        if len(set(names)) != len(names):
            raise ConfigurationError("two sites have the same name; give each its own in its site.toml")
        datasets = [member.facts.dataset for member in self.members]
        if len(set(datasets)) != len(datasets):
            raise ConfigurationError(
                "two sites have the same dataset; a dataset has one name, one site and one ledger"
            )
        present = sum(not member.away for member in self.members)
        if present < study.federation.min_sites:
            raise ConfigurationError(
                f"{present} sites answered, the study needs at least {study.federation.min_sites}"
            )
        name, hostile = study.federation.aggregation, study.federation.max_hostile
        rule = robust_rule(name, hostile)
        if rule is not None and present < rule.least_sites:
            raise ConfigurationError(
                f"{present} sites answered, {name} with max_hostile = {hostile} needs at least "
                f"{rule.least_sites}: bring more sites, lower federation.max_hostile or change "
                "federation.aggregation"
            )
        for member in self.members:
            facts = member.facts
            delta = min(study.privacy.delta, facts.delta)
            if not study.privacy.non_private and delta > 1.0 / facts.declared_size:
                raise ConfigurationError(
                    f"delta {delta} is above 1 / {facts.declared_size}, the declared size of "
                    f"{facts.site}; lower privacy.delta"
                )
            smallest = self.costs(self._space.smallest())
            if not facts.device.fits(smallest):
                raise InfeasibleDeviceError(
                    f"no architecture of the space {self._space.name!r} fits the device of {facts.site}: "
                    "the smallest "
                    f"{facts.device.explain(smallest)}"
                )

    def given(self, study: StudyConfig) -> Mapping[str, Architecture]:
        """The architectures that a study gives its tiers beforehand.

        Raises:
            ConfigurationError: a tier is not one of the sites', or an architecture is not in the space.
            InfeasibleDeviceError: an architecture does not fit its tier.
        """
        if study.search.fixed is None:
            return {}
        chosen = {t: Architecture.of(self._space.name, choices) for t, choices in study.search.fixed.items()}
        unknown = sorted(set(chosen) - set(self.tiers))
        if unknown:
            raise ConfigurationError(
                f"search.fixed names the tier {unknown[0]!r}; the sites have {', '.join(self.tiers)}"
            )
        for tier, architecture in chosen.items():
            if not self._space.contains(architecture):
                raise ConfigurationError(
                    f"search.fixed.{tier} is not in the space {self._space.name!r}; see its choices"
                )
            if not self.costs.fits(self.tiers[tier])(architecture):
                reasons = (device.explain(self.costs(architecture)) for device in self.tiers[tier])
                raise InfeasibleDeviceError(f"search.fixed.{tier} does not fit: it {next(iter(reasons))}")
        return chosen

    def fits(self, member: Member) -> Callable[[Architecture], bool]:
        """Whether an architecture fits this member's device."""
        return self.costs.fits([member.facts.device])

    def search_paths(self, round_number: int, generator: np.random.Generator) -> list[Architecture]:
        """One path a member: the sandwich of smallest, largest and fair ones, rotating over the rounds."""
        return sandwich_paths(
            self._space,
            fits=[self.fits(member) for member in self.members],
            round=round_number,
            generator=generator,
        )

    def policy_paths(self, policy: Policy, generator: np.random.Generator) -> list[Architecture]:
        """One path a member, drawn from the architecture parameters."""
        return [policy.sample(generator, self.fits(member)) for member in self.members]

    def rotate(self, architectures: Sequence[Architecture], round_number: int) -> list[Architecture | None]:
        """One of the given architectures a member, rotating among those that fit it; None where none does."""
        chosen: list[Architecture | None] = []
        for index, member in enumerate(self.members):
            fitting = [a for a in dict.fromkeys(architectures) if self.fits(member)(a)]
            chosen.append(fitting[(index + round_number) % len(fitting)] if fitting else None)
        return chosen

"""Which privacy plan each site has: agreed once, kept in the run directory, the same after a crash."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fednas.config import StudyConfig
from fednas.devices import DeviceProfile
from fednas.errors import ConfigurationError, ExchangeError, RunDirectoryError
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.plan import PrivacyPlan
from fednas.schedule import budget_for, plan_for
from fednas.wire import SiteFacts
from server.checkpoint import RunDirectory
from server.cohort import AWAY, Cohort, Member


def site_budget(study: StudyConfig, facts: SiteFacts) -> PrivacyBudget:
    """What a site's plan may cost, by what it says of itself.

    Raises:
        ConfigurationError: nothing at all fits what the site allows at the order of its filter.
    """
    return budget_for(study, epsilon=facts.epsilon_cap, delta=facts.delta, order=facts.order)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The plan of every site that ever took part in a study: a public function of public facts.

    Args:
        num_tiers: device tiers at the study's beginning; every plan has the schedule that they need.
        plans: by the name of the site, in the order of the names.
        facts: what each of these sites said of itself when its plan was made.
    """

    num_tiers: int
    plans: Mapping[str, PrivacyPlan] = field(default_factory=dict)
    facts: Mapping[str, SiteFacts] = field(default_factory=dict)

    @property
    def claim(self) -> float:
        """The largest epsilon of any site: their records are disjoint, so nothing is added up."""
        return max(plan.claim for plan in self.plans.values())

    @property
    def delta(self) -> float:
        """The largest delta of any site."""
        return max(plan.budget.delta for plan in self.plans.values())

    def by_plan(self) -> tuple[tuple[PrivacyPlan, tuple[str, ...]], ...]:
        """The distinct plans, each with the names of its sites, in the order of their first one."""
        groups: dict[str, list[str]] = {}
        for site, plan in self.plans.items():
            groups.setdefault(plan.id, []).append(site)
        return tuple((self.plans[sites[0]], tuple(sites)) for sites in groups.values())

    def absent(self, present: Sequence[Member]) -> list[Member]:
        """Sites that did not answer now: they keep their places, so that the others keep their paths."""
        names = {member.facts.site for member in present}
        missing = [facts for site, facts in self.facts.items() if site not in names]
        return [Member(node=-1 - index, facts=facts, away=AWAY) for index, facts in enumerate(missing)]


def recall(directory: RunDirectory) -> Agreement | None:
    """The agreement of a run that has begun; None before.

    Raises:
        RunDirectoryError: `plan.json` is corrupt.
    """
    if not (directory.path / "plan.json").exists():
        return None
    value = directory.read("plan.json")
    try:
        plans = {entry["id"]: PrivacyPlan.from_json(entry["canonical"]) for entry in value["plans"]}
        if any(plan.id != name for name, plan in plans.items()):
            raise ValueError("a plan under another name")
        sites = {str(name): entry for name, entry in sorted(value["sites"].items())}
        return Agreement(
            num_tiers=_count(value["num_tiers"]),
            plans={name: plans[entry["plan"]] for name, entry in sites.items()},
            facts={name: _facts(entry["facts"]) for name, entry in sites.items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, ConfigurationError, ExchangeError) as error:
        raise RunDirectoryError(
            f"{directory.path}/plan.json is corrupt; without the plans of its sites the run cannot go on"
        ) from error


def agree(directory: RunDirectory, cohort: Cohort, known: Agreement | None) -> Agreement:
    """Give every site of the cohort a plan, and keep them before anything is asked of anybody.

    A site that has a plan keeps it whatever it says now: its ledger opened the run with it. All plans have
    the same schedule and sampling; only their noise differs.

    Args:
        directory: where `plan.json` is kept.
        cohort: the sites, checked.
        known: what was agreed before, by `recall`.

    Raises:
        ConfigurationError: no noise is enough for what a site allows.
    """
    study = directory.study
    num_tiers = len(cohort.tiers) if known is None else known.num_tiers
    plans = dict(known.plans) if known else {}
    facts = dict(known.facts) if known else {}
    for member in cohort.members:
        site = member.facts.site
        if site not in plans:
            plans[site] = _calibrate(study, member.facts, num_tiers)
            facts[site] = member.facts
    if known is not None and plans.keys() == known.plans.keys():
        return known
    agreement = Agreement(
        num_tiers=num_tiers, plans=dict(sorted(plans.items())), facts=dict(sorted(facts.items()))
    )
    store(directory, agreement)
    return agreement


def store(directory: RunDirectory, agreement: Agreement) -> None:
    """Keep an agreement as `plan.json`, from which `recall` reads an equal one."""
    directory.write("plan.json", _encode(agreement))


def _calibrate(study: StudyConfig, facts: SiteFacts, num_tiers: int) -> PrivacyPlan:
    try:
        return plan_for(study, num_tiers, site_budget(study, facts))
    except ConfigurationError as error:
        raise ConfigurationError(
            f"there is no plan for {facts.site}, which allows epsilon {facts.epsilon_cap:g} at delta "
            f"{facts.delta:g}: {error}"
        ) from error


def _encode(agreement: Agreement) -> dict[str, Any]:
    return {
        "num_tiers": agreement.num_tiers,
        "plans": [
            {
                "id": plan.id,
                "canonical": plan.to_json(),
                "claim": plan.claim,
                "delta": plan.budget.delta,
                "sites": list(sites),
            }
            for plan, sites in agreement.by_plan()
        ],
        "sites": {
            site: {"plan": plan.id, "facts": asdict(agreement.facts[site])}
            for site, plan in agreement.plans.items()
        },
    }


def _facts(value: Mapping[str, Any]) -> SiteFacts:
    return SiteFacts(**{**value, "device": DeviceProfile(**value["device"])})


def _count(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError("expected a count")
    return value

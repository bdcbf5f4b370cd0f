"""What a study ends with: a network for every tier, its privacy statement, and one table."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from fednas.export import export
from fednas.privacy.plan import PrivacyPlan
from fednas.space import SearchSpace
from server.agreement import Agreement
from server.checkpoint import RunDirectory
from server.cohort import Cohort
from server.coordinator import Coordinator

PACKAGES = ("fednas", "flwr", "torch", "opacus", "dp-accounting")


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A study after its last round.

    Args:
        directory: of the run.
        coordinator: after the last round.
        cohort: the sites.
        agreement: the plan of each.
        space: of the study.
        left_out: sites that were never members, and the constant code that says why.
    """

    directory: RunDirectory
    coordinator: Coordinator
    cohort: Cohort
    agreement: Agreement
    space: SearchSpace
    left_out: Mapping[str, str] = field(default_factory=dict)


def write_results(completed: Completed) -> None:
    """Write the supernet, the tiers' files and `result.json` into the run directory."""
    directory, coordinator = completed.directory, completed.coordinator
    cohort, agreement, space = completed.cohort, completed.agreement, completed.space
    coordinator.supernet.save(directory.path / "supernet.safetensors")
    statement = privacy_statement(directory, agreement)
    tiers: dict[str, Any] = {}
    for tier, architecture in coordinator.chosen.items():
        network = coordinator.supernet.extract(architecture)
        folder = directory.path / "tiers" / tier
        export(network, architecture, folder, input_shape=space.input_shape)
        directory.write(f"tiers/{tier}/privacy.json", statement)
        cost = cohort.costs(architecture)
        estimate = coordinator.fitness.get(tier)
        tiers[tier] = {
            "architecture": architecture.as_dict(),
            "id": architecture.id,
            "cost": asdict(cost),
            "latency_ms": max(device.latency_ms(cost) for device in cohort.tiers[tier]),
            "fitness": None if estimate is None else estimate.fitness,
            "fitness_std": None if estimate is None else estimate.std,
        }
    sites = {
        member.facts.site: {
            "tier": member.facts.device.tier,
            "declared_size": member.facts.declared_size,
            "refused": coordinator.refused.get(member.facts.site),
        }
        | _terms(agreement.plans[member.facts.site])
        for member in cohort.members
    }
    directory.settle("supernet.safetensors", *(["tiers"] if tiers else []))
    directory.write(
        "result.json",
        {
            "run": directory.run,
            "study": directory.study.name,
            "tiers": tiers,
            "order": [tier for tier in cohort.tiers if tier in tiers],
            "sites": sites,
            "left_out": dict(completed.left_out),
            "epsilon": agreement.claim,
        },
    )


def privacy_statement(directory: RunDirectory, agreement: Agreement) -> dict[str, Any]:
    """What was promised to each site, in the words of its plan: it travels with every exported network.

    Records of different sites are disjoint, so a record's guarantee is that of its own site: the sites stand
    side by side, with their maximum, and nothing is added up or averaged.
    """
    return {
        "unit": "one record of one site",
        "relation": "add or remove one record",
        "adversary": "the server and every other site, seeing every byte a site sends",
        "sites": {site: _terms(plan) for site, plan in agreement.plans.items()},
        "epsilon": agreement.claim,
        "delta": agreement.delta,
        "across_sites": "a record's epsilon is its own site's; the statement's is the largest, not a sum",
        "plans": {plan.id: _describe(plan) for plan, _ in agreement.by_plan()},
        "non_private": directory.study.privacy.non_private,
        "run": directory.run,
        "versions": {name: version(name) for name in PACKAGES},
        "proof": "each site's own ledger holds what it was charged: fednas ledger verify FILE",
    }


def _terms(plan: PrivacyPlan) -> dict[str, Any]:
    return {"epsilon": plan.claim, "delta": plan.budget.delta, "plan": plan.id}


def _describe(plan: PrivacyPlan) -> dict[str, Any]:
    order = plan.budget.order
    return {
        "accountant": (
            "privacy loss distributions (dp-accounting) over the whole plan; streams compose in parallel"
            if order is None
            else f"Rényi divergence of order {order} over the whole plan; streams compose in parallel"
        ),
        "epsilon_by_stream": {
            stream: plan.epsilon(stream) for stream, share in plan.proportions if share > 0
        },
        "releases": [
            {
                "what": allowance.name,
                "streams": list(allowance.streams),
                "noise_multiplier": allowance.noise_multiplier,
                "clip_norm": allowance.clip_norm,
            }
            for allowance in plan.allowances
        ],
    }

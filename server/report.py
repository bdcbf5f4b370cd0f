"""What a study ends with: a network for every tier, its privacy statement, and one table."""

from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from fednas.export import export
from fednas.privacy.plan import PrivacyPlan
from fednas.space import SearchSpace
from server.checkpoint import RunDirectory
from server.cohort import Cohort
from server.coordinator import Coordinator

PACKAGES = ("fednas", "flwr", "torch", "opacus", "dp-accounting")


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A study after its last round."""

    directory: RunDirectory
    coordinator: Coordinator
    cohort: Cohort
    plan: PrivacyPlan
    space: SearchSpace


def write_results(completed: Completed) -> None:
    """Write the supernet, the tiers' files and `result.json` into the run directory."""
    directory, coordinator = completed.directory, completed.coordinator
    cohort, plan, space = completed.cohort, completed.plan, completed.space
    coordinator.supernet.save(directory.path / "supernet.safetensors")
    statement = privacy_statement(directory, cohort=cohort, plan=plan)
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
            "epsilon": plan.claim,
        }
        for member in cohort.members
    }
    directory.write(
        "result.json",
        {
            "run": directory.run,
            "study": directory.study.name,
            "tiers": tiers,
            "order": [tier for tier in cohort.tiers if tier in tiers],
            "sites": sites,
            "plan": plan.id,
        },
    )


def privacy_statement(directory: RunDirectory, *, cohort: Cohort, plan: PrivacyPlan) -> dict[str, Any]:
    """What was promised to each site, in the words of the plan: it travels with every exported network."""
    return {
        "unit": "one record of one site",
        "relation": "add or remove one record",
        "adversary": "the server and every other site, seeing every byte a site sends",
        "epsilon": plan.claim,
        "delta": plan.budget.delta,
        "accountant": "privacy loss distributions (dp-accounting) over the whole plan; "
        "streams compose in parallel",
        "epsilon_by_stream": {
            stream: plan.epsilon(stream) for stream, share in plan.proportions if share > 0
        },
        "plan": plan.id,
        "releases": [
            {
                "what": allowance.name,
                "streams": list(allowance.streams),
                "noise_multiplier": allowance.noise_multiplier,
                "clip_norm": allowance.clip_norm,
            }
            for allowance in plan.allowances
        ],
        "sites": [member.facts.site for member in cohort.members],
        "non_private": directory.study.privacy.non_private,
        "run": directory.run,
        "versions": {name: version(name) for name in PACKAGES},
        "proof": "each site's own ledger holds what it was charged: fednas ledger verify FILE",
    }

"""When a study trains and evaluates, and so how much it will ever release: a function of its config."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from fednas.config import StudyConfig
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.plan import PrivacyPlan, ReleaseSchedule

StepKind = Literal["search", "generation", "final", "report"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One round of a study.

    Args:
        round: counted from 1; the identity of the round at every site.
        kind: `search` trains paths of the supernet, `generation` counts correct predictions of candidates,
            `final` trains the chosen architectures on, `report` counts theirs once more.
    """

    round: int
    kind: StepKind


def agenda(study: StudyConfig) -> tuple[Step, ...]:
    """All rounds of a study in order.

    Generations are spread evenly over the search rounds, the last one ends them. Without a search every round
    is final.
    """
    plan = study.schedule
    if study.search.fixed is not None:
        rounds = plan.search_rounds + plan.final_rounds
        return tuple(Step(round=i + 1, kind="final") for i in range(rounds))
    after = {-(-plan.search_rounds * (g + 1) // plan.generations) for g in range(plan.generations)}
    kinds: list[StepKind] = []
    for number in range(1, plan.search_rounds + 1):
        kinds.append("search")
        if number in after:
            kinds.append("generation")
    kinds += ["final"] * plan.final_rounds
    kinds.append("report")
    return tuple(Step(round=i + 1, kind=kind) for i, kind in enumerate(kinds))


def candidates_per_tier(study: StudyConfig, num_tiers: int) -> int:
    """How many candidates each tier puts to a generation, its incumbent included; at least 1."""
    return max(1, study.schedule.candidates // num_tiers)


def release_schedule(study: StudyConfig, num_tiers: int) -> ReleaseSchedule:
    """The most that one site will ever be asked for in a study, spare rounds for crashes included.

    Args:
        study: the configuration.
        num_tiers: distinct device tiers among the sites.
    """
    training, spare = study.training, study.schedule.spare_rounds
    kinds = Counter(step.kind for step in agenda(study))
    generation = candidates_per_tier(study, num_tiers) * num_tiers
    counts = kinds["generation"] * generation + kinds["report"] * num_tiers
    searched = kinds["search"] + spare if kinds["search"] else 0
    return ReleaseSchedule(
        sampling_probability=training.sampling_probability,
        search_steps=searched * training.steps_per_round,
        final_steps=(kinds["final"] + spare) * training.steps_per_round,
        architecture_steps=searched if study.search.strategy == "differentiable" else 0,
        fitness_releases=counts + spare * generation if counts else 0,
        clip_norm=training.clip_norm,
        architecture_clip_norm=training.architecture_clip_norm,
    )


def budget_for(study: StudyConfig, *, epsilon: float, delta: float, order: int | None) -> PrivacyBudget:
    """What a site's plan may cost: what the study asks for, or less where the site allows less.

    A study without privacy asks every site for the same; one with a cap refuses that by itself.

    Args:
        study: the configuration.
        epsilon: what the site allows.
        delta: likewise.
        order: of the site's filter, if it has one.

    Raises:
        ConfigurationError: nothing at all fits what the site allows at the order of its filter.
    """
    wanted = study.privacy.budget
    if not wanted.is_private:
        return wanted
    return replace(
        wanted,
        epsilon=min(wanted.epsilon, epsilon),
        delta=min(wanted.delta, delta),
        order=order,
    )


def plan_for(study: StudyConfig, num_tiers: int, budget: PrivacyBudget) -> PrivacyPlan:
    """The plan that a study makes for sites of one budget.

    Raises:
        ConfigurationError: no noise is enough.
    """
    return PrivacyPlan.calibrate(
        budget=budget, proportions=study.privacy.proportions, schedule=release_schedule(study, num_tiers)
    )

"""When a study trains, when it evaluates, and so how many releases it will ever make: a pure function of its config."""

from dataclasses import dataclass
from typing import Literal

from fednas.config import StudyConfig
from fednas.privacy.plan import ReleaseSchedule

StepKind = Literal["search", "generation", "final", "report"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One round of a study.

    Args:
        round: counted from 1; the identity of the round at every site.
        kind: `search` trains paths of the supernet, `generation` counts correct predictions of candidates, `final` trains the
            chosen architectures on, `report` counts theirs once more.
    """

    round: int
    kind: StepKind


def agenda(study: StudyConfig) -> tuple[Step, ...]:
    """All rounds of a study in order: generations are spread evenly over the search rounds, the last one ends them."""
    plan = study.schedule
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
    plan, training = study.schedule, study.training
    learns = study.search.strategy == "differentiable"
    generation = candidates_per_tier(study, num_tiers) * num_tiers
    generations = sum(1 for step in agenda(study) if step.kind == "generation")
    return ReleaseSchedule(
        sampling_probability=training.sampling_probability,
        search_steps=(plan.search_rounds + plan.spare_rounds) * training.steps_per_round,
        final_steps=(plan.final_rounds + plan.spare_rounds) * training.steps_per_round,
        architecture_steps=plan.search_rounds + plan.spare_rounds if learns else 0,
        fitness_releases=generations * generation + num_tiers + plan.spare_rounds * generation,
        clip_norm=training.clip_norm,
        architecture_clip_norm=training.architecture_clip_norm,
    )

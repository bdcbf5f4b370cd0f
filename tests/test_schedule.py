"""What is planned is the most that is ever asked: agenda, schedule, and the coordinator that follows both."""

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fednas.config import StudyConfig
from fednas.schedule import agenda, candidates_per_tier, release_schedule
from fednas.wire import Task
from tests.server.stubs import Stubs, facts, folder, run
from tests.simulations import tiny

SMALL = {"activation": "relu", "depth": 1, "layers.0.width": 16}
FIXED = dict.fromkeys(tiny.BYTES, SMALL)
STRATEGIES = ("random", "evolution", "tpe", "differentiable")


@st.composite
def studies(draw: st.DrawFn) -> StudyConfig:
    schedule = {
        "search_rounds": draw(st.integers(1, 4)),
        "final_rounds": draw(st.integers(1, 2)),
        "generations": draw(st.integers(1, 5)),
        "candidates": draw(st.integers(1, 7)),
        "spare_rounds": draw(st.integers(0, 2)),
    }
    search = {
        "strategy": draw(st.sampled_from(STRATEGIES)),
        "pool": draw(st.integers(1, 3)),
        "fixed": draw(st.sampled_from((None, None, None, FIXED))),
    }
    training = {"steps_per_round": draw(st.integers(1, 3))}
    return tiny.study(schedule=schedule, search=search, training=training)


def charges(task: Task, study: StudyConfig) -> dict[str, int]:
    """What a site pays for one task, said a second time."""
    if task.kind == "evaluate":
        return {"fitness": len(task.architectures)}
    paid = {"search" if task.kind == "train" else "final": study.training.steps_per_round}
    return paid | ({"alphas": 1} if "alphas" in task.arrays else {})


def exceeded(tasks: list[Task], study: StudyConfig, num_tiers: int, *, spare: int) -> list[str]:
    """The allowances that a site's tasks overrun when the dearest round is charged `spare` times more."""
    schedule = release_schedule(study, num_tiers)
    limits = {
        "search": schedule.search_steps,
        "final": schedule.final_steps,
        "alphas": schedule.architecture_steps,
        "fitness": schedule.fitness_releases,
    }
    spent: Counter[str] = Counter()
    dearest: Counter[str] = Counter()
    for task in tasks:
        for name, amount in charges(task, study).items():
            spent[name] += amount
            dearest[name] = max(dearest[name], amount)
    return [name for name, limit in limits.items() if spent[name] + spare * dearest[name] > limit]


@given(studies())
def test_the_agenda_counts_its_rounds_and_ends_the_search_with_a_generation(study: StudyConfig) -> None:
    steps = agenda(study)
    kinds = [step.kind for step in steps]
    plan = study.schedule
    assert [step.round for step in steps] == list(range(1, len(steps) + 1))
    if study.search.fixed is not None:
        assert kinds == ["final"] * (plan.search_rounds + plan.final_rounds)
        return
    assert kinds.count("search") == plan.search_rounds
    assert kinds.count("generation") == min(plan.generations, plan.search_rounds)
    assert kinds[-plan.final_rounds - 2 :] == ["generation"] + ["final"] * plan.final_rounds + ["report"]
    assert "generation,generation" not in ",".join(kinds)


def test_generations_are_spread_evenly() -> None:
    study = tiny.study(schedule={"search_rounds": 6, "generations": 3, "final_rounds": 1})
    kinds = [step.kind for step in agenda(study)]
    assert kinds == ["search", "search", "generation"] * 3 + ["final", "report"]


@given(studies(), st.integers(1, 4))
def test_the_schedule_is_the_sum_over_the_agenda_and_the_spare_rounds(
    study: StudyConfig, num_tiers: int
) -> None:
    schedule, spare = release_schedule(study, num_tiers), study.schedule.spare_rounds
    steps, searched = study.training.steps_per_round, study.search.fixed is None
    search = final = counts = alphas = 0
    for step in agenda(study):
        search += step.kind == "search"
        final += step.kind == "final"
        counts += num_tiers if step.kind == "report" else 0
        if step.kind == "generation":
            counts += candidates_per_tier(study, num_tiers) * num_tiers
    if searched:
        search, counts = search + spare, counts + spare * candidates_per_tier(study, num_tiers) * num_tiers
    if study.search.strategy == "differentiable":
        alphas = search
    assert schedule.search_steps == steps * search
    assert schedule.final_steps == steps * (final + spare)
    assert schedule.architecture_steps == alphas
    assert schedule.fitness_releases == counts


@given(st.integers(1, 40), st.integers(1, 6))
def test_every_tier_puts_up_a_candidate_and_they_share_what_there_is(candidates: int, tiers: int) -> None:
    each = candidates_per_tier(tiny.study(schedule={"candidates": candidates}), tiers)
    assert each >= 1
    assert each * tiers <= max(candidates, tiers)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def asked(study: StudyConfig, path: Path) -> dict[str, list[Task]]:
    """What each of four stub sites on three tiers is asked in a whole run."""
    sites = Stubs(facts=facts(study, tiny.TIERS | {"delta": "middle"}))
    run(sites, folder(path, study))
    return {fact.site: [task for name, task in sites.tasks if name == fact.site] for fact in sites.facts}


def check_whole_run(study: StudyConfig, runs: Path) -> None:
    """No site is asked for more than the schedule, even when its dearest rounds are charged again."""
    path = runs / str(len(list(runs.iterdir())))
    for tasks in asked(study, path).values():
        assert exceeded(tasks, study, 3, spare=study.schedule.spare_rounds) == []


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(study=studies())
def test_no_site_is_asked_for_more_than_the_schedule(runs: Path, study: StudyConfig) -> None:
    check_whole_run(study, runs)


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(study=studies())
def test_no_site_is_asked_for_more_than_the_schedule_in_many_studies(runs: Path, study: StudyConfig) -> None:
    check_whole_run(study, runs)


@pytest.mark.parametrize("strategy", [*STRATEGIES, "fixed"])
def test_no_strategy_asks_for_more_than_the_schedule_and_one_more_round_would_be_too_much(
    tmp_path: Path, strategy: str
) -> None:
    search = {"fixed": FIXED} if strategy == "fixed" else {"strategy": strategy}
    study = tiny.study(search=search | {"pool": 2}, schedule={"spare_rounds": 1})
    for tasks in asked(study, tmp_path / "run").values():
        assert exceeded(tasks, study, 3, spare=1) == []
        assert "final" in exceeded(tasks, study, 3, spare=2)
        rounds = [task.round for task in tasks]
        assert rounds == sorted(set(rounds)), "a round is asked once"


def test_a_schedule_without_spare_rounds_is_used_up_exactly_by_training() -> None:
    study = tiny.study(schedule={"spare_rounds": 0})
    schedule = release_schedule(study, 3)
    assert schedule.search_steps == math.prod((2, study.training.steps_per_round))
    assert schedule.final_steps == math.prod((2, study.training.steps_per_round))

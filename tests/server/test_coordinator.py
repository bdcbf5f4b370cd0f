"""The round loop with stub sites: what it sends, what it merges, and what it chooses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fednas.aggregation import NoisyCount, combine_counts, update_weight
from fednas.config import StudyConfig
from fednas.errors import ConfigurationError, InfeasibleDeviceError
from fednas.search import Policy
from fednas.space import create
from fednas.space.cost import cost_of
from fednas.supernet import Supernet
from tests.server.stubs import PLAN, Stubs, arrays_for, facts, folder, plan, run
from tests.simulations import tiny

STRATEGIES = ("random", "evolution", "tpe", "differentiable")
SPACE = create("mlp", (4,), 3)


@pytest.fixture(scope="module")
def study() -> StudyConfig:
    return tiny.study()


# Strategies


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_finishes_and_never_sends_a_site_what_does_not_fit(
    tmp_path: Path, strategy: str
) -> None:
    study = tiny.study(search={"strategy": strategy, "pool": 6}, schedule={"candidates": 6})
    stubs = Stubs(facts=facts(study))
    completed = run(stubs, folder(tmp_path / "run", study))
    devices = {fact.site: fact.device for fact in stubs.facts}
    sent = [(site, a) for site, task in stubs.tasks for a in task.architectures]
    assert {task.kind for _, task in stubs.tasks} == {"train", "evaluate", "final"}
    for site, architecture in sent:
        assert devices[site].fits(cost_of(SPACE, architecture, micro_batch=study.training.micro_batch))
    assert any(
        not devices["cobra"].fits(cost_of(SPACE, a, micro_batch=study.training.micro_batch)) for _, a in sent
    ), "a path for the largest device would not have fitted the smallest"
    assert set(completed.coordinator.chosen) == set(tiny.BYTES)
    for tier, architecture in completed.coordinator.chosen.items():
        assert tiny.device(tier).fits(cost_of(SPACE, architecture, micro_batch=study.training.micro_batch))
        assert tier in completed.coordinator.fitness


def test_the_differentiable_strategy_learns_from_the_average_over_the_sites(tmp_path: Path) -> None:
    study = tiny.study(search={"strategy": "differentiable"}, schedule={"search_rounds": 1})
    stubs = Stubs(facts=facts(study))
    path = folder(tmp_path / "run", study)
    run(stubs, path)

    tasks = [(site, task) for site, task in stubs.tasks if task.kind == "train"]
    assert all("alphas" in task.arrays for _, task in tasks)
    assert len(tasks) == tiny.NUM_SITES
    sigma = PLAN.noise_multiplier("alphas")
    expected = []
    released = {site: arrays_for(site, task)["alphas"] for site, task in tasks}
    for index in range(Policy(SPACE).size):  # one coordinate at a time, the slow way
        total = weight_sum = 0.0
        for site, values in released.items():
            if not np.isnan(values[index]):
                weight = update_weight(declared_size=tiny.SIZES[site], noise_multiplier=sigma)
                total += weight * values[index]
                weight_sum += weight
        expected.append(total / weight_sum if weight_sum else 0.0)
    state = json.loads((path / "checkpoints" / "00005" / "state.json").read_text())
    learned = Policy(SPACE)
    learned.restore(state["policy"])
    wanted = -study.training.architecture_learning_rate * np.array(expected)
    assert np.allclose(learned.flat(), wanted, rtol=1e-12, atol=0.0)
    assert np.count_nonzero(learned.flat()) > 0, "the alphas changed"
    assert np.count_nonzero(learned.flat() == 0.0) > 0, "what no site had on its path did not"


NOISE = {"alpha": 1.0, "bravo": 3.0, "cobra": 0.5}
"""How much more noise each site's own plan has."""


def weight(site: str, allowance: str) -> float:
    """The inverse variance of what a site releases, up to what all sites share."""
    sigma = NOISE[site] * PLAN.noise_multiplier(allowance)
    return (tiny.SIZES[site] / sigma) ** 2


def test_updates_are_averaged_by_the_inverse_variance_of_each_sites_own_noise(tmp_path: Path) -> None:
    choices = {tier: SPACE.smallest().as_dict() for tier in tiny.BYTES}
    study = tiny.study(search={"fixed": choices}, schedule={"search_rounds": 1, "final_rounds": 1})
    plans = {site: plan(noise) for site, noise in NOISE.items()}
    stubs = Stubs(facts=facts(study))
    completed = run(stubs, folder(tmp_path / "run", study, plans))
    expected = Supernet.initialise(SPACE, seed=study.seed).gather(SPACE.smallest()).astype(np.float64)
    for number in (1, 2):
        updates = {s: arrays_for(s, task)["update"] for s, task in stubs.tasks if task.round == number}
        total = sum(weight(site, "final") for site in updates)
        expected += sum(weight(site, "final") / total * update for site, update in updates.items())
    found = completed.coordinator.supernet.gather(SPACE.smallest())
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-7)
    by_size = {site: tiny.SIZES[site] / sum(tiny.SIZES.values()) for site in updates}
    assert not np.allclose(by_size["bravo"], weight("bravo", "final") / total, rtol=0.5), "so it can fail"


def test_alphas_are_averaged_by_the_noise_of_their_own_allowance(tmp_path: Path) -> None:
    study = tiny.study(search={"strategy": "differentiable"}, schedule={"search_rounds": 1})
    stubs = Stubs(facts=facts(study))
    path = folder(tmp_path / "run", study, {site: plan(noise) for site, noise in NOISE.items()})
    run(stubs, path)
    released = {s: arrays_for(s, task)["alphas"] for s, task in stubs.tasks if task.kind == "train"}
    present = {site: ~np.isnan(values) for site, values in released.items()}
    total = sum(weight(site, "alphas") * there for site, there in present.items())
    summed = sum(weight(site, "alphas") * np.nan_to_num(values) for site, values in released.items())
    expected = np.divide(summed, total, out=np.zeros_like(summed), where=total > 0)
    learned = Policy(SPACE)
    learned.restore(json.loads((path / "checkpoints" / "00005" / "state.json").read_text())["policy"])
    assert np.allclose(learned.flat(), -study.training.architecture_learning_rate * expected, rtol=1e-12)


def test_a_fitness_is_averaged_by_the_deviation_of_each_sites_own_count(tmp_path: Path) -> None:
    study = tiny.study(schedule={"search_rounds": 1, "final_rounds": 1})
    stubs = Stubs(facts=facts(study))
    path = folder(tmp_path / "run", study, {site: plan(noise) for site, noise in NOISE.items()})
    completed = run(stubs, path)
    last = {site: task for site, task in stubs.tasks if task.round == 4}
    for tier, architecture in completed.coordinator.chosen.items():
        counts = []
        for site, task in last.items():
            if architecture in task.architectures:
                correct = arrays_for(site, task)["correct"][task.architectures.index(architecture)]
                deviation = NOISE[site] * PLAN.noise_multiplier("fitness")
                size = tiny.SIZES[site] * study.privacy.fitness
                counts.append(NoisyCount(correct=float(correct), size=size, noise_std=deviation))
        assert completed.coordinator.fitness[tier] == combine_counts(counts)


def test_without_an_architecture_gradient_no_alphas_are_asked_for(study: StudyConfig, tmp_path: Path) -> None:
    stubs = Stubs(facts=facts(study))
    run(stubs, folder(tmp_path / "run", study))
    assert not any("alphas" in task.arrays for _, task in stubs.tasks)


# Architectures given beforehand


def fixed(**choices: dict[str, Any]) -> StudyConfig:
    return tiny.study(search={"fixed": choices})


def test_given_architectures_are_trained_in_every_round_and_nothing_is_evaluated(tmp_path: Path) -> None:
    small = SPACE.smallest().as_dict()
    study = fixed(small=small, middle=small, large=SPACE.largest().as_dict())
    stubs = Stubs(facts=facts(study))
    completed = run(stubs, folder(tmp_path / "run", study))
    assert {task.kind for _, task in stubs.tasks} == {"final"}
    assert completed.coordinator.chosen["large"] == SPACE.largest()
    assert completed.coordinator.fitness == {}


def test_a_given_architecture_that_its_tier_cannot_hold_is_refused_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    study = fixed(small=SPACE.largest().as_dict())
    stubs = Stubs(facts=facts(study))
    with pytest.raises(InfeasibleDeviceError, match=r"search\.fixed\.small does not fit: it needs"):
        run(stubs, folder(tmp_path / "run", study))
    assert stubs.tasks == []


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"huge": SPACE.smallest().as_dict()}, "names the tier 'huge'"),
        ({"small": {"depth": 1}}, r"search\.fixed\.small is not in the space"),
    ],
)
def test_a_given_architecture_without_tier_or_space_is_refused(
    tmp_path: Path, choices: dict[str, Any], words: str
) -> None:
    study = fixed(**choices)
    with pytest.raises(ConfigurationError, match=words):
        run(Stubs(facts=facts(study)), folder(tmp_path / "run", study))

"""The round loop with stub sites: what it sends, what it merges, and what it chooses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fednas.aggregation import update_weight
from fednas.config import StudyConfig
from fednas.errors import ConfigurationError, InfeasibleDeviceError
from fednas.search import Policy
from fednas.space import create
from fednas.space.cost import cost_of
from tests.server.stubs import PLAN, Stubs, arrays_for, facts, folder, run
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

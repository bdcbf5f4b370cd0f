"""One of seven sites sends the largest lie that is plausible: the mean follows it, robust rules do not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from fednas.config import StudyConfig
from fednas.errors import ConfigurationError, ExchangeError
from fednas.space import create
from fednas.supernet import Supernet
from fednas.wire import Refusal, Task
from server.agreement import Agreement, store
from server.checkpoint import RunDirectory, create_run
from server.report import Completed
from simulations.benchmarks.robust import longest
from tests.server.stubs import (
    PLAN,
    Stubs,
    arrays_for,
    facts,
    folder,
    honest,
    outcomes,
    pack,
    refuse,
    run,
    same,
    when,
)
from tests.server.test_hostile import HOSTILE, TIERS
from tests.simulations import tiny

RULES = ("trimmed_mean", "median", "krum")
SPACE = create("mlp", (4,), 3)
FIXED: dict[str, Any] = {
    "large": SPACE.largest().as_dict(),
    "middle": {"activation": "tanh", "depth": 1, "layers.0.width": 16},
    "small": SPACE.smallest().as_dict(),
}


def chosen(rule: str, **changes: Any) -> StudyConfig:
    federation = {} if rule == "mean" else {"aggregation": rule, "max_hostile": 1}
    return tiny.study(federation=federation, **changes)


def conducted(path: Path, study: StudyConfig, stubs: Stubs) -> Completed:
    known = {fact.site: fact for fact in facts(study, TIERS)}
    create_run(path, study, run="run", about={})
    store(RunDirectory(path), Agreement(num_tiers=3, plans=dict.fromkeys(known, PLAN), facts=known))
    return run(stubs, path)


def lie(site: str, task: Task) -> RecordDict:
    """Downwards in every coordinate, as far as an honest site could ever come."""
    (own,) = [fact for fact in facts(tiny.study(), TIERS) if fact.site == site]
    update = longest(-np.ones_like(task.arrays["weights.0"]), task, own)
    return pack(site, task, {**arrays_for(site, task), "update": update})


def hulls(stubs: Stubs) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each round the least and the largest honest update of every shared coordinate, or 0 if that is."""
    nothing = Supernet.initialise(SPACE, seed=0).merge([], lambda votes: np.zeros(votes.shape[1]))
    for number in sorted({task.round for _, task in stubs.tasks}):
        votes = []
        for site, task in stubs.tasks:
            if task.round == number and site != HOSTILE:
                row = {name: np.zeros(tensor.shape) for name, tensor in nothing.weights.items()}
                for part in nothing.layout.slices(task.architectures[0]):
                    update = arrays_for(site, task)["update"][part.start : part.stop]
                    row[part.name][part.window] = update.reshape(part.shape)
                votes.append(np.concatenate([values.ravel() for values in row.values()]))
        yield np.minimum(np.min(votes, axis=0), 0.0), np.maximum(np.max(votes, axis=0), 0.0)


def attacked(path: Path, rule: str) -> tuple[np.ndarray, Stubs]:
    """How far a study of overlapping architectures came with a liar in every round, and who was asked."""
    study = chosen(rule, search={"fixed": FIXED})
    stubs = Stubs(facts=facts(study, TIERS), reply=when(lambda site, task: site == HOSTILE, lie))
    end = conducted(path, study, stubs).coordinator.supernet
    assert outcomes(path, 1) == dict.fromkeys(TIERS, "ok"), "the lie is plausible"
    start = Supernet.initialise(SPACE, seed=study.seed)
    moved = [(end.weights[name] - start.weights[name]).numpy().ravel() for name in start.weights]
    return np.concatenate(moved), stubs


def leaves_the_hull(moved: np.ndarray, stubs: Stubs) -> bool:
    low, high = (np.sum(ends, axis=0) for ends in zip(*hulls(stubs), strict=True))
    return bool(np.any(moved < low - 1e-6) or np.any(moved > high + 1e-6))


def test_the_mean_follows_the_largest_plausible_lie(tmp_path: Path) -> None:
    moved, stubs = attacked(tmp_path / "run", "mean")
    assert leaves_the_hull(moved, stubs)
    lowest = min(float(low.min()) for low, _ in hulls(stubs))
    assert moved.min() < 5.0 * lowest, "by far"


@pytest.mark.parametrize("rule", RULES)
def test_with_a_rule_the_network_stays_within_what_honest_sites_said(tmp_path: Path, rule: str) -> None:
    moved, stubs = attacked(tmp_path / "run", rule)
    assert not leaves_the_hull(moved, stubs)
    assert np.count_nonzero(moved) > 0, "it learned"
    assert np.count_nonzero(moved == 0.0) > 0, "what too few sites trained did not move"
    paths = {task.architectures[0] for _, task in stubs.tasks}
    assert len(paths) == 3, "so sub-networks of different sizes overlapped"


@pytest.mark.parametrize(
    ("rule", "strategy"),
    [("trimmed_mean", "differentiable"), ("median", "evolution"), ("krum", "differentiable")],
)
def test_a_search_finishes_and_judges_only_what_enough_sites_hold(
    tmp_path: Path, rule: str, strategy: str
) -> None:
    study = chosen(rule, search={"strategy": strategy, "pool": 12}, schedule={"candidates": 9})
    stubs = Stubs(facts=facts(study, TIERS))
    completed = conducted(tmp_path / "run", study, stubs)
    judges: dict[tuple[int, str], int] = {}
    for _, task in stubs.tasks:
        if task.kind == "evaluate":
            for architecture in task.architectures:
                key = task.round, architecture.id
                judges[key] = judges.get(key, 0) + 1
    assert min(judges.values()) >= (5 if rule == "krum" else 3)
    assert len(completed.coordinator.fitness) == 3


def test_too_few_sites_for_a_rule_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    study = chosen("krum")
    stubs = Stubs(facts=facts(study))
    words = "3 sites answered, krum with max_hostile = 1 needs at least 5: bring more sites"
    with pytest.raises(ConfigurationError, match=words):
        run(stubs, folder(tmp_path / "run", study))
    assert stubs.tasks == []


def test_a_round_with_too_few_answers_for_the_rule_is_refused_and_can_be_taken_up_again(
    tmp_path: Path,
) -> None:
    study = chosen("trimmed_mean")
    silent = when(lambda site, task: (site, task.round) == ("bravo", 2), refuse(Refusal.SITE_FAILURE))
    path = folder(tmp_path / "run", study)
    words = "2 sites answered, trimmed_mean with max_hostile = 1 needs at least 3; mend the others and resume"
    with pytest.raises(ExchangeError, match=words):
        run(Stubs(facts=facts(study), reply=silent), path)
    resumed = run(Stubs(facts=facts(study)), path, resume=True)
    assert same(resumed, run(Stubs(facts=facts(study)), folder(tmp_path / "straight", study)))


def test_a_site_that_leaves_while_candidates_are_judged_stops_a_study_that_needs_it(tmp_path: Path) -> None:
    study = chosen("median")
    leaving = when(lambda site, task: site == "bravo" and task.kind == "evaluate", refuse(Refusal.WITHDRAWN))
    with pytest.raises(ExchangeError, match="2 sites are left, median with max_hostile = 1 needs at least 3"):
        run(Stubs(facts=facts(study), reply=leaving), folder(tmp_path / "run", study))


def test_a_site_that_left_is_missed_before_the_others_are_asked_for_a_round(tmp_path: Path) -> None:
    study = chosen("median", search={"fixed": {"large": FIXED["large"]}})
    stubs = Stubs(facts=facts(study), reply=honest)
    with pytest.raises(ExchangeError, match="1 sites could be asked, median"):
        run(stubs, folder(tmp_path / "run", study))
    assert stubs.tasks == []

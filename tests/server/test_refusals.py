"""Sites that refuse, and replies that are not what was asked for: who is out, and what is not merged."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from fednas.config import StudyConfig
from fednas.errors import BudgetExceededError, ExchangeError
from fednas.privacy.ledger import Arrays
from fednas.wire import Refusal, Task, encode_refusal
from server.report import Completed
from tests.server.stubs import (
    Killed,
    Stubs,
    arrays_for,
    facts,
    folder,
    honest,
    kinds,
    outcomes,
    pack,
    refuse,
    run,
    same,
    when,
)
from tests.simulations import tiny


@pytest.fixture(scope="module")
def study() -> StudyConfig:
    return tiny.study()


# Sites that refuse


def test_a_site_without_budget_is_retired_and_the_run_goes_on(study: StudyConfig, tmp_path: Path) -> None:
    broke = when(lambda site, _: site == "bravo", refuse(Refusal.BUDGET_EXHAUSTED))
    stubs = Stubs(facts=facts(study), reply=broke)
    path = folder(tmp_path / "run", study)
    run(stubs, path)
    assert kinds(stubs.tasks, "bravo") == ["train"], "it is asked once"
    assert len(kinds(stubs.tasks, "alpha")) == 6
    assert outcomes(path, 1)["bravo"] == "BUDGET_EXHAUSTED"
    assert "bravo" not in outcomes(path, 2)


def test_a_retired_site_stays_retired_after_a_resume(study: StudyConfig, tmp_path: Path) -> None:
    def fragile(site: str, task: Task) -> RecordDict:
        if task.round == 2:
            raise Killed
        return encode_refusal(Refusal.BUDGET_EXHAUSTED) if site == "bravo" else honest(site, task)

    path = folder(tmp_path / "run", study)
    with pytest.raises(Killed):
        run(Stubs(facts=facts(study), reply=fragile), path)
    stubs = Stubs(facts=facts(study))
    run(stubs, path, resume=True)
    assert kinds(stubs.tasks, "bravo") == []


@pytest.mark.parametrize("last_round", [1, 3, 5])
def test_a_tier_whose_only_site_retires_goes_without_and_the_others_finish(
    study: StudyConfig, tmp_path: Path, last_round: int
) -> None:
    """Retired in a search round, in the generation, and after the choice was made."""

    def broke(site: str, task: Task) -> RecordDict:
        if site == "alpha" and task.round >= last_round:
            return encode_refusal(Refusal.BUDGET_EXHAUSTED)
        return honest(site, task)

    stubs = Stubs(facts=facts(study), reply=broke)
    completed = run(stubs, folder(tmp_path / "run", study))
    assert {"small", "middle"} <= set(completed.coordinator.chosen)
    assert ("large" in completed.coordinator.chosen) == (last_round > 3)
    assert {"small", "middle"} <= set(completed.coordinator.fitness)


FINAL = (Refusal.BUDGET_EXHAUSTED, Refusal.WITHDRAWN, Refusal.LEDGER_ROLLED_BACK)


@pytest.mark.parametrize("code", [code for code in Refusal if code not in FINAL])
def test_any_other_refusal_is_noted_and_the_site_is_asked_again(tmp_path: Path, code: Refusal) -> None:
    study = tiny.study(schedule={"search_rounds": 1, "final_rounds": 1})
    path = folder(tmp_path / "run", study)
    stubs = Stubs(
        facts=facts(study), reply=when(lambda site, task: site == "bravo" and task.round == 1, refuse(code))
    )
    run(stubs, path)
    assert outcomes(path, 1)["bravo"] == code.value
    assert len(kinds(stubs.tasks, "bravo")) == 4


def test_when_every_site_refuses_the_run_ends_in_one_line(study: StudyConfig, tmp_path: Path) -> None:
    stubs = Stubs(facts=facts(study), reply=refuse(Refusal.BUDGET_EXHAUSTED))
    with pytest.raises(BudgetExceededError, match="every site refused") as caught:
        run(stubs, folder(tmp_path / "run", study))
    assert "\n" not in str(caught.value)


def test_a_missed_quorum_is_one_line_and_the_run_resumes_later(study: StudyConfig, tmp_path: Path) -> None:
    whole = run(Stubs(facts=facts(study)), folder(tmp_path / "whole", study))
    path = folder(tmp_path / "run", study)
    away = when(lambda site, task: task.round == 2 and site != "alpha", refuse(Refusal.SITE_FAILURE))
    with pytest.raises(ExchangeError, match=r"1 of 3 sites answered \(SITE_FAILURE\).*resume") as caught:
        run(Stubs(facts=facts(study), reply=away), path)
    assert "\n" not in str(caught.value)
    assert not (path / "rounds" / "00002.json").exists(), "a round is whole or not there"
    assert same(whole, run(Stubs(facts=facts(study)), path, resume=True))


def test_an_architecture_that_nobody_answered_for_stops_the_run_until_its_site_is_back(
    tmp_path: Path,
) -> None:
    study = tiny.study(search={"pool": 6}, schedule={"candidates": 6})
    path = folder(tmp_path / "run", study)
    away = when(lambda site, task: task.round == 3 and site == "alpha", refuse(Refusal.SITE_FAILURE))
    with pytest.raises(ExchangeError, match="no site answered for architecture"):
        run(Stubs(facts=facts(study), reply=away), path)
    assert run(Stubs(facts=facts(study)), path, resume=True).coordinator.chosen.keys() == set(tiny.BYTES)


# Replies that are not what was asked for

Spoil = Callable[[Arrays], Arrays]
SPOILT: dict[str, Spoil] = {
    "NaN": lambda a: {**a, "update": np.full_like(a["update"], np.nan)},
    "one infinite value": lambda a: {**a, "update": np.append(a["update"][1:], np.float32(np.inf))},
    "too short": lambda a: {**a, "update": a["update"][1:]},
    "another shape": lambda a: {**a, "update": a["update"][None]},
    "another type": lambda a: {**a, "update": a["update"].astype(np.float64)},
    "an array too many": lambda a: {**a, "loss": np.zeros(1)},
    "no array": lambda a: {},
    "a huge value": lambda a: {**a, "update": np.append(a["update"][1:], np.float32(1e18))},
    "values that are all large": lambda a: {**a, "update": np.full_like(a["update"], 1e4)},
    "values whose square is infinite": lambda a: {**a, "update": np.full_like(a["update"], 3e38)},
    "alphas nobody asked for": lambda a: {**a, "alphas": np.zeros(3)},
}


@pytest.fixture(scope="module")
def short() -> StudyConfig:
    return tiny.study(schedule={"search_rounds": 1, "final_rounds": 1})


@pytest.fixture(scope="module")
def without_bravo(short: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Completed:
    """The run in which bravo never answers a training round."""
    stubs = Stubs(facts=facts(short), reply=when(_trains_bravo, refuse(Refusal.SITE_FAILURE)))
    return run(stubs, folder(tmp_path_factory.mktemp("without") / "run", short))


def _trains_bravo(site: str, task: Task) -> bool:
    return site == "bravo" and task.kind != "evaluate"


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_a_reply_of_another_form_is_rejected_and_not_merged(
    short: StudyConfig, tmp_path: Path, without_bravo: Completed, spoil: Spoil
) -> None:
    path = folder(tmp_path / "run", short)
    spoilt = when(_trains_bravo, lambda site, task: pack(site, task, spoil(arrays_for(site, task))))
    completed = run(Stubs(facts=facts(short), reply=spoilt), path)
    assert outcomes(path, 1) == {"alpha": "ok", "bravo": "MALFORMED_REPLY", "cobra": "ok"}
    assert same(completed, without_bravo)


def test_an_honest_reply_is_merged(short: StudyConfig, tmp_path: Path, without_bravo: Completed) -> None:
    """So the comparison above can fail."""
    assert not same(run(Stubs(facts=facts(short)), folder(tmp_path / "run", short)), without_bravo)


@pytest.mark.parametrize(
    "counts",
    [np.zeros(0, dtype=np.int64), np.zeros(99, dtype=np.int64), np.full(3, 0.5), np.zeros((3, 1), np.int64)],
    ids=["too few", "too many", "fractions", "another shape"],
)
def test_counts_of_another_form_are_rejected(short: StudyConfig, tmp_path: Path, counts: np.ndarray) -> None:
    path = folder(tmp_path / "run", short)

    def spoil(site: str, task: Task) -> RecordDict:
        return pack(site, task, {"correct": counts})

    run(Stubs(facts=facts(short), reply=when(lambda s, t: s == "bravo" and t.round == 2, spoil)), path)
    assert outcomes(path, 2)["bravo"] == "MALFORMED_REPLY"


@pytest.mark.parametrize("count", [10**6, -(10**6), 2**63 - 1, -(2**63)])
def test_a_count_of_more_records_than_a_site_can_have_is_rejected(
    short: StudyConfig, tmp_path: Path, count: int
) -> None:
    path = folder(tmp_path / "run", short)

    def spoil(site: str, task: Task) -> RecordDict:
        return pack(site, task, {"correct": np.full(len(task.architectures), count)})

    run(Stubs(facts=facts(short), reply=when(lambda s, t: s == "bravo" and t.round == 2, spoil)), path)
    assert outcomes(path, 2)["bravo"] == "MALFORMED_REPLY"


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e9, 1e300])
def test_alphas_that_are_infinite_or_impossibly_large_are_rejected(tmp_path: Path, value: float) -> None:
    study = tiny.study(
        search={"strategy": "differentiable"}, schedule={"search_rounds": 1, "final_rounds": 1}
    )

    def spoil(site: str, task: Task) -> RecordDict:
        arrays = arrays_for(site, task)
        arrays["alphas"][:] = value
        return pack(site, task, arrays)

    path = folder(tmp_path / "run", study)
    run(Stubs(facts=facts(study), reply=when(lambda s, t: s == "bravo" and t.round == 1, spoil)), path)
    assert outcomes(path, 1)["bravo"] == "MALFORMED_REPLY"

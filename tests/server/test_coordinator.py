"""The round loop with stub sites: what is merged, who is retired, and that a resumed run is the same run."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from fednas.aggregation import update_weight
from fednas.config import StudyConfig
from fednas.errors import (
    BudgetExceededError,
    ConfigurationError,
    ExchangeError,
    InfeasibleDeviceError,
    RunDirectoryError,
)
from fednas.privacy.ledger import Arrays
from fednas.search import Policy
from fednas.space import create
from fednas.space.cost import cost_of
from fednas.wire import Refusal, Task, encode_refusal
from server import checkpoint
from server.checkpoint import RunDirectory, write_json
from server.report import Completed
from tests.server.stubs import PLAN, Stubs, arrays_for, facts, folder, honest, kinds, pack, run
from tests.simulations import tiny

STRATEGIES = ("random", "evolution", "tpe", "differentiable")
SPACE = create("mlp", (4,), 3)


class Killed(BaseException):
    """Ends a run at once, as a signal would."""


def outcomes(path: Path, round_number: int) -> dict[str, str]:
    record = json.loads((path / "rounds" / f"{round_number:05d}.json").read_text())
    return {site: entry["outcome"] for site, entry in record["sites"].items()}


def same(left: Completed, right: Completed) -> bool:
    """Equal to the last bit: the weights, the choices, and the released fitness."""
    files = []
    for completed in (left, right):
        file = completed.directory.path / "weights.safetensors"
        completed.coordinator.supernet.save(file)
        files.append(file.read_bytes())
    return (
        files[0] == files[1]
        and left.coordinator.chosen == right.coordinator.chosen
        and left.coordinator.fitness == right.coordinator.fitness
    )


def when(condition: Callable[[str, Task], bool], then: Callable[[str, Task], RecordDict]) -> Any:
    """Answer honestly but where the condition holds."""
    return lambda site, task: then(site, task) if condition(site, task) else honest(site, task)


def refuse(code: Refusal) -> Callable[[str, Task], RecordDict]:
    return lambda site, task: encode_refusal(code)


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
    completed = run(stubs, path)

    tasks = [(site, task) for site, task in stubs.tasks if task.kind == "train"]
    assert all("alphas" in task.arrays for _, task in tasks)
    assert len(tasks) == tiny.NUM_SITES
    sigma = completed.plan.allowance("final").noise_multiplier
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


# A run that ends too early


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_interrupted_in_every_round_ends_as_the_uninterrupted_one(
    tmp_path: Path, strategy: str
) -> None:
    study = tiny.study(search={"strategy": strategy})
    whole = run(Stubs(facts=facts(study)), folder(tmp_path / "whole", study))

    path = folder(tmp_path / "pieces", study)
    seen: dict[tuple[str, int], str] = {}
    killed: set[int] = set()

    def fragile(site: str, task: Task) -> RecordDict:
        digest = seen.setdefault((site, task.round), task.digest())
        assert digest == task.digest(), "a round is asked again in the same words"
        if site == "bravo" and task.round not in killed:
            killed.add(task.round)
            raise Killed
        return honest(site, task)

    for _ in range(20):
        try:
            pieces = run(Stubs(facts=facts(study), reply=fragile), path, resume=True)
            break
        except Killed:
            continue
    assert killed == set(range(1, 7))
    assert same(whole, pieces)


def test_a_run_that_dies_at_any_write_to_the_disk_ends_as_the_uninterrupted_one(
    study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(Stubs(facts=facts(study)), folder(tmp_path / "whole", study))
    path = folder(tmp_path / "pieces", study)
    sync, countdown, deaths = checkpoint._sync, 0, 0

    def dying(file: Path) -> None:
        nonlocal countdown
        countdown -= 1
        if countdown < 0:
            raise Killed
        sync(file)

    monkeypatch.setattr(checkpoint, "_sync", dying)
    for attempt in range(60):
        countdown = attempt % 7
        try:
            pieces = run(Stubs(facts=facts(study)), path, resume=True)
            break
        except Killed:
            deaths += 1
    assert deaths > 6
    assert same(whole, pieces)


def test_a_begun_run_is_not_begun_again_without_resume(study: StudyConfig, tmp_path: Path) -> None:
    path = folder(tmp_path / "run", study)
    run(Stubs(facts=facts(study)), path)
    with pytest.raises(RunDirectoryError, match="has begun"):
        run(Stubs(facts=facts(study)), path)


def test_resuming_a_finished_run_asks_nothing(study: StudyConfig, tmp_path: Path) -> None:
    path = folder(tmp_path / "run", study)
    whole = run(Stubs(facts=facts(study)), path)
    stubs = Stubs(facts=facts(study))
    assert same(whole, run(stubs, path, resume=True))
    assert stubs.tasks == []


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


@pytest.mark.parametrize("code", [c for c in Refusal if c is not Refusal.BUDGET_EXHAUSTED])
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
    spoilt = when(_trains_bravo, lambda site, task: pack(spoil(arrays_for(site, task))))
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
    spoilt = when(
        lambda site, task: site == "bravo" and task.round == 2, lambda *_: pack({"correct": counts})
    )
    run(Stubs(facts=facts(short), reply=spoilt), path)
    assert outcomes(path, 2)["bravo"] == "MALFORMED_REPLY"


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_alphas_are_rejected(tmp_path: Path, value: float) -> None:
    study = tiny.study(
        search={"strategy": "differentiable"}, schedule={"search_rounds": 1, "final_rounds": 1}
    )

    def spoil(site: str, task: Task) -> RecordDict:
        arrays = arrays_for(site, task)
        arrays["alphas"][:] = value
        return pack(arrays)

    path = folder(tmp_path / "run", study)
    run(Stubs(facts=facts(study), reply=when(lambda s, t: s == "bravo" and t.round == 1, spoil)), path)
    assert outcomes(path, 1)["bravo"] == "MALFORMED_REPLY"


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


# Checkpoints of another run, or none


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose state has every part."""
    study = tiny.study(search={"strategy": "differentiable"})
    path = folder(tmp_path_factory.mktemp("original") / "run", study)
    run(Stubs(facts=facts(study)), path)
    return path


@pytest.fixture
def finished(original: Path, tmp_path: Path) -> Path:
    """A finished run to be spoilt."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def resume(path: Path) -> Completed:
    return run(Stubs(facts=facts(RunDirectory(path).study)), path, resume=True)


def test_an_unspoilt_copy_of_a_run_resumes(finished: Path) -> None:
    assert set(resume(finished).coordinator.chosen) == set(tiny.BYTES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", b""),
        ("state.json", b"[]"),
        ("state.json", b"{}"),
        ("state.json", b"\xff"),
        ("supernet.safetensors", b""),
        ("supernet.safetensors", b"\0" * 64),
    ],
)
def test_a_corrupt_checkpoint_is_one_line(finished: Path, name: str, content: bytes) -> None:
    (finished / "checkpoints" / "00006" / name).write_bytes(content)
    with pytest.raises(RunDirectoryError) as caught:
        resume(finished)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["strategies", "chosen", "fitness", "retired", "policy"])
def test_a_checkpoint_that_lacks_a_part_is_one_line(finished: Path, key: str) -> None:
    file = finished / "checkpoints" / "00006" / "state.json"
    state = json.loads(file.read_text())
    for broken in ({k: v for k, v in state.items() if k != key}, state | {key: 7}):
        file.write_text(json.dumps(broken))
        with pytest.raises((RunDirectoryError, ConfigurationError)) as caught:
            resume(finished)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"canonical": "{}"}', b'{"canonical": 3}'])
def test_a_corrupt_plan_is_one_line(finished: Path, content: bytes) -> None:
    (finished / "plan.json").write_bytes(content)
    with pytest.raises((RunDirectoryError, ConfigurationError)) as caught:
        resume(finished)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_plan_is_refused(finished: Path) -> None:
    other = replace(PLAN, budget=tiny.study(privacy={"epsilon": 2.0}).privacy.budget)
    write_json(finished / "plan.json", {"canonical": other.to_json()})
    with pytest.raises(RunDirectoryError, match="another plan"):
        resume(finished)


def test_only_the_last_two_checkpoints_are_kept(original: Path) -> None:
    assert sorted(p.name for p in (original / "checkpoints").iterdir()) == ["00005", "00006"]
    assert len(list((original / "rounds").iterdir())) == 6
    latest = RunDirectory(original).latest(SPACE)
    assert latest is not None
    assert latest[0] == 6

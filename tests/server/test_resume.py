"""A study that ends too early goes on from its checkpoint as the same study, or not at all."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import RecordDict

from fednas.config import StudyConfig
from fednas.errors import ConfigurationError, RunDirectoryError
from fednas.space import create
from fednas.wire import Task
from server import checkpoint
from server.agreement import recall, store
from server.app import run_study
from server.checkpoint import RunDirectory
from server.report import Completed
from tests.server.stubs import Killed, Stubs, facts, folder, honest, plan, run, same
from tests.simulations import tiny

STRATEGIES = ("random", "evolution", "tpe", "differentiable")
SPACE = create("mlp", (4,), 3)


@pytest.fixture(scope="module")
def study() -> StudyConfig:
    return tiny.study()


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


def test_a_disk_that_is_full_at_a_checkpoint_is_one_line_and_the_run_resumes(
    study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(Stubs(facts=facts(study)), folder(tmp_path / "whole", study))
    path = folder(tmp_path / "run", study)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        with pytest.raises(RunDirectoryError, match="No space left on device") as caught:
            run(Stubs(facts=facts(study)), path)
    assert "\n" not in str(caught.value)
    assert same(whole, run(Stubs(facts=facts(study)), path, resume=True))


@pytest.mark.parametrize("gone", sorted(tiny.SIZES))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_round_that_is_asked_again_while_a_site_is_away_asks_the_others_the_same(
    tmp_path: Path, strategy: str, gone: str
) -> None:
    """Otherwise their ledgers, which answered it before, would refuse it until that site is back."""
    study = tiny.study(search={"strategy": strategy}, schedule={"candidates": 9})
    for last in (1, 3):  # a training round, and a generation
        begun = Stubs(facts=facts(study), reply=_dies_in(last, at=sorted(tiny.SIZES)[-1]))
        path = folder(tmp_path / f"{last}", study)
        with pytest.raises(Killed):
            run(begun, path)
        again = Stubs(facts=tuple(f for f in facts(study) if f.site != gone), reply=_dies_in(last + 1))
        with pytest.raises(Killed):
            run(again, path, resume=True)
        first, second = (
            {site: task.digest() for site, task in stubs.tasks if task.round == last}
            for stubs in (begun, again)
        )
        assert len(second) >= 1
        assert {site: first[site] for site in second} == second


def _dies_in(last: int, *, at: str | None = None) -> Callable[[str, Task], RecordDict]:
    """Answer until a round is asked of a site, or of the first that is asked."""

    def reply(site: str, task: Task) -> RecordDict:
        if task.round == last and at in (None, site):
            raise Killed
        return honest(site, task)

    return reply


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


@pytest.mark.parametrize("key", ["strategies", "chosen", "fitness", "sites", "policy", "plans"])
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
    directory = RunDirectory(finished)
    known = recall(directory)
    assert known is not None
    store(directory, replace(known, plans={**known.plans, "bravo": plan(1.5)}))
    with pytest.raises(RunDirectoryError, match="another plan"):
        resume(finished)


def test_only_the_last_two_checkpoints_are_kept(original: Path) -> None:
    assert sorted(p.name for p in (original / "checkpoints").iterdir()) == ["00005", "00006"]
    assert len(list((original / "rounds").iterdir())) == 6
    latest = RunDirectory(original).latest(SPACE)
    assert latest is not None
    assert latest[0] == 6


# Two servers


def test_a_second_server_is_refused_while_another_is_at_work(study: StudyConfig, tmp_path: Path) -> None:
    """One that was taken for dead may wake up when its successor has begun."""
    path = folder(tmp_path / "run", study)
    with RunDirectory(path).held():
        with pytest.raises(RunDirectoryError, match="another server is at work on"):
            run_study(Stubs(facts=facts(study)).grid(), path, resume=True)
        assert not (path / "rounds").exists()


def test_a_server_that_dies_lets_its_successor_in(study: StudyConfig, tmp_path: Path) -> None:
    directory = RunDirectory(folder(tmp_path / "run", study))
    with pytest.raises(Killed), directory.held():
        raise Killed
    with directory.held():
        pass

"""The benchmark of robust aggregation attacks as it says, with real sites, and prints what it found."""

import sys

import numpy as np
import pytest

from fednas.errors import ExchangeError
from fednas.wire import Answer, Task
from server.plausibility import check_plausible
from simulations.benchmarks import robust
from tests.server.stubs import Stubs, facts, folder, run
from tests.simulations import tiny


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """What a site is asked in the first round of a study."""
    stubs = Stubs(facts=facts(tiny.study()))
    run(stubs, folder(tmp_path_factory.mktemp("study") / "run", tiny.study()))
    return stubs.tasks[0][1]


def test_the_longest_lie_is_taken_and_a_longer_one_is_not(task: Task) -> None:
    direction = np.random.default_rng(0).normal(size=task.arrays["weights.0"].shape).astype(np.float32)
    own = facts(tiny.study())[0]
    lie = robust.longest(direction, task, own)
    assert np.allclose(lie / np.linalg.norm(lie), direction / np.linalg.norm(direction), atol=1e-6)

    def answer(update: np.ndarray) -> Answer:
        return Answer(operation_id="", head="", entries=1, signature="", arrays={"update": update})

    check_plausible(answer(lie), task, own)
    with pytest.raises(ExchangeError, match="longer than"):
        check_plausible(answer(np.float32(1.001) * lie), task, own)


def test_noise_alone_costs_the_mean_nothing_and_krum_all_other_sites() -> None:
    equal = [0.2] * 7
    assert robust.excess("mean", equal) == pytest.approx(1.0, rel=0.05)
    assert 1.0 < robust.excess("trimmed_mean", equal) < robust.excess("median", equal) < np.pi / 2
    assert robust.excess("krum", equal) == pytest.approx(7.0, rel=0.1)


class InThisProcess:
    """Stands for a pool of processes, to which a changed function cannot be sent."""

    map = staticmethod(map)

    def __init__(self, *arguments: object, **options: object) -> None:
        pass

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_it_prints_a_cell_for_each_rule_and_a_row_for_each_attack(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["robust", "--seeds", "1"])
    monkeypatch.setattr(robust, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(robust, "accuracy", lambda job: robust.RULES.index(job.rule) / 8.0)
    monkeypatch.setenv("COLUMNS", "160")
    robust.main()
    shown = capsys.readouterr().out
    assert all(word in shown for word in (*robust.RULES, *robust.ATTACKS, "0.125", "0.375"))


def test_a_study_is_conducted_with_the_hostile_office_among_the_others() -> None:
    honest, attacked = (
        robust.accuracy(robust.Job(rule="mean", attack=attack, epsilon=robust.EPSILONS[1], seed=0, rounds=4))
        for attack in robust.ATTACKS[:2]
    )
    assert attacked < honest

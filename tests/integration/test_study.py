"""Whole studies on real sites with real ledgers: resumed, spied on, and charged."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fednas.errors import BudgetExceededError
from fednas.privacy.verify import verify
from fednas.schedule import release_schedule
from fednas.site import open_site
from fednas.space import create
from fednas.space.cost import cost_of
from fednas.training import train_weights
from server.app import conduct
from server.report import Completed
from tests.integration.spy import Killed, SpyGrid, charged, until, weights, whole
from tests.simulations import tiny

SPACE = create("mlp", (4,), 3)
STRATEGIES = ("random", "evolution", "tpe", "differentiable")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """No site stays open from one run to the next."""
    open_site.cache_clear()
    yield
    open_site.cache_clear()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Completed:
    """The tiny study without any interruption."""
    open_site.cache_clear()
    return whole(tiny.make_run(tmp_path_factory.mktemp("reference") / "run", tiny.study()))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_whole_study_sends_no_site_what_does_not_fit_and_charges_what_was_planned(
    tmp_path: Path, strategy: str
) -> None:
    study = tiny.study(search={"strategy": strategy})
    path = tiny.make_run(tmp_path / "run", study)
    grid = SpyGrid(path)
    completed = conduct(grid, path, resume=False)

    sites = list(tiny.TIERS)
    assert {task.kind for _, task in grid.tasks} == {"train", "evaluate", "final"}
    for site, task in grid.tasks:
        device = tiny.device(tiny.TIERS[sites[site]])
        for architecture in task.architectures:
            assert device.fits(cost_of(SPACE, architecture, micro_batch=study.training.micro_batch))
    for tier, architecture in completed.coordinator.chosen.items():
        assert tiny.device(tier).fits(cost_of(SPACE, architecture, micro_batch=study.training.micro_batch))

    schedule = release_schedule(study, 3)
    for ledger in tiny.ledger_files(path).values():
        total, left = charged(ledger)
        steps = study.training.steps_per_round
        assert total["search"] == schedule.search_steps - steps, "all but the spare round"
        assert total["final"] == schedule.final_steps - steps
        assert total["alphas"] == max(0, schedule.architecture_steps - 1)
        assert 0 < total["fitness"] < schedule.fitness_releases
        assert not left
        assert verify(ledger).entries > 0


def test_two_runs_with_the_same_seed_are_the_same_run(reference: Completed, tmp_path: Path) -> None:
    again = whole(tiny.make_run(tmp_path / "run", tiny.study()))
    assert weights(again) == weights(reference)
    assert again.coordinator.chosen == reference.coordinator.chosen
    assert again.coordinator.fitness == reference.coordinator.fitness


def test_a_run_with_another_noise_is_another_run(reference: Completed, tmp_path: Path) -> None:
    """So the comparisons here can fail."""
    other = whole(tiny.make_run(tmp_path / "run", tiny.study(), seed=1))
    assert weights(other) != weights(reference)


@pytest.mark.parametrize("strategy", ["evolution", "differentiable"])
def test_a_study_killed_in_every_round_ends_bit_for_bit_as_the_uninterrupted_one_at_the_same_price(
    tmp_path: Path, strategy: str
) -> None:
    study = tiny.study(search={"strategy": strategy})
    reference = whole(tiny.make_run(tmp_path / "whole", study))
    path = tiny.make_run(tmp_path / "pieces", study)

    def attempt(number: int) -> Completed:
        # Every attempt meets the sites (3 looks), ends one round (3), and dies in the midst of the next.
        grid = SpyGrid(path, die_after=4 if number == 0 else 7)
        open_site.cache_clear()
        return conduct(grid, path, resume=True)

    pieces, deaths = until(12, attempt)
    assert deaths >= 5
    assert weights(pieces) == weights(reference)
    assert pieces.coordinator.chosen == reference.coordinator.chosen
    assert pieces.coordinator.fitness == reference.coordinator.fitness
    ledgers = tiny.ledger_files(path)
    for name, ledger in tiny.ledger_files(reference.directory.path).items():
        assert charged(ledgers[name]) == charged(ledger), "a stored reply is not paid for again"


def test_a_site_that_dies_while_it_computes_pays_twice_and_the_result_is_the_same(
    reference: Completed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.make_run(tmp_path / "run", tiny.study())
    train, deaths = train_weights, {"search": 0, "final": 0}

    def dying(*arguments: object, **options: object) -> object:
        name = str(options["allowance"])
        deaths[name] += 1
        if deaths[name] == 2:  # the second site of the first round of each kind
            raise Killed
        return train(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("fednas.site.site.train_weights", dying)
    completed, killed = until(5, lambda _: whole(path, resume=True))
    assert killed == 2
    assert weights(completed) == weights(reference)
    steps = tiny.study().training.steps_per_round
    paid = {name: charged(ledger) for name, ledger in tiny.ledger_files(path).items()}
    assert paid["bravo"][1] == {"search": steps, "final": steps}
    for name, ledger in tiny.ledger_files(reference.directory.path).items():
        total, left = paid[name]
        assert total - charged(ledger)[0] == left, "only open reservations were charged again"


def test_a_site_that_dies_more_often_than_it_can_spare_is_out_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.make_run(tmp_path / "run", tiny.study())
    train, calls = train_weights, Counter[int]()

    def dying(network: object, records: object, *arguments: object, **options: object) -> object:
        number = sum(calls.values())
        calls[number] += 1
        if number in (1, 2):
            raise Killed
        return train(network, records, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("fednas.site.site.train_weights", dying)
    completed, killed = until(6, lambda _: whole(path, resume=True))
    assert killed == 2
    assert completed.coordinator.fitness
    total, _ = charged(tiny.ledger_files(path)["bravo"])
    schedule = release_schedule(tiny.study(), 3)
    assert total["search"] <= schedule.search_steps


def test_when_no_site_can_afford_the_plan_the_study_ends_before_it_begins(tmp_path: Path) -> None:
    path = tiny.make_run(tmp_path / "run", tiny.study())
    tiny.exhaust(path, tiny.study())
    with pytest.raises(BudgetExceededError, match="every site refused"):
        whole(path)
    assert not (path / "checkpoints").exists()
    for ledger in tiny.ledger_files(path).values():
        assert charged(ledger)[0] == {}

"""Sites that allow different epsilons in one study, on real ledgers: each spends its own and no more."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from fednas.config import load_site, load_sites
from fednas.privacy.ledger import read_statement
from fednas.privacy.verify import verify
from fednas.schedule import release_schedule
from fednas.site import open_site
from server.app import conduct
from server.report import Completed, privacy_statement
from tests.integration.spy import Killed, SpyGrid, charged, until, weights, whole
from tests.simulations import tiny

CAPS = {"bravo": 1.0, "cobra": 2.0}
"""The study asks for 3.0, and alpha allows it."""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """No site stays open from one run to the next."""
    open_site.cache_clear()
    yield
    open_site.cache_clear()


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Completed:
    open_site.cache_clear()
    path = tiny.make_run(tmp_path_factory.mktemp("unequal") / "run", tiny.study(), caps=CAPS)
    completed = whole(path)
    open_site.cache_clear()
    return completed


def test_each_ledger_claims_its_own_sites_epsilon_and_no_more(unequal: Completed) -> None:
    path = unequal.directory.path
    for site in load_sites(path):
        statement = read_statement(site.ledger)
        plan = unequal.agreement.plans[site.name]
        assert statement.nominal_claimed_epsilon == pytest.approx(plan.claim, abs=1e-9)
        assert 0.98 * CAPS.get(site.name, 3.0) < plan.claim <= CAPS.get(site.name, 3.0)
        assert verify(site.ledger).open_reservations == 0


def test_a_site_with_a_lower_cap_does_the_same_work_with_more_noise(unequal: Completed) -> None:
    schedule, steps = release_schedule(tiny.study(), 3), tiny.study().training.steps_per_round
    for ledger in tiny.ledger_files(unequal.directory.path).values():
        total, left = charged(ledger)
        assert (total["search"], total["final"]) == (
            schedule.search_steps - steps,
            schedule.final_steps - steps,
        )
        assert not left
    noise = {s: p.noise_multiplier("search") for s, p in unequal.agreement.plans.items()}
    assert noise["alpha"] < noise["cobra"] < noise["bravo"]


def test_what_travels_with_a_network_lists_every_site_and_the_maximum(unequal: Completed) -> None:
    statement = privacy_statement(unequal.directory, unequal.agreement)
    own = {site: entry["epsilon"] for site, entry in statement["sites"].items()}
    assert set(own) == set(tiny.TIERS)
    assert statement["epsilon"] == max(own.values()) == own["alpha"]
    assert len(statement["plans"]) == 3


def test_a_study_of_unequal_sites_killed_in_every_round_ends_as_the_uninterrupted_one(
    unequal: Completed, tmp_path: Path
) -> None:
    path = tiny.make_run(tmp_path / "pieces", tiny.study(), caps=CAPS)

    def attempt(number: int) -> Completed:
        open_site.cache_clear()
        grid = SpyGrid(path, die_after=4 if number == 0 else 7)
        return conduct(grid, path, resume=True)

    pieces, deaths = until(12, attempt)
    assert deaths >= 5
    assert weights(pieces) == weights(unequal)
    assert pieces.coordinator.fitness == unequal.coordinator.fitness
    ledgers = tiny.ledger_files(path)
    for name, ledger in tiny.ledger_files(unequal.directory.path).items():
        assert charged(ledgers[name]) == charged(ledger)


def test_an_unequal_study_is_another_one_than_an_equal_one(unequal: Completed, tmp_path: Path) -> None:
    """So the comparisons here can fail."""
    assert weights(whole(tiny.make_run(tmp_path / "run", tiny.study()))) != weights(unequal)


def test_a_site_with_a_cap_is_out_of_a_study_without_noise_and_spends_nothing(tmp_path: Path) -> None:
    study = tiny.study(privacy={"epsilon": math.inf, "non_private": True})
    path = tiny.make_run(tmp_path / "run", study, caps={"bravo": 3.0})
    completed = whole(path)
    assert completed.coordinator.refused == {"bravo": "BUDGET_EXHAUSTED"}
    assert json.loads((path / "rounds" / "00001.json").read_text())["sites"]["alpha"]["outcome"] == "ok"
    assert charged(tiny.ledger_files(path)["bravo"])[0] == {}
    assert read_statement(tiny.ledger_files(path)["bravo"]).nominal_claimed_epsilon == 0.0


def test_a_site_without_a_cap_in_a_private_study_gets_what_the_study_asks_for(tmp_path: Path) -> None:
    path = tiny.make_run(tmp_path / "run", tiny.study())
    file = path / "sites" / "site-1" / "site.toml"
    text = file.read_text().replace("epsilon = 3.0", "epsilon = inf")
    file.write_text(text.replace("non_private = false", "non_private = true"))
    assert load_site(file).non_private
    completed = whole(path)
    assert completed.agreement.plans["bravo"].id == completed.agreement.plans["alpha"].id
    assert completed.coordinator.refused == {}


def test_a_filter_at_one_order_takes_part_with_a_plan_at_that_order(tmp_path: Path) -> None:
    path = tiny.make_run(tmp_path / "run", tiny.study())
    file = path / "sites" / "site-1" / "site.toml"
    file.write_text(file.read_text().replace("epsilon = 3.0", "epsilon = 3.0\norder = 8"))
    completed = whole(path)
    assert completed.coordinator.refused == {}
    assert completed.agreement.plans["bravo"].budget.order == 8
    assert charged(tiny.ledger_files(path)["bravo"])[0]["final"] > 0
    verify(tiny.ledger_files(path)["bravo"])


def test_a_dead_run_leaves_no_half_agreement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.make_run(tmp_path / "run", tiny.study(), caps=CAPS)

    def dying(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(Killed):
            whole(path)
    assert not (path / "plan.json").exists()
    open_site.cache_clear()
    assert set(whole(path, resume=True).agreement.plans) == set(tiny.TIERS)

"""Which plan each site has: the least of what the study asks and the site allows, kept through crashes."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fednas.config import StudyConfig
from fednas.errors import ConfigurationError, RunDirectoryError
from fednas.privacy.accounting import epsilon_pld
from fednas.privacy.plan import STREAMS
from fednas.space import create
from fednas.wire import SiteFacts
from server.agreement import Agreement, agree, recall, site_budget
from server.checkpoint import RunDirectory, create_run
from server.cohort import Cohort, Member
from server.report import privacy_statement
from tests.server.stubs import Stubs, facts, run
from tests.simulations import tiny

SPACE = create("mlp", (4,), 3)
OWN = {"alpha": (8.0, 1e-4), "bravo": (1.0, 1e-4), "cobra": (3.0, 1e-6)}


@pytest.fixture(scope="module")
def study() -> StudyConfig:
    return tiny.study()


def said(study: StudyConfig, own: Mapping[str, tuple[float, float]] = OWN) -> tuple[SiteFacts, ...]:
    """What the tiny sites say of themselves, with caps of their own."""
    return tuple(
        replace(fact, epsilon_cap=own[fact.site][0], delta=own[fact.site][1]) for fact in facts(study)
    )


def agreed(path: Path, study: StudyConfig, sites: tuple[SiteFacts, ...]) -> Agreement:
    create_run(path, study, run="run", about={})
    members = [Member(node=index, facts=fact) for index, fact in enumerate(sites)]
    return agree(RunDirectory(path), Cohort(members, SPACE, study), None)


@pytest.fixture(scope="module")
def agreement(study: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Agreement]:
    path = tmp_path_factory.mktemp("agreement") / "run"
    return path, agreed(path, study, said(study))


def test_a_budget_is_the_least_of_what_is_asked_and_what_is_allowed(study: StudyConfig) -> None:
    budgets = {fact.site: site_budget(study, fact) for fact in said(study)}
    assert {site: (b.epsilon, b.delta) for site, b in budgets.items()} == {
        "alpha": (3.0, 1e-4),
        "bravo": (1.0, 1e-4),
        "cobra": (3.0, 1e-6),
    }
    generous = replace(facts(study)[0], epsilon_cap=math.inf, delta=0.5)
    assert site_budget(study, generous) == study.privacy.budget


def test_a_filter_of_a_site_gets_a_plan_at_its_order(study: StudyConfig) -> None:
    assert site_budget(study, replace(facts(study)[0], order=16)).order == 16


def test_a_study_without_privacy_never_makes_a_weaker_offer_to_a_site_with_a_cap() -> None:
    open_study = tiny.study(privacy={"epsilon": math.inf, "non_private": True})
    for cap in (1.0, math.inf):
        budget = site_budget(open_study, replace(facts(tiny.study())[0], epsilon_cap=cap))
        assert budget == open_study.privacy.budget


def test_no_stream_of_a_site_costs_more_than_the_site_allows(agreement: tuple[Path, Agreement]) -> None:
    for site, plan in agreement[1].plans.items():
        epsilon, delta = OWN[site]
        for stream in STREAMS:
            assert epsilon_pld(plan.events(stream), delta) <= min(epsilon, 3.0)
        assert plan.claim > 0.98 * min(epsilon, 3.0), "and the noise is no larger than it must be"


def test_plans_differ_in_their_noise_alone(agreement: tuple[Path, Agreement]) -> None:
    def shape(site: str) -> list[tuple[Any, ...]]:
        plan = agreement[1].plans[site]
        return [(a.name, a.streams, a.amount, a.sampling_probability, a.clip_norm) for a in plan.allowances]

    def noise(site: str) -> dict[str, float]:
        return {a.name: a.noise_multiplier for a in agreement[1].plans[site].allowances}

    assert shape("alpha") == shape("bravo") == shape("cobra")
    assert {plan.proportions for plan in agreement[1].plans.values()} == {
        tuple(tiny.study().privacy.proportions.items())
    }
    for name, sigma in noise("alpha").items():
        assert sigma < noise("bravo")[name]
        assert sigma < noise("cobra")[name], "a smaller delta at the same epsilon"


def test_sites_that_allow_the_same_have_one_plan(study: StudyConfig, tmp_path: Path) -> None:
    own = {"alpha": (3.0, 1e-4), "bravo": (1.0, 1e-4), "cobra": (9.0, 1e-3)}
    found = agreed(tmp_path / "run", study, said(study, own))
    assert [sites for _, sites in found.by_plan()] == [("alpha", "cobra"), ("bravo",)]


def test_an_agreement_is_read_back_as_it_was_kept(agreement: tuple[Path, Agreement]) -> None:
    path, kept = agreement
    assert recall(RunDirectory(path)) == kept
    stored = json.loads((path / "plan.json").read_text())
    assert {site: entry["plan"] for site, entry in stored["sites"].items()} == {
        site: plan.id for site, plan in kept.plans.items()
    }
    assert {tuple(entry["sites"]): entry["id"] for entry in stored["plans"]} == {
        sites: plan.id for plan, sites in kept.by_plan()
    }


def test_a_run_that_has_not_begun_has_no_agreement(study: StudyConfig, tmp_path: Path) -> None:
    create_run(tmp_path / "run", study, run="run", about={})
    assert recall(RunDirectory(tmp_path / "run")) is None


def test_a_site_keeps_its_plan_whatever_it_says_later_and_a_new_one_gets_its_own(
    study: StudyConfig, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    first = agreed(path, study, said(study)[:2])
    changed = [replace(fact, epsilon_cap=0.5) for fact in said(study)]
    members = [Member(node=index, facts=fact) for index, fact in enumerate(changed)]
    directory = RunDirectory(path)
    second = agree(directory, Cohort(members, SPACE, study), recall(directory))
    assert {site: plan.id for site, plan in second.plans.items() if site in first.plans} == {
        site: plan.id for site, plan in first.plans.items()
    }
    assert second.plans["cobra"].budget.epsilon == 0.5
    assert second.num_tiers == first.num_tiers == 2, "the schedule is that of the beginning"
    assert recall(directory) == second


def test_who_does_not_answer_keeps_the_place(study: StudyConfig, agreement: tuple[Path, Agreement]) -> None:
    present = [Member(node=4, facts=fact) for fact in said(study) if fact.site != "bravo"]
    (absent,) = agreement[1].absent(present)
    assert absent.facts.site == "bravo"
    assert absent.away
    cohort = Cohort([*present, absent], SPACE, study)
    assert [member.facts.site for member in cohort.members] == ["alpha", "bravo", "cobra"]
    assert set(cohort.tiers) == set(tiny.BYTES)


def test_a_cap_for_which_there_is_no_plan_is_one_line_that_names_the_site(
    study: StudyConfig, tmp_path: Path
) -> None:
    own = OWN | {"bravo": (1e-9, 1e-15)}
    with pytest.raises(ConfigurationError, match="no plan for bravo, which allows epsilon 1e-09") as caught:
        agreed(tmp_path / "run", study, said(study, own))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "plan.json").exists()


def test_an_order_at_which_nothing_fits_is_one_line_that_names_the_site(
    study: StudyConfig, tmp_path: Path
) -> None:
    sites = tuple(replace(fact, order=2) if fact.site == "bravo" else fact for fact in said(study))
    with pytest.raises(ConfigurationError, match="no plan for bravo") as caught:
        agreed(tmp_path / "run", study, sites)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: {},
        lambda v: v | {"num_tiers": 0},
        lambda v: v | {"num_tiers": "3"},
        lambda v: v | {"plans": []},
        lambda v: v | {"plans": [entry | {"id": "0" * 64} for entry in v["plans"]]},
        lambda v: v | {"plans": [entry | {"canonical": "{}"} for entry in v["plans"]]},
        lambda v: v | {"sites": []},
        lambda v: v | {"sites": {"alpha": {}}},
        lambda v: v | {"sites": {"alpha": v["sites"]["alpha"] | {"facts": {}}}},
        lambda v: v | {"sites": {"alpha": v["sites"]["alpha"] | {"plan": "0" * 64}}},
    ],
)
def test_a_corrupt_agreement_is_one_line(
    study: StudyConfig, tmp_path: Path, agreement: tuple[Path, Agreement], spoil: Any
) -> None:
    create_run(tmp_path / "run", study, run="run", about={})
    value = json.loads((agreement[0] / "plan.json").read_text())
    (tmp_path / "run" / "plan.json").write_text(json.dumps(spoil(value)))
    with pytest.raises(RunDirectoryError, match=r"plan\.json is corrupt") as caught:
        recall(RunDirectory(tmp_path / "run"))
    assert "\n" not in str(caught.value)


def test_the_statement_lists_each_site_and_the_maximum_and_adds_nothing_up(
    agreement: tuple[Path, Agreement],
) -> None:
    path, kept = agreement
    statement = privacy_statement(RunDirectory(path), kept)
    own = {site: plan.claim for site, plan in kept.plans.items()}
    assert {site: entry["epsilon"] for site, entry in statement["sites"].items()} == own
    assert {site: entry["delta"] for site, entry in statement["sites"].items()} == {
        "alpha": 1e-4,
        "bravo": 1e-4,
        "cobra": 1e-6,
    }
    assert statement["epsilon"] == max(own.values())
    assert statement["delta"] == 1e-4
    numbers = [v for v in _numbers(statement) if not math.isclose(v, max(own.values()), rel_tol=1e-3)]
    for forbidden in (sum(own.values()), sum(own.values()) / len(own)):
        assert not any(math.isclose(v, forbidden, rel_tol=1e-3) for v in numbers)
    for plan, _ in kept.by_plan():
        assert statement["plans"][plan.id]["epsilon_by_stream"]["weights"] == plan.epsilon("weights")


def _numbers(value: object) -> list[float]:
    if isinstance(value, Mapping):
        return [n for part in value.values() for n in _numbers(part)]
    if isinstance(value, list):
        return [n for part in value for n in _numbers(part)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_every_site_is_sent_its_own_plan(study: StudyConfig, tmp_path: Path) -> None:
    path = tmp_path / "run"
    create_run(path, study, run="run", about={})
    stubs = Stubs(facts=said(study))
    completed = run(stubs, path)
    for site, task in stubs.tasks:
        assert task.plan == completed.agreement.plans[site].to_json()
    assert len({task.plan for _, task in stubs.tasks}) == 3


def test_two_sites_of_one_dataset_are_refused(study: StudyConfig) -> None:
    sites = [replace(fact, dataset="tiny/alpha") for fact in facts(study)]
    with pytest.raises(ConfigurationError, match="same dataset"):
        Cohort([Member(node=i, facts=fact) for i, fact in enumerate(sites)], SPACE, study)


def test_too_few_sites_that_are_there_are_refused(study: StudyConfig) -> None:
    away = [Member(node=i, facts=f, away="AWAY" if i else "") for i, f in enumerate(facts(study))]
    with pytest.raises(ConfigurationError, match="1 sites answered, the study needs at least 2"):
        Cohort(away, SPACE, study)

"""What the owner of a site said, and what is left of the budget: read, never changed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fednas.config import load_site
from fednas.doctor import budget, dataset
from fednas.privacy.ledger import PrivacyLedger
from fednas.schedule import plan_for
from fednas.site.consent import Consent
from server.kit import ServerKit
from tests.doctor.kits import STUDY, make_site


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate that an operator hands over."""
    return ServerKit.prepare(tmp_path_factory.mktemp("server"), ["fl.example.org"]).authority


@pytest.fixture
def site(tmp_path: Path, authority: Path) -> Path:
    """The site.toml of a site whose ledger is not there yet."""
    return make_site(tmp_path / "site", authority).site


def test_a_site_that_does_not_answer_is_said_to_not_answer(site: Path) -> None:
    config = load_site(site)
    assert dataset.consent(config, STUDY).state == "ok"
    for said, words in (
        (Consent().pause(), "is paused"),
        (Consent().leave(), "has left"),
        (Consent().veto(STUDY.name), "vetoed"),
    ):
        said.keep(config)
        finding = dataset.consent(config, STUDY)
        assert finding.state == "warn"
        assert words in finding.seen
    assert dataset.consent(config, None).state == "ok"
    config.ledger.with_name("ledger.sqlite.consent.json").write_text("?")
    assert dataset.consent(config, None).state == "fail"


def test_a_site_that_would_obey_anybody_is_found(site: Path) -> None:
    config = load_site(site)
    assert dataset.server_key(config).state == "ok"
    assert dataset.server_key(config.model_copy(update={"server_key": None})).state == "fail"


def test_without_a_study_the_data_are_only_looked_for(site: Path) -> None:
    config = load_site(site)
    assert dataset.schema(config, None).state == "skip"
    (site.parent / "data.npz").unlink()
    assert dataset.schema(config, None).state == "fail"


def test_a_ledger_that_is_not_there_is_new_unless_its_key_is(site: Path) -> None:
    config = load_site(site)
    assert budget.ledger(config).state == "ok"
    assert budget.budget(config, None).state == "ok"
    config.ledger.with_name("ledger.sqlite.key").write_bytes(bytes(32))
    finding = budget.ledger(config)
    assert finding.state == "fail"
    assert "missing beside its key" in finding.seen


def test_a_ledger_of_another_dataset_key_or_cap_is_found(site: Path, tmp_path: Path) -> None:
    config = load_site(site)
    with PrivacyLedger.open(config.ledger, dataset=config.dataset, cap=config.cap):
        pass
    assert budget.ledger(config).state == "ok"
    assert "belongs to dataset" in budget.ledger(config.model_copy(update={"dataset": "other"})).seen
    assert "delta" in budget.ledger(config.model_copy(update={"delta": 1e-6})).seen
    shutil.copy(config.ledger, tmp_path / "kept")
    config.ledger.with_name("ledger.sqlite.key").write_bytes(bytes(32))
    assert "another stream key" in budget.ledger(config).seen
    assert config.ledger.read_bytes() == (tmp_path / "kept").read_bytes()


def test_what_is_spent_is_told_and_a_cap_that_is_raised_makes_room(site: Path) -> None:
    config = load_site(site)
    plan = plan_for(STUDY, 3, STUDY.privacy.budget)
    with PrivacyLedger.open(config.ledger, dataset=config.dataset, cap=config.cap) as ledger:
        ledger.open_plan("earlier", plan)
        before = ledger.position()
    spent = budget.budget(config, None)
    assert f"weights {plan.epsilon('weights'):.3g}" in spent.seen
    assert budget.budget(config, STUDY).state == "fail"
    raised = config.model_copy(update={"epsilon": 9.0})
    assert budget.budget(raised, STUDY).state == "ok"
    lowered = config.model_copy(update={"epsilon": 1.0})
    assert budget.budget(lowered, None).state == "warn"
    with PrivacyLedger.open(config.ledger, dataset=config.dataset, cap=config.cap) as ledger:
        assert ledger.position() == before


def test_a_filter_is_asked_as_it_will_answer(site: Path) -> None:
    config = load_site(site).model_copy(update={"order": 8})
    assert budget.budget(config, STUDY).state == "ok"
    with PrivacyLedger.open(config.ledger, dataset=config.dataset, cap=config.cap) as ledger:
        plan = plan_for(STUDY, 3, replace(STUDY.privacy.budget, order=8))
        ledger.open_plan("earlier", plan)  # under a filter only charges count
    assert budget.budget(config, STUDY).state == "ok"
    assert budget.budget(config.model_copy(update={"test_seed": 1}), STUDY).state == "warn"

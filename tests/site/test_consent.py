"""The owner's word holds at once: for a greeting, for a task, and for what a task has computed meanwhile."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import RecordDict

from fednas import training
from fednas.config import load_site
from fednas.errors import ConsentWithdrawnError, SitePausedError
from fednas.site import open_site
from fednas.site import site as site_module
from fednas.site.consent import Consent
from fednas.wire import Answer, Refusal, decode
from server.checkpoint import RunDirectory
from simulations import runner
from tests.cli.calls import answer, call
from tests.simulations import tiny
from tests.site.sites import STUDY, Sites, task


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    yield Sites(tiny.make_run(tmp_path / "run", STUDY))
    open_site.cache_clear()


def site_file(sites: Sites, number: int = 0) -> Path:
    return sites.path / "sites" / f"site-{number}" / "site.toml"


def consent_file(sites: Sites, number: int = 0) -> Path:
    ledger = load_site(site_file(sites, number)).ledger
    return ledger.with_name(ledger.name + ".consent.json")


def say(sites: Sites, monkeypatch: pytest.MonkeyPatch, *words: str, number: int = 0) -> None:
    verb, *rest = words
    assert call(monkeypatch, "site", verb, str(site_file(sites, number)), *rest) == 0


def asked(sites: Sites) -> object:
    """What a training task is answered with."""
    found = decode(sites.ask(task()))
    return found if isinstance(found, Refusal) else type(found)


def greeted(sites: Sites) -> object:
    content = sites.send(RecordDict(), "query.hello")
    return "facts" if "facts" in content.config_records else decode(content)


def test_a_paused_site_answers_nothing_and_charges_nothing_until_it_resumes(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (greeted(sites), sites.entries()) == ("facts", ["OPEN"])
    say(sites, monkeypatch, "pause")
    assert (asked(sites), greeted(sites)) == (Refusal.PAUSED, Refusal.PAUSED)
    assert sites.entries() == ["OPEN"]
    say(sites, monkeypatch, "resume")
    assert (asked(sites), greeted(sites)) == (Answer, "facts")


def test_a_site_that_left_stays_away_through_restarts(sites: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    say(sites, monkeypatch, "leave")
    for _ in range(2):
        assert (asked(sites), greeted(sites)) == (Refusal.WITHDRAWN, Refusal.WITHDRAWN)
        sites.restart()


def test_a_veto_is_of_one_study_and_outlives_a_pause(sites: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    say(sites, monkeypatch, "veto", "another")
    assert asked(sites) is Answer
    say(sites, monkeypatch, "veto", STUDY.name)
    say(sites, monkeypatch, "pause")
    say(sites, monkeypatch, "resume")
    assert (asked(sites), greeted(sites)) == (Refusal.WITHDRAWN, "facts")
    say(sites, monkeypatch, "veto", STUDY.name, "--permit")
    assert asked(sites) is Answer


def test_what_was_computed_while_the_owner_paused_does_not_leave_and_stays_charged(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = training.train_weights

    def paused_meanwhile(*arguments: object, **options: object) -> object:
        config = load_site(site_file(sites))
        Consent().pause().keep(config)
        return work(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(site_module, "train_weights", paused_meanwhile)
    assert asked(sites) is Refusal.PAUSED
    assert "RESERVE" in sites.entries()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": 2, "paused": false, "left": false, "vetoed": []}',
        '{"format": 1, "paused": 0, "left": false, "vetoed": []}',
        '{"format": 1, "paused": false, "left": false, "vetoed": [1]}',
        '{"format": 1, "paused": false, "left": false}',
        "[" * 100_000,
    ],
)
def test_a_file_that_cannot_be_read_allows_nothing(sites: Sites, text: str) -> None:
    consent_file(sites).write_text(text)
    assert (asked(sites), greeted(sites)) == (Refusal.PAUSED, Refusal.PAUSED)


def test_a_word_after_an_unreadable_file_leaves_the_site_paused_until_it_resumes(
    sites: Sites, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    consent_file(sites).write_text("{")
    say(sites, monkeypatch, "veto", "another")
    assert asked(sites) is Refusal.PAUSED
    shown = answer(monkeypatch, capfd, "site", "resume", str(site_file(sites)))
    assert shown == {"site": "alpha", "paused": False, "left": False, "vetoed": ["another"]}
    assert asked(sites) is Answer


def test_showing_writes_nothing(sites: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    say(sites, monkeypatch, "show")
    assert not consent_file(sites).exists()


def test_a_check_names_both_kinds_of_exception() -> None:
    with pytest.raises(SitePausedError, match="resume"):
        Consent(paused=True).check("study")
    with pytest.raises(ConsentWithdrawnError, match="'study'"):
        Consent(vetoed=("study",)).check("study")
    Consent(vetoed=("study",)).check()


def test_a_study_goes_on_without_a_site_that_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves while it computes its first answer; nobody asks it again."""
    work = training.train_weights
    calls: list[str] = []
    path = tmp_path / "run"

    def leaves_once(*arguments: object, **options: object) -> object:
        if not calls:
            calls.append("left")
            Consent().leave().keep(load_site(path / "sites" / "site-0" / "site.toml"))
        return work(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(site_module, "train_weights", leaves_once)
    runner.start(tiny.scenario(), STUDY, path, runner.Options())
    rounds = [json.loads(file.read_text())["sites"] for file in sorted(path.glob("rounds/*.json"))]
    first = load_site(path / "sites" / "site-0" / "site.toml").name
    assert rounds[0][first]["outcome"] == "WITHDRAWN"
    assert not any(first in sites for sites in rounds[1:])
    assert RunDirectory(path).read("result.json")["sites"][first]["refused"] == "WITHDRAWN"


def test_the_data_are_checked_against_a_study_without_a_ledger(
    sites: Sites, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    study = str(sites.path / "study.toml")
    shown = answer(monkeypatch, capfd, "site", "check", str(site_file(sites)), "--study", study)
    assert shown["left_out"] == 0
    assert shown["records"] > 0
    assert sites.entries() == []
    Path(load_site(site_file(sites)).data).unlink()
    assert call(monkeypatch, "site", "check", str(site_file(sites)), "--study", study) == 2
    assert "does not exist" in capfd.readouterr().err

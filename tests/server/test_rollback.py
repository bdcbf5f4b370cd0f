"""A ledger that went back: its site is out in one line, whoever notices it, and the study goes on without."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict

from fednas.config import StudyConfig
from fednas.errors import ExchangeError, LedgerRolledBackError, RunDirectoryError
from fednas.privacy.marks import Mark
from fednas.privacy.signing import Signer
from fednas.supernet import Supernet
from fednas.wire import Answer, Refusal, Task, decode
from server.marks import Marks
from tests.server.stubs import (
    ENTRIES,
    Killed,
    Stubs,
    arrays_for,
    digest,
    facts,
    folder,
    honest,
    kinds,
    outcomes,
    pack,
    refuse,
    run,
    same,
    signer,
    when,
)
from tests.simulations import tiny

FORGER = Signer(b"another key")


@pytest.fixture(scope="module")
def study() -> StudyConfig:
    return tiny.study()


def seen(site: str, entries: int, *, key: Signer | None = None, head: str = "") -> Mark:
    return Mark(signer=(key or signer(site)).public_key, entries=entries, head=head or digest(site, entries))


def remembered(path: Path, **marks: Mark) -> Path:
    """A file of marks from an earlier study."""
    Marks(path).keep({f"tiny/{site}": mark for site, mark in marks.items()})
    return path


def of(path: Path, site: str) -> Mark:
    mark = Marks(path).of(f"tiny/{site}")
    assert mark is not None
    return mark


# At the greeting


GONE_BACK = {
    "fewer entries": lambda: seen("bravo", ENTRIES + 1),
    "another history": lambda: seen("bravo", ENTRIES),
    "another key": lambda: seen("bravo", 5, key=FORGER),
}


@pytest.mark.parametrize("earlier", GONE_BACK.values(), ids=GONE_BACK.keys())
def test_a_site_whose_ledger_went_back_is_never_asked_and_that_is_one_line(
    study: StudyConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, earlier: Callable[[], Mark]
) -> None:
    marks = remembered(tmp_path / "marks.json", bravo=earlier())
    stubs = Stubs(facts=facts(study))
    path = folder(tmp_path / "run", study, plans={})
    completed = run(stubs, path, marks_file=marks)
    assert kinds(stubs.tasks, "bravo") == []
    assert len(kinds(stubs.tasks, "alpha")) == 6
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.getMessage().startswith("bravo: LEDGER_ROLLED_BACK: its ledger ")
    assert "\n" not in record.getMessage()
    assert completed.left_out == {"bravo": "LEDGER_ROLLED_BACK"}
    assert "bravo" not in completed.agreement.plans, "nothing is promised for it"
    assert of(marks, "bravo") == earlier(), "what is remembered stays"


def test_a_ledger_that_was_seen_at_its_present_end_is_welcome(study: StudyConfig, tmp_path: Path) -> None:
    fact = facts(study)[1]
    marks = remembered(tmp_path / "marks.json", bravo=seen("bravo", ENTRIES, head=fact.head))
    stubs = Stubs(
        facts=facts(study),
        reply=lambda site, task: pack(site, task, arrays_for(site, task), entries=ENTRIES + task.round),
    )
    run(stubs, folder(tmp_path / "run", study), marks_file=marks)
    assert len(kinds(stubs.tasks, "bravo")) == 6


def test_when_every_ledger_went_back_nothing_begins(study: StudyConfig, tmp_path: Path) -> None:
    later = {site: seen(site, ENTRIES + 1) for site in tiny.TIERS}
    marks = remembered(tmp_path / "marks.json", **later)
    path = folder(tmp_path / "run", study)
    with pytest.raises(LedgerRolledBackError, match="every site refused: LEDGER_ROLLED_BACK") as caught:
        run(Stubs(facts=facts(study)), path, marks_file=marks)
    assert "\n" not in str(caught.value)
    assert not (path / "checkpoints").exists()


def test_a_site_that_shows_no_ledger_takes_no_part(study: StudyConfig, tmp_path: Path) -> None:
    alpha, bravo, cobra = facts(study)
    bare = replace(bravo, signer="", entries=0, head="")
    stubs = Stubs(facts=(alpha, bare, cobra))
    run(stubs, folder(tmp_path / "run", study))
    assert kinds(stubs.tasks, "bravo") == []


# In a round


def test_every_task_carries_the_newest_mark_and_a_first_one_none(study: StudyConfig, tmp_path: Path) -> None:
    stubs = Stubs(facts=facts(study))
    run(stubs, folder(tmp_path / "run", study))
    last: dict[str, str] = {}
    for site, task in stubs.tasks:
        assert task.mark == last.get(site, "")
        answer = decode(honest(site, task))
        assert isinstance(answer, Answer)
        last[site] = answer.head
    assert {site: of(tmp_path / "run" / "marks.json", site).head for site in last} == last


def stale(site: str, task: Task) -> RecordDict:
    return pack(site, task, arrays_for(site, task), entries=1)


def test_an_answer_that_is_not_newer_is_not_merged_and_its_site_is_out(
    study: StudyConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    at = when(lambda site, task: site == "bravo" and task.round == 2, stale)
    stubs = Stubs(facts=facts(study), reply=at)
    path = folder(tmp_path / "run", study)
    completed = run(stubs, path)
    assert outcomes(path, 2)["bravo"] == "LEDGER_ROLLED_BACK"
    assert kinds(stubs.tasks, "bravo") == ["train", "train"]
    assert completed.coordinator.refused == {"bravo": "LEDGER_ROLLED_BACK"}
    assert of(path / "marks.json", "bravo").entries == 10, "the mark stays"
    assert sum("LEDGER_ROLLED_BACK" in r.getMessage() for r in caplog.records) == 1

    silent = when(lambda site, task: site == "bravo" and task.round >= 2, refuse(Refusal.SITE_FAILURE))
    without = run(Stubs(facts=facts(study), reply=silent), folder(tmp_path / "without", study))
    assert same(completed, without), "it may come back, so the others are asked what they would be with it"


def test_a_site_that_finds_its_own_ledger_short_is_out(study: StudyConfig, tmp_path: Path) -> None:
    own = when(lambda site, task: site == "bravo" and task.round == 2, refuse(Refusal.LEDGER_ROLLED_BACK))
    stubs = Stubs(facts=facts(study), reply=own)
    path = folder(tmp_path / "run", study)
    run(stubs, path)
    assert outcomes(path, 2)["bravo"] == "LEDGER_ROLLED_BACK"
    assert kinds(stubs.tasks, "bravo") == ["train", "train"]


def test_a_mended_site_comes_back_when_the_run_is_resumed(study: StudyConfig, tmp_path: Path) -> None:
    def fragile(site: str, task: Task) -> RecordDict:
        if task.round == 4:
            raise Killed
        return stale(site, task) if site == "bravo" and task.round == 2 else honest(site, task)

    path = folder(tmp_path / "run", study)
    with pytest.raises(Killed):
        run(Stubs(facts=facts(study), reply=fragile), path)
    stubs = Stubs(facts=facts(study))
    run(stubs, path, resume=True)
    assert len(kinds(stubs.tasks, "bravo")) == 3, "rounds four to six"


def test_a_site_of_the_run_whose_ledger_went_back_meanwhile_keeps_its_place_and_is_not_asked(
    study: StudyConfig, tmp_path: Path
) -> None:
    path = folder(tmp_path / "run", study)
    with pytest.raises(Killed):
        run(Stubs(facts=facts(study), reply=_dies_in(3)), path)
    alpha, bravo, cobra = facts(study)
    stubs = Stubs(facts=(alpha, replace(bravo, entries=2), cobra))
    completed = run(stubs, path, resume=True)
    assert kinds(stubs.tasks, "bravo") == []
    assert completed.coordinator.refused == {"bravo": "LEDGER_ROLLED_BACK"}
    assert "bravo" in completed.agreement.plans, "what it released is still promised"

    away = Stubs(facts=(alpha, cobra))
    other = folder(tmp_path / "other", study)
    with pytest.raises(Killed):
        run(Stubs(facts=facts(study), reply=_dies_in(3)), other)
    assert same(completed, run(away, other, resume=True)), "as if it had not answered at all"


def _dies_in(round_number: int) -> Callable[[str, Task], RecordDict]:
    def reply(site: str, task: Task) -> RecordDict:
        if task.round == round_number:
            raise Killed
        return honest(site, task)

    return reply


@pytest.mark.parametrize("forged", ["key", "entries", "dataset"])
def test_an_answer_that_its_ledger_did_not_sign_is_malformed_and_moves_no_mark(
    study: StudyConfig, tmp_path: Path, forged: str
) -> None:
    def forge(site: str, task: Task) -> RecordDict:
        arrays = arrays_for(site, task)
        if forged == "key":
            return pack(site, task, arrays, key=FORGER)
        content = pack("cobra" if forged == "dataset" else site, task, arrays)
        if forged == "entries":
            manifest = content.config_records["manifest"]
            manifest["json"] = str(manifest["json"]).replace('"entries":20', '"entries":9000')
            assert "9000" in str(manifest["json"])
        return content

    path = folder(tmp_path / "run", study)
    at = when(lambda site, task: site == "bravo" and task.round == 2, forge)
    stubs = Stubs(facts=facts(study), reply=at)
    run(stubs, path)
    assert outcomes(path, 2)["bravo"] == "MALFORMED_REPLY"
    assert outcomes(path, 4)["bravo"] == "ok", "anybody can send nonsense in a site's name: it is asked again"


def test_no_answer_is_merged_before_its_mark_is_on_the_disk(
    study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path / "run", study)
    merge, rounds = Supernet.merge, []

    def merging(supernet: Supernet, *arguments: Any) -> Supernet:
        rounds.append({site: of(path / "marks.json", site).entries for site in tiny.TIERS})
        return merge(supernet, *arguments)

    monkeypatch.setattr(Supernet, "merge", merging)
    run(Stubs(facts=facts(study)), path)
    assert rounds == [dict.fromkeys(tiny.TIERS, 10 * number) for number in (1, 2, 4, 5)]


def test_when_the_marks_cannot_be_written_nothing_is_merged(
    study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path / "run", study)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    def at_the_first_answer(site: str, task: Task) -> RecordDict:
        monkeypatch.setattr(os, "fsync", full)
        return honest(site, task)

    with pytest.raises(RunDirectoryError, match="No space left on device"):
        run(Stubs(facts=facts(study), reply=at_the_first_answer), path)
    monkeypatch.undo()
    assert not (path / "checkpoints").exists()
    whole = run(Stubs(facts=facts(study)), folder(tmp_path / "whole", study))
    assert same(whole, run(Stubs(facts=facts(study)), path, resume=True))


# Rounds that are asked again


def test_a_round_is_repeated_after_other_studies_went_on_with_the_same_ledgers(
    study: StudyConfig, tmp_path: Path
) -> None:
    """The sites stored their replies to round two, this server died, another one went on to 500 entries."""
    marks = tmp_path / "marks.json"
    whole = run(Stubs(facts=facts(study)), folder(tmp_path / "whole", study))
    path = folder(tmp_path / "run", study)
    with pytest.raises(Killed):
        run(Stubs(facts=facts(study), reply=_dies_in(2)), path, marks_file=marks)
    remembered(marks, **{site: seen(site, 500) for site in tiny.TIERS})

    def later(site: str, task: Task) -> RecordDict:
        stored = task.round == 2
        return pack(site, task, arrays_for(site, task), entries=20 if stored else 500 + task.round)

    completed = run(Stubs(facts=facts(study), reply=later), path, resume=True, marks_file=marks)
    assert same(whole, completed)
    assert completed.coordinator.refused == {}


def test_no_later_round_is_answered_from_before_the_mark(study: StudyConfig, tmp_path: Path) -> None:
    marks = tmp_path / "marks.json"
    path = folder(tmp_path / "run", study)
    with pytest.raises(Killed):
        run(Stubs(facts=facts(study), reply=_dies_in(2)), path, marks_file=marks)
    remembered(marks, **{site: seen(site, 500) for site in tiny.TIERS})
    with pytest.raises(ExchangeError, match="no site is left to ask"):
        run(Stubs(facts=facts(study)), path, resume=True, marks_file=marks)
    assert set(outcomes(path, 2).values()) == {"ok"}


def test_a_run_that_lost_its_marks_does_not_go_on_without(study: StudyConfig, tmp_path: Path) -> None:
    path = folder(tmp_path / "run", study)
    run(Stubs(facts=facts(study)), path)
    (path / "marks.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"marks\.json is missing"):
        run(Stubs(facts=facts(study)), path, resume=True)

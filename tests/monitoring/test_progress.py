"""A run as it goes: figures of its files, whatever is there of them."""

import json
import math
import os
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from fednas.errors import ConfigurationError, FednasError, RunDirectoryError
from fednas.monitoring import RunReader
from fednas.schedule import agenda
from fednas.wire import Task, encode_task
from server.checkpoint import create_run
from server.exchange import num_bytes
from tests.monitoring.conftest import only
from tests.server import stubs
from tests.simulations import tiny


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_it_says_what_became_of_each_site(conducted: Path) -> None:
    progress = RunReader(conducted).read()
    steps = agenda(tiny.study())
    assert (progress.study, progress.agenda) == ("tiny", steps)
    assert [record.step for record in progress.rounds] == list(steps)
    sites = {site.site: site for site in progress.sites}
    assert {name: site.tier for name, site in sites.items()} == tiny.TIERS
    assert (sites["alpha"].replies, sites["alpha"].rejects) == (len(steps), {})
    assert (sites["bravo"].replies, sites["bravo"].rejects) == (len(steps) - 2, {"SITE_FAILURE": 2})
    assert (sites["bravo"].last, sites["bravo"].last_round) == ("ok", len(steps))
    assert progress.next_step is None
    assert not progress.complete, "its results are not written"


def test_bytes_are_those_of_the_messages(tmp_path: Path) -> None:
    """Requests as they arrived at the sites, replies as the sites made them, also such as are not taken."""
    sent = dict.fromkeys(tiny.TIERS, 0)
    received = dict.fromkeys(tiny.TIERS, 0)

    def reply(site: str, task: Task) -> RecordDict:
        sent[site] += num_bytes(encode_task(task))
        content = stubs.honest(site, task)
        if site == "cobra" and task.round == 1:
            content = RecordDict({"manifest": ConfigRecord({"json": "", "number": 1})})
        received[site] += num_bytes(content)
        return content

    path = stubs.folder(tmp_path / "run", tiny.study())
    stubs.run(stubs.Stubs(facts=stubs.facts(tiny.study()), reply=reply), path)
    progress = RunReader(path).read()
    assert {site.site: site.sent_bytes for site in progress.sites} == sent
    assert {site.site: site.received_bytes for site in progress.sites} == received
    assert {site.site: site.rejects for site in progress.sites}["cobra"] == {"MALFORMED_REPLY": 1}


def test_the_bytes_of_an_answer_are_a_function_of_what_was_asked(conducted: Path, tmp_path: Path) -> None:
    """Other values, the same number of bytes: what is recorded says nothing of a record."""

    def other(site: str, task: Task) -> RecordDict:
        arrays = {name: -3 * array for name, array in stubs.arrays_for(site, task).items()}
        return stubs.pack(site, task, arrays)

    path = stubs.folder(tmp_path / "other", tiny.study())
    stubs.run(stubs.Stubs(facts=stubs.facts(tiny.study()), reply=other), path)
    for site in ("alpha", "cobra"):
        first = json.loads((conducted / "rounds/00001.json").read_text())["sites"][site]
        second = json.loads((path / "rounds/00001.json").read_text())["sites"][site]
        assert first["outcome"] == second["outcome"] == "ok"
        assert first["received_bytes"] == second["received_bytes"] > 0


def test_a_site_that_is_late_sent_nothing(conducted: Path) -> None:
    record = json.loads((conducted / "rounds/00001.json").read_text())
    record["sites"]["bravo"] = {"outcome": "LATE", "sent_bytes": 10, "received_bytes": 0}
    edit(conducted / "rounds/00001.json", **record)
    (bravo,) = (site for site in RunReader(conducted).read().sites if site.site == "bravo")
    assert bravo.rejects == {"LATE": 1, "SITE_FAILURE": 1}


def test_fitness_is_the_latest_of_what_is_chosen(conducted: Path) -> None:
    steps = agenda(tiny.study())
    last = json.loads((conducted / f"rounds/{len(steps):05d}.json").read_text())
    found = {trial["id"]: (trial["fitness"], trial["std"]) for trial in last["trials"]}
    assert RunReader(conducted).read().fitness == {tier: found[a] for tier, a in last["chosen"].items()}
    only(conducted, 1)
    assert RunReader(conducted).read().fitness == {}


def test_a_run_that_has_just_begun_is_shown(conducted: Path, tmp_path: Path) -> None:
    only(conducted)
    progress = RunReader(conducted).read()
    assert (progress.rounds, progress.round_s, progress.remaining_s(0.0)) == ((), None, None)
    assert [site.last for site in progress.sites] == ["", "", ""]
    create_run(tmp_path / "new", tiny.study(), run="new", about={})
    progress = RunReader(tmp_path / "new").read()
    assert (progress.sites, progress.complete) == ((), False)
    assert progress.next_step == agenda(tiny.study())[0]


def test_drafts_of_a_server_at_work_are_not_read(conducted: Path) -> None:
    (conducted / "rounds" / "00009.json.draft").write_text("{")
    (conducted / "plan.json.draft").write_text("{")
    assert RunReader(conducted).read() == RunReader(conducted).read()


def test_what_is_left_is_the_median_round_times_the_rounds_that_are_left(conducted: Path) -> None:
    total = len(agenda(tiny.study()))
    for number, end in ((1, 100.0), (2, 110.0), (3, 1110.0), (4, 1120.0)):  # a crash of 1000 s
        os.utime(conducted / "rounds" / f"{number:05d}.json", (end, end))
    only(conducted, 1, 2, 3, 4)
    progress = RunReader(conducted).read()
    assert progress.round_s == 10.0
    assert progress.remaining_s(1124.0) == 10.0 * (total - 4) - 4.0
    assert progress.remaining_s(9999.0) == 10.0 * (total - 5), "the round under way is over any moment"
    assert not progress.is_late(1124.0)
    assert progress.is_late(1120.0 + max(progress.deadline_s, 50.0) + 1.0)


def test_where_noise_is_reproducible_or_absent_epsilon_is_infinite(tmp_path: Path, conducted: Path) -> None:
    path = tiny.make_run(tmp_path / "seeded", tiny.study(), seed=0)
    shutil.copy(conducted / "plan.json", path)
    assert {site.epsilon_planned for site in RunReader(path).read().sites} == {math.inf}
    assert math.isfinite(RunReader(conducted).read().sites[0].epsilon_so_far)
    edit(conducted / "run.json", test_noise=True)
    assert {site.epsilon_so_far for site in RunReader(conducted).read().sites} == {math.inf}


def test_a_record_is_read_once_and_again_when_it_changes(
    conducted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = RunReader(conducted)
    before = reader.read()
    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", None)
        assert reader.read() == before
    record = json.loads((conducted / "rounds/00001.json").read_text())
    record["sites"]["alpha"]["outcome"] = "LATE"
    edit(conducted / "rounds/00001.json", **record)
    assert reader.read().sites[0].rejects == {"LATE": 1}


@pytest.mark.parametrize("name", ["run.json", "plan.json", "rounds/00002.json"])
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"started": 3, "sites": 3}', "\udcff", "[" * 100_000]
)
def test_a_malformed_file_is_one_line_that_teaches(conducted: Path, name: str, content: str) -> None:
    reader = RunReader(conducted)
    (conducted / name).write_text(content, errors="surrogateescape")
    with pytest.raises(RunDirectoryError, match=f"{name} is missing or malformed; restore it") as caught:
        reader.read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(round=99),
        lambda r: r.update(round=True),
        lambda r: r.update(kind="final"),
        lambda r: r["sites"].update({"\x1b[2J": {"outcome": "ok"}}),
        lambda r: r["sites"].update({"x" * 81: {"outcome": "ok"}}),
        lambda r: r["sites"].update(alpha={"outcome": "[red]no"}),
        lambda r: r["sites"].update(alpha={"outcome": "ok", "sent_bytes": -1}),
        lambda r: r["sites"].update(alpha={"outcome": "ok", "sent_bytes": 1.5}),
        lambda r: r["sites"].update(alpha={"outcome": "ok", "received_bytes": True}),
    ],
)
def test_a_record_that_no_server_writes_is_refused(conducted: Path, change: Any) -> None:
    record = json.loads((conducted / "rounds/00001.json").read_text())
    change(record)
    edit(conducted / "rounds/00001.json", **record)
    with pytest.raises(RunDirectoryError, match="malformed"):
        RunReader(conducted).read()


def test_a_folder_without_a_run_and_a_study_that_is_malformed_are_one_line(
    conducted: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunDirectoryError, match="is not a run directory"):
        RunReader(tmp_path / "nowhere")
    (conducted / "study.toml").write_text("name = 3")
    with pytest.raises(ConfigurationError, match="name"):
        RunReader(conducted).read()


def test_whatever_bytes_are_in_its_files_a_run_is_read_or_refused_in_one_line(conducted: Path) -> None:
    generator = random.Random(8)
    files = [conducted / "run.json", conducted / "plan.json", *sorted((conducted / "rounds").glob("*.json"))]
    refused = 0
    for _ in range(100):
        file = generator.choice(files)
        original = file.read_bytes()
        spoiled = bytearray(original)
        for _ in range(generator.randint(1, 3)):
            spoiled[generator.randrange(len(spoiled))] = generator.randrange(256)
        file.write_bytes(spoiled[: generator.randint(1, len(spoiled)) if generator.random() < 0.2 else None])
        with suppress(FednasError):  # any other error fails the test
            refused += 1
            RunReader(conducted).read()
            refused -= 1
        file.write_bytes(original)
    assert refused > 30


def test_a_tier_with_control_characters_is_shown_without_them(tmp_path: Path) -> None:
    path = stubs.folder(tmp_path / "run", tiny.study())
    plan = json.loads((path / "plan.json").read_text())
    plan["sites"]["alpha"]["facts"]["device"]["tier"] = "large\x1b[2J\n" + "x" * 100
    (path / "plan.json").write_text(json.dumps(plan))
    shown = RunReader(path).read().sites[0].tier
    assert shown.isprintable()
    assert len(shown) == 80

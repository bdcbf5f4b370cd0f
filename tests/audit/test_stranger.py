"""A stranger with files and no private data finds what was altered, and says what he cannot see."""

import json
import shutil
import sqlite3
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from fednas.audit import stranger
from fednas.audit.canaries import coins, play
from fednas.audit.report import read, write
from fednas.audit.stranger import Row, verify_everything
from fednas.audit.subject import reference
from fednas.config import save_study
from fednas.errors import RunDirectoryError
from fednas.privacy.ledger import PrivacyLedger
from fednas.privacy.numbers import canonical_json
from fednas.privacy.verify import verify
from fednas.statement import Site, overview, state
from tests.audit.reports import audit_of, matrix
from tests.privacy.ledgers import CAP, noise, operation
from tests.statement.made import ADAPTIVE, MODEST, made

LEDGERS = {"hospitals/clinic": "one.db", "hospitals/ward": "two.sqlite"}


def send(folder: Path, audit: dict[str, Any] | None = None) -> None:
    """Write the statements and the overview of a folder's ledgers, under names of the sender's choice."""
    sites = []
    for number, name in enumerate(LEDGERS.values()):
        statement = state(folder / name, audit)
        (folder / f"{number}.json").write_bytes(statement.document)
        (folder / f"{number}.html").write_bytes(statement.page)
        page = PurePosixPath(f"sites/site {number}/statement.html")
        sites.append(Site(document=json.loads(statement.document), page=page))
    (folder / "all.html").write_bytes(overview(sites))


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of files under odd names: two ledgers, their statements, an audit; no data, no keys."""
    folder = tmp_path_factory.mktemp("sent")
    made(folder / "one.db", dataset="hospitals/clinic")
    made(folder / "two.sqlite", dataset="hospitals/ward", plan=MODEST, cap=ADAPTIVE)
    save_study(reference().study, folder / "study.toml")
    (folder / "one.db").rename(folder / "one.sqlite")  # as a run's would be called while it is audited
    audit = audit_of(folder)
    (folder / "one.sqlite").rename(folder / "one.db")
    for key in folder.glob("*.key"):
        key.unlink()
    write(folder / "findings.json", audit)
    send(folder, audit)
    return folder


@pytest.fixture
def parcel(sent: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(sent, tmp_path / "parcel"))


def rows(*paths: Path) -> list[Row]:
    return list(verify_everything(paths))


def failing(*paths: Path) -> set[str]:
    return {row.what for row in rows(*paths) if row.ok is False}


def edit(file: Path, *path: Any, to: Any) -> None:
    """Change one value of a JSON file, and leave its spelling canonical."""
    document = json.loads(file.read_bytes())
    *where, name = path
    place = document
    for step in where:
        place = place[step]
    assert place[name] != to
    place[name] = to
    file.write_text(canonical_json(document) + "\n")


def test_everything_that_was_sent_holds(sent: Path) -> None:
    found = rows(sent)
    assert [row for row in found if row.ok is False] == []
    kinds = [row.what for row in found if row.ok]
    for what, number in {
        "ledger": 2,
        "statement": 2,
        "risk": 2,
        "page": 2,
        "overview": 1,
        "audit's code": 1,
        "audit's study": 1,
        "audit's ledger": 2,
        "audit's bounds": 3,
        "audit's coins": 3,
        "audit's verdict": 1,
        "audit's mutants": 1,
    }.items():
        assert kinds.count(what) == number, what
    assert all("\n" not in row.words for row in found)


def test_what_no_stranger_can_verify_is_said_in_rows_of_its_own(sent: Path) -> None:
    unknown = {row.what: row.words for row in rows(sent) if row.ok is None}
    assert set(unknown) == {"newest state of ledgers", "audit itself"}
    assert (
        "fednas audit run study.toml --claim 2 --canaries 200 --seed 0 --mutants" in unknown["audit itself"]
    )


def test_only_a_ledger_and_its_statement_are_enough(sent: Path, tmp_path: Path) -> None:
    statement = state(sent / "one.db")
    (tmp_path / "said").mkdir()
    (tmp_path / "said" / "it.json").write_bytes(statement.document)
    shutil.copy(sent / "one.db", tmp_path / "said")
    found = rows(tmp_path / "said")
    assert [(row.what, row.ok) for row in found] == [
        ("ledger", True),
        ("statement", True),
        ("risk", True),
        ("newest state of ledgers", None),
    ]
    assert rows(tmp_path / "said" / "one.db", tmp_path / "said" / "it.json")[0].ok


def test_nothing_is_written(sent: Path) -> None:
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in sent.iterdir()}
    rows(sent)
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in sent.iterdir()} == before


AUDIT = "findings.json"


@pytest.mark.parametrize(
    ("file", "path", "to", "expected"),
    [
        ("0.json", ("claim", "epsilon"), 0.5, {"statement"}),
        ("1.json", ("streams", 0, "charged"), 0.001, {"statement"}),
        ("0.json", ("incidents", "retries"), 0, {"statement"}),
        ("0.json", ("controller",), "somebody else", {"statement"}),
        ("0.json", ("dataset",), "hospitals/other", {"statement"}),
        ("0.json", ("claim", "bounds", 0, "pld"), 0.5, {"statement", "risk"}),
        ("0.json", ("risk", "relations", 0, "advantage"), 0.1, {"statement", "risk"}),
        ("0.json", ("risk", "relations", 0, "advantage"), "low", {"statement", "risk"}),
        ("0.json", ("audit", "games", 0, "bounds", 2, "epsilon"), 0.0, {"statement", "risk"}),
        ("0.json", ("audit", "games", 0, "claim_risk", "advantage"), 0.2, {"statement", "risk"}),
        ("0.json", ("audit", "mutants", "rows", 0, "name"), "nothing", {"statement"}),
        ("0.json", ("audit", "accused"), True, {"statement"}),
        ("0.json", ("audit", "sha256"), "0" * 64, {"statement's audit"}),
        ("0.json", ("audit", "sha256"), [], {"statement's audit"}),
        ("0.json", ("ledger",), "none", {"statement"}),
        (AUDIT, ("games", 1, "bounds", 0, "epsilon"), 0.01, {"audit's bounds"}),
        (AUDIT, ("games", 1, "bounds", 2, "assumption"), "none", {"audit's bounds"}),
        (AUDIT, ("games", 1, "bounds", 0, "estimator"), "other", {"audit's bounds"}),
        (AUDIT, ("seed",), 1, {"audit's coins"}),
        (AUDIT, ("accused",), True, {"audit's verdict", "claim"}),
        (AUDIT, ("checks", 3, "name"), "no attacker extracted anything", {"audit's verdict"}),
        (AUDIT, ("mutants", "rows", 0, "name"), "nothing is broken", {"audit's mutants"}),
        (AUDIT, ("mutants", "rows", 0, "group"), "ledger", {"audit's mutants"}),
        (AUDIT, ("ledgers", "hospitals/ward", "head"), "0" * 64, {"audit's ledger"}),
        (AUDIT, ("ledgers", "hospitals/ward", "entries"), 10**9, {"audit's ledger"}),
        (AUDIT, ("study",), "0" * 64, {"audit's study"}),
    ],
)
def test_a_changed_value_fails_the_row_that_is_about_it(
    parcel: Path, file: str, path: tuple[Any, ...], to: Any, expected: set[str]
) -> None:
    edit(parcel / file, *path, to=to)
    if file == AUDIT:  # what repeats the audit no longer finds it
        expected = expected | {"statement's audit", "page", "overview"}
    assert failing(parcel) == expected


def test_changed_scores_give_other_bounds_and_another_verdict(parcel: Path) -> None:
    document = read(parcel / AUDIT)
    game = document["games"][0]
    game["scores"] = ["9.0" if member == "1" else "-9.0" for member in game["members"]]
    write(parcel / AUDIT, document)
    assert {"audit's bounds", "audit's verdict"} <= failing(parcel)


def test_members_that_were_chosen_afterwards_are_found(parcel: Path) -> None:
    document = read(parcel / AUDIT)
    first = document["games"][0]["members"]
    edit(parcel / AUDIT, "games", 0, "members", to=first[::-1])
    assert "audit's coins" in failing(parcel)


def test_mutants_that_survived_and_were_left_out_are_missed(parcel: Path) -> None:
    kept = matrix()["rows"][1:]
    write(parcel / AUDIT, audit_of(mutants=matrix() | {"rows": kept}))
    (row,) = [row for row in rows(parcel) if row.what == "audit's mutants"]
    assert row.ok is False
    assert "1 known mutants were left out" in row.words


def test_an_accusation_that_is_right_fails_the_claim_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "audit.json", audit_of(leak=6.0))
    assert failing(tmp_path) == {"claim"}


def test_an_audit_of_other_code_is_no_failure_and_is_said(sent: Path, tmp_path: Path) -> None:
    other = audit_of() | {"code": "0" * 64}
    other["mutants"]["code"] = "1" * 64
    write(tmp_path / "audit.json", other)
    found = {row.what: row for row in rows(tmp_path / "audit.json")}
    assert found["audit's code"].ok is None
    assert "other code" in found["audit's code"].words
    assert found["audit's mutants"].ok is None
    assert not failing(tmp_path / "audit.json")


@pytest.mark.parametrize("name", ["one.db", "two.sqlite"])
def test_a_changed_entry_of_a_ledger_fails_it_and_all_that_is_made_of_it(parcel: Path, name: str) -> None:
    with sqlite3.connect(parcel / name) as connection:
        triggers = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'entries_update'")
        (trigger,) = triggers.fetchone()
        connection.execute("DROP TRIGGER entries_update")
        connection.execute("UPDATE entries SET body = replace(body, '\"search\":2', '\"search\":1')")
        connection.execute(trigger)
    connection.close()
    assert failing(parcel) == {"ledger", "statement", "page", "overview"}
    assert [row.ok for row in rows(parcel) if row.what == "ledger"].count(False) == 1


def test_flipped_bits_of_a_ledger_never_pass(parcel: Path) -> None:
    whole = (parcel / "one.db").read_bytes()
    place = whole.index(b'"search":2')
    for at in (20, place, place + 9, len(whole) - 3):
        (parcel / "one.db").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found = rows(parcel / "one.db", parcel / "0.json")
        (ok,) = [row.ok for row in found if row.what == "ledger"]
        assert not ok or at not in (place, place + 9)
        # a byte that passes holds nothing: what follows from the ledger is the same
        assert [row.ok for row in found if row.what == "statement"] == [ok]


@pytest.mark.parametrize("name", ["0.html", "1.html", "all.html"])
def test_a_changed_page_fails(parcel: Path, name: str) -> None:
    page = parcel / name
    page.write_bytes(page.read_bytes().replace(b"at most", b"at  most", 1).replace(b"<h2>", b"<h2> ", 1))
    assert failing(parcel) == {"overview" if name == "all.html" else "page"}


def test_an_overview_without_one_of_its_sites_fails(parcel: Path) -> None:
    page = (parcel / "all.html").read_text(encoding="utf-8")
    head, tail = page.split("<tr><td><a href", 1)
    (parcel / "all.html").write_text(head + tail[tail.index("</tr>") + 5 :], encoding="utf-8")
    assert failing(parcel) == {"overview"}


def test_a_statement_whose_audit_was_not_sent_is_verified_but_for_it(parcel: Path) -> None:
    (parcel / AUDIT).unlink()
    found = [row for row in rows(parcel / "one.db", parcel / "0.json") if row.what.startswith("statement")]
    assert [(row.what, row.ok) for row in found] == [("statement", True), ("statement's audit", False)]
    edit(parcel / "0.json", "claim", "epsilon", to=0.5)
    found = [row for row in rows(parcel / "one.db", parcel / "0.json") if row.what == "statement"]
    assert [row.ok for row in found] == [False]
    assert "another claim" in found[0].words


def test_a_statement_without_its_ledger_is_not_taken_on_trust(parcel: Path) -> None:
    assert failing(parcel / "0.json", parcel / AUDIT) == {"statement"}


def test_a_statement_of_an_earlier_state_says_so(tmp_path: Path) -> None:
    ledger = made(tmp_path / "ledger.sqlite")
    (tmp_path / "statement.json").write_bytes(state(ledger).document)
    before = verify(ledger).entries
    with PrivacyLedger.open(ledger, dataset="hospitals/clinic", cap=CAP) as opened:
        opened.release(operation(40), charges={"search": 1}, mechanism=noise)
    (row,) = [row for row in rows(tmp_path) if row.what == "statement"]
    assert row.ok is False
    assert f"first {before} entries" in row.words
    assert "make it again" in row.words


def test_marks_that_a_server_kept_find_a_ledger_that_was_cut_back_or_replaced(parcel: Path) -> None:
    proof = verify(parcel / "one.db")
    mark = {"signer": proof.signer, "entries": proof.entries, "head": proof.head}

    def kept(**changes: Any) -> set[str]:
        marks = {"format": 1, "datasets": {proof.dataset: mark | changes}}
        (parcel / "marks.json").write_text(json.dumps(marks, indent=1))
        return failing(parcel / "one.db", parcel / "marks.json")

    assert kept() == set()
    assert [row.what for row in rows(parcel / "one.db", parcel / "marks.json")] == ["ledger"]
    assert kept(entries=proof.entries + 1) == {"ledger"}
    assert kept(entries=proof.entries - 1) == {"ledger"}
    assert kept(signer="0" * 64) == {"ledger"}
    assert kept(head="none") == {"file"}


def test_a_file_that_is_named_must_be_something_and_a_folder_may_hold_anything(parcel: Path) -> None:
    (parcel / "thesis.json").write_text("[]")
    assert failing(parcel) == set()
    assert failing(parcel / "thesis.json") == {"file"}
    for name in ("audit.json", "site.statement.json", "statement.html"):
        (parcel / name).write_text("{}")
        assert failing(parcel) == {"file"}
        (parcel / name).unlink()


def test_an_empty_folder_verifies_nothing(tmp_path: Path) -> None:
    assert failing(tmp_path) == {"files"}
    with pytest.raises(RunDirectoryError):
        rows(tmp_path / "nowhere")


def test_a_link_out_of_the_folder_is_not_followed(parcel: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    (parcel / "statement.json").symlink_to(tmp_path / "secret.json")
    assert failing(parcel) == set()


def test_the_coins_of_a_game_are_those_that_anybody_draws_again(tmp_path: Path) -> None:
    """By the layer's own code: a stranger's draw is the attacker's."""
    from fednas.audit.attacks import FitnessAttack
    from fednas.privacy.budget import PrivacyBudget

    subject = reference(canaries=100, seed=3)
    budget = PrivacyBudget(epsilon=subject.claim, delta=subject.study.privacy.delta)
    game = play(FitnessAttack(subject=subject, budget=budget), subject, tmp_path, runs=4)
    assert game.members.tolist() == coins("fitness", 3, (len(game.members),)).tolist()
    assert game.members.tolist() != coins("weights", 3, (len(game.members),)).tolist()


def test_rows_come_before_everything_is_verified(sent: Path) -> None:
    first = next(iter(verify_everything([sent])))
    assert first.what == "ledger"
    assert isinstance(first, stranger.Row)


def test_a_run_directory_without_any_data_holds(tmp_path: Path) -> None:
    """As `fednas ledger statement` leaves it, with every record of every site deleted."""
    folder = tmp_path / "run"
    for number, dataset in enumerate(LEDGERS):
        (folder / "sites" / f"site-{number}").mkdir(parents=True)
        ledger = made(folder / "sites" / f"site-{number}" / "ledger.sqlite", dataset=dataset)
        (ledger.parent / "data.npz").write_bytes(b"records")
        statement = state(ledger)
        (ledger.parent / "statement.json").write_bytes(statement.document)
        (ledger.parent / "statement.html").write_bytes(statement.page)
    before = [(row.what, row.ok) for row in rows(folder)]
    for data in folder.rglob("*.npz"):
        data.unlink()
    assert [(row.what, row.ok) for row in rows(folder)] == before
    assert not failing(folder)

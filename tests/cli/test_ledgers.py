"""`fednas ledger`: what is recomputed, what somebody else kept, statements, a verifier that stands alone."""

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fednas.cli.ledgers import _targets
from fednas.privacy import verify as verifier
from fednas.privacy.accounting import epsilon_pld, epsilon_rdp
from fednas.privacy.ledger import read_statement
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.verify import verify
from tests.cli.calls import answer, call
from tests.privacy.ledgers import fill
from tests.simulations import tiny


def test_verify_recomputes_every_ledger_of_a_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "ledger", "verify", str(run), "--json") == 0
    rows = json.loads(capfd.readouterr().out)
    plan = PrivacyPlan.from_json(json.loads((run / "plan.json").read_text())["plans"][0]["canonical"])
    assert len(rows) == tiny.NUM_SITES
    for row in rows:
        claimed = {s["stream"]: s["claimed_epsilon"] for s in row["streams"]}
        assert row["claimed_epsilon"] == max(claimed.values()) == pytest.approx(plan.claim, abs=1e-9)
        for stream, epsilon in claimed.items():
            assert epsilon == pytest.approx(epsilon_pld(plan.events(stream), 1e-4), abs=1e-9)
            proved = epsilon_rdp(plan.events(stream), 1e-4)
            assert row["proved_by_stream"][stream] == pytest.approx(proved, abs=1e-9)
        assert row["claimed_epsilon"] <= row["cap"]
    assert call(monkeypatch, "ledger", "verify", str(run)) == 0
    assert "hold" in capfd.readouterr().out


def test_verify_finds_a_changed_entry_and_exits_with_one(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ledger = run / "sites" / "site-0" / "ledger.sqlite"
    with sqlite3.connect(ledger) as connection:
        connection.execute("DROP TRIGGER entries_update")
        connection.execute(
            "UPDATE entries SET body = replace(body, 'search', 'fitnes') WHERE kind = 'RESERVE'"
        )
    assert call(monkeypatch, "ledger", "verify", str(run), "--json") == 1
    rows = json.loads(capfd.readouterr().out)
    assert [row["ok"] for row in rows] == [False, True, True]
    assert "\n" not in rows[0]["finding"]


def test_verify_with_a_head_finds_a_file_that_was_cut_back(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ledger = str(run / "sites" / "site-0" / "ledger.sqlite")
    head = verify(Path(ledger)).head
    assert call(monkeypatch, "ledger", "verify", ledger, "--head", head) == 0
    assert call(monkeypatch, "ledger", "verify", ledger, "--head", "0" * 64) == 1
    capfd.readouterr()


def test_show_says_what_the_file_says(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ledger = run / "sites" / "site-1" / "ledger.sqlite"
    assert call(monkeypatch, "ledger", "show", str(ledger), "--json") == 0
    (shown,) = json.loads(capfd.readouterr().out)
    statement = read_statement(ledger)
    assert (shown["dataset"], shown["head"]) == (statement.dataset, statement.head)
    assert shown["claimed_epsilon"] == statement.claimed_epsilon
    assert call(monkeypatch, "ledger", "show", str(run)) == 0
    assert "weights" in capfd.readouterr().out


def test_a_file_that_is_no_ledger_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "thesis.sqlite").write_text("mine")
    assert call(monkeypatch, "ledger", "verify", str(tmp_path / "thesis.sqlite")) == 1
    assert call(monkeypatch, "ledger", "show", str(tmp_path / "thesis.sqlite")) == 2
    assert "error: " in capfd.readouterr().err
    assert (tmp_path / "thesis.sqlite").read_text() == "mine"


def test_verify_with_a_key_finds_a_ledger_of_somebody_else(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ledgers = [str(path) for path in tiny.ledger_files(run).values()]
    signer = verify(Path(ledgers[0])).signer
    (row,) = answer(monkeypatch, capfd, "ledger", "verify", ledgers[0], "--signer", signer)
    assert row["signer"] == signer
    rows = answer(monkeypatch, capfd, "ledger", "verify", *ledgers, "--signer", signer, code=1)
    assert [row["ok"] for row in rows] == [True, False, False]
    assert "signed under the key" in rows[1]["finding"]


def copied(ledger: Path, target: Path) -> Path:
    """A copy of a ledger, with what SQLite keeps beside a file that was not closed."""
    for suffix in ("", "-wal", "-shm"):
        if Path(f"{ledger}{suffix}").exists():
            shutil.copy(f"{ledger}{suffix}", f"{target}{suffix}")
    return target


def marks_of(ledgers: dict[str, Path], path: Path) -> Path:
    """What a server keeps of these ledgers now."""
    found = [verify(ledger) for ledger in ledgers.values()]
    marks = {f.dataset: {"signer": f.signer, "entries": f.entries, "head": f.head} for f in found}
    path.write_text(json.dumps({"format": 1, "datasets": marks}))
    return path


def test_marks_find_a_ledger_that_was_cut_back_or_replaced_or_never_seen(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ledgers = tiny.ledger_files(run)
    marks = str(marks_of(ledgers, tmp_path / "marks.json"))
    rows = answer(monkeypatch, capfd, "ledger", "verify", str(run), "--marks", marks)
    assert all(row["mark"] == row["entries"] for row in rows)
    assert call(monkeypatch, "ledger", "verify", str(run), "--marks", marks) == 0

    fill(tmp_path / "foreign.sqlite")  # intact, but of a dataset that the server never saw
    server = str(run / "marks.json")  # as the server of this run kept it
    assert len(answer(monkeypatch, capfd, "ledger", "verify", str(run), "--marks", server)) == tiny.NUM_SITES

    foreign = str(tmp_path / "foreign.sqlite")
    (row,) = answer(monkeypatch, capfd, "ledger", "verify", foreign, "--marks", marks, code=1)
    assert "never saw" in row["finding"]

    document = json.loads(Path(marks).read_text())
    for change, word in (
        ({"entries": 10**6}, "cut back"),
        ({"head": "0" * 64}, "does not contain the head"),
        ({"signer": "0" * 64}, "signed under the key"),
    ):
        spoiled = json.loads(json.dumps(document))
        for mark in spoiled["datasets"].values():
            mark.update(change)
        (tmp_path / "spoiled.json").write_text(json.dumps(spoiled))
        arguments = ("ledger", "verify", str(run), "--marks", str(tmp_path / "spoiled.json"))
        rows = answer(monkeypatch, capfd, *arguments, code=1)
        assert all(word in row["finding"] for row in rows)


def test_statement_writes_two_files_beside_each_ledger_or_where_it_is_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = answer(monkeypatch, capfd, "ledger", "statement", str(run))
    assert len(rows) == tiny.NUM_SITES
    for row in rows:
        ledger = Path(row["ledger"])
        assert Path(row["statement"]) == ledger.with_name("statement.json")
        assert Path(row["page"]).read_text(encoding="utf-8").startswith("<!doctype html>")
        stated = json.loads(Path(row["statement"]).read_text())
        assert stated["dataset"] == row["dataset"] == read_statement(ledger).dataset
        assert stated["claim"]["epsilon"] == row["epsilon"]
    elsewhere = answer(monkeypatch, capfd, "ledger", "statement", str(run), "--out", str(tmp_path / "out"))
    assert {Path(row["page"]).parent for row in elsewhere} == {
        tmp_path / "out" / row["dataset"].replace("/", "-") for row in rows
    }
    for here, there in zip(rows, elsewhere, strict=True):
        assert Path(here["statement"]).read_bytes() == Path(there["statement"]).read_bytes()
    one = answer(monkeypatch, capfd, "ledger", "statement", rows[0]["ledger"], "--out", str(tmp_path / "one"))
    assert one[0]["page"] == str(tmp_path / "one" / "statement.html")
    assert call(monkeypatch, "ledger", "statement", str(run)) == 0


def test_ledgers_in_one_folder_do_not_overwrite_each_other_s_statements(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    files = [
        str(copied(ledger, tmp_path / f"{name}.sqlite")) for name, ledger in tiny.ledger_files(run).items()
    ]
    rows = answer(monkeypatch, capfd, "ledger", "statement", *files)
    assert sorted(Path(row["page"]).name for row in rows) == [
        f"{name}.statement.html" for name in sorted(tiny.SIZES)
    ]
    twice = (files[0], str(copied(Path(files[0]), tmp_path / "copy.sqlite")))
    assert call(monkeypatch, "ledger", "statement", *twice, "--out", str(tmp_path / "out")) == 2
    assert "same statement" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dataset_s_name_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = ["../../etc", "/root", "a/b", "..", "a b", "é"]
    for name in names:
        folders = [folder for folder, _ in _targets([Path("a"), Path("b")], [name, "plain"], out)]
        assert all(folder == out or folder.parent == out for folder in folders)


def test_the_verifier_stands_alone_in_one_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "verify.py"
    told = answer(monkeypatch, capfd, "ledger", "verifier", "--out", str(file))
    assert told["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.read_bytes() == Path(verifier.__file__).read_bytes()
    assert call(monkeypatch, "ledger", "verifier") == 0
    assert capfd.readouterr().out == file.read_text(encoding="utf-8")

    found = verify(copied(tiny.ledger_files(run)["alpha"], tmp_path / "ledger.sqlite"))
    command = [sys.executable, "-I", "-S", "verify.py", "ledger.sqlite"]
    kept = ["--head", found.head, "--signer", found.signer]
    bare = subprocess.run(
        [*command, *kept], cwd=tmp_path, env={}, capture_output=True, text=True, timeout=60, check=False
    )
    assert bare.returncode == 0, bare.stderr
    assert found.head in bare.stdout
    assert repr(found.streams["weights"]["claimed_rdp"]) in bare.stdout
    wrong = subprocess.run(
        [*command, "--head", "0" * 64], cwd=tmp_path, env={}, capture_output=True, timeout=60, check=False
    )
    assert wrong.returncode == 1

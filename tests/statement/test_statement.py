"""A statement follows from the ledger file alone, bit for bit, and its numbers from its own events."""

import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fednas.errors import ConfigurationError, LedgerError
from fednas.privacy import verify as verifier
from fednas.privacy.accounting import epsilon_of_site, epsilon_pld, epsilon_rdp, three_deltas
from fednas.privacy.events import decode
from fednas.privacy.ledger import read_statement
from fednas.privacy.numbers import canonical_json
from fednas.privacy.signing import Signer
from fednas.privacy.store import LedgerStore
from fednas.statement import state, write
from fednas.statement.document import upward
from tests.statement.made import ADAPTIVE, MODEST, OWNER, made, unprotected, untouched

ROOT = Path(__file__).resolve().parents[2]
STREAMS = ("weights", "architecture", "fitness")


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("statement") / "ledger.sqlite")


def stated(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(state(path).document)
    return value


def near(value: object, exact: float) -> bool:
    """Whether a stated number is the exact one, rounded up to six decimals."""
    return isinstance(value, float) and -1e-12 <= value - exact <= 1.0001e-6


def test_two_generations_give_the_same_bytes(ledger: Path) -> None:
    assert state(ledger) == state(ledger)


def test_a_copy_under_another_name_gives_the_same_bytes(ledger: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(ledger, tmp_path / "elsewhere.db"))
    os.utime(copy, (0, 0))
    assert state(copy) == state(ledger)


def test_another_process_folder_locale_and_clock_give_the_same_bytes(ledger: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fednas.statement import state, write; "
        "write(state(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    strange = {
        "LC_ALL": "tr_TR.UTF-8",
        "LANG": "de_DE.UTF-8",
        "TZ": "Asia/Tokyo",
        "PYTHONHASHSEED": "7",
        "COLUMNS": "20",
        "PYTHONPATH": str(ROOT),
        "PATH": os.environ["PATH"],
        "PYTHONUTF8": "0",
    }
    command = [sys.executable, "-c", code, str(ledger), str(tmp_path / "out")]
    subprocess.run(command, cwd=tmp_path, env=strange, check=True, timeout=120)
    here = state(ledger)
    assert (tmp_path / "out" / "statement.json").read_bytes() == here.document
    assert (tmp_path / "out" / "statement.html").read_bytes() == here.page


def test_the_ledger_is_left_as_it_was(ledger: Path) -> None:
    before = ledger.read_bytes()
    state(ledger)
    assert ledger.read_bytes() == before


def test_the_document_is_canonical(ledger: Path) -> None:
    document = state(ledger).document
    assert document == (canonical_json(json.loads(document)) + "\n").encode()


def test_every_epsilon_is_recomputed_from_the_document_s_own_events(ledger: Path) -> None:
    """By the standard library's verifier for what is proved, by privacy loss distributions for the rest."""
    document = stated(ledger)
    delta = document["claim"]["delta"]
    for entry in document["streams"]:
        allowances = [
            (a, len(plan["runs"]))
            for plan in document["releases"]["plans"]
            for a in plan["allowances"]
            if entry["stream"] in a["streams"]
        ]
        claimed = [decode(a["event"]) for a, runs in allowances for _ in range(runs)]
        charged = [decode(a["event"]).scaled(a["charged"]) for a, _ in allowances if a["charged"]]
        plain = [((e.sampling_probability, e.noise_multiplier), e.amount) for e in claimed]
        assert near(entry["proved"], verifier.epsilon(plain, delta))
        assert near(entry["claimed"], epsilon_pld(claimed, delta))
        assert near(entry["charged"], epsilon_pld(charged, delta))
        assert [(b["relation"], b["delta"]) for b in entry["bounds"]] == [
            (relation, d) for relation in ("add_remove", "replace_one") for d in three_deltas(delta)
        ]
        for bound in entry["bounds"]:
            relation, at = bound["relation"], bound["delta"]
            assert near(bound["pld"], epsilon_pld(claimed, at, relation=relation))
            assert near(bound["proved"], epsilon_rdp(claimed, at, relation=relation))
    assert document["claim"]["epsilon"] == max(s["claimed"] for s in document["streams"])
    releases = [
        (decode(a["event"]), tuple(a["streams"]))
        for plan in document["releases"]["plans"]
        for a in plan["allowances"]
        for _ in plan["runs"]
    ]
    for number, bound in enumerate(document["claim"]["bounds"]):
        terms = {"relation": bound["relation"]}
        assert near(bound["pld"], epsilon_of_site(releases, bound["delta"], **terms))
        assert near(bound["proved"], epsilon_of_site(releases, bound["delta"], **terms, proved=True))
        for entry in document["streams"]:
            assert bound["pld"] >= entry["bounds"][number]["pld"]


def test_the_document_agrees_with_the_verifier_and_the_ledger(ledger: Path) -> None:
    document, found, said = stated(ledger), verifier.verify(ledger), read_statement(ledger)
    assert document["ledger"] == {"entries": found.entries, "head": found.head, "signer": found.signer}
    assert near(document["claim"]["epsilon"], said.claimed_epsilon)
    assert document["incidents"]["open_reservations"] == found.open_reservations
    assert sum(document["incidents"]["refusals"].values()) == found.refusals
    for command in document["verify"]:
        assert f"--head {found.head} --signer {found.signer}" in command


def test_incidents_are_counted_by_kind(ledger: Path) -> None:
    incidents = stated(ledger)["incidents"]
    assert incidents["refusals"] == {"BUDGET_EXHAUSTED": 2, "REPLAY_MISMATCH": 1}
    assert incidents["retries"] == 1
    assert incidents["open_reservations"] == 2


def test_the_owner_s_words_and_the_software_are_repeated(ledger: Path) -> None:
    document = stated(ledger)
    assert (document["controller"], document["purpose"]) == (OWNER.controller, OWNER.purpose)
    assert document["declared_size"] == OWNER.declared_size
    assert document["software"] == [{key: OWNER.encode()[key] for key in ("code", "packages")}]


def test_what_was_not_declared_is_said_to_be_so(tmp_path: Path) -> None:
    statement = state(untouched(tmp_path / "ledger.sqlite"))
    document = json.loads(statement.document)
    assert document["controller"] is document["purpose"] is document["declared_size"] is None
    assert document["claim"]["epsilon"] == 0.0
    assert statement.page.decode().count("not declared") == 3


def test_a_group_of_records_is_bounded_by_the_textbook(ledger: Path) -> None:
    document = stated(ledger)
    epsilon, delta = read_statement(ledger).claimed_epsilon, document["claim"]["delta"]
    for group in document["unit"]["groups"]:
        k = group["records"]
        together = k * math.exp((k - 1) * epsilon) * delta
        if together < 1.0:
            assert near(group["epsilon"], k * epsilon)
            assert together <= group["delta"] <= together * (1.0 + 1e-5)
        else:
            assert (group["epsilon"], group["delta"]) == ("infinite", 1.0)


def test_the_risk_is_that_of_the_claims_at_three_deltas(ledger: Path) -> None:
    document = stated(ledger)
    add, replace = document["risk"]["relations"]
    worst = max(s["claimed"] for s in document["streams"])
    single = (math.expm1(worst) + 2e-5) / (math.exp(worst) + 1.0)
    assert 0.0 < add["advantage"] <= single + 1e-5
    assert add["advantage"] < replace["advantage"] <= 1.0
    assert add["tpr_at_01_percent"] < add["tpr_at_1_percent"] <= 1e-5 + 0.01 * math.exp(worst) + 1e-5


def test_seeded_noise_makes_every_number_infinite(tmp_path: Path) -> None:
    statement = state(made(tmp_path / "ledger.sqlite", test_seed=1))
    document, page = json.loads(statement.document), statement.page.decode()
    assert not document["private"]
    assert document["claim"]["epsilon"] == "infinite"
    assert "known seed" in document["not_private_because"][0]
    for entry in document["streams"]:
        if entry["nominal_claimed"]:
            assert entry["claimed"] == entry["proved"] == "infinite"
            assert {b[key] for b in entry["bounds"] for key in ("pld", "proved")} == {"infinite"}
    assert all(r["advantage"] == 1.0 for r in document["risk"]["relations"])
    assert page.index("INFINITE") < page.index("What is promised")
    assert "<svg" not in page


def test_a_plan_without_noise_is_infinite_and_says_why(tmp_path: Path) -> None:
    statement = state(unprotected(tmp_path / "ledger.sqlite"))
    document = json.loads(statement.document)
    assert document["claim"]["epsilon"] == document["claim"]["cap"] == "infinite"
    assert document["not_private_because"] == ["a release without protection: a baseline"]
    assert "INFINITE" in statement.page.decode()


def test_adaptive_mode_states_the_filter_s_bound(tmp_path: Path) -> None:
    document = stated(made(tmp_path / "ledger.sqlite", plan=MODEST, cap=ADAPTIVE))
    claim = document["claim"]
    assert (claim["mode"], claim["order"], claim["epsilon"]) == ("adaptive", 8, 3.0)
    assert "filter" in claim["theorem"]
    by_name = {s["stream"]: s for s in document["streams"]}
    assert by_name["architecture"]["claimed"] == 0.0
    bounds = by_name["weights"]["bounds"]
    assert all(bound["pld"] is None for bound in bounds)
    assert bounds[0]["proved"] == 3.0
    assert bounds[1]["proved"] == pytest.approx(3.0 + math.log(10.0) / 7.0, abs=2e-6)
    assert 3.0 < bounds[3]["proved"] < 9.0
    assert bounds == claim["bounds"]
    assert 0.0 < by_name["weights"]["charged"] < 3.0


def test_plan_mode_says_what_several_plans_assume_and_adaptive_mode_does_not(
    ledger: Path, tmp_path: Path
) -> None:
    adaptive = stated(made(tmp_path / "ledger.sqlite", plan=MODEST, cap=ADAPTIVE))
    assert len(stated(ledger)["not_covered"]) == len(adaptive["not_covered"]) + 1
    assert "several plans" in stated(ledger)["not_covered"][-1]


def test_the_history_ends_at_what_was_charged(ledger: Path) -> None:
    document = stated(ledger)
    last = document["history"][-1]["charged"]
    for entry in document["streams"]:
        assert last[entry["stream"]] == pytest.approx(entry["charged"], rel=1e-3, abs=1e-4)
    counts = [point["entries"] for point in document["history"]]
    assert counts == sorted(set(counts))
    assert counts[-1] <= document["ledger"]["entries"]


def test_nothing_is_stated_of_a_file_that_does_not_verify(ledger: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(ledger, tmp_path / "ledger.sqlite"))
    with sqlite3.connect(copy) as connection:
        connection.execute("DROP TRIGGER entries_update")
        connection.execute("UPDATE entries SET body = replace(body, '\"search\":2', '\"search\":1')")
    with pytest.raises(LedgerError, match="intact"):
        state(copy)


def test_a_folder_that_cannot_be_written_is_one_sentence(ledger: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="--out"):
        write(state(ledger), tmp_path / "file")


def test_numbers_are_rounded_up_and_never_above_what_they_are_exactly() -> None:
    assert upward(3.0) == 3.0
    assert upward(2.1) == 2.1
    assert upward(1.00000001) == 1.000001
    assert upward(math.inf) == "infinite"


def test_a_statement_without_an_audit_says_plainly_that_none_was_given(ledger: Path) -> None:
    assert stated(ledger)["audit"] is None
    page = state(ledger).page.decode()
    assert "Not audited." in page
    assert "No audit was given" in page


@pytest.mark.parametrize("packages", [["torch"], "torch", None, {"torch": ["<b>", "\ud800"]}, {"<i>": 1}])
def test_odd_words_that_an_owner_signed_are_refused_or_escaped(tmp_path: Path, packages: object) -> None:
    path = untouched(tmp_path / "ledger.sqlite")
    with LedgerStore(path) as store, store.transaction():
        store.append("DECLARE", OWNER.encode() | {"packages": packages})
        entries, _, head = store.tail()
        signer = Signer(path.with_name("ledger.sqlite.key").read_bytes())
        signature = signer.sign("hospitals/clinic", entries, head)
        store.append("CHECKPOINT", {"signature": signature})
    if isinstance(packages, dict):
        page = state(path).page.decode()
        assert "<b>" not in page
        assert "<i>" not in page.replace('<i style="width', "")
    else:
        with pytest.raises(LedgerError):
            state(path)

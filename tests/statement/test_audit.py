"""What a statement says of an audit follows from both files, is rounded to the safe side, and is plain."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fednas.audit.report import write
from fednas.errors import ConfigurationError
from fednas.privacy.numbers import canonical_json
from fednas.privacy.verify import verify
from fednas.statement import read_audit, render, state
from fednas.statement.bounds_chart import NARROW, WIDTH, bounds_chart
from fednas.statement.tradeoff import risk
from tests.audit.reports import audit_of, matrix
from tests.statement.made import made
from tests.statement.outline import assert_inert, outline


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("audited") / "ledger.sqlite")


@pytest.fixture(scope="module")
def audit(ledger: Path) -> dict[str, Any]:
    proof = verify(ledger)
    seen = {proof.dataset: {"entries": proof.entries, "head": proof.head}}
    return audit_of() | {"ledgers": seen}


def stated(ledger: Path, audit: dict[str, Any]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(state(ledger, audit).document)["audit"]
    return value


def page_of(ledger: Path, audit: dict[str, Any]) -> str:
    return state(ledger, audit).page.decode()


def test_equal_ledgers_and_audits_give_equal_bytes_and_others_do_not(
    ledger: Path, audit: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path / "audit.json", audit)
    again = read_audit(tmp_path / "audit.json")
    assert state(ledger, audit) == state(ledger, again)
    assert state(ledger, audit).document != state(ledger).document
    assert state(ledger, audit).page != state(ledger, audit | {"seed": 1}).page
    assert stated(ledger, audit)["sha256"] == hashlib.sha256(again_bytes(tmp_path)).hexdigest()


def again_bytes(folder: Path) -> bytes:
    return (folder / "audit.json").read_bytes()


def test_an_audit_changes_nothing_else_of_a_statement(ledger: Path, audit: dict[str, Any]) -> None:
    bare, whole = (json.loads(state(ledger, a).document) for a in (None, audit))
    assert {name for name in whole if whole[name] != bare[name]} == {"audit"}


def test_the_page_follows_from_the_document(ledger: Path, audit: dict[str, Any]) -> None:
    statement = state(ledger, audit)
    assert render(json.loads(statement.document)) == statement.page.decode()
    assert statement.document == (canonical_json(json.loads(statement.document)) + "\n").encode()


def test_what_is_no_audit_is_refused(ledger: Path, audit: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="malformed audit"):
        state(ledger, audit | {"format": 2})


def test_bounds_are_rounded_down_and_their_risks_follow_from_them(
    ledger: Path, audit: dict[str, Any]
) -> None:
    for game, entry in zip(stated(ledger, audit)["games"], audit["games"], strict=True):
        assert (game["claim"], game["delta"], game["runs"]) == (2.0, entry["delta"], entry["runs"])
        assert game["canaries"] == len(entry["scores"])
        assert game["members"] == entry["members"].count("1")
        claimed = risk([(entry["claim"], entry["delta"])])
        for name, value in game["claim_risk"].items():
            assert 0.0 <= value - getattr(claimed, name) <= 1.0001e-6
        for bound, exact in zip(game["bounds"], entry["bounds"], strict=True):
            assert 0.0 <= exact["epsilon"] - bound["epsilon"] <= 1.0001e-6
            assert bound["assumption"] == exact["assumption"]
            assert bound["confidence"] == 0.95
            shown = risk([(exact["epsilon"], entry["delta"])])
            for name, value in bound["risk"].items():
                assert 0.0 <= getattr(shown, name) - value <= 1.0001e-6


def test_the_code_is_held_against_what_the_ledger_declares(ledger: Path, audit: dict[str, Any]) -> None:
    assert stated(ledger, audit)["code"]["covered"] == "all"
    assert "the code that this ledger declares" in page_of(ledger, audit)
    other = audit | {"code": "0" * 64}
    assert stated(ledger, other)["code"]["covered"] == "none"
    page = page_of(ledger, other)
    assert '<dd class="bad">not the code that this ledger declares' in page


def test_the_ledger_is_held_against_the_one_that_was_read(ledger: Path, audit: dict[str, Any]) -> None:
    proof = verify(ledger)
    assert stated(ledger, audit)["ledger"]["contained"] is True
    seen = {"entries": proof.entries, "head": "0" * 64}
    other = audit | {"ledgers": {proof.dataset: seen}}
    assert stated(ledger, other)["ledger"]["contained"] is False
    assert '<dd class="bad">not the one that the audit read' in page_of(ledger, other)
    later = audit | {"ledgers": {proof.dataset: {"entries": proof.entries + 1, "head": proof.head}}}
    assert stated(ledger, later)["ledger"]["contained"] is False
    for unread in (audit | {"ledgers": None}, audit | {"ledgers": {"hospitals/other": seen}}):
        assert stated(ledger, unread)["ledger"] is None
        assert "not read by the audit" in page_of(ledger, unread)


def test_a_system_that_is_not_accused_has_no_red_box(ledger: Path, audit: dict[str, Any]) -> None:
    page = page_of(ledger, audit)
    assert "ACCUSED" not in page
    assert 'class="claim infinite"' not in page
    assert f"All {len(audit['checks'])} checks hold." in page


def test_an_accusation_is_red_and_first_and_says_what_was_not_true(ledger: Path) -> None:
    broken = audit_of(leak=6.0)
    assert broken["accused"]
    page = page_of(ledger, broken)
    assert page.index('<section class="claim infinite"') < page.index("ACCUSED") < page.index("ε ≤")
    box = page[page.index("ACCUSED") : page.index("ε ≤")]
    assert "no attacker extracted more of the weights than its claim" in box
    section = stated(ledger, broken)
    assert [check["holds"] for check in section["failing"]] == [False] * len(section["failing"])
    assert sum(layer["failing"] for layer in section["layers"]) == len(section["failing"]) > 0
    assert 'class="shown over"' in page


def test_an_accusation_by_scores_that_no_check_repeats_is_red_too(
    ledger: Path, audit: dict[str, Any]
) -> None:
    page = page_of(ledger, audit | {"accused": True})
    assert page.index("ACCUSED") < page.index("ε ≤")


def test_a_bound_above_its_claim_without_an_accusation_is_explained(
    ledger: Path, audit: dict[str, Any]
) -> None:
    assert "game of twenty" not in page_of(ledger, audit)
    unlucky = json.loads(canonical_json(audit))
    unlucky["games"][0]["bounds"][0]["epsilon"] = 2.1
    assert "game of twenty" in page_of(ledger, unlucky)


def test_checks_are_counted_by_layer(ledger: Path, audit: dict[str, Any]) -> None:
    counted = {layer["layer"]: layer["checks"] for layer in stated(ledger, audit)["layers"]}
    assert counted == {
        layer: sum(check["layer"] == layer for check in audit["checks"]) for layer in ("L0", "L1", "L2", "L3")
    }


def test_mutants_are_counted_by_group_and_layer_and_survivors_are_named(ledger: Path) -> None:
    whole = stated(ledger, audit_of())["mutants"]
    assert whole["of"] == whole["killed"] == sum(cell["of"] for cell in whole["matrix"])
    assert whole["same_code"]
    broken = audit_of(mutants=matrix(survivors=2))
    section = stated(ledger, broken)["mutants"]
    assert section["killed"] == section["of"] - 2 == sum(cell["killed"] for cell in section["matrix"])
    assert "seconds" not in section["rows"][0]
    page = page_of(ledger, broken)
    assert "Not found: an audit would miss" in page
    assert "Not found" not in page_of(ledger, audit_of())
    assert f"{section['killed']} of {section['of']}" in page
    assert "was not tried on broken versions" in page_of(ledger, audit_of(mutants=None))
    elsewhere = audit_of(mutants=matrix() | {"code": "0" * 64})
    assert "versions of other code" in page_of(ledger, elsewhere)


def test_the_page_is_inert_and_every_word_of_the_audit_is_escaped(
    ledger: Path, audit: dict[str, Any]
) -> None:
    odd = json.loads(canonical_json(audit | {"name": "<b>study"}))
    odd["games"][0] |= {"adversary": "<b>server"}
    odd["games"][0]["bounds"][0] |= {"estimator": "<b>one", "assumption": "<b>coins"}
    odd["checks"][0] |= {"name": "<b>check", "detail": '"><b>', "holds": False}
    odd["accused"] = True
    odd["mutants"]["rows"][0] |= {"name": "<b>mutant", "found_by": "<b>layer"}
    odd["mutants"]["rows"][1] |= {"killed": False, "error": "<b>crash", "found_by": ""}
    odd["mutants"]["killed"] -= 1
    page = page_of(ledger, odd)
    assert_inert(page)
    assert "a" not in outline(page).tags
    assert page.count("<b>") == 1  # of the page itself, around the number of mutants that were found
    for word in ("study", "server", "one", "coins", "check", "mutant", "layer", "crash"):
        assert f"&lt;b&gt;{word}" in page


def game(*epsilons: float, claim: float = 2.0, mechanism: str = "weights") -> dict[str, Any]:
    bounds = [
        {"estimator": f"e{number}", "epsilon": epsilon, "above_claim": epsilon > claim}
        for number, epsilon in enumerate(epsilons)
    ]
    return {"mechanism": mechanism, "claim": claim, "bounds": bounds}


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("epsilons", [(0.0, 0.0, 0.0), (0.5, 1.0, 1.99), (0.5, 9.0, 40.0)])
def test_the_drawing_stays_inside_its_frame_with_a_bar_for_each_bound(
    epsilons: tuple[float, ...], narrow: bool
) -> None:
    svg = bounds_chart([game(*epsilons), game(*epsilons, mechanism="fitness")], narrow=narrow)
    bars = re.findall(r'<rect class="(shown[^"]*)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', svg)
    assert len(bars) == 6
    height = float(re.findall(r'viewBox="0 0 \d+ (\d+)"', svg)[0])
    for style, x, y, width in bars:
        assert float(x) + float(width) < (NARROW if narrow else WIDTH) - 90
        assert 0.0 < float(y) < height
        assert ("over" in style) == (float(width) > claim_of(svg) - float(x) + 0.05)
    assert svg.count("claim 2<") == 1
    assert svg.count('class="cap"') == 2


def claim_of(svg: str) -> float:
    return float(re.findall(r'<line class="cap" x1="([\d.]+)"', svg)[0])


def test_a_claim_that_differs_is_labelled_again_and_no_game_draws_nothing() -> None:
    svg = bounds_chart([game(0.5), game(0.5, claim=3.0, mechanism="fitness")])
    assert "claim 2<" in svg
    assert "claim 3<" in svg
    assert bounds_chart([]) == ""


def test_an_audit_without_canaries_says_that_there_is_no_bound(ledger: Path, audit: dict[str, Any]) -> None:
    layers = [layer for layer in audit["layers"] if layer != "L3"]
    checks = [check for check in audit["checks"] if check["layer"] != "L3"]
    page = page_of(ledger, audit | {"games": [], "layers": layers, "checks": checks})
    assert "No canaries were played" in page
    assert "As a risk" not in page

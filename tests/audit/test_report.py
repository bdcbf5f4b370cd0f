"""An audit's file says what was found, is read back the same, and is refused once anything in it is odd."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from fednas.audit import findings, layers, mutation
from fednas.audit.findings import Check
from fednas.audit.report import compose, game_of, read, write
from fednas.audit.subject import reference
from fednas.config import dump_study, save_study
from fednas.errors import ConfigurationError
from fednas.privacy.numbers import canonical_json
from fednas.privacy.verify import verify
from fednas.statement import audit as statement_audit
from tests.audit.reports import CHECKS, audit_of, games, matrix
from tests.statement.made import made


@pytest.fixture(scope="module")
def audit() -> dict[str, Any]:
    return audit_of()


def test_it_is_read_back_as_it_was_written_and_equal_audits_give_equal_bytes(
    audit: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path / "audit.json", audit)
    assert read(tmp_path / "audit.json") == audit
    write(tmp_path / "again.json", audit_of())
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "audit.json").read_bytes()


def test_games_come_back_bit_for_bit(audit: dict[str, Any]) -> None:
    for game, entry in zip(games(replace(reference(), claim=2.0)), audit["games"], strict=True):
        again = game_of(json.loads(canonical_json(entry)))
        assert np.array_equal(again.members, game.members)
        assert np.array_equal(again.scores, game.scores)
        assert (again.mechanism, again.claim, again.delta, again.runs) == (
            game.mechanism,
            game.claim,
            game.delta,
            game.runs,
        )


def test_an_attacker_who_is_certain_is_written_down_too(tmp_path: Path) -> None:
    subject = reference()
    game = games(subject)[0]
    sure = replace(game, scores=np.where(game.members, np.inf, -np.inf))
    write(tmp_path / "audit.json", compose(subject, [], [sure]))
    assert np.array_equal(game_of(read(tmp_path / "audit.json")["games"][0]).scores, sure.scores)


def test_it_accuses_for_a_check_or_for_scores_that_nobody_made_a_check_of(audit: dict[str, Any]) -> None:
    assert not audit["accused"]
    broken = [*CHECKS, Check(layer="L1", name="nothing moves", holds=False)]
    assert compose(reference(), broken, [])["accused"]
    assert compose(reference(), CHECKS, games(reference(), leak=4.0))["accused"]
    assert not compose(reference(), CHECKS, games(reference()))["accused"]


def test_layers_are_those_that_found_something() -> None:
    assert audit_of()["layers"] == ["L0", "L1", "L2", "L3"]
    assert compose(reference(), CHECKS[1:2], [])["layers"] == ["L1"]
    assert compose(reference(), CHECKS[:1], games(reference()))["layers"] == ["L0", "L3"]


def test_heads_of_a_run_are_kept_only_if_its_ledgers_were_checked(tmp_path: Path) -> None:
    ledger = made(tmp_path / "site.sqlite")
    save_study(reference().study, tmp_path / "study.toml")
    found, proof = audit_of(tmp_path), verify(ledger)
    assert found["ledgers"] == {proof.dataset: {"entries": proof.entries, "head": proof.head}}
    subject = replace(reference(), run=tmp_path)
    assert compose(subject, CHECKS[1:], [])["ledgers"] is None
    assert compose(reference(), CHECKS, [])["ledgers"] is None


def test_the_study_is_named_by_the_digest_of_its_file(audit: dict[str, Any], tmp_path: Path) -> None:
    save_study(reference().study, tmp_path / "study.toml")
    assert audit["study"] == hashlib.sha256((tmp_path / "study.toml").read_bytes()).hexdigest()
    assert (tmp_path / "study.toml").read_text() == dump_study(reference().study)


def test_mutants_are_counted_from_their_rows() -> None:
    kept = audit_of(mutants=matrix(survivors=2))["mutants"]
    assert (kept["of"], kept["killed"]) == (len(kept["rows"]), len(kept["rows"]) - 2)
    assert audit_of(mutants=None)["mutants"] is None


def test_the_statement_knows_the_layers_groups_and_mechanisms_of_the_audit() -> None:
    """It sits below the audit, so it has words of its own for them."""
    assert dict(layers.TITLES) == statement_audit.LAYER_WORDS
    assert get_args(statement_audit.Layer) == findings.LAYERS
    groups = statement_audit._Mutant.model_fields["group"].annotation
    mechanisms = statement_audit._Game.model_fields["mechanism"].annotation
    assert get_args(groups) == mutation.GROUPS
    assert get_args(mechanisms) == findings.MECHANISMS


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    *where, name, value = path

    def change(audit: dict[str, Any]) -> None:
        place: Any = audit
        for step in where:
            place = place[step]
        place[name] = value

    return change


ODD: dict[str, Callable[[dict[str, Any]], object]] = {
    "an unknown format": _set("format", 2),
    "a format that is true": _set("format", True),
    "a field too many": _set("extra", 1),
    "a field too few": lambda audit: audit.pop("seed"),
    "a digest in capitals": _set("code", "A" * 64),
    "a number as text": _set("claim", "2.0"),
    "an epsilon that is negative": _set("games", 0, "bounds", 0, "epsilon", -0.1),
    "an epsilon beyond all": _set("games", 0, "bounds", 0, "epsilon", 1e300),
    "a confidence of one": _set("games", 0, "bounds", 0, "confidence", 1.0),
    "no bounds": _set("games", 0, "bounds", []),
    "a member who is two": lambda audit: audit["games"][0].update(
        members="2" + audit["games"][0]["members"][1:]
    ),
    "a score too few": lambda audit: audit["games"][0]["scores"].pop(),
    "a score that is no number": _set("games", 0, "scores", 0, "nan"),
    "a score in another spelling": _set("games", 0, "scores", 0, "1e0"),
    "an unknown mechanism": _set("games", 0, "mechanism", "gradients"),
    "an unknown layer": _set("layers", ["L0", "L1", "L2", "L3", "L4"]),
    "layers out of order": _set("layers", ["L1", "L0", "L2", "L3"]),
    "a finding of a layer that was not run": _set("layers", ["L0", "L1", "L2"]),
    "a verdict against its checks": _set("checks", 0, "holds", False),
    "a check that perhaps holds": _set("checks", 0, "holds", 1),
    "words without end": _set("checks", 0, "detail", "x" * 100_000),
    "a mutant too many in the count": _set("mutants", "killed", 0),
    "a mutant found by nothing": _set("mutants", "rows", 0, "found_by", ""),
    "a mutant twice": lambda audit: audit["mutants"].update(
        rows=[*audit["mutants"]["rows"], audit["mutants"]["rows"][0]],
        of=audit["mutants"]["of"] + 1,
        killed=audit["mutants"]["killed"] + 1,
    ),
    "an unknown group": _set("mutants", "rows", 0, "group", "other"),
    "a ledger without entries": _set("ledgers", {"a": {"entries": 0, "head": "0" * 64}}),
    "a lone surrogate": _set("name", "\ud800"),
}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_audit_is_refused_in_one_line(what: str, audit: dict[str, Any], tmp_path: Path) -> None:
    odd = json.loads(canonical_json(audit))
    ODD[what](odd)
    path = tmp_path / "audit.json"
    path.write_text(canonical_json(odd) + "\n")
    with pytest.raises(ConfigurationError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))
    with pytest.raises(ConfigurationError):
        write(tmp_path / "other.json", odd)
    assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format":NaN}\n',
        b'{"format":1e999}\n',
        b'{"format":' + b"9" * 5000 + b"}\n",
    ],
)
def test_bytes_that_are_no_audit_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match="audit"):
        read(tmp_path / "audit.json")


def test_the_same_values_in_another_spelling_are_refused(audit: dict[str, Any], tmp_path: Path) -> None:
    """Two readers of a repeated key may see two audits."""
    path = tmp_path / "audit.json"
    for text in (
        json.dumps(audit),
        canonical_json(audit),
        canonical_json(audit)[:-1] + ',"accused":false}\n',
    ):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match="canonical"):
            read(path)


def test_a_huge_file_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "audit.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigurationError, match="at most"):
        read(tmp_path / "audit.json")


def test_a_file_that_is_not_there_or_cannot_be_written_is_one_sentence(
    audit: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        read(tmp_path / "audit.json")
    with pytest.raises(ConfigurationError, match="cannot write"):
        write(tmp_path / "no" / "audit.json", audit)

"""What an owner declares, and the software at work, are in the ledger that they are stated from."""

from pathlib import Path

import pytest

from fednas.errors import ConfigurationError
from fednas.privacy.declaration import PACKAGES, Declaration, code_digest, packages
from fednas.privacy.ledger import PrivacyLedger, read_statement
from tests.privacy.ledgers import CAP, entries

WORDS = Declaration(controller="St Mary's", purpose="thyroid screening", declared_size=4400)


def opened(path: Path, declaration: Declaration | None) -> PrivacyLedger:
    return PrivacyLedger.open(path, dataset="ward", cap=CAP, declaration=declaration)


def test_a_declaration_is_written_once_and_stated(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    for _ in range(3):
        opened(path, WORDS).close()
    (body,) = entries(path, "DECLARE")
    assert body["code"] == code_digest()
    assert body["packages"] == dict(packages())
    assert read_statement(path).declaration == WORDS


def test_an_opening_without_words_keeps_those_of_before(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    opened(path, WORDS).close()
    opened(path, None).close()
    assert read_statement(path).declaration == WORDS
    assert len(entries(path, "DECLARE")) == 1


def test_new_words_and_new_software_are_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger"
    opened(path, None).close()
    opened(path, WORDS).close()
    monkeypatch.setattr("fednas.privacy.declaration.code_digest", lambda: "0" * 64)
    opened(path, None).close()
    assert [body["controller"] for body in entries(path, "DECLARE")] == ["", "St Mary's", "St Mary's"]
    assert entries(path, "DECLARE")[-1]["code"] == "0" * 64


def test_the_software_is_named_by_version_and_the_code_by_content() -> None:
    assert [name for name, _ in packages()] == list(PACKAGES)
    assert all(version[0].isdigit() for _, version in packages())
    assert len(code_digest()) == 64


@pytest.mark.parametrize(
    "words",
    [{"controller": "x" * 501}, {"purpose": "two\nlines"}, {"declared_size": -1}, {"declared_size": 2.5}],
    ids=str,
)
def test_words_out_of_bounds_are_refused(words: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        Declaration(**words)  # type: ignore[arg-type]

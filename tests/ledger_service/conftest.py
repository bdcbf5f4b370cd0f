"""One authority and one ledger, made once; a test copies what it spoils."""

import shutil
from pathlib import Path

import pytest

from tests.ledger_service.fleets import Authority, make_ledger
from tests.privacy.ledger_content import Original


@pytest.fixture(scope="package")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("pki") / "ours")


@pytest.fixture(scope="package")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("pki") / "strange")


@pytest.fixture(scope="package")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return Original.make(tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="package")
def _ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ledger(tmp_path_factory.mktemp("site") / "ledger.sqlite")


@pytest.fixture
def ledger(_ledger: Path, tmp_path: Path) -> Path:
    """A copy with its key, alone in a folder."""
    (tmp_path / "site").mkdir()
    for suffix in ("", ".key"):
        shutil.copyfile(f"{_ledger}{suffix}", tmp_path / "site" / f"ledger.sqlite{suffix}")
    return tmp_path / "site" / "ledger.sqlite"

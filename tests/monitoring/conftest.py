"""A run of stub sites, and folders that a test may spoil."""

import shutil
from pathlib import Path

import pytest

from fednas.wire import Refusal
from tests.server import stubs
from tests.simulations import tiny


@pytest.fixture(scope="session")
def _conducted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = stubs.folder(tmp_path_factory.mktemp("monitoring") / "run", tiny.study())
    reply = stubs.when(
        lambda site, task: site == "bravo" and task.round in (1, 2), stubs.refuse(Refusal.SITE_FAILURE)
    )
    stubs.run(stubs.Stubs(facts=stubs.facts(tiny.study()), reply=reply), path)
    return path


@pytest.fixture
def conducted(_conducted: Path, tmp_path: Path) -> Path:
    """A run whose site `bravo` did not answer twice; its results are not written."""
    return Path(shutil.copytree(_conducted, tmp_path / "run"))


def only(path: Path, *rounds: int) -> None:
    """Take all other rounds out of a run."""
    for file in (path / "rounds").glob("*.json"):
        if int(file.stem) not in rounds:
            file.unlink()

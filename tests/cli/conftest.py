"""A finished run that the commands are tried on, made once a module."""

import shutil
from pathlib import Path

import pytest

from fednas.site import open_site
from simulations import runner
from tests.simulations import tiny


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private run of the tiny scenario, with production noise."""
    open_site.cache_clear()
    path = tmp_path_factory.mktemp("cli") / "run"
    runner.start(tiny.scenario(), tiny.study(), path, runner.Options())
    open_site.cache_clear()
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))

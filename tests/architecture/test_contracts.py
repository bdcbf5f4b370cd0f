"""Imports go one way: the contracts hold, and each of them breaks when an import against it is planted."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("fednas", "server", "client", "simulations")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the import linter on the packages of a folder, without its cache."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four packages and the contracts, without anything else."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    return folder


def test_every_contract_is_kept(copied: Path) -> None:
    result = lint(copied)
    assert result.returncode == 0, result.stdout
    assert " 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("fednas/privacy/grid.py", "from fednas.space import create"),  # sideways
        ("fednas/space/cost.py", "import fednas.supernet"),  # upwards
        ("fednas/errors.py", "import fednas.privacy.numbers"),
        ("fednas/evaluation.py", "from fednas.training import train_weights"),
        ("fednas/training/engine.py", "from fednas.wire import encode"),
        ("fednas/search/policy.py", "import server.app"),
        ("fednas/site/site.py", "from server.cohort import Cohort"),
        ("server/cohort.py", "import simulations.scenario"),
        ("fednas/evaluation.py", "from flwr.app import Message"),  # Flower outside the wire
        ("fednas/export.py", "import ray"),
    ],
)
def test_an_import_against_the_contracts_breaks_them(copied: Path, module: str, line: str) -> None:
    path = copied / module
    text = path.read_text()
    try:
        path.write_text(f"{text}\n\ndef planted() -> None:\n    {line}\n")
        result = lint(copied)
    finally:
        path.write_text(text)
    assert result.returncode == 1, result.stdout
    assert " 0 broken" not in result.stdout


def test_a_new_module_needs_a_place_in_the_contract(copied: Path) -> None:
    path = copied / "fednas" / "utils.py"
    try:
        path.write_text('"""A place for everything."""\n')
        result = lint(copied)
    finally:
        path.unlink()
    assert result.returncode == 1, result.stdout
    assert "utils" in result.stdout

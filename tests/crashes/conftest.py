"""The nursery that the crash tests share, with the watched disk where a compiler can make it."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crashes.nursery import Nursery


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """A process that forks children; its disk is watched only where there is a C compiler."""
    folder = tmp_path_factory.mktemp("nursery")
    compiler = shutil.which("cc") or shutil.which("gcc")
    library = None
    if compiler is not None:
        library = folder / "disk.so"
        source = Path(__file__).with_name("disk.c")
        flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, "-o", str(library), str(source), "-ldl", "-lpthread"], check=True)
    with Nursery(folder / "errors", preload=library) as started:
        yield started


@pytest.fixture(scope="session")
def watched(nursery: Nursery) -> Nursery:
    """The nursery, of which the disk must be watched."""
    if not nursery.watched:
        pytest.skip("no C compiler: the disk cannot be watched")
    return nursery


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: for what commits thousands of times and loses no power."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)

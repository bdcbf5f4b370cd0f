"""Memory and descriptors of eight sites over many rounds, and a leak on purpose, which must be found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulations.soak import Soak, problems, slope

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = 150
"""By then SQLite has filled its page cache of 2 MB a ledger, and every kind of round was met."""
BOUND = 1.0
"""Percent in 100 rounds."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")


def soak(folder: Path, *options: str) -> Soak:
    """Run a soak in a process of its own: no other test's memory is in it."""
    command = [sys.executable, "-m", "tests.simulations.soak", str(folder), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return Soak.load(folder / "soak.json")


def test_a_few_rounds_keep_little_and_a_leak_that_begins_later_is_found(tmp_path: Path) -> None:
    """The bound is wider than that of a thousand rounds: caches of known size are still being filled."""
    leak = ["--lost-bytes", "500000", "--lost-descriptors", "1", "--lost-from", "37"]
    found = soak(tmp_path, "--rounds", "48", "--tidy", *leak)
    assert found.rounds == 48
    assert not problems(found.between(14, 36), bound_percent=5.0)
    late = found.between(37, 48)
    assert problems(late, bound_percent=5.0) == ["resident_bytes", "own_bytes", "descriptors"]
    assert 450_000 < slope(late, "own_bytes").bytes_per_round < 750_000


@pytest.mark.slow
def test_a_thousand_rounds_of_eight_sites_keep_memory_and_descriptors(tmp_path: Path) -> None:
    """Table and curve stay in `runs/soak.txt`, for people; nothing is tidied up before a reading."""
    found = soak(tmp_path)
    table = found.table([(WARM_UP, 1000), (WARM_UP, 600), (600, 1000)])
    (ROOT / "runs").mkdir(exist_ok=True)
    (ROOT / "runs" / "soak.txt").write_text(f"{table}\n\n{found.curve(100)}\n", encoding="utf-8")
    assert found.rounds == 1000
    assert found.entries == 8 * (3 + 2 + 4 * 1000)
    everything = found.between(WARM_UP, 1000)
    assert not problems(everything, bound_percent=BOUND)
    assert slope(everything, "resident_bytes").high < BOUND
    assert slope(everything, "own_bytes").high < BOUND


@pytest.mark.slow
def test_a_leak_of_a_hundred_kilobytes_a_round_is_found_without_tidying(tmp_path: Path) -> None:
    found = soak(tmp_path, "--rounds", "300", "--lost-bytes", "100000", "--lost-descriptors", "1")
    late = found.between(WARM_UP, 300)
    assert problems(late, bound_percent=BOUND) == ["resident_bytes", "own_bytes", "descriptors"]
    assert 70_000 < slope(late, "own_bytes").bytes_per_round < 200_000

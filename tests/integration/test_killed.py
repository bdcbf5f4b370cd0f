"""Power cuts: a study that SIGKILL ends at random moments and that is resumed is the study without them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from fednas.privacy.verify import verify
from fednas.site import open_site
from server.app import conduct
from tests.integration.spy import SpyGrid, charged, weights, whole
from tests.simulations import tiny
from tests.simulations.driver import STUDY

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    open_site.cache_clear()
    yield
    open_site.cache_clear()


def conduct_in_child(path: Path) -> None:
    torch.set_num_threads(1)
    completed = conduct(SpyGrid(path), path, resume=True)
    weights(completed)
    os._exit(0)


def killed_at_random(start: Callable[[], int], seconds: Sequence[float]) -> int:
    """Start a process again and again and kill it, at last let it end; how many were killed.

    Args:
        start: makes a process that leads its own group; returns its id.
        seconds: how long each lives.
    """
    deaths = 0
    for lifetime in (*seconds, 600.0):
        pid = start()
        end = time.monotonic() + lifetime
        status = None
        while status is None and time.monotonic() < end:
            done, code = os.waitpid(pid, os.WNOHANG)
            status = code if done else None
            time.sleep(0.002)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            deaths += 1
        else:
            assert status == 0, "it ended by itself, and not well"
            if lifetime == 600.0:
                return deaths
    raise AssertionError("it never ended")


def assert_only_open_reservations_were_paid_twice(path: Path, reference: Path) -> None:
    ledgers = tiny.ledger_files(path)
    for name, ledger in tiny.ledger_files(reference).items():
        total, left = charged(ledgers[name])
        expected, none = charged(ledger)
        assert not none
        assert total - expected == left
        assert expected - total == {}
        assert verify(ledgers[name]).entries >= verify(ledger).entries


@pytest.mark.parametrize("seed", [0, 1])
def test_a_study_that_sigkill_ends_at_random_moments_is_the_study_without_them(
    tmp_path: Path, seed: int
) -> None:
    reference = whole(tiny.make_run(tmp_path / "whole", STUDY))
    expected = weights(reference)
    path = tiny.make_run(tmp_path / "pieces", STUDY)
    open_site.cache_clear()

    def start() -> int:
        # A bare fork, since `killed_at_random` reaps it: multiprocessing would count it as alive for ever.
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                conduct_in_child(path)
                status = 0
            finally:
                os._exit(status)
        return pid

    moments = random.Random(seed)
    deaths = killed_at_random(start, [moments.uniform(0.01, 0.15) for _ in range(10)])
    assert deaths > 0
    assert (path / "weights.safetensors").read_bytes() == expected
    assert_only_open_reservations_were_paid_twice(path, reference.directory.path)


def run_with_kills(command: list[str], out: Path, lifetimes: Sequence[float]) -> int:
    """Run a command to its end with kills, resuming once there is something to resume."""

    def start() -> int:
        resume = ["--resume"] if (out / "run.json").exists() else []
        process = subprocess.Popen(
            [*command, *resume], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return process.pid

    return killed_at_random(start, lifetimes)


@pytest.mark.slow
def test_the_tiny_scenario_killed_as_a_process_of_its_own_ends_in_the_same_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.simulations.driver"]
    subprocess.run([*command, str(tmp_path / "whole")], cwd=ROOT, check=True, capture_output=True)
    out = tmp_path / "pieces"
    moments = random.Random(3)
    deaths = run_with_kills([*command, str(out)], out, [moments.uniform(0.5, 9.0) for _ in range(8)])
    assert deaths >= 3
    for name in ("supernet.safetensors", "result.json", "oracle.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert_only_open_reservations_were_paid_twice(out, tmp_path / "whole")


@pytest.mark.slow
def test_digits_killed_once_and_resumed_ends_in_the_same_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simulations", "run", "digits", "--test-noise", "--rounds", "4", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], cwd=ROOT, check=True, capture_output=True)
    out = tmp_path / "pieces"

    def start() -> int:
        resume = ["--resume"] if (out / "run.json").exists() else []
        process = subprocess.Popen(
            [*command, str(out), *resume], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not resume and not (out / "rounds" / "00002.json").exists() and process.poll() is None:
            time.sleep(0.01)
        return process.pid

    assert killed_at_random(start, [0.05]) == 1
    for name in ("supernet.safetensors", "result.json", "oracle.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert json.loads((out / "result.json").read_text())["tiers"]
    assert_only_open_reservations_were_paid_twice(out, tmp_path / "whole")

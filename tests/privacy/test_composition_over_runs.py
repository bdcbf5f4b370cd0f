"""How a study is cut into runs, openings and processes changes nothing of what it spends."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.events import Gaussian
from fednas.privacy.ledger import PrivacyLedger, read_statement
from fednas.privacy.plan import STREAMS, PrivacyPlan
from fednas.privacy.verify import verify
from tests.privacy.ledgers import noise, operation, plan_of, search_event

ROUNDS = 20
CHARGES = {"search": 2, "alphas": 1, "fitness": 1, "final": 1}
CAPS = {"plan": None, "filter": 10}  # order
ONE_ROUND = """
import sys
from pathlib import Path
from tests.privacy.test_composition_over_runs import one_round
one_round(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
"""


def plan(rounds: int) -> PrivacyPlan:
    return plan_of(
        search=search_event(2 * rounds, sigma=1.9, q=0.11),
        alphas=search_event(rounds, sigma=1.9, q=0.11),
        fitness=Gaussian(noise_multiplier=17.0, releases=rounds),
        final=search_event(rounds, sigma=1.9, q=0.11),
    )


def open_ledger(path: Path, mode: str) -> PrivacyLedger:
    cap = PrivacyBudget(epsilon=8.0, delta=1e-5, order=CAPS[mode])
    return PrivacyLedger.open(path, dataset="ward", cap=cap)


def one_round(path: Path, mode: str, number: int) -> None:
    """A run of one round, from opening to closing the ledger."""
    with open_ledger(path, mode) as ledger:
        ledger.open_plan(f"run {number}", plan(1))
        ledger.release(operation(1, run=f"run {number}"), charges=CHARGES, mechanism=noise)


def check_same_spend(many: Path, one: Path, *, mode: str) -> None:
    """By privacy loss distributions, by integer-order divergences, and at one order under a filter."""
    left, right = read_statement(many), read_statement(one)
    for stream in STREAMS:
        a, b = left.stream(stream), right.stream(stream)
        for epsilon, other in (
            (a.claimed_epsilon, b.claimed_epsilon),
            (a.charged_epsilon, b.charged_epsilon),
            (a.nominal_claimed_epsilon, b.nominal_claimed_epsilon),
            (a.nominal_charged_epsilon, b.nominal_charged_epsilon),
        ):
            assert 0.0 < epsilon < math.inf
            assert abs(epsilon - other) <= 1e-12
        if mode == "plan":
            assert a.claimed_epsilon == a.charged_epsilon  # everything planned was used
    first, second = verify(many), verify(one)
    assert first.plans == ROUNDS
    assert second.plans == 1
    for stream in STREAMS:
        for name, epsilon in first.streams[stream].items():
            assert 0.0 < epsilon < math.inf
            assert abs(epsilon - second.streams[stream][name]) <= 1e-12


def one_run(path: Path, mode: str) -> None:
    with open_ledger(path, mode) as ledger:
        ledger.open_plan("run", plan(ROUNDS))
        for number in range(ROUNDS):
            ledger.release(operation(number), charges=CHARGES, mechanism=noise)


@pytest.mark.parametrize("mode", CAPS)
def test_twenty_runs_of_one_round_cost_what_one_run_of_twenty_rounds_costs(tmp_path: Path, mode: str) -> None:
    one_run(tmp_path / "one", mode)
    for number in range(ROUNDS):
        one_round(tmp_path / "many", mode, number)
    check_same_spend(tmp_path / "many", tmp_path / "one", mode=mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", CAPS)
def test_twenty_processes_of_one_round_cost_what_one_run_of_twenty_rounds_costs(
    tmp_path: Path, mode: str
) -> None:
    one_run(tmp_path / "one", mode)
    root = Path(__file__).resolve().parents[2]
    for number in range(ROUNDS):
        command = [sys.executable, "-c", ONE_ROUND, str(tmp_path / "many"), mode, str(number)]
        subprocess.run(command, cwd=root, check=True)
    check_same_spend(tmp_path / "many", tmp_path / "one", mode=mode)

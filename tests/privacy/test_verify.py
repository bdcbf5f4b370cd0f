"""A stranger's check stands alone and agrees with the accountants."""

import ast
import hashlib
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting.rdp import RdpAccountant
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fednas.privacy import verify as verifier
from fednas.privacy.accounting import epsilon_pld, epsilon_rdp
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.events import PoissonGaussian
from fednas.privacy.plan import STREAMS
from fednas.privacy.signing import Signer
from fednas.privacy.store import SCHEMA, LedgerStore
from fednas.privacy.verify import epsilon, verify
from tests.privacy.ledgers import CAP, SMALL, UNPROTECTED, fill, noise, open_ledger, operation


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger"
    fill(path)
    return path


def test_it_recomputes_what_the_ledger_states(path: Path) -> None:
    with open_ledger(path) as ledger:
        statement = ledger.statement()
        result = verify(path)  # also while the ledger is open
    assert verify(path, expected_head=statement.head, expected_signer=statement.signer) == result
    assert (result.dataset, result.entries, result.head) == ("ward", statement.entries, statement.head)
    assert (result.cap_epsilon, result.delta, result.seeded) == (3.0, 1e-5, False)
    assert (result.plans, result.reservations, result.open_reservations, result.refusals) == (1, 5, 1, 0)
    for stream in STREAMS:
        figures = result.streams[stream]
        assert figures["claimed_rdp"] == pytest.approx(epsilon_rdp(SMALL.events(stream), CAP.delta), abs=1e-9)
        assert figures["nominal_claimed_rdp"] == figures["claimed_rdp"]
        assert statement.stream(stream).claimed_epsilon <= figures["claimed_rdp"]
        assert statement.stream(stream).charged_epsilon <= figures["charged_rdp"]
    final = SMALL.allowance("final").event.scaled(1)
    for name, amount, stream in (
        ("search", 6, "weights"),
        ("alphas", 3, "architecture"),
        ("fitness", 2, "fitness"),
    ):
        charged = [SMALL.allowance(name).event.scaled(amount), final]
        assert result.streams[stream]["charged_rdp"] == pytest.approx(
            epsilon_rdp(charged, CAP.delta), abs=1e-9
        )
        assert statement.stream(stream).charged_epsilon == epsilon_pld(charged, CAP.delta)


def test_it_stands_alone(path: Path) -> None:
    source = Path(verifier.__file__)
    imported = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).split(".")[0])
    assert imported <= sys.stdlib_module_names
    for flags in ([], ["-I", "-S"]):
        command = [sys.executable, *flags, str(source), str(path)]
        assert (
            f"head{' ' * 37}{verify(path).head}"
            in subprocess.run(command, capture_output=True, text=True, check=True).stdout
        )
    assert set(SCHEMA) == verifier.SCHEMA


def test_the_command_says_what_it_found(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = verify(path).head
    assert verifier.main([str(path), "--head", head]) == 0
    assert "weights.claimed_rdp" in capsys.readouterr().out
    assert verifier.main([str(path), "--head", "0" * 64]) == 1
    assert "TAMPERED" in capsys.readouterr().err
    assert verifier.main([str(path.with_name("missing"))]) == 1


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.just(1.0), st.floats(1e-4, 0.999)), st.floats(0.3, 50.0), st.integers(1, 2000)
        ),
        min_size=1,
        max_size=3,
    ),
    st.floats(1e-9, 1e-2),
)
@example([(1.0, 4.0, 50)], 1e-5)
@example([(1e-6, 1e3, 1)], 1e-5)
def test_it_agrees_with_dp_accounting(events: list[tuple[float, float, int]], delta: float) -> None:
    accountant = RdpAccountant(list(range(2, 257)))
    for q, sigma, steps in events:
        gaussian = dp_accounting.GaussianDpEvent(sigma)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(q, gaussian) if q < 1.0 else gaussian, steps)
    expected = accountant.get_epsilon(delta)
    found = epsilon([((q, sigma), steps) for q, sigma, steps in events], delta)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    own = [PoissonGaussian(sampling_probability=q, noise_multiplier=sigma, steps=n) for q, sigma, n in events]
    assert epsilon_rdp(own, delta) == pytest.approx(found, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("q", "sigma", "steps", "expected"),
    [(0.01, 1.0, 1000, 2.108), (0.1, 1.5, 200, 5.612)],
)
def test_it_gives_the_reference_values(q: float, sigma: float, steps: int, expected: float) -> None:
    assert epsilon([((q, sigma), steps)], 1e-5) == pytest.approx(expected, abs=6e-3)


def test_extreme_events_cost_nothing_or_everything() -> None:
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([(None, 1)], 1e-5) == math.inf
    assert epsilon([((0.5, 1e-200), 1)], 1e-5) == math.inf
    assert epsilon([((1.0, 1e-200), 1)], 1e-5) == math.inf
    assert epsilon([((1e-300, 1.0), 10**7)], 1e-5) == 0.0
    assert epsilon([((0.5, 1e6), 1)], 1e-5) == 0.0


def test_seeded_and_absent_noise_cost_everything(tmp_path: Path) -> None:
    seeded, bare = tmp_path / "seeded", tmp_path / "bare"
    with open_ledger(seeded, test_seed=1) as ledger:
        ledger.open_plan("run", SMALL)
        ledger.release(operation(1), charges={"search": 2}, mechanism=noise)
    result = verify(seeded)
    assert result.seeded
    assert result.streams["weights"]["charged_rdp"] == result.streams["fitness"]["claimed_rdp"] == math.inf
    assert result.streams["fitness"]["charged_rdp"] == 0.0
    expected = epsilon_rdp([SMALL.allowance("search").event.scaled(2)], CAP.delta)
    assert result.streams["weights"]["nominal_charged_rdp"] == pytest.approx(expected, abs=1e-9)
    with open_ledger(bare, cap=PrivacyBudget.non_private()) as ledger:
        ledger.open_plan("run", UNPROTECTED)
        ledger.release(operation(1), charges={"search": 2}, mechanism=noise)
    result = verify(bare)
    assert not result.seeded
    assert result.cap_epsilon == math.inf
    assert result.streams["weights"] == dict.fromkeys(result.streams["weights"], math.inf)
    assert set(result.streams["architecture"].values()) == {0.0}


def test_a_hundred_thousand_entries_take_a_second_or_so(path: Path) -> None:
    count = 50_000
    plan = SMALL.to_json().replace('"steps":20', f'"steps":{2 * count}')
    identity = hashlib.sha256(plan.encode()).hexdigest()
    signer = Signer(path.with_name(path.name + ".key").read_bytes())
    with LedgerStore(path) as store, store.transaction():
        store.append("PLAN", {"run": "long", "plan": json.loads(plan), "id": identity})
        for number in range(count):
            body = {"charges": {"search": 1}, "digest": "0" * 64, "kind": "train", "noise": "secure"}
            store.append("RESERVE", body | {"operation": f"{number:032}", "round": number, "run": "long"})
            store.keep(f"{number:032}", b"reply")
            digest = hashlib.sha256(b"reply").hexdigest()
            store.append("RELEASE", {"operation": f"{number:032}", "reply": digest})
        entries, _, head = store.tail()
        store.append("CHECKPOINT", {"signature": signer.sign("ward", entries, head)})
    start = time.process_time()
    result = verify(path)
    assert time.process_time() - start < 6.0  # about 1.5 s; slack for a busy machine
    assert result.entries > 2 * count
    events = [SMALL.allowance(name).event for name in ("search", "final")]
    charged = [events[0].scaled(count + 6), events[1].scaled(1)]
    assert result.streams["weights"]["charged_rdp"] == pytest.approx(
        epsilon_rdp(charged, CAP.delta), abs=1e-9
    )

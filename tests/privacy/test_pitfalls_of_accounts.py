"""Pitfalls of accounts, ledgers and messages: each built as others fell into it, found, and absent here.

Every test states its check once and asks it twice, so that a check that finds nothing proves nothing here.
Numbers are those of tests/REQUIREMENTS.md; gradients and data are in test_pitfalls_of_training.
"""

import os
from collections import namedtuple
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from opacus.accountants import GaussianAccountant, IAccountant, PRVAccountant

from fednas.errors import BudgetExceededError, ExchangeError, PrivacyError, UnsupportedEventError
from fednas.evaluation import noised_counts
from fednas.privacy.accounting import epsilon_pld, epsilon_rdp
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.entropy import SecureEntropy
from fednas.privacy.events import Gaussian, PoissonGaussian, decode
from fednas.privacy.ledger import Arrays, Permit
from fednas.privacy.streams import StreamedRecords
from fednas.wire import Answer, check_answer, encode_facts
from fednas.wire_schema import UnexplainedByteError, explain
from tests.messages import FACTS, TASK
from tests.privacy.ledgers import (
    SMALL,
    entries,
    forbidden,
    noise,
    open_ledger,
    operation,
    plan_of,
    search_event,
)
from tests.training.sites import MLP, built, drawn, streams_of

DELTA = 1e-5


def test_pitfall_1_a_second_run_is_charged_on_top_of_the_first(tmp_path: Path) -> None:
    event = PoissonGaussian(sampling_probability=0.05, noise_multiplier=1.0, steps=20)
    cap = PrivacyBudget(epsilon=50.0, delta=DELTA)

    def an_engine_per_round(rounds: int) -> float:
        return max(epsilon_pld([event], DELTA) for _ in range(rounds))

    def ours(rounds: int) -> float:
        with open_ledger(tmp_path / "ledger", cap=cap) as ledger:
            for number in range(rounds):
                ledger.open_plan(f"run-{number}", plan_of(cap, search=event))
            return ledger.statement().claimed_epsilon

    def grows(stated: Callable[[int], float]) -> bool:
        return stated(2) >= epsilon_pld([event.scaled(40)], DELTA) - 1e-12

    assert not grows(an_engine_per_round)
    assert grows(ours)


def test_pitfall_5_no_two_sources_share_their_noise() -> None:
    def from_torch(_: int) -> bytes:
        return torch.randn(8, generator=torch.Generator()).numpy().tobytes()

    def ours(_: int) -> bytes:
        return SecureEntropy().noise(1e6, 8).tobytes()

    def differ(draw: Callable[[int], bytes]) -> bool:
        return len({draw(number) for number in range(10)}) == 10

    assert not differ(from_torch)
    assert differ(ours)


def test_pitfall_5_a_fork_draws_nothing_from_its_parents_source() -> None:
    seeded, secure = np.random.default_rng(), SecureEntropy()

    def in_a_fork(draw: Callable[[], bytes]) -> bytes:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write, draw())
            except PrivacyError:
                os.write(write, b"refused")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            return pipe.read()

    def is_its_own(draw: Callable[[], bytes]) -> bool:
        return in_a_fork(draw) != draw()

    assert not is_its_own(lambda: seeded.standard_normal(8).tobytes())
    assert is_its_own(lambda: secure.noise(1e6, 8).tobytes())
    assert in_a_fork(lambda: secure.noise(1e6, 8).tobytes()) == b"refused"


def test_pitfall_6_an_event_that_is_no_number_resets_nothing() -> None:
    spent = PoissonGaussian(sampling_probability=1.0, noise_multiplier=1.0, steps=10)

    def dp_accountings(sigma: float) -> float:
        accountant = RdpAccountant()
        accountant.compose(dp_event.GaussianDpEvent(1.0), 10)
        accountant.compose(dp_event.GaussianDpEvent(sigma))
        return float(accountant.get_epsilon(DELTA))

    def ours(sigma: float) -> float:
        events = [spent]
        with suppress(UnsupportedEventError):
            events.append(PoissonGaussian(sampling_probability=1.0, noise_multiplier=sigma, steps=1))
        return epsilon_rdp(events, DELTA)

    def never_falls(epsilon: Callable[[float], float]) -> bool:
        return epsilon(float("nan")) > 18.0

    assert not never_falls(dp_accountings)
    assert never_falls(ours)


def test_pitfall_6_an_event_is_data_and_calls_nothing(tmp_path: Path) -> None:
    witness = tmp_path / "called"
    named = {"module_name": "os", "class_name": "mkdir", "path": os.fsencode(witness)}

    def from_named_tuple() -> None:
        dp_event.DpEvent.from_named_tuple(namedtuple("Value", list(named))(**named))

    def ours() -> None:
        with pytest.raises(UnsupportedEventError):
            decode(named | {"kind": "os.mkdir"})

    def calls_nothing(read: Callable[[], None]) -> bool:
        read()
        called = witness.exists()
        if called:
            witness.rmdir()
        return not called

    assert not calls_nothing(from_named_tuple)
    assert calls_nothing(ours)


def test_pitfall_6_epsilon_is_no_approximation_from_below() -> None:
    event = PoissonGaussian(sampling_probability=0.05, noise_multiplier=0.6, steps=20)

    def by(accountant: IAccountant) -> float:
        accountant.history = [(event.noise_multiplier, event.sampling_probability, event.steps)]
        return float(accountant.get_epsilon(DELTA))

    def is_above(epsilon: float) -> bool:
        truth = by(PRVAccountant()) - 0.01
        return epsilon >= 0.995 * truth

    assert not is_above(by(GaussianAccountant()))
    assert is_above(epsilon_pld([event], DELTA))
    assert epsilon_pld([event], DELTA) <= epsilon_rdp([event], DELTA)


def test_pitfall_11_a_repeated_request_draws_no_new_noise_and_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    once = SMALL.allowance("search").event.scaled(1)

    def noised_anew(times: int) -> tuple[int, float]:
        replies = {SecureEntropy().noise(1e6, 8).tobytes() for _ in range(times)}
        return len(replies), epsilon_pld([once], DELTA)  # it is the same request: charged once

    def ours(times: int) -> tuple[int, float]:
        with open_ledger(path) as ledger:
            ledger.open_plan("run", SMALL)
            replies = {
                ledger.release(operation(1), charges={"search": 1}, mechanism=noise).value["update"].tobytes()
                for _ in range(times)
            }
            charged = ledger.statement().stream("weights").charged_epsilon
        assert len(entries(path, "RESERVE")) == 1
        return len(replies), charged

    def is_paid_for(ask: Callable[[int], tuple[int, float]]) -> bool:
        draws, epsilon = ask(10)
        return epsilon >= epsilon_pld([once.scaled(draws)], DELTA) - 1e-12

    assert not is_paid_for(noised_anew)
    assert is_paid_for(ours)


def test_pitfall_12_every_score_that_is_selected_on_is_charged(tmp_path: Path) -> None:
    """Counts with noise of standard deviation 25 cost epsilon 1.55 for 100 candidates, 24 for 10 000."""
    score = Gaussian(noise_multiplier=25.0, releases=1)
    assert epsilon_pld([score.scaled(100)], DELTA) == pytest.approx(1.55, abs=0.01)
    assert epsilon_pld([score.scaled(10_000)], DELTA) == pytest.approx(24.0, abs=0.5)
    plan = plan_of(fitness=score.scaled(100))
    networks = [built(MLP.smallest())] * 20
    x, y = drawn(MLP, 40)
    records = StreamedRecords(x, y, streams_of(40))

    def for_nothing(candidates: int) -> float:
        return 0.0

    def ours(candidates: int) -> float:
        def count(permit: Permit) -> Arrays:
            return {"correct": noised_counts(networks, records, permit)}

        with open_ledger(tmp_path / "ledger") as ledger:
            ledger.open_plan("run", plan)
            ledger.release(operation(1), charges={"fitness": candidates}, mechanism=count)
            with pytest.raises(BudgetExceededError):
                ledger.release(operation(2), charges={"fitness": 81}, mechanism=forbidden)
            return ledger.statement().stream("fitness").charged_epsilon

    def is_charged(epsilon: Callable[[int], float]) -> bool:
        return epsilon(20) >= epsilon_pld([score.scaled(20)], DELTA) - 1e-12

    assert not is_charged(for_nothing)
    assert is_charged(ours)


@pytest.mark.parametrize(
    "more",
    [
        {"metrics": MetricRecord({"num-examples": 64, "accuracy": 0.93})},
        {"reason": ConfigRecord({"text": "<class 'ValueError'>:<'row 17 is NaN'>"})},
    ],
    ids=["metrics", "an exception"],
)
def test_pitfall_13_no_count_metric_or_reason_travels_with_a_reply(
    more: dict[str, MetricRecord | ConfigRecord],
) -> None:
    def as_flower_sends_it() -> RecordDict:
        content = ours()
        for name, record in more.items():
            content[name] = record
        return content

    def ours() -> RecordDict:
        return encode_facts(FACTS)

    def is_explained(reply: Callable[[], RecordDict]) -> bool:
        try:
            explain(reply())
        except UnexplainedByteError:
            return False
        return True

    assert not is_explained(as_flower_sends_it)
    assert is_explained(ours)


@pytest.mark.parametrize(
    "bad", [np.full(7, np.nan), np.full(7, np.inf), np.ones(1)], ids=["nan", "inf", "(1,)"]
)
def test_pitfall_14_an_update_that_is_malformed_never_reaches_an_average(bad: np.ndarray) -> None:
    bad = bad.astype(np.float32)

    def flowers(update: np.ndarray) -> None:
        replies = [
            RecordDict({"a": ArrayRecord({"w": Array(array)}), "m": MetricRecord({"n": weight})})
            for array, weight in ((np.ones(7, np.float32), 1.0), (update, 1e18))
        ]
        aggregate_arrayrecords(replies, "n")

    def ours(update: np.ndarray) -> None:
        check_answer(replace(ANSWER, arrays={"update": update}), replace(TASK, arrays=WEIGHTS))

    def refuses(merge: Callable[[np.ndarray], None]) -> bool:
        try:
            merge(bad)
        except ExchangeError:
            return True
        return False

    assert not refuses(flowers)
    assert refuses(ours)
    ours(np.ones(7, np.float32))  # what is well-formed passes


WEIGHTS = {"weights.0": TASK.arrays["weights.0"]}
ANSWER = Answer(
    operation_id="0" * 32, head="0" * 64, entries=4, signature="0" * 128, arrays={"update": np.ones(7)}
)


def test_pitfall_15_stopping_early_does_not_lower_the_claim(tmp_path: Path) -> None:
    """A privacy loss distribution of what was done so far is no filter: the claim is that of the plan."""
    whole = epsilon_pld(SMALL.events("weights"), DELTA)

    def recomputed_each_round(rounds: int) -> float:
        return epsilon_pld([SMALL.allowance("search").event.scaled(rounds)], DELTA)

    def ours(rounds: int) -> float:
        with open_ledger(tmp_path / "ledger") as ledger:
            ledger.open_plan("run", SMALL)
            for number in range(rounds):
                ledger.release(operation(number), charges={"search": 1}, mechanism=noise)
            return ledger.statement().stream("weights").claimed_epsilon

    def is_that_of_the_plan(claim: Callable[[int], float]) -> bool:
        return claim(2) == whole

    assert not is_that_of_the_plan(recomputed_each_round)
    assert is_that_of_the_plan(ours)


def test_pitfall_15_what_may_adapt_is_bounded_by_a_filter_at_one_order_and_claims_its_cap(
    tmp_path: Path,
) -> None:
    cap = PrivacyBudget(epsilon=3.0, delta=DELTA, order=16)
    with open_ledger(tmp_path / "ledger", cap=cap) as ledger:
        ledger.open_plan("run", plan_of(search=search_event(3, sigma=4.0)))
        ledger.release(operation(1), charges={"search": 1}, mechanism=noise)
        assert ledger.statement().stream("weights").claimed_epsilon == cap.epsilon

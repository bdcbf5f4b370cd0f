"""Bugs that other systems shipped: a check finds each in the formula as it was, and finds nothing in ours.

Every test states its check once and asks it twice, so that a check that finds nothing proves nothing here.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray
from opacus.accountants import RDPAccountant

from fednas.aggregation import average_gradients
from fednas.errors import BudgetExceededError, PrivacyError
from fednas.evaluation import noised_counts
from fednas.privacy.accounting import epsilon_pld, epsilon_rdp
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.entropy import SecureEntropy, SeededEntropy
from fednas.privacy.events import Gaussian, PoissonGaussian
from fednas.privacy.grid import GRID_STEP, noised_sum, sensitivity
from fednas.privacy.ledger import Arrays, Permit
from fednas.privacy.streams import StreamedRecords
from fednas.privacy.verify import verify
from fednas.search.policy import Policy
from fednas.site import open_site
from fednas.space.layers import gates
from fednas.training import Optimisation, architecture_gradient, opacus_engine, train_weights
from fednas.wire import encode
from fednas.wire_schema import UnexplainedByteError, explain
from server.report import Completed
from tests.integration.spy import weights as final_weights
from tests.integration.spy import whole
from tests.privacy.ledgers import SMALL, forbidden, noise, open_ledger, operation, plan_of
from tests.simulations import tiny
from tests.training.sites import (
    CHOSEN,
    MLP,
    built,
    drawn,
    noisy_plan,
    open_plan,
    record_gradients,
    released,
    streams_of,
)

Vector = NDArray[np.float64]
DELTA = 1e-5
CLIP = 1.0
KEY = "mlp-residual"


# FedML: FedNAS


def test_architecture_gradients_are_the_average_of_the_sites_and_not_those_of_the_first() -> None:
    """FedNAS aggregated the weights and returned the architecture parameters of client 0."""

    def of_the_first(gradients: Sequence[Vector], weights: Sequence[float]) -> Vector:
        return gradients[0]

    def is_an_average(combine: Callable[[Sequence[Vector], Sequence[float]], Vector]) -> bool:
        sites = [np.array([1.0, 2.0]), np.array([3.0, -4.0]), np.array([5.0, 8.0])]
        shares = [1.0, 2.0, 1.0]
        there = combine(sites, shares)
        back = combine(sites[::-1], shares[::-1])
        return np.allclose(there, back) and np.allclose(there, np.average(sites, axis=0, weights=shares))

    assert not is_an_average(of_the_first)
    assert is_an_average(average_gradients)


def alphas(folder: Path, records: StreamedRecords) -> Arrays:
    network = built(CHOSEN[KEY], gated=True)
    rows = Policy(MLP).jacobian(CHOSEN[KEY])
    slopes = {name: rows[name] for name in gates(network)}

    def mechanism(permit: Permit) -> Arrays:
        gradient = architecture_gradient(
            network, records, permit, jacobian=slopes, divisor_size=10.0, micro_batch=4
        )
        return {"alphas": gradient}

    return released(folder, open_plan(), {"alphas": 1}, mechanism)


def test_architecture_parameters_learn_from_their_own_stream_and_from_no_other_record(tmp_path: Path) -> None:
    """FedNAS took the architecture gradient on the test images that it reported accuracy on."""
    x, y = drawn(MLP, 40)
    streams = streams_of(40)
    others = x.copy()
    others[streams != 1] = -3.0 * others[streams != 1]  # what is held out: weights, fitness, and any test set

    def on_held_out_records(folder: Path, features: NDArray[np.float32]) -> Vector:
        return np.asarray(features[streams == 2].mean(axis=0), dtype=np.float64)

    def ours(folder: Path, features: NDArray[np.float32]) -> Vector:
        return alphas(folder, StreamedRecords(features, y, streams))["alphas"]

    def ignores_held_out_records(gradient: Callable[[Path, NDArray[np.float32]], Vector]) -> bool:
        name = gradient.__name__
        return np.array_equal(gradient(tmp_path / f"{name}-a", x), gradient(tmp_path / f"{name}-b", others))

    assert not ignores_held_out_records(on_held_out_records)
    assert ignores_held_out_records(ours)


# DP-FNAS


def test_each_record_is_clipped_and_not_the_average_of_the_batch() -> None:
    """DP-FNAS clipped the averaged gradient: one record moves that by as much as all others together."""
    generator = np.random.default_rng(0)
    few = 100.0 * generator.standard_normal((8, 4)).astype(np.float32)
    module = torch.nn.Linear(4, 3)

    def rows(x: NDArray[np.float32]) -> Vector:
        return record_gradients(module, torch.from_numpy(x), torch.zeros(len(x), dtype=torch.int64))

    def of_the_average(x: NDArray[np.float32]) -> Vector:
        mean: Vector = rows(x).mean(axis=0)
        return len(x) * mean * min(1.0, CLIP / float(np.linalg.norm(mean)))

    def ours(x: NDArray[np.float32]) -> Vector:
        y = torch.zeros(len(x), dtype=torch.int64)
        with opacus_engine(module, clip_norm=CLIP, learning_rate=0.1, momentum=0.0, micro_batch=3) as engine:
            units = engine.clipped_sum(torch.from_numpy(x), y)
        return units.astype(np.float64) * (CLIP * GRID_STEP)

    outlier = max((1e4, -1e4), key=lambda factor: float(np.linalg.norm(rows(factor * few[:1])))) * few[:1]
    more = np.concatenate([few[:4], outlier, few[4:]])

    def bounds_one_record(total: Callable[[NDArray[np.float32]], Vector]) -> bool:
        return float(np.linalg.norm(total(more) - total(few))) <= CLIP * GRID_STEP * sensitivity(15)

    assert not bounds_one_record(of_the_average)
    assert bounds_one_record(ours)


def update(folder: Path, records: StreamedRecords, *, number: int = 1) -> Vector:
    """One released update of a private plan with real noise."""
    network = built(CHOSEN[KEY])
    how = Optimisation(steps=1, learning_rate=0.5, momentum=0.0, micro_batch=4, divisor_size=20.0)

    def mechanism(permit: Permit) -> Arrays:
        return {"update": train_weights(network, records, permit, allowance="search", optimisation=how)}

    plan = noisy_plan(1.0, q=1.0)
    return released(folder, plan, {"search": 1}, mechanism, test_seed=None, number=number)["update"]


def records(number: int = 40) -> StreamedRecords:
    x, y = drawn(MLP, number)
    return StreamedRecords(x, y, streams_of(number))


def test_every_coordinate_that_leaves_is_noised_and_not_only_a_part(tmp_path: Path) -> None:
    """DP-FNAS noised the Hessian term of the architecture gradient and left the first-order term bare."""
    total = np.arange(8, dtype=np.int64)

    def one_part(number: int) -> Vector:
        entropy = SecureEntropy()
        noised = noised_sum(total[4:], clip_norm=CLIP, noise_multiplier=1.0, entropy=entropy)
        return np.concatenate([total[:4], noised])

    def ours(number: int) -> Vector:
        return update(tmp_path, records(), number=number)

    def noises_everything(release: Callable[[int], Vector]) -> bool:
        return not np.any(release(1) == release(2))

    assert not noises_everything(one_part)
    assert noises_everything(ours)


def test_noise_is_added_before_anything_leaves_the_site(tmp_path: Path) -> None:
    """DP-FNAS noised the sum after the all-reduce: whoever sums has seen every site in the clear."""
    kept = tmp_path / "kept"

    def sent_in_the_clear(number: int) -> bytes:
        return np.linspace(-1.0, 1.0, 4).tobytes()

    def ours(number: int) -> bytes:
        def count(permit: Permit) -> Arrays:
            return {"correct": noised_counts([built(CHOSEN[KEY])] * 8, records(), permit)}

        plan = noisy_plan(20.0)
        return released(kept, plan, {"fitness": 8}, count, test_seed=None, number=number)["correct"].tobytes()

    def is_noised_where_it_is_sent(sent: Callable[[int], bytes]) -> bool:
        return sent(1) != sent(2)  # the same data, the same networks

    assert not is_noised_where_it_is_sent(sent_in_the_clear)
    assert is_noised_where_it_is_sent(ours)


def test_nothing_is_released_that_no_accountant_saw(tmp_path: Path) -> None:
    """DP-FNAS stated no epsilon at all: noise without an account of how often it was used."""
    path = tmp_path / "ledger"

    def unaccounted() -> float:
        for _ in range(10):
            noised_sum(np.zeros(4, np.int64), clip_norm=CLIP, noise_multiplier=1.0, entropy=SecureEntropy())
        return 0.0

    def ours() -> float:
        with open_ledger(path) as ledger:
            with pytest.raises(PrivacyError, match="has no plan"):
                ledger.release(operation(0), charges={"search": 1}, mechanism=forbidden)
            ledger.open_plan("run", SMALL)
            for number in range(10):
                ledger.release(operation(number), charges={"search": 1}, mechanism=noise)
            statement = ledger.statement()
        verify(path)
        return statement.stream("weights").charged_epsilon

    def accounts_for_ten(epsilon: Callable[[], float]) -> bool:
        ten = SMALL.allowance("search").event.scaled(10)
        return epsilon() >= epsilon_pld([ten], DELTA) - 1e-12 > 0.0

    assert not accounts_for_ten(unaccounted)
    assert accounts_for_ten(ours)


# FedorAS, HeteroFL


def test_no_histogram_of_operators_leaves_beside_what_was_paid_for(tmp_path: Path) -> None:
    """FedorAS sent how often each operator did well on a client's records, without noise or charge."""

    def with_a_histogram() -> RecordDict:
        content = ours()
        content["operators"] = ConfigRecord({"conv3x3": 17, "conv5x5": 4})
        return content

    def ours() -> RecordDict:
        with open_ledger(tmp_path / "ledger") as ledger:
            ledger.open_plan("run", SMALL)
            paid = ledger.release(
                operation(1), charges={"search": 1}, mechanism=lambda _: {"update": np.ones(3, np.float32)}
            )
            return encode(paid)

    def is_explained(reply: Callable[[], RecordDict]) -> bool:
        try:
            explain(reply())
        except UnexplainedByteError:
            return False
        return True

    assert not is_explained(with_a_histogram)
    assert is_explained(ours)


def test_which_coordinates_are_sent_says_nothing_of_the_labels_that_a_site_holds(tmp_path: Path) -> None:
    """HeteroFL trains and aggregates only the output rows of labels that a client has: the rows tell them."""
    x, y = drawn(MLP, 40)

    def masked(name: str, labels: NDArray[np.int64]) -> Vector:
        rows = np.ones((3, 5))
        rows[np.setdiff1d(np.arange(3), labels)] = 0.0
        return rows.reshape(-1)

    def ours(name: str, labels: NDArray[np.int64]) -> Vector:
        return update(tmp_path / name, StreamedRecords(x, labels, streams_of(40)))

    def hides_the_labels(release: Callable[[str, NDArray[np.int64]], Vector]) -> bool:
        all_of_them, two_of_them = release("all", y), release("two", np.minimum(y, 1))
        return all_of_them.shape == two_of_them.shape and np.array_equal(all_of_them != 0, two_of_them != 0)

    assert not hides_the_labels(masked)
    assert hides_the_labels(ours)


# Plato, Flower's Opacus example, NVFLARE: the accountant

ROUND = PoissonGaussian(sampling_probability=0.05, noise_multiplier=1.0, steps=20)


def reset_each_round(rounds: int, steps: int = ROUND.steps) -> float:
    """The epsilon of the last round alone."""
    stated = 0.0
    for _ in range(rounds):
        accountant = RDPAccountant()  # as a new PrivacyEngine brings one along
        accountant.history = [(ROUND.noise_multiplier, ROUND.sampling_probability, steps)]
        stated = float(accountant.get_epsilon(DELTA))
    return stated


def test_an_accountant_that_is_reset_each_round_states_a_third_of_what_was_spent() -> None:
    """Plato and Flower's example reset it each round: 2.48 was stated where 7.42 had been spent."""
    assert reset_each_round(20) == pytest.approx(2.48, abs=0.01)
    assert reset_each_round(1, steps=400) == pytest.approx(7.42, abs=0.01)
    assert epsilon_rdp([ROUND.scaled(400)], DELTA) > 7.41, "ours counts all steps that an event holds"


def test_a_spend_goes_on_over_rounds_runs_and_processes(tmp_path: Path) -> None:
    """NVFLARE resets its accountant at the start of each run; a ledger belongs to the data."""
    path, cap = tmp_path / "ledger", PrivacyBudget(epsilon=100.0, delta=DELTA)

    def ours(runs: int) -> float:
        for number in range(runs):
            run = f"run-{number}"
            with open_ledger(path, cap=cap) as ledger:  # only the file goes on
                ledger.open_plan(run, plan_of(cap, search=ROUND))
                ledger.release(operation(1, run=run), charges={"search": ROUND.steps}, mechanism=noise)
        with open_ledger(path, cap=cap) as ledger:
            return ledger.statement().claimed_epsilon

    def tells_the_truth(stated: Callable[[int], float]) -> bool:
        return stated(3) >= epsilon_pld([ROUND.scaled(60)], DELTA) - 1e-12

    assert not tells_the_truth(reset_each_round)
    assert tells_the_truth(ours)


# FLIP, openmed


def test_noise_grows_with_the_clip_norm() -> None:
    """FLIP clipped to 1.0 and noised for a sensitivity of 1e-4, a setting of its own."""

    def of_a_setting(clip_norm: float) -> Vector:
        return 1e-4 * SeededEntropy(0, "noise").noise(1e6, 1000) / 1e6

    def ours(clip_norm: float) -> Vector:
        entropy = SeededEntropy(0, "noise")
        return noised_sum(
            np.zeros(1000, np.int64), clip_norm=clip_norm, noise_multiplier=1.0, entropy=entropy
        )

    def covers_the_clip(release: Callable[[float], Vector]) -> bool:
        return all(np.std(release(clip_norm)) > 0.9 * clip_norm for clip_norm in (0.01, 1.0, 100.0))

    assert not covers_the_clip(of_a_setting)
    assert covers_the_clip(ours)


def test_a_spend_that_is_too_small_to_move_the_sum_is_still_a_spend(tmp_path: Path) -> None:
    """openmed added a subnormal spend to an exhausted budget: it was free, and for ever."""

    def added_in_floating_point(spends: int) -> int:
        spent, cap, granted = 3.0, 3.0, 0
        for _ in range(spends):
            if spent + 5e-324 <= cap:
                spent, granted = spent + 5e-324, granted + 1
        return granted

    def ours(spends: int) -> int:
        tiny_spend = plan_of(fitness=Gaussian(noise_multiplier=1e6, releases=3))
        granted = 0
        with open_ledger(tmp_path / "ledger") as ledger:
            ledger.open_plan("run", tiny_spend)
            for number in range(spends):
                try:
                    ledger.release(operation(number), charges={"fitness": 1}, mechanism=noise)
                    granted += 1
                except BudgetExceededError:
                    continue
        return granted

    def ends(grant: Callable[[int], int], allowed: int) -> bool:
        return grant(20) <= allowed

    assert not ends(added_in_floating_point, 0)
    assert ends(ours, 3)
    least = Gaussian(noise_multiplier=1e6, releases=1)
    assert epsilon_rdp([least.scaled(10**7)], DELTA) > epsilon_rdp([least], DELTA), (
        "they are counted, not summed"
    )


# SuperFedNAS, Plato, FedNAS: selection


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Completed]:
    """The tiny study twice: the same sites and noise, another public test set."""
    done = []
    for seed in (0, 1):
        open_site.cache_clear()
        path = tiny.make_run(tmp_path_factory.mktemp("study") / "run", tiny.study())
        x, y = tiny.records(60, 900 + seed)
        np.savez(path / "public_test.npz", x=(1.0 - 2.0 * seed) * x, y=y)
        done.append(whole(path))
    open_site.cache_clear()
    return done


def test_nothing_is_selected_on_test_data(studies: list[Completed]) -> None:
    """SuperFedNAS and Plato chose, or stopped, by the accuracy on the test set that they reported."""

    def by_test_accuracy(study: Completed) -> str:
        data = np.load(study.directory.path / "public_test.npz")
        scores = {
            f"candidate {seed}": float((np.sign(data["x"][:, 0]) == 2 * seed - 1).mean()) for seed in (0, 1)
        }
        return max(scores, key=lambda name: scores[name])

    def ours(study: Completed) -> tuple[object, ...]:
        coordinator = study.coordinator
        return coordinator.chosen, coordinator.fitness, final_weights(study)

    def ignores_the_test_set(decide: Callable[[Completed], object]) -> bool:
        return decide(studies[0]) == decide(studies[1])

    assert not ignores_the_test_set(by_test_accuracy)
    assert ignores_the_test_set(ours)

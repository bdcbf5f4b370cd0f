"""Pitfalls of private training and of its data: each built as others fell into it, found, and absent here.

Every test states its check once and asks it twice, so that a check that finds nothing proves nothing here.
Numbers are those of tests/REQUIREMENTS.md; accounts and messages are in test_pitfalls_of_accounts.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule, PrivacyEngine
from opacus.optimizers import DPOptimizer
from torch import nn

from fednas.config import DataSchema
from fednas.errors import UnsupportedEventError
from fednas.privacy.entropy import SecureEntropy
from fednas.privacy.events import decode
from fednas.privacy.grid import GRID_STEP, sensitivity
from fednas.privacy.ledger import Arrays, Permit
from fednas.privacy.streams import StreamedRecords, assign
from fednas.site.datasets import load as load_dataset
from fednas.supernet import Supernet, flatten
from fednas.training import OpacusEngine, Optimisation, opacus_engine, train_weights
from tests.site.test_datasets import site
from tests.training.sites import CHOSEN, MLP, SHARES, built, drawn, noisy_plan, open_plan, released

Vector = NDArray[Any]
KEY = "mlp-residual"


def trained(folder: Path, records: StreamedRecords, *, noisy: bool = False) -> Vector:
    """The update that a real ledger releases of a network after two steps on every record."""
    network = built(CHOSEN[KEY])
    how = Optimisation(steps=2, learning_rate=0.5, momentum=0.0, micro_batch=4, divisor_size=20.0)

    def mechanism(permit: Permit) -> Arrays:
        return {"update": train_weights(network, records, permit, allowance="search", optimisation=how)}

    plan = noisy_plan(1.0, q=1.0) if noisy else open_plan()
    return released(folder, plan, {"search": 2}, mechanism, test_seed=None)["update"]


def weights_only(x: NDArray[np.float32], y: NDArray[np.int64]) -> StreamedRecords:
    return StreamedRecords(x, y, np.zeros(len(x), dtype=np.uint8))


def with_record(
    x: NDArray[np.float32], y: NDArray[np.int64], record: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The same records with one more in their midst."""
    middle = len(x) // 2
    return np.insert(x, middle, record, axis=0), np.insert(y, middle, 0)


def engine_of(module: nn.Module, *, micro_batch: int = 3) -> AbstractContextManager[OpacusEngine]:
    return opacus_engine(module, clip_norm=1.0, learning_rate=0.1, momentum=0.0, micro_batch=micro_batch)


def test_pitfall_2_sampling_rate_and_divisor_do_not_depend_on_how_many_records_there_are(
    tmp_path: Path,
) -> None:
    def of_make_private(number: int) -> tuple[float, float]:
        module = nn.Linear(2, 2)
        data = torch.utils.data.TensorDataset(torch.zeros(number, 2), torch.zeros(number, dtype=torch.int64))
        _, optimizer, loader = PrivacyEngine().make_private(
            module=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
            data_loader=torch.utils.data.DataLoader(data, batch_size=32),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
        )
        return loader.batch_sampler.sample_rate, optimizer.expected_batch_size

    def ours(number: int) -> tuple[float, ...]:
        """Without noise and with every record: the 65th counts for nothing but for its existence."""
        x, y = drawn(MLP, 64)
        if number == 65:
            x, y = with_record(x, y, np.full(5, np.nan, np.float32))
        return tuple(trained(tmp_path / str(number), weights_only(x, y)))

    def hides_the_number(observe: Callable[[int], tuple[float, ...]]) -> bool:
        return observe(64) == observe(65)

    assert of_make_private(64) == (0.5, 32)
    assert of_make_private(65) == (1 / 3, 21)
    assert not hides_the_number(of_make_private)
    assert hides_the_number(ours)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pitfall_3_one_record_that_is_no_number_leaves_no_trace(value: float, tmp_path: Path) -> None:
    x, y = drawn(MLP, 20)
    bad = with_record(x, y, np.full(5, value, np.float32))

    def summed(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Vector:
        network = built(CHOSEN[KEY])
        logits = network(torch.from_numpy(features))
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        return torch.cat([p.grad.reshape(-1) for p in network.parameters() if p.grad is not None]).numpy()

    def ours(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Vector:
        return trained(tmp_path / str(len(features)), weights_only(features, labels))

    def is_finite_and_the_same(release: Callable[..., Vector]) -> bool:
        with_it, without = release(*bad), release(x, y)
        return bool(np.isfinite(with_it).all()) and np.array_equal(with_it, without)

    assert not is_finite_and_the_same(summed)
    assert is_finite_and_the_same(ours)


def test_pitfall_4_a_batch_that_ended_early_adds_nothing_to_the_next_one() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    x, y = torch.ones(6, 3), torch.zeros(6, dtype=torch.int64)
    wrong = torch.tensor([1, 1, 1, 1, 1, 99])  # its second micro-batch raises

    def with_a_memory_manager() -> Vector:
        """Left in the midst of a logical batch: what was summed stays, and the next one goes on top."""
        module.zero_grad(set_to_none=True)
        wrapped = GradSampleModule(module, loss_reduction="sum")
        optimizer = DPOptimizer(
            torch.optim.SGD(wrapped.parameters(), lr=0.1),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        for skip in (True, False):
            optimizer.signal_skip_step(do_skip=skip)
            loss = nn.functional.cross_entropy(wrapped(x[:3]), y[:3], reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.pre_step()
            if skip:
                optimizer.zero_grad(set_to_none=True)
        sums: list[Any] = [p.summed_grad for _, p in sorted(module.named_parameters())]  # type: ignore[attr-defined]
        total = torch.cat([part.reshape(-1) for part in sums])
        wrapped.remove_hooks()
        return total.double().numpy()

    def ours() -> Vector:
        with engine_of(module) as engine:
            with pytest.raises(IndexError):
                engine.clipped_sum(x, wrong)
            with pytest.raises(ValueError, match="no gradient of every record"):
                engine.clipped_sum(x[:3], y[:3])  # an engine that was interrupted works no more
        with engine_of(module) as engine:
            engine.clipped_sum(x, y)
            return engine.clipped_sum(x[:3], y[:3]) * GRID_STEP

    def is_one_batch(total: Callable[[], Vector]) -> bool:
        with engine_of(module) as engine:
            once = engine.clipped_sum(x[:3], y[:3]) * GRID_STEP
        return np.allclose(total(), once, atol=1e-5)

    assert not is_one_batch(with_a_memory_manager)
    assert is_one_batch(ours)


def test_pitfall_7_a_record_adds_no_more_than_the_clip_norm_and_the_slack_that_is_charged() -> None:
    rows = 1e3 * torch.randn(500, 50, generator=torch.Generator().manual_seed(0))

    def in_half_precision() -> float:
        half = rows.bfloat16()
        norms = half.norm(dim=1, keepdim=True)
        return float((half * (1.0 / norms).clamp(max=1.0)).double().norm(dim=1).max())

    def ours() -> float:
        with engine_of(nn.Linear(50, 2)) as engine:
            sums = [engine.clipped_sum(row[None], torch.tensor([c])) for row in rows for c in (0, 1)]
        return max(float(np.linalg.norm(total)) * GRID_STEP for total in sums)

    def is_charged_for(norm: Callable[[], float]) -> bool:
        return norm() <= GRID_STEP * sensitivity(102)

    assert not is_charged_for(in_half_precision)
    assert is_charged_for(ours)


def test_pitfall_8_only_the_coordinates_of_the_path_are_released(tmp_path: Path) -> None:
    """What the path does not use would be bare noise, and every coordinate costs the others accuracy."""
    path = CHOSEN[KEY]
    whole = Supernet.initialise(MLP, seed=0)

    def all_of_the_supernet() -> int:
        return whole.num_parameters

    def ours() -> int:
        return trained(tmp_path, weights_only(*drawn(MLP, 8)), noisy=True).size

    def is_the_path(size: Callable[[], int]) -> bool:
        return size() == flatten(built(path)).size

    assert not is_the_path(all_of_the_supernet)
    assert is_the_path(ours)


def test_pitfall_8_a_parameter_that_takes_no_part_is_an_error_and_not_bare_noise() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            used: torch.Tensor = self.used(x)
            return used

    engine = OpacusEngine(Partly(), clip_norm=1.0, learning_rate=0.1, momentum=0.0, micro_batch=4)
    with pytest.raises(ValueError, match="no gradient of every record"):
        engine.clipped_sum(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64))


def test_pitfall_9_an_empty_sample_is_released_like_any_other(tmp_path: Path) -> None:
    def skipped(x: NDArray[np.float32], y: NDArray[np.int64]) -> Vector:
        return np.zeros(3) if len(x) == 0 else np.ones(3) + 0.1 * SecureEntropy().noise(1e3, 3)

    def ours(x: NDArray[np.float32], y: NDArray[np.int64]) -> Vector:
        return trained(tmp_path / str(len(x)), weights_only(x, y), noisy=True)

    def looks_the_same(release: Callable[..., Vector]) -> bool:
        none, some = release(*drawn(MLP, 0)), release(*drawn(MLP, 8))
        return none.shape == some.shape and bool((none != 0.0).all()) and bool((some != 0.0).all())

    assert not looks_the_same(skipped)
    assert looks_the_same(ours)


def test_pitfall_10_samples_are_drawn_record_by_record_and_not_dealt_from_a_shuffle() -> None:
    size, q, rounds = 200, 0.1, 300

    def shuffled() -> NDArray[np.bool_]:
        masks = np.zeros((rounds, size), dtype=bool)
        for first in range(0, rounds, 10):
            order = np.random.default_rng(first).permutation(size)
            for step in range(10):
                masks[first + step, order[20 * step : 20 * step + 20]] = True
        return masks

    def ours() -> NDArray[np.bool_]:
        entropy = SecureEntropy()
        return np.array([entropy.poisson(q, size) for _ in range(rounds)])

    def is_poisson(draw: Callable[[], NDArray[np.bool_]]) -> bool:
        masks = draw()
        sizes = masks.sum(axis=1)
        expected = size * q * (1 - q)
        overlaps = [int((a & b).sum()) for a, b in zip(masks[::2], masks[1::2], strict=True)]
        return bool(0.5 * expected < sizes.var() < 2.0 * expected) and sum(overlaps) > 0

    assert not is_poisson(shuffled)
    assert is_poisson(ours)


def test_pitfall_10_no_event_is_amplified_by_a_shuffle() -> None:
    with pytest.raises(UnsupportedEventError, match="unknown kind"):
        decode({"kind": "shuffled_gaussian", "noise_multiplier": "1.0", "steps": 3})


def test_pitfall_16_the_features_of_a_record_do_not_depend_on_other_records(tmp_path: Path) -> None:
    x, y = drawn(MLP, 20)
    more = with_record(x, y, np.full(5, 1e6, np.float32))

    def standardised(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Vector:
        return np.asarray((features - features.mean(axis=0)) / features.std(axis=0))

    def ours(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Vector:
        np.savez(tmp_path / "data.npz", x=features, y=labels)
        schema = DataSchema(input_shape=(5,), class_names=("a", "b", "c"))
        return load_dataset(site(tmp_path / "data.npz"), schema).x

    def stay_apart(prepare: Callable[..., Vector]) -> bool:
        return np.array_equal(prepare(x, y), np.delete(prepare(*more), 10, axis=0))

    assert not stay_apart(standardised)
    assert stay_apart(ours)


def test_pitfall_17_removing_a_record_moves_no_other_to_another_stream() -> None:
    names = [f"patient-{number}".encode() for number in range(500)]

    def by_position(identifiers: list[bytes]) -> NDArray[np.uint8]:
        return np.array([0, 0, 1, 0, 2] * 100, dtype=np.uint8)[: len(identifiers)]

    def ours(identifiers: list[bytes]) -> NDArray[np.uint8]:
        return assign(bytes(range(32)), identifiers, SHARES)

    def stay(split: Callable[[list[bytes]], NDArray[np.uint8]]) -> bool:
        return np.array_equal(np.delete(split(names), 5), split(names[:5] + names[6:]))

    assert not stay(by_position)
    assert stay(ours)

"""The private gradient of the architecture parameters against finite differences, record by record."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fednas.errors import PrivacyError
from fednas.privacy.grid import GRID_STEP, sensitivity
from fednas.privacy.ledger import Arrays, Permit
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.streams import StreamedRecords
from fednas.search.policy import Policy
from fednas.space.layers import Network, gates
from fednas.supernet import flatten
from fednas.training import architecture_gradient
from tests.training.sites import (
    CHOSEN,
    MLP,
    SPACES,
    built,
    clipped,
    drawn,
    noisy_plan,
    open_plan,
    records_of,
    released,
    streams_of,
)

Rows = NDArray[np.float64]
SIZE = 40.0
WITH_GATES = [key for key in CHOSEN if gates(built(CHOSEN[key], gated=True))]


def policy_of(key: str, *, seed: int = 1) -> Policy:
    policy = Policy(SPACES[CHOSEN[key].space])
    policy.set_flat(np.random.default_rng(seed).standard_normal(policy.size))
    return policy


def slopes_of(key: str, network: Network) -> dict[str, Rows]:
    """The rows of the choices on the path that a gate stands for, as a site asks for them."""
    shaped = gates(network)
    rows = policy_of(key).jacobian(CHOSEN[key])
    return {name: row for name, row in rows.items() if name in shaped}


def gradient(
    folder: Path, key: str, records: StreamedRecords, plan: PrivacyPlan, *, micro_batch: int = 3
) -> Rows:
    network = built(CHOSEN[key], gated=True)
    before = flatten(network)

    def mechanism(permit: Permit) -> Arrays:
        row = architecture_gradient(
            network,
            records,
            permit,
            jacobian=slopes_of(key, network),
            divisor_size=SIZE,
            micro_batch=micro_batch,
        )
        return {"alphas": row}

    result = released(folder, plan, {"alphas": 1}, mechanism)["alphas"]
    assert np.array_equal(flatten(network), before)
    return result


def slow_rows(key: str, x: NDArray[np.float32], y: NDArray[np.int64], *, step: float = 1e-5) -> Rows:
    """Each record's gradient over all logits: gates moved one by one in float64, losses subtracted."""
    network = built(CHOSEN[key], gated=True)
    with torch.no_grad():
        features = network.stem(torch.from_numpy(x)).double()
    trunk = copy.deepcopy(network.trunk).double()
    buffers = dict(trunk.named_buffers())
    jacobian = slopes_of(key, network)
    columns = []
    for name in sorted(jacobian):
        scale = buffers[gates(network)[name]]
        losses = []
        for value in (1.0 + step, 1.0 - step):
            scale.fill_(value)
            with torch.no_grad():
                losses.append(
                    nn.functional.cross_entropy(
                        trunk(features), torch.from_numpy(y), reduction="none"
                    ).numpy()
                )
        scale.fill_(1.0)
        slope = (losses[0] - losses[1]) / (2.0 * step)
        columns.append(slope[:, None] * jacobian[name][None, :])
    return np.concatenate(columns, axis=1)


@pytest.mark.parametrize("key", WITH_GATES)
@pytest.mark.parametrize("clip_norm", [0.01, 5.0])
def test_the_gradient_equals_finite_differences(key: str, clip_norm: float, tmp_path: Path) -> None:
    x, y = drawn(SPACES[CHOSEN[key].space], 24)
    fast = gradient(tmp_path, key, records_of(x, y), open_plan(alphas_clip_norm=clip_norm))
    mine = streams_of(24) == 1
    slow = clipped(slow_rows(key, x[mine], y[mine]), clip_norm).sum(axis=0) / SIZE
    assert fast.dtype == np.float64
    assert np.abs(slow).max() > 0.0
    assert np.allclose(fast, slow, atol=1e-4 * np.abs(slow).max() + 1e-6)


def test_most_spaces_have_paths_with_gates() -> None:
    assert {CHOSEN[key].space for key in WITH_GATES} == set(SPACES)


def test_the_divisor_is_the_declared_size_times_the_plans_rate(tmp_path: Path) -> None:
    x, y = drawn(MLP, 24)
    x[:], y[:] = x[0], y[0]  # equal records: a sample's sum is a multiple of one record's
    one = slow_rows("mlp-residual", x[:1], y[:1])[0]
    fast = gradient(tmp_path, "mlp-residual", records_of(x, y), open_plan(q=0.5, alphas_clip_norm=5.0))
    count = fast * 0.5 * SIZE / one
    assert np.allclose(count, np.rint(count[0]), rtol=1e-3)
    assert 0 < np.rint(count[0]) < 6


def test_only_the_choices_on_the_path_come_back(tmp_path: Path) -> None:
    key = "conv1d-trained"
    x, y = drawn(SPACES["conv1d"], 24)
    policy = policy_of(key)
    names = set(slopes_of(key, built(CHOSEN[key], gated=True)))
    row = gradient(tmp_path, key, records_of(x, y), noisy_plan(1.0))
    sizes = {name: len(values) for name, values in policy.logits.items()}
    assert row.shape == (sum(sizes[name] for name in names),)
    assert names <= set(CHOSEN[key].as_dict())
    flat = policy.spread(names, row)
    known = np.concatenate([np.full(size, name in names) for name, size in sorted(sizes.items())])
    assert np.array_equal(~np.isnan(flat), known)
    assert not known.all()


def test_the_clip_is_over_all_logits_together(tmp_path: Path) -> None:
    key, bound = "mlp-residual", 1e-3
    x, y = drawn(MLP, 24)
    streams = np.full(24, 2, dtype=np.uint8)
    streams[3] = 1  # one record in the architecture stream
    fast = gradient(tmp_path, key, StreamedRecords(x, y, streams), open_plan(alphas_clip_norm=bound)) * SIZE
    row = slow_rows(key, x[3:4], y[3:4])[0]
    ends = np.cumsum([len(r) for _, r in sorted(slopes_of(key, built(CHOSEN[key], gated=True)).items())])[:-1]
    apart = np.concatenate([clipped(part[None], bound)[0] for part in np.split(row, ends)])
    assert np.linalg.norm(fast) <= bound * GRID_STEP * sensitivity(fast.size) * (1 + 1e-9)
    assert np.allclose(fast / np.linalg.norm(fast), row / np.linalg.norm(row), atol=1e-2)
    assert np.linalg.norm(apart) > 1.2 * bound  # clipped choice by choice a record would weigh more


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_a_monstrous_record_adds_at_most_its_bound(value: float, tmp_path: Path) -> None:
    key, bound = "mlp-residual", 0.01
    x, y = drawn(MLP, 24)
    plan = open_plan(alphas_clip_norm=bound)
    bad = x.copy()
    bad[1] = value  # a record of the architecture stream
    kept = np.arange(24) != 1
    total = gradient(tmp_path / "all", key, records_of(bad, y), plan) * SIZE
    others = StreamedRecords(x[kept], y[kept], streams_of(24)[kept])
    without = gradient(tmp_path / "others", key, others, plan) * SIZE
    assert np.isfinite(total).all()
    assert np.linalg.norm(total - without) <= bound * GRID_STEP * sensitivity(total.size) * (1 + 1e-9)
    if not np.isfinite(value):
        assert np.array_equal(total, without)


def test_only_the_architecture_stream_is_read(tmp_path: Path) -> None:
    key = "mlp-residual"
    x, y = drawn(MLP, 24)
    streams = streams_of(24)
    bad_x, bad_y = x.copy(), y.copy()
    bad_x[streams != 1], bad_y[streams != 1] = np.nan, 10_000
    alone = StreamedRecords(x[streams == 1], y[streams == 1], streams[streams == 1])
    plan = noisy_plan(1.0)
    assert np.array_equal(
        gradient(tmp_path / "all", key, StreamedRecords(bad_x, bad_y, streams), plan),
        gradient(tmp_path / "alone", key, alone, plan),
    )


def test_it_is_refused_without_a_charge(tmp_path: Path) -> None:
    x, y = drawn(MLP, 24)
    network = built(CHOSEN["mlp-small"], gated=True)

    def mechanism(permit: Permit) -> Arrays:
        architecture_gradient(
            network,
            records_of(x, y),
            permit,
            jacobian=slopes_of("mlp-small", network),
            divisor_size=SIZE,
            micro_batch=3,
        )
        raise AssertionError("data were touched")

    with pytest.raises(PrivacyError, match="not charged"):
        released(tmp_path, noisy_plan(1.0), {"search": 1}, mechanism)


@pytest.mark.parametrize("micro_batch", [1, 2, 100])
def test_the_micro_batch_changes_nothing_beyond_rounding(micro_batch: int, tmp_path: Path) -> None:
    x, y = drawn(MLP, 24)
    one, other = (
        gradient(tmp_path / str(size), "mlp-residual", records_of(x, y), open_plan(), micro_batch=size)
        for size in (3, micro_batch)
    )
    assert np.allclose(one, other, atol=1e-7)


def test_an_empty_stream_releases_noise(tmp_path: Path) -> None:
    x, y = drawn(MLP, 0)
    row = gradient(tmp_path, "mlp-residual", records_of(x, y), noisy_plan(1.0))
    assert row.all()
    assert np.isfinite(row).all()

"""Chunks of one shape, and the trial that tells whether a record's place in them changes its bits."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fednas.supernet.chunks import aligned, chunks, steady_rows, suggested_rows

torch.set_num_threads(1)


def records(number: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((number, *shape), generator=generator), torch.arange(number)


@given(number=st.integers(0, 40), size=st.integers(1, 17))
def test_chunks_hold_every_record_once_and_end_in_zeros(number: int, size: int) -> None:
    x, y = records(number, 2, 3)
    parts = list(chunks(x, y, size))
    assert len(parts) == -(-number // size)
    for rows, labels, count in parts:
        assert rows.shape == (size, 2, 3)
        assert labels.shape == (size,)
        assert not rows[count:].any()
        assert not labels[count:].any()
    if parts:
        assert torch.equal(torch.cat([rows[:count] for rows, _, count in parts]), x)
        assert torch.equal(torch.cat([labels[:count] for _, labels, count in parts]), y)


def test_a_chunk_has_memory_of_its_own_on_a_cache_line() -> None:
    x = torch.from_numpy(np.ones(4 * 3 + 1, dtype=np.float32)[1:].reshape(4, 3))
    for rows, _, _ in chunks(x, torch.zeros(4, dtype=torch.int64), 2):
        assert rows.data_ptr() % 64 == 0
        rows[:] = 7.0
    assert bool((x == 1.0).all())


@given(expected=st.floats(0.0, 1e6), limit=st.integers(1, 200))
def test_suggested_rows_are_few_and_public(expected: float, limit: int) -> None:
    rows = suggested_rows(expected, limit)
    assert 1 <= rows <= min(limit, 64)
    assert rows == limit or rows % 8 == 0
    usual, most = expected + 1.2 * math.sqrt(expected), max(8, min(limit, 64) // 8 * 8)
    if rows < limit:  # a usual sample takes no more chunks than the largest multiple of eight would take
        assert usual <= rows * max(1, math.ceil(usual / most)) * (1 + 1e-12)
    if 0 < expected < 40 < limit:
        assert rows <= expected + 1.2 * expected**0.5 + 8


def by_itself(x: Tensor, _: Tensor) -> Sequence[Tensor]:
    return [x * 2.0, (x**2).sum(dim=1)]


def by_place(x: Tensor, _: Tensor) -> Sequence[Tensor]:
    scale = torch.ones(len(x), 1)
    scale[3] += 2.0**-23
    return [x, x * scale]


def by_neighbours(x: Tensor, _: Tensor) -> Sequence[Tensor]:
    return [x - x.mean(dim=0)]


def by_the_one_before(x: Tensor, _: Tensor) -> Sequence[Tensor]:
    return [x + 1e-3 * torch.roll(x, 1, 0)]


@pytest.mark.parametrize(
    ("compute", "rows"), [(by_itself, 8), (by_place, 1), (by_neighbours, 1), (by_the_one_before, 1)]
)
def test_records_pass_together_only_where_nothing_but_themselves_counts(
    compute: Callable[[Tensor, Tensor], Sequence[Tensor]], rows: int
) -> None:
    assert steady_rows(compute, (5,), 8) == rows


@pytest.mark.parametrize(
    ("limit", "rows"), [(1, 1), (2, 1), (7, 1), (8, 8), (9, 8), (15, 8), (16, 16), (31, 24), (64, 64)]
)
def test_no_chunk_has_a_row_that_kernels_leave_over(limit: int, rows: int) -> None:
    seen: list[int] = []

    def compute(x: Tensor, y: Tensor) -> Sequence[Tensor]:
        seen.append(len(x))
        return [x]

    assert steady_rows(compute, (5,), limit) == rows
    assert set(seen) <= {rows}


@pytest.mark.parametrize("place", range(16))
def test_a_place_that_is_another_is_found_wherever_it_is(place: int) -> None:
    def compute(x: Tensor, y: Tensor) -> Sequence[Tensor]:
        scale = torch.ones(len(x), 1)
        scale[place] += 2.0**-23
        return [x * scale]

    assert steady_rows(compute, (5,), 16) == 1


def test_a_limit_of_one_needs_no_trial() -> None:
    def never(x: Tensor, y: Tensor) -> Sequence[Tensor]:
        raise AssertionError("it was tried")

    assert steady_rows(never, (5,), 1) == 1


def test_the_trial_leaves_public_randomness_alone() -> None:
    before = torch.get_rng_state()
    steady_rows(by_itself, (5,), 8)
    assert torch.equal(before, torch.get_rng_state())


def places(linear: nn.Linear) -> int:
    """In how many ways the same record comes out of a layer, over its place in a chunk."""
    x = torch.zeros(16, linear.in_features).copy_(records(1, linear.in_features)[0][0])
    with torch.no_grad():
        return len({row.numpy().tobytes() for row in linear(x)})


@pytest.mark.parametrize("features", [5, 27, 64, 90, 91, 1021])
@pytest.mark.parametrize("classes", [2, 5, 10, 33])
def test_a_row_of_any_length_has_the_same_bits_in_any_place_of_an_aligned_layer(
    features: int, classes: int
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(features, classes)
    x, _ = records(16, features)
    plain = linear(x)
    with aligned(nn.Sequential(linear)):
        assert places(linear) == 1
        assert torch.allclose(linear(x), plain, atol=1e-5)
    assert not linear._forward_pre_hooks


def test_gradients_pass_through_an_aligned_layer() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(27, 3)
    x, _ = records(4, 27)
    x.requires_grad_()
    expected = torch.autograd.grad(linear(x).sum(), [x, linear.weight])
    with aligned(linear):
        found = torch.autograd.grad(linear(x).sum(), [x, linear.weight])
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)

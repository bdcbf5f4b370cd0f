"""The Gaussian mechanism on the integer grid: exact sums, their sensitivity, and what is refused."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fednas.errors import PrivacyError
from fednas.privacy.entropy import SecureEntropy, SeededEntropy
from fednas.privacy.grid import ARITHMETIC_SLACK, GRID_STEP, GridSum, noised_sum, sensitivity

Vector = NDArray[np.float64]
clip_norms = st.floats(1e-4, 1e4)
TINY32, TINY64 = 1e-45, 5e-324
seeds = st.integers(0, 2**32 - 1)


def units(rows: NDArray[Any], clip_norm: float = 1.0) -> NDArray[np.int64]:
    total = GridSum(rows.shape[1], clip_norm=clip_norm)
    total.add(rows)
    return total.units


def length(vector: NDArray[np.int64]) -> float:
    """The exact norm of integers, rounded once."""
    return math.sqrt(sum(int(value) ** 2 for value in vector))


def vectors(seed: int, number: int, size: int, clip_norm: float) -> Vector:
    """Records' contributions: norms from zero to a hundred times the bound, shape (number, size)."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((number, size))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Vector = rows * clip_norm * generator.choice([0.0, 1e-7, 0.3, 1.0, 100.0], size=(number, 1))
    return scaled


def slow_units(row: list[float], clip_norm: float) -> list[int]:
    """One record, with exact rationals, but for the root."""
    if not all(math.isfinite(value) for value in row):
        return [0] * len(row)
    square = sum((Fraction(value) ** 2 for value in row), Fraction(0))
    root = Fraction(math.isqrt(int(square * 2**400)), 2**200)
    norm = max(root, Fraction(clip_norm))
    return [round(Fraction(value) * 10**6 / norm) for value in row]


def adversarial(seed: int, size: int, dtype: type[np.floating[Any]]) -> NDArray[Any]:
    """Rows that float arithmetic has trouble with."""
    generator = np.random.default_rng(seed)
    huge, tiny = (1e38, TINY32) if dtype is np.float32 else (1e300, TINY64)
    edge = np.full(size, 1.0 / np.sqrt(size))
    half = np.full(size, 0.5 * GRID_STEP * (1 + 1e-9))  # every coordinate rounds up
    alternating = np.where(np.arange(size) % 2, 1.0, -1.0) * np.geomspace(1e-9, 1.0, size)
    rows = [
        edge,
        half,
        alternating,
        generator.standard_normal(size),
        generator.standard_normal(size) * 1e-12,
        generator.standard_cauchy(size) * 1e6,
        np.full(size, huge),
        np.full(size, tiny),
        np.where(np.arange(size) == size // 2, huge, tiny),
        np.where(np.arange(size) == 0, 1.0, 1e-8),
        np.zeros(size),
    ]
    for value in (np.nan, np.inf, -np.inf):
        rows.append(np.where(np.arange(size) == size - 1, value, 1.0))
    return np.array(rows).astype(dtype)


@given(
    seed=seeds,
    size=st.integers(1, 300) | st.sampled_from([1_000, 4_097, 65_537, 100_000]),
    clip_norm=clip_norms | st.sampled_from([1e-100, 1e-30, 1e6]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@settings(deadline=None, max_examples=25)
def test_no_record_whatever_it_holds_is_longer_than_the_sensitivity(
    seed: int, size: int, clip_norm: float, dtype: type[np.floating[Any]]
) -> None:
    # Rows of about unit norm, and of about the clip norm.
    rows = adversarial(seed, size, dtype)
    with np.errstate(over="ignore"):
        both = [rows, (rows * np.float64(clip_norm)).astype(dtype)]
    for row in np.concatenate(both):
        assert length(units(row[None], clip_norm)) <= sensitivity(size)


@pytest.mark.parametrize("size", [1, 10, 100, 400])
def test_rounding_can_add_half_a_step_a_coordinate_so_the_dimension_counts(size: int) -> None:
    row = np.full((1, size), 0.5000001 * GRID_STEP)  # all round up
    excess = length(units(row)) - float(np.linalg.norm(row)) / GRID_STEP
    assert excess == pytest.approx(math.sqrt(size) / 2, rel=1e-6)


def test_the_clip_norm_is_reached() -> None:
    row = np.zeros((1, 7))
    row[0, 3] = -5.0
    assert units(row).tolist() == [0, 0, 0, -1_000_000, 0, 0, 0]


@given(
    rows=st.lists(
        st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=3, max_size=3),
        max_size=6,
    ),
    clip_norm=clip_norms,
)
@settings(deadline=None)
def test_a_sum_equals_a_slow_one_in_rationals(rows: list[list[float]], clip_norm: float) -> None:
    fast = units(np.array(rows, dtype=np.float32).reshape(-1, 3), clip_norm)
    slow = np.array([slow_units(row, clip_norm) for row in rows], dtype=np.int64).reshape(-1, 3)
    assert fast.dtype == np.int64
    # A tie between two integers may fall to either side.
    assert np.abs(fast - slow.sum(axis=0)).max() <= len(rows)
    assert np.abs(fast - slow.sum(axis=0)).sum() <= max(1, len(rows))


@given(seed=seeds, number=st.integers(1, 60), size=st.integers(1, 400), clip_norm=clip_norms)
@settings(deadline=None)
def test_a_record_moves_a_sum_by_its_own_integers_and_by_nothing_else(
    seed: int, number: int, size: int, clip_norm: float
) -> None:
    generator = np.random.default_rng(seed)
    rows = np.concatenate([vectors(seed, number, size, clip_norm), adversarial(seed, size, np.float64)])
    generator.shuffle(rows)
    place = int(generator.integers(len(rows)))
    moved = units(rows, clip_norm) - units(np.delete(rows, place, axis=0), clip_norm)
    assert np.array_equal(moved, units(rows[place : place + 1], clip_norm))
    assert length(moved) <= sensitivity(size)


@given(seed=seeds, number=st.integers(0, 40), size=st.integers(0, 200), clip_norm=clip_norms)
@settings(deadline=None)
def test_order_and_portions_change_no_bit(seed: int, number: int, size: int, clip_norm: float) -> None:
    generator = np.random.default_rng(seed)
    rows = vectors(seed, number, max(size, 1), clip_norm)[:, :size].astype(np.float32)
    total = GridSum(size, clip_norm=clip_norm)
    order = generator.permutation(number)
    for part in np.array_split(order, 3):
        total.add(rows[part])
    assert np.array_equal(total.units, units(rows, clip_norm))
    single = sum((units(row[None], clip_norm) for row in rows), np.zeros(size, dtype=np.int64))
    assert np.array_equal(total.units, single)


@pytest.mark.parametrize("size", [7, 1 << 16, (1 << 16) + 1])
def test_blocks_change_no_bit(size: int) -> None:
    rows = vectors(0, 5, size, 1.0)
    assert np.array_equal(units(rows), sum(units(row[None]) for row in rows))


def test_memory_that_is_not_aligned_or_contiguous_changes_no_bit() -> None:
    rows = vectors(1, 9, 91, 1.0)
    wide = np.zeros((9, 4 * 91 + 1))
    for shift in range(4):
        view = wide[:, shift : shift + 91]
        view[:] = rows
        assert np.array_equal(units(view), units(rows))
    assert np.array_equal(units(np.asfortranarray(rows)), units(rows))


@pytest.mark.parametrize("size", [0, 1, 100, 10**6])
def test_the_sensitivity_is_the_clip_norm_the_slack_and_the_rounding(size: int) -> None:
    assert sensitivity(size) == pytest.approx(1e6 * (1 + ARITHMETIC_SLACK) + size**0.5, rel=1e-14)


def test_rounding_a_sum_instead_of_its_records_needs_the_whole_root_and_is_covered() -> None:
    """What an engine would do that knows only the sum: both neighbours are rounded."""
    size = 10_000
    without, record = np.full(size, 0.49 * GRID_STEP), np.full(size, 0.02 * GRID_STEP)
    moved = np.rint((without + record) / GRID_STEP) - np.rint(without / GRID_STEP)
    assert np.linalg.norm(moved) == math.sqrt(size)
    assert np.linalg.norm(moved) > np.linalg.norm(record) / GRID_STEP + 0.9 * math.sqrt(size)
    assert np.linalg.norm(moved) <= sensitivity(size) - 1.0 / GRID_STEP


@given(seed=seeds, size=st.integers(0, 50), clip_norm=clip_norms)
@settings(deadline=None)
def test_the_result_is_the_sum_on_the_grid_plus_the_permits_noise(
    seed: int, size: int, clip_norm: float
) -> None:
    total = units(vectors(seed, 20, max(size, 1), clip_norm)[:, :size], clip_norm)
    result = noised_sum(
        total, clip_norm=clip_norm, noise_multiplier=1.3, entropy=SeededEntropy(seed, "label")
    )
    noise = SeededEntropy(seed, "label").noise(1.3 * sensitivity(size), size)
    gamma = clip_norm * GRID_STEP
    expected = [(int(value) + int(n)) * gamma for value, n in zip(total, noise, strict=True)]
    assert result.shape == (size,)
    assert result.dtype == np.float64
    assert np.array_equal(result, np.array(expected))


@given(seed=seeds, clip_norm=clip_norms)
@settings(deadline=None)
def test_without_noise_a_sum_is_off_by_at_most_half_a_step_a_record(seed: int, clip_norm: float) -> None:
    rows = vectors(seed, 20, 30, clip_norm)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    exact = (rows * np.minimum(1.0, clip_norm / np.maximum(norms, 1e-300))).sum(axis=0)
    result = noised_sum(
        units(rows, clip_norm), clip_norm=clip_norm, noise_multiplier=0.0, entropy=SecureEntropy()
    )
    assert np.abs(result - exact).max() <= 20 * 0.5 * clip_norm * GRID_STEP * (1 + 1e-6)


def test_two_neighbours_release_values_of_one_grid() -> None:
    """No low bits of a float tell which sum the noise was added to."""
    clip_norm = 0.37
    for rows in (np.zeros((1, 50)), np.random.default_rng(0).standard_normal((9, 50))):
        result = noised_sum(
            units(rows, clip_norm), clip_norm=clip_norm, noise_multiplier=1.0, entropy=SecureEntropy()
        )
        whole = np.rint(result / (clip_norm * GRID_STEP))
        assert np.array_equal(whole * (clip_norm * GRID_STEP), result)


def test_a_sum_that_is_not_integers_is_a_bug_and_is_never_released() -> None:
    with pytest.raises(AssertionError, match="integers by construction"):
        noised_sum(
            np.zeros(2),  # type: ignore[arg-type]
            clip_norm=1.0,
            noise_multiplier=1.0,
            entropy=SecureEntropy(),
        )


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf, 1e-101, 5e-324])
def test_a_clip_norm_that_the_analysis_does_not_cover_is_refused(clip_norm: float) -> None:
    with pytest.raises(PrivacyError, match="clip norm of at least 1e-100"):
        GridSum(3, clip_norm=clip_norm)


def test_more_coordinates_than_the_analysis_covers_are_refused() -> None:
    with pytest.raises(PrivacyError, match="2\\^28"):
        GridSum(2**28 + 1, clip_norm=1.0)


def test_the_slack_covers_the_error_that_is_derived_for_the_largest_size() -> None:
    assert (2**28 / 2 + 4) * 2.0**-53 < 2.0**-25 < ARITHMETIC_SLACK / 30


def test_large_batches_of_large_networks_stay_exact_in_integers() -> None:
    total = np.full(3, 10**12)  # a million records that all point the same way
    result = noised_sum(total, clip_norm=1.0, noise_multiplier=1e6, entropy=SecureEntropy())
    assert np.abs(result - 1e6).max() < 1e8
    assert np.isfinite(result).all()
